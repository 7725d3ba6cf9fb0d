package dockerfile

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/kiln-build/kiln/internal/dockerfile/syntax"
	"github.com/kiln-build/kiln/llb"
)

// run is a RUN being lowered.
type run struct {
	op     llb.ExecOp
	mounts []llb.MountFrom
	masked []string // variables that hold secrets
}

func (l *lowering) lowerRun(s *stage, c command, i *syntax.Run) error {
	s.paths["/"] = true // a command may read anything
	if err := l.spend(s.state.env.size+len(i.Code)+32*len(s.declared), i.Line); err != nil {
		return err
	}
	r := &run{op: llb.ExecOp{
		Env: s.state.env.list(), Cwd: s.state.dir, User: s.state.user, RemoveStubs: true,
		Hostname: l.in.opts.hostname, ExtraHosts: l.in.opts.hosts, Ulimits: l.in.opts.ulimits,
		CgroupParent: l.in.opts.cgroupParent, Proxy: l.proxy, Network: l.in.opts.network,
	}, mounts: []llb.MountFrom{{Mount: llb.Mount{Dest: "/"}, From: s.state.edge}}}
	if r.op.Cwd == "" {
		r.op.Cwd = "/"
	}
	title := i.Code
	args, summary := l.runArgs(s, r, i)
	r.op.Args, title = args, title+summary
	for n, t := range i.Mounts {
		if err := l.addMount(s, r, &i.Head, t, c.sources[n]); err != nil {
			return err
		}
	}
	if err := l.runModes(s, r, i); err != nil {
		return err
	}
	if l.in.opts.shmSize > 0 {
		r.mounts = append(r.mounts, llb.MountFrom{Mount: llb.Mount{
			Kind: llb.MountTmpfs, Dest: "/dev/shm", TmpfsSize: l.in.opts.shmSize,
		}})
	}
	vars := &s.state.env
	if len(r.masked) > 0 {
		masked := vars.clone()
		for _, name := range r.masked {
			masked.set(name, "****")
		}
		vars = &masked
	}
	x := l.expander()
	x.KeepQuotes, x.SkipUnset = true, true
	name := l.stepName(s, triggerTitle(c, l.title(s, title, x, vars)), s.platform, &s.state.env)
	v := l.place(s, &i.Head, c, llb.BuildExec(r.op, r.mounts), name)
	v.Platform = s.platform
	v.Meta.IgnoreCache = s.ignoreCache
	if err := l.limit(s, i, v); err != nil {
		return err
	}
	s.state.edge = llb.Edge{Vertex: v}
	history := "RUN " + runHistory(s, args) + " # buildkit"
	s.config.commit(history, true, l.epoch)
	return l.spend(len(history), i.Line)
}

// runArgs is what a RUN runs, and what of its heredoc to show in its name.
func (l *lowering) runArgs(s *stage, r *run, i *syntax.Run) (args []string, summary string) {
	if i.Command.JSON {
		return i.Command.Strings(), ""
	}
	line := i.Command.Args[0].Value
	switch {
	case len(i.Heredocs) == 0:
	case len(i.Heredocs) == 1 && i.Heredocs[0].Word == i.Command.Span:
		// The heredoc is the whole command: it is the script.
		doc := i.Heredocs[0]
		summary = " (" + summarize(doc.Content) + ")"
		line = doc.Content
		if doc.Chomp {
			line = syntax.ChompTabs(line)
		}
		if strings.HasPrefix(line, "#!") && s.config.OS != windows {
			const dir = "/dev/pipes/"
			r.mounts = append(r.mounts, llb.MountFrom{
				Mount: llb.Mount{Dest: dir, Selector: "/", ReadOnly: true},
				From:  l.inlineFile(doc.Name.Value, []byte(line), 0o755),
			})
			line = dir + doc.Name.Value
		}
	default:
		// The shell reads the heredocs itself.
		for _, doc := range i.Heredocs {
			line += "\n" + doc.Content + doc.Name.Value
		}
	}
	return s.config.shellCommand([]string{line}), summary
}

