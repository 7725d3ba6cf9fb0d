package dockerfile

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/kiln-build/kiln/internal/dockerfile/syntax"
	"github.com/kiln-build/kiln/llb"
)

// isMetadataArg tells arguments that steer the build and are not for its steps.
func isMetadataArg(name string) bool {
	return name == argScanContext || name == argScanStage
}

// pairs expands key=value pairs.
func (l *lowering) pairs(s *stage, h *syntax.Head, pairs []syntax.Pair) ([][2]string, error) {
	out := make([][2]string, len(pairs))
	for i, p := range pairs {
		key, err := l.expand(s, h, p.Key)
		if err != nil {
			return nil, err
		}
		if key == "" {
			return nil, l.errorAt(p.Key.Span, fmt.Sprintf("key %q is empty", p.Key.Value), "key=value", "")
		}
		value, err := l.expand(s, h, p.Value)
		if err != nil {
			return nil, err
		}
		if p.Legacy {
			l.lint.remarkFix(ruleLegacyKeyValue, h, h.Line, &fix{syntax.Span{Start: p.Key.Span.Start, End: p.Value.Span.End}, p.Key.Value + "=" + legacyValue(p.Value.Value)}, "%s key=value is better than %s key value", strings.ToUpper(h.Word.Value), strings.ToUpper(h.Word.Value))
		}
		out[i] = [2]string{key, value}
	}
	return out, nil
}

// legacyValue is what stands behind "key " as it stands behind "key=".
func legacyValue(v string) string {
	if strings.ContainsAny(v, " \t") && !strings.ContainsAny(v, `"'`) {
		return `"` + v + `"`
	}
	return v
}

func (l *lowering) lowerEnv(s *stage, i *syntax.Env) error {
	pairs, err := l.pairs(s, &i.Head, i.Pairs)
	if err != nil {
		return err
	}
	by := "ENV"
	for _, p := range pairs {
		if l.secrets.matches(p[0]) {
			l.lint.remark(ruleSecrets, &i.Head, i.Line, "ENV %q seems to hold a secret", p[0])
		}
		by += " " + p[0] + "=" + p[1]
		if err := l.spend(len(s.config.Config.Env), i.Line); err != nil {
			return err
		}
		s.state.env.set(p[0], p[1])
		s.config.setEnv(p[0], p[1])
	}
	s.config.commit(by, false, l.epoch)
	return nil
}

func (l *lowering) lowerLabel(s *stage, i *syntax.Label) error {
	pairs, err := l.pairs(s, &i.Head, i.Pairs)
	if err != nil {
		return err
	}
	if s.config.Config.Labels == nil {
		s.config.Config.Labels = map[string]string{}
	}
	by := "LABEL"
	for _, p := range pairs {
		by += " " + p[0] + "=" + p[1]
		s.config.Config.Labels[p[0]] = p[1]
	}
	s.config.commit(by, false, l.epoch)
	return nil
}

func (l *lowering) lowerArg(s *stage, i *syntax.Arg) error {
	by := "ARG"
	for _, a := range i.Args {
		key := a.Key.Value
		if l.secrets.matches(key) {
			l.lint.remark(ruleSecrets, &i.Head, i.Line, "ARG %q seems to hold a secret", key)
		}
		value, set := l.in.opts.buildArgs[key]
		switch {
		case set && key == epochArg && value != "":
			value, set = l.epochText, l.epochText != ""
		case set:
		case a.Default != nil:
			v, err := l.expand(s, &i.Head, *a.Default)
			if err != nil {
				return err
			}
			value, set = v, true
		default:
			value, set = l.args.Get(key)
		}
		s.declared, s.isDeclared[key] = append(s.declared, a), true
		by += " " + key
		if !set {
			continue
		}
		by += "=" + value
		s.argValues[key] = value
		if !isMetadataArg(key) {
			s.state.env.set(key, value)
		}
	}
	s.config.commit(by, false, l.epoch)
	return nil
}

// joinPath is a path inside the image, taken from a directory if it is relative.
func joinPath(dir, p string) string {
	if path.IsAbs(p) {
		return p
	}
	return path.Join("/", dir, p)
}

func (l *lowering) lowerWorkdir(s *stage, c command, i *syntax.Workdir) error {
	p, err := l.expand(s, &i.Head, i.Path)
	if err != nil {
		return err
	}
	if p, err = imagePath(s.platform.OS, p); err != nil {
		return l.errorAt(i.Path.Span, err.Error(), "", "")
	}
	if !s.workdirSet && !path.IsAbs(p) {
		l.lint.remark(ruleWorkdirRelative, &i.Head, i.Line, "path %q is relative to the base image's working directory", p)
	}
	s.workdirSet = true
	dir := joinPath(s.workingDir(), p)
	if s.platform.OS == windows {
		dir = path.Clean(dir)
	}
	s.config.Config.WorkingDir, s.state.dir = configPath(s.platform.OS, dir), dir
	if dir == "/" {
		s.config.commit("WORKDIR /", false, l.epoch)
		return nil
	}
	do := &llb.DoMkdir{Path: path.Clean(dir), Mode: 0o755, Parents: true, Timestamp: llb.UnixNano(l.epoch)}
	do.Owner = parseOwner(s.config.Config.User)
	name := l.stepName(s, triggerTitle(c, l.title(s, i.Code, l.expander(), &s.state.env)), s.platform, &s.state.env)
	s.state.edge = llb.Edge{Vertex: l.place(s, &i.Head, c, llb.BuildFile(s.state.edge, llb.FileStepFrom{Do: do}), name)}
	s.config.commit("WORKDIR "+dir, true, l.epoch)
	return nil
}

