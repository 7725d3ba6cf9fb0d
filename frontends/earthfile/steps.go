package earthfile

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/kiln-build/kiln/llb"
)

// run runs a command.
func (f *frame) run(ctx context.Context, c *command) error {
	isPush := c.has("push")
	if isPush && f.Args[pushArg] != "true" {
		f.Warn(ctx, c.at, "RUN --push is left out: it runs with --build-arg "+pushArg+"=true")
		return nil
	}
	opts, err := f.process(ctx, c)
	if err != nil {
		return err
	}
	args := commandLine(c.raw)
	if c.has("entrypoint") {
		if args, err = f.behindEntrypoint(c); err != nil {
			return err
		}
	}
	opts = append(opts, llb.Args(args), f.step(c))
	st := f.out.image.State
	if !isPush {
		f.out.image.State = st.WithOutput(st.Run(opts...).Root().Output())
		return nil
	}
	if f.out.push != nil {
		st = *f.out.push
	}
	st = st.WithOutput(st.Run(append(opts, llb.IgnoreCache)...).Root().Output())
	f.out.push = &st
	return nil
}

// pushArg is the argument that says whether to run the commands of RUN --push.
const pushArg = "EARTHLY_PUSH"

// behindEntrypoint is a command as arguments of the image's entrypoint.
func (f *frame) behindEntrypoint(c *command) ([]string, error) {
	entrypoint := f.out.image.Config.Entrypoint
	if len(entrypoint) == 0 {
		return nil, errors.New("RUN --entrypoint has no entrypoint to run: expected ENTRYPOINT above, or an image that has one")
	}
	args := commandLine(c.raw)
	if strings.HasPrefix(c.raw, "[") && args[0] != "/bin/sh" {
		return append(slices.Clone(entrypoint), args...), nil
	}
	return append([]string{"/bin/sh", "-c", `"$@" ` + c.raw, "sh"}, entrypoint...), nil
}

// commandLine is a command in JSON, or else one for the shell.
func commandLine(raw string) []string {
	var args []string
	if strings.HasPrefix(raw, "[") && json.Unmarshal([]byte(raw), &args) == nil && len(args) > 0 {
		return args
	}
	return []string{"/bin/sh", "-c", raw}
}

// process is how the flags say to run a command.
func (f *frame) process(ctx context.Context, c *command) ([]llb.RunOption, error) {
	opts := append([]llb.RunOption{llb.With(f.environment())}, f.out.runs...)
	for _, fl := range c.flags {
		value := ""
		if kind := c.grammar.flags[fl.name]; kind != flagBool {
			var err error
			if value, err = f.expand(ctx, &command{verb: c.verb, at: c.at}, fl.value); err != nil {
				return nil, err
			}
		}
		if !c.has(fl.name) {
			continue
		}
		switch fl.name {
		case "mount":
			o, err := f.mount(value)
			if err != nil {
				return nil, f.File.Errorf(fl.value.at, "%w", err)
			}
			opts = append(opts, o)
		case "secret":
			name, id, ok := strings.Cut(value, "=")
			if !ok {
				id = name
			}
			opts = append(opts, secretVariable(name, strings.TrimPrefix(id, "+secrets/")))
		case "ssh":
			opts = append(opts, llb.AddSSHSocket())
		case "no-cache":
			opts = append(opts, llb.IgnoreCache)
		case "privileged":
			opts = append(opts, llb.With(llb.Security(llb.SecurityModeInsecure)))
		case "network":
			modes := map[string]llb.StateOption{"none": llb.Network(llb.NetModeNone), "host": llb.Network(llb.NetModeHost), "default": llb.Network(llb.NetModeSandbox)}
			if modes[value] == nil {
				return nil, f.File.Errorf(fl.value.at, "network is %q, expected none, host or default", value)
			}
			opts = append(opts, llb.With(modes[value]))
		}
	}
	return opts, nil
}

// secretVariable gives a command a secret as a variable.
func secretVariable(name, id string) llb.RunOption {
	return llb.AddSecretWithDest(id, nil, llb.SecretAsEnvName(name))
}