// summarize is the first line of a heredoc.
func summarize(doc string) string {
	first, _, more := strings.Cut(strings.TrimSpace(strings.ReplaceAll(doc, "\r\n", "\n")), "\n")
	if more {
		first += "..."
	}
	return first
}

// addMount adds a RUN --mount.
func (l *lowering) addMount(s *stage, r *run, h *syntax.Head, t syntax.Text, src *stage) error {
	m, err := l.parseMount(s, h, t)
	if err != nil {
		return err
	}
	switch m.kind {
	case "secret":
		if s.platform.OS == windows {
			if err := m.windowsSecret(); err != nil {
				return l.errorAt(t.Span, err.Error(), "", "")
			}
		}
		m.secretInto(r)
	case "ssh":
		m.sshInto(r)
	default:
		files, err := l.files(s, m, src, t.Span)
		if err != nil {
			return err
		}
		r.mounts = append(r.mounts, files)
	}
	return nil
}

// runModes reads --network, --security and --device.
func (l *lowering) runModes(s *stage, r *run, i *syntax.Run) error {
	if i.Network != nil {
		network, err := l.expand(s, &i.Head, *i.Network)
		if err != nil {
			return err
		}
		switch network {
		case "default":
		case "host":
			r.op.Network = llb.NetHost
		case "none":
			r.op.Network = llb.NetNone
		default:
			return l.errorAt(i.Network.Span, fmt.Sprintf("network %q is not known", network), "default, none or host",
				syntax.Suggest(network, []string{"default", "none", "host"}))
		}
	}
	if i.Security != nil {
		security, err := l.expand(s, &i.Head, *i.Security)
		if err != nil {
			return err
		}
		switch security {
		case "sandbox":
		case "insecure":
			r.op.Security = llb.SecurityInsecure
		default:
			return l.errorAt(i.Security.Span, fmt.Sprintf("security mode %q is not known", security), "sandbox or insecure",
				syntax.Suggest(security, []string{"sandbox", "insecure"}))
		}
	}
	for _, t := range i.Devices {
		d, err := parseDevice(t.Value)
		if err != nil {
			return l.errorAt(t.Span, err.Error(), "", "")
		}
		r.op.Devices = append(r.op.Devices, d)
	}
	return nil
}

// parseDevice reads "name[,required]".
func parseDevice(v string) (llb.CDIDevice, error) {
	d := llb.CDIDevice{Optional: true}
	fields, err := csvFields(v)
	if err != nil {
		return d, fmt.Errorf("device %q: %w: expected NAME, and maybe ,required", v, err)
	}
	for _, f := range fields {
		key, value, hasValue := strings.Cut(f, "=")
		switch {
		case strings.EqualFold(key, "required"):
			required := true
			if hasValue {
				if required, err = strconv.ParseBool(value); err != nil {
					return d, fmt.Errorf("device key required has the value %q: expected true or false", value)
				}
			}
			d.Optional = !required
		case strings.EqualFold(key, "name") && hasValue && d.Name == "":
			d.Name = value
		case d.Name == "":
			d.Name = f // vendor.com/class=device has a = of its own
		default:
			return d, fmt.Errorf("device has no key %q: expected name or required", key)
		}
	}
	if d.Name == "" {
		return d, fmt.Errorf("device %q has no name: expected VENDOR/CLASS=DEVICE, and maybe ,required", v)
	}
	return d, nil
}

// runHistory is how the image's history tells of a run: with the build
// arguments that it could see.
func runHistory(s *stage, args []string) string {
	var names []string
	values := map[string]string{}
	for _, a := range s.declared {
		name := a.Key.Value
		if _, known := values[name]; !known {
			names = append(names, name)
		}
		if v, ok := s.state.env.Get(name); ok {
			values[name] = v
		} else {
			values[name] = s.argValues[name]
		}
	}
	var words []string
	if len(names) > 0 {
		words = append(words, "|"+strconv.Itoa(len(names)))
		for _, name := range names {
			words = append(words, name+"="+values[name])
		}
	}
	return strings.Join(append(words, args...), " ")
}