// workingDir is the config's working directory with slashes.
func (s *stage) workingDir() string {
	dir := s.config.Config.WorkingDir
	if s.platform.OS == windows {
		dir = strings.ReplaceAll(dir, `\`, "/")
	}
	return dir
}

func (l *lowering) lowerUser(s *stage, i *syntax.User) error {
	user, err := l.expand(s, &i.Head, i.User)
	if err != nil {
		return err
	}
	s.state.user, s.config.Config.User = user, user
	s.config.commit("USER "+user, false, l.epoch)
	return nil
}

func (l *lowering) lowerVolume(s *stage, i *syntax.Volume) error {
	paths, err := l.expandList(s, &i.Head, i.Paths)
	if err != nil {
		return err
	}
	if s.config.Config.Volumes == nil {
		s.config.Config.Volumes = map[string]struct{}{}
	}
	for n, p := range paths {
		if p == "" {
			return l.errorAt(i.Paths[n].Span, fmt.Sprintf("volume path %q is empty", i.Paths[n].Value), "a path", "")
		}
		s.config.Config.Volumes[p] = struct{}{}
	}
	s.config.commit(fmt.Sprintf("VOLUME %v", paths), false, l.epoch)
	return nil
}

// signals are the names of signal(7), but for those of real time.
var signals = []string{
	"ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL", "PROF", "PWR", "QUIT",
	"SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ",
	"RTMIN", "RTMAX",
}

// isSignal tells whether a word is a signal's name or number.
func isSignal(word string) bool {
	number := func(text string, least, most int) bool {
		n, err := strconv.Atoi(text)
		return err == nil && n >= least && n <= most && strconv.Itoa(n) == text
	}
	name := strings.TrimPrefix(strings.ToUpper(word), "SIG")
	if above, ok := strings.CutPrefix(name, "RTMIN+"); ok {
		return number(above, 0, 15)
	}
	if below, ok := strings.CutPrefix(name, "RTMAX-"); ok {
		return number(below, 0, 14)
	}
	return number(word, 1, 64) || slices.Contains(signals, name)
}

func (l *lowering) lowerStopSignal(s *stage, i *syntax.StopSignal) error {
	name, err := l.expand(s, &i.Head, i.Signal)
	if err != nil {
		return err
	}
	if !isSignal(name) {
		near := syntax.Suggest(name, []string{"SIGHUP", "SIGINT", "SIGKILL", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGWINCH"})
		return l.errorAt(i.Signal.Span, fmt.Sprintf("signal %q is not known", name), "a name such as SIGTERM or a number", near)
	}
	s.config.Config.StopSignal = name
	s.config.commit("STOPSIGNAL "+name, false, l.epoch)
	return nil
}

// commandLine is what CMD, ENTRYPOINT or a health check runs.
func (l *lowering) commandLine(s *stage, h *syntax.Head, c syntax.Command) []string {
	if c.JSON {
		return c.Strings()
	}
	if len(s.config.Config.Shell) == 0 && h.Verb != syntax.VerbHealthcheck {
		var mend *fix
		if list := execForm(strings.Join(c.Strings(), " ")); list != "" {
			mend = &fix{c.Span, list}
		}
		l.lint.remarkFix(ruleJSONArgs, h, h.Line, mend, "JSON form is recommended for %s, so that signals reach the command", strings.ToUpper(h.Word.Value))
	}
	return s.config.shellCommand(c.Strings())
}

// useOnce remarks on an instruction of which only the last counts.
func (l *lowering) useOnce(s *stage, h *syntax.Head) {
	if before := s.once[h.Verb]; before != nil {
		l.lint.remark(ruleMultipleUse, before, before.Line, "%s stands in this stage again, only the last one counts", strings.ToUpper(h.Word.Value))
	}
	s.once[h.Verb] = h
}

func (l *lowering) lowerCmd(s *stage, i *syntax.Cmd) {
	l.useOnce(s, &i.Head)
	args := l.commandLine(s, &i.Head, i.Command)
	s.config.Config.Cmd = args
	s.config.Config.ArgsEscaped = true //nolint:staticcheck // deprecated in OCI, but Docker's builders set it
	s.config.commit(fmt.Sprintf("CMD %q", args), false, l.epoch)
}

func (l *lowering) lowerEntrypoint(s *stage, i *syntax.Entrypoint) {
	l.useOnce(s, &i.Head)
	args := l.commandLine(s, &i.Head, i.Command)
	if len(args) == 0 {
		args = nil
	}
	s.config.Config.Entrypoint = args
	if s.once[syntax.VerbCmd] == nil {
		s.config.Config.Cmd = nil // the base's arguments were for the base's entrypoint
	}
	s.config.commit(fmt.Sprintf("ENTRYPOINT %q", args), false, l.epoch)
}

func (l *lowering) lowerHealthcheck(s *stage, i *syntax.Healthcheck) {
	l.useOnce(s, &i.Head)
	h := &healthcheck{
		Interval: i.Interval, Timeout: i.Timeout, StartPeriod: i.StartPeriod,
		StartInterval: i.StartInterval, Retries: i.Retries,
	}
	switch {
	case i.None:
		h.Test = []string{"NONE"}
	case i.Command.JSON:
		h.Test = append([]string{"CMD"}, i.Command.Strings()...)
	default:
		h.Test = append([]string{"CMD-SHELL"}, i.Command.Strings()...)
	}
	s.config.Config.Healthcheck = h
	s.config.commit(fmt.Sprintf("HEALTHCHECK %+v", *h), false, l.epoch)
}