// mount reads what a command has mounted: type=TYPE,KEY=VALUE...
func (f *frame) mount(text string) (llb.RunOption, error) {
	m := map[string]string{}
	for part := range strings.SplitSeq(text, ",") {
		key, value, _ := strings.Cut(part, "=")
		if key == "dst" || key == "destination" {
			key = "target"
		}
		switch key {
		case "type", "target", "id", "sharing", "mode":
		default:
			return nil, fmt.Errorf("mount has the unknown key %s: %s", key, expected(key, []string{"type", "target", "id", "sharing", "mode"}))
		}
		m[key] = value
	}
	if m["target"] == "" {
		return nil, fmt.Errorf("mount has no target: expected type=%s,target=DIR", m["type"])
	}
	target := f.absolute(m["target"])
	id := m["id"]
	switch m["type"] {
	case "cache":
		return f.cache(target, id, m["sharing"])
	case "tmpfs":
		return llb.AddMount(target, llb.Scratch(), llb.Tmpfs()), nil
	case "secret":
		if id == "" {
			id = path.Base(target)
		}
		mode := cmp.Or(m["mode"], "0400")
		bits, err := strconv.ParseUint(mode, 8, 12)
		if err != nil {
			return nil, fmt.Errorf("mount has the mode %q: expected an octal number such as 0400", mode)
		}
		return llb.AddSecretWithDest(strings.TrimPrefix(id, "+secrets/"), &target, llb.SecretFileOpt(0, 0, int(bits))), nil
	case "ssh":
		return llb.AddSSHSocket(llb.SSHID(id), llb.SSHSocketTarget(target)), nil
	}
	return nil, fmt.Errorf("mount has the type %q: expected cache, tmpfs, secret or ssh", m["type"])
}

// cache mounts a folder that stays between builds. Without an id it is the target's
// own.
func (f *frame) cache(target, id, sharing string) (llb.RunOption, error) {
	modes := map[string]llb.CacheMountSharingMode{"": llb.CacheMountLocked, "locked": llb.CacheMountLocked, "shared": llb.CacheMountShared, "private": llb.CacheMountPrivate}
	mode, ok := modes[sharing]
	if !ok {
		return nil, fmt.Errorf("cache has sharing %q: expected locked, shared or private", sharing)
	}
	if id == "" {
		id = f.out.name + target
	}
	return llb.AddMount(target, llb.Scratch(), llb.AsPersistentCacheDir(id, mode)), nil
}

// absolute is a path in the container, with the slash at its end if it has one.
func (f *frame) absolute(name string) string {
	out := name
	if !path.IsAbs(name) {
		out = path.Join("/", f.out.image.Config.WorkingDir, name)
	}
	out = path.Clean(out)
	if out != "/" && (strings.HasSuffix(name, "/") || name == "." || strings.HasSuffix(name, "/.")) {
		out += "/"
	}
	return out
}

// copyInfo is how files are copied; into tells whether folders keep their names.
func copyInfo(contents bool) *llb.CopyInfo {
	return &llb.CopyInfo{CopyDirContentsOnly: contents, CreateDestPath: true, AllowWildcard: true}
}

// copy puts files of the context, or artifacts of targets, into the container.
func (f *frame) copy(ctx context.Context, c *command) error {
	if len(c.words) < 2 {
		return fmt.Errorf("COPY is %s: expected SOURCE... DEST, or +TARGET/ARTIFACT DEST", c.raw)
	}
	last := len(c.words) - 1
	dest, err := f.expand(ctx, c, c.words[last])
	if err != nil {
		return err
	}
	dest = f.absolute(dest)
	if (last > 1 || c.has("dir")) && !strings.HasSuffix(dest, "/") {
		dest += "/"
	}
	info, err := f.copyOptions(ctx, c)
	if err != nil {
		return err
	}
	sources, err := f.sources(ctx, c, c.words[:last])
	if err != nil {
		return err
	}
	var action *llb.FileAction
	for _, s := range sources {
		own := *info
		if s.artifact && !c.has("keep-own") && own.ChownOpt == nil {
			llb.WithUIDGID(0, 0).SetCopyOption(&own)
		}
		if own.AllowEmptyWildcard {
			s.path = optional(s.path)
		}
		if action == nil {
			action = llb.Copy(s.from, s.path, dest, &own)
		} else {
			action = action.Copy(s.from, s.path, dest, &own)
		}
	}
	f.out.image.State = f.out.image.State.File(action, f.step(c))
	return nil
}

