package dockerfile

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/dockerfile/syntax"
	"github.com/kiln-build/kiln/llb"
)

// descriptionCommand is the description that holds the instruction itself.
const descriptionCommand = "com.docker.dockerfile.v1.command"

// lowerStages lowers the stages that the target needs, in the file's order.
func (l *lowering) lowerStages() error {
	for _, s := range l.stages {
		if s.decl != nil {
			for _, i := range s.decl.Instructions {
				if a, ok := i.(*syntax.Arg); ok {
					for _, d := range a.Args {
						l.consumed[d.Key.Value] = true
					}
				}
			}
		}
	}
	for _, s := range l.stages {
		if !l.reached[s] || s.done {
			continue
		}
		if err := l.spendOnBase(s); err != nil {
			return err
		}
		s.initialize()
		if s.platform == nil {
			s.platform = &l.in.target
		}
		s.done = true
		l.openBase(s)
		s.inherit()
		if s.base != nil && s.base.broken {
			s.broken = true // nothing is known of its variables
			continue
		}
		for _, c := range s.commands {
			err := l.lowerCommand(s, c)
			if err == nil {
				continue
			}
			if err := l.collect(l.relocate(err, c, s)); err != nil {
				return err
			}
			if setsVariables(c.Instruction) {
				s.broken = true
				break // what follows may be wrong for that alone
			}
		}
	}
	return l.collected()
}

// setsVariables tells whether other instructions may depend on what an
// instruction sets.
func setsVariables(i syntax.Instruction) bool {
	switch i.(type) {
	case *syntax.Arg, *syntax.Env:
		return true
	}
	return false
}

// maxEffort bounds the bytes that a file becomes: what variables expand to, and
// what is repeated for each stage and step. A small file can otherwise grow to
// any size, by stages on stages and variables made of variables.
const maxEffort = 256 << 20

// spend counts bytes against maxEffort.
func (l *lowering) spend(n int, at syntax.Span) error {
	if l.effort += n; l.effort > maxEffort {
		return l.errorAt(at, fmt.Sprintf("file grows to more than %d MiB here", maxEffort>>20), "fewer or shorter variables, or fewer stages on stages", "")
	}
	return nil
}

// maxComparisons bounds how many words and patterns are compared for remarks and
// suggestions: their number grows with the square of the file's length.
const maxComparisons = 200_000

// mayCompare counts comparisons against maxComparisons.
func (l *lowering) mayCompare(n int) bool {
	l.comparisons += n
	return l.comparisons <= maxComparisons
}

// spendOnBase counts what a stage takes over from the one below.
func (l *lowering) spendOnBase(s *stage) error {
	c := s.config
	if s.base != nil {
		c = s.base.config
	}
	const entry = 64 // bytes of a list's entry, about
	return l.spend(entry*(len(c.History)+len(c.Config.Env)+len(c.Config.Labels)), s.nameSpan)
}

// initialize takes over from the stage below.
func (s *stage) initialize() {
	s.argValues, s.isDeclared = map[string]string{}, map[string]bool{}
	s.once = map[syntax.Verb]*syntax.Head{}
	b := s.base
	if b == nil {
		return
	}
	s.state.edge, s.state.dir, s.state.user = b.state.edge, b.state.dir, b.state.user
	s.state.env = b.state.env.clone()
	s.platform = b.platform
	s.config, s.baseConfig = b.config.clone(), b.baseConfig
	s.config.Config.OnBuild = nil // its triggers were for this stage alone
	s.paths = b.paths
	s.workdirSet = b.workdirSet
	s.declared = slices.Clone(b.declared)
	maps.Copy(s.isDeclared, b.isDeclared)
	maps.Copy(s.argValues, b.argValues)
}

// inherit starts a stage with the settings of its base's config.
func (s *stage) inherit() {
	if !s.config.hasEnv("PATH") && s.platform.OS != windows {
		s.config.Config.Env = append(s.config.Config.Env, "PATH="+llb.DefaultPath)
	}
	for _, kv := range s.config.Config.Env {
		k, v, _ := strings.Cut(kv, "=")
		s.state.env.set(k, v)
	}
	if dir := s.config.Config.WorkingDir; dir != "" {
		if clean, err := imagePath(s.platform.OS, dir); err == nil { // else it stays as it is
			dir = clean
		}
		s.state.dir = joinPath("/", dir)
		s.config.Config.WorkingDir = configPath(s.platform.OS, s.state.dir)
	}
	if user := s.config.Config.User; user != "" {
		s.state.user = user
	}
}

// lowerCommand lowers one instruction.
func (l *lowering) lowerCommand(s *stage, c command) error {
	switch i := c.Instruction.(type) {
	case *syntax.Run:
		return l.lowerRun(s, c, i)
	case *syntax.Copy:
		return l.lowerCopy(s, c, i)
	case *syntax.Workdir:
		return l.lowerWorkdir(s, c, i)
	case *syntax.Env:
		return l.lowerEnv(s, i)
	case *syntax.Label:
		return l.lowerLabel(s, i)
	case *syntax.Arg:
		return l.lowerArg(s, i)
	case *syntax.User:
		return l.lowerUser(s, i)
	case *syntax.Volume:
		return l.lowerVolume(s, i)
	case *syntax.Expose:
		return l.lowerExpose(s, i)
	case *syntax.StopSignal:
		return l.lowerStopSignal(s, i)
	case *syntax.Cmd:
		l.lowerCmd(s, i)
	case *syntax.Entrypoint:
		l.lowerEntrypoint(s, i)
	case *syntax.Healthcheck:
		l.lowerHealthcheck(s, i)
	case *syntax.Shell:
		s.config.Config.Shell = syntax.Values(i.Args)
		s.config.commit(fmt.Sprintf("SHELL %v", s.config.Config.Shell), false, l.epoch)
	case *syntax.Maintainer:
		s.config.Author = i.Name.Value
		s.config.commit("MAINTAINER "+i.Name.Value, false, l.epoch)
	case *syntax.Onbuild:
		s.config.Config.OnBuild = append(s.config.Config.OnBuild, i.Trigger)
	default:
		h := syntax.HeadOf(i)
		return l.errorAt(h.Word.Span, fmt.Sprintf("%s cannot be built yet", strings.ToUpper(h.Word.Value)), "", "")
	}
	return nil
}

// expand replaces the variables of a token by the stage's.
func (l *lowering) expand(s *stage, h *syntax.Head, t syntax.Text) (string, error) {
	x, err := l.expandAll(s, h, t)
	return x.Text, err
}

func (l *lowering) expandAll(s *stage, h *syntax.Head, t syntax.Text) (syntax.Expanded, error) {
	x, err := l.expander().Expand(t.Value, &s.state.env)
	if err != nil {
		return x, l.errorAt(t.Span, err.Error(), "", "")
	}
	l.lintUnset(s, h, x.Unset)
	return x, l.spend(len(x.Text), t.Span)
}

// lintUnset remarks on variables that are used but not set.
func (l *lowering) lintUnset(s *stage, h *syntax.Head, unset []string) {
	for _, name := range unset {
		if isMetadataArg(name) || s.isDeclared[name] {
			continue
		}
		hint := ""
		if l.mayCompare(len(s.state.env.index)) {
			if near := syntax.Suggest(name, s.state.env.keys()); near != "" {
				hint = " (did you mean $" + near + "?)"
			}
		}
		l.lint.remark(ruleUndefinedVar, h, h.Line, "variable $%s is not set%s", name, hint)
	}
}

// expandList expands several tokens, all with the variables as they are before
// the instruction.
func (l *lowering) expandList(s *stage, h *syntax.Head, list []syntax.Text) ([]string, error) {
	out := make([]string, len(list))
	for i, t := range list {
		v, err := l.expand(s, h, t)
		if err != nil {
			return nil, err
		}
		out[i] = v
	}
	return out, nil
}

// expandOptional expands a token that may not be there.
func (l *lowering) expandOptional(s *stage, h *syntax.Head, t *syntax.Text) (string, error) {
	if t == nil {
		return "", nil
	}
	return l.expand(s, h, *t)
}

// title is the name of an instruction's step: the instruction with variables replaced.
func (l *lowering) title(s *stage, code string, x syntax.Expander, vars syntax.Variables) string {
	if e, err := x.Expand(code, vars); err == nil {
		code = e.Text
	}
	word, rest, found := strings.Cut(code, " ")
	if !found {
		return strings.ToUpper(word)
	}
	return strings.ToUpper(word) + " " + rest
}

// stepName counts a step and puts its number and stage before its title, as in
// "[build 2/4] RUN make".
func (l *lowering) stepName(s *stage, title string, on *ocispecs.Platform, env *environment) string {
	if s.steps == 0 {
		return title
	}
	s.step++
	return l.numbered(s, title, on, env)
}

// numbered is stepName without counting.
func (l *lowering) numbered(s *stage, title string, on *ocispecs.Platform, env *environment) string {
	if s.steps == 0 {
		return title
	}
	var b strings.Builder
	b.WriteByte('[')
	if l.in.opts.multiPlatform && on != nil {
		b.WriteString(platforms.FormatAll(*on) + crossSuffix(*on, env) + " ")
	}
	if s.label != "" {
		b.WriteString(s.label + " ")
	}
	width := 1 + int(math.Log10(float64(s.steps)))
	fmt.Fprintf(&b, "%*d/%d] ", width, s.step, s.steps)
	return b.String() + title
}

// triggerTitle marks the title of a step that an ONBUILD made.
func triggerTitle(c command, title string) string {
	if c.trigger {
		return "ONBUILD " + title
	}
	return title
}

// place names a step's vertex and notes where it was written.
func (l *lowering) place(s *stage, h *syntax.Head, c command, v *llb.Vertex, name string) *llb.Vertex {
	v.Meta.Description = map[string]string{"llb.customname": name, descriptionCommand: h.Code}
	at := h.Span
	if c.trigger {
		at = s.head.Span
	}
	l.places = append(l.places, place{v, at})
	return v
}