// optional makes a path a pattern, which may match nothing.
func optional(p string) string {
	if n := len(p) - 1; n >= 0 && !strings.ContainsAny(p, `*?[\`) && p[n] != '/' && p[n] != '.' {
		return p[:n] + "[" + p[n:] + "]"
	}
	return p
}

func (f *frame) copyOptions(ctx context.Context, c *command) (*llb.CopyInfo, error) {
	info := copyInfo(!c.has("dir"))
	info.FollowSymlinks = !c.has("symlink-no-follow")
	info.AllowEmptyWildcard = c.has("if-exists")
	chmod, err := f.text(ctx, c, "chmod")
	if err != nil {
		return nil, err
	}
	if chmod != "" {
		mode, err := strconv.ParseUint(chmod, 8, 12)
		if err != nil {
			return nil, fmt.Errorf("chmod is %q, expected an octal number such as 0755", chmod)
		}
		info.Mode = &llb.ChmodOpt{Mode: os.FileMode(mode)}
	}
	chown, err := f.text(ctx, c, "chown")
	if chown != "" {
		llb.WithUser(chown).SetCopyOption(info)
	}
	return info, err
}

// source is what is copied.
type source struct {
	from     llb.State
	path     string
	artifact bool
}

// sources are the files of the context, as one directory, and artifacts.
func (f *frame) sources(ctx context.Context, c *command, words []word) ([]source, error) {
	var out []source
	var follow []string
	for _, w := range words {
		text := w.text
		args := []word(nil)
		if inner, ok := strings.CutPrefix(text, "("); ok {
			parts, err := line{text: strings.TrimSuffix(inner, ")"), at: w.at}.words(0)
			if err != nil || len(parts) == 0 {
				return nil, f.File.Errorf(w.at, "source is %s: expected (+TARGET/ARTIFACT --NAME=VALUE)", w.text)
			}
			text, args = parts[0].text, parts[1:]
		}
		name, err := f.expand(ctx, c, word{text: text, at: w.at})
		if err != nil {
			return nil, err
		}
		if args == nil && !strings.Contains(name, "+") {
			name = path.Clean("/" + name)
			follow = append(follow, strings.TrimPrefix(name, "/"))
			out = append(out, source{path: name})
			continue
		}
		s, err := f.artifact(ctx, c, w, name, args)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	if len(follow) > 0 {
		files, err := f.Context(ctx, llb.FollowPaths(follow))
		if err != nil {
			return nil, err
		}
		for i := range out {
			if !out[i].artifact {
				out[i].from = files
			}
		}
	}
	return out, nil
}

// artifact is what another target has saved.
func (f *frame) artifact(ctx context.Context, c *command, w word, name string, args []word) (source, error) {
	target, file, ok := strings.Cut(name, "/")
	if !ok || !strings.HasPrefix(target, "+") {
		if ok {
			target = name
		} else {
			return source{}, f.File.Errorf(w.at, "source %s names no artifact: expected %s/ARTIFACT", name, name)
		}
	}
	platform, err := f.platformOf(ctx, c)
	if err != nil {
		return source{}, err
	}
	m, err := f.call(ctx, c, w, target, args, platform)
	if err != nil {
		return source{}, err
	}
	if !m.saved {
		return source{}, f.File.Errorf(w.at, "target %s saves no artifacts: expected SAVE ARTIFACT in it", target)
	}
	return source{m.artifacts, path.Join("/", file), true}, nil
}
