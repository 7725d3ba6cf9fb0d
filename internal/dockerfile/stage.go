package dockerfile

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/dockerfile/syntax"
	"github.com/kiln-build/kiln/llb"
)

// scratch is the base image that is empty.
const scratch = "scratch"

// stage is a stage of the file, or an image or context that an instruction
// names directly.
type stage struct {
	decl     *syntax.Stage // nil for what is named directly
	head     *syntax.Head  // where it is asked for
	nameSpan syntax.Span
	name     string // in lower case, "" if it has none
	label    string // the name in progress displays
	image    string // the base, variables replaced
	base     *stage // the base if it is a stage
	platform *ocispecs.Platform
	context  *namedContext // stands in for the whole stage

	baseSource *llb.SourceOp // the base if it is an image with files

	commands []command
	deps     []dependency

	resolved    bool // the base is known
	triggered   bool // ONBUILD triggers of the base are among the commands
	done        bool // may be copied from
	broken      bool // its variables are not known for an error
	ignoreCache bool
	steps, step int // how many steps have names, and the last one's number

	state      state
	config     *imageConfig
	baseConfig *imageConfig // of the image below all stages, nil if there is none
	declared   []syntax.ArgDecl
	isDeclared map[string]bool // by name
	triggers   int             // ONBUILDs among the commands
	argValues  map[string]string
	paths      map[string]bool // what is used of it; shared with its base
	workdirSet bool
	once       map[syntax.Verb]*syntax.Head
}

// state is what steps build on.
type state struct {
	edge llb.Edge
	env  environment
	dir  string
	user string
}

// command is an instruction of a stage.
type command struct {
	syntax.Instruction
	sources []*stage // of a COPY, or of each mount of a RUN
	trigger bool     // came from an ONBUILD
	foreign bool     // of an image, so its places are not in the file
}

// dependency is a stage that another reads from, and where it says so.
type dependency struct {
	on *stage
	at syntax.Span
}

// planStages makes the stages of the file.
func (l *lowering) planStages() error {
	l.lintDefaultArgs()
	l.byName = map[string]*stage{}
	for i, decl := range l.in.file.Stages {
		s, err := l.planStage(decl)
		if err != nil {
			if err := l.collect(err); err != nil {
				return err
			}
			continue
		}
		if s.label == "" {
			s.label = fmt.Sprintf("stage-%d", i)
		}
		l.stages = append(l.stages, s)
		if s.name != "" {
			l.byName[s.name] = s
		}
	}
	return l.collected()
}

func (l *lowering) planStage(decl *syntax.Stage) (*stage, error) {
	from := decl.From
	s := &stage{
		decl: decl, head: &from.Head, nameSpan: from.Image.Span,
		name: strings.ToLower(from.Name.Value), paths: map[string]bool{},
	}
	s.label = s.name
	x, err := l.expandGlobal(from.Image, &from.Head)
	if err != nil {
		return nil, err
	}
	if x.Text == "" {
		return nil, l.errorAt(from.Image.Span, fmt.Sprintf("base image %q is empty", from.Image.Value),
			fmt.Sprintf("an image, or ARGs above %s that make one", l.word(syntax.VerbFrom)), l.suggestArg(x.Unset))
	}
	s.image = x.Text
	if from.Platform != nil {
		if err := l.planPlatform(s, from); err != nil {
			return nil, err
		}
	}
	s.ignoreCache = l.in.opts.ignoresCache(s.name)
	if s.name != "" {
		if s.context, err = l.namedContext(s.name, l.platformOf(s)); err != nil || s.context != nil {
			return s, err
		}
	}
	s.base = l.byName[s.image]
	if s.image != scratch && s.base == nil {
		s.steps++
	}
	for _, i := range decl.Instructions {
		if isStep(i) {
			s.steps++
		}
	}
	return s, nil
}

// isStep reports whether an instruction counts among a stage's steps.
func isStep(i syntax.Instruction) bool {
	switch i.(type) {
	case *syntax.Copy, *syntax.Run, *syntax.Workdir:
		return true
	}
	return false
}

// planPlatform reads FROM --platform.
func (l *lowering) planPlatform(s *stage, from *syntax.From) error {
	x, err := l.expandGlobal(*from.Platform, &from.Head)
	if err != nil {
		return err
	}
	if x.Text == "" {
		return l.errorAt(from.Platform.Span, fmt.Sprintf("platform %q is empty", from.Platform.Value), "a platform such as linux/amd64", l.suggestArg(x.Unset))
	}
	p, err := platforms.Parse(x.Text)
	if err != nil {
		return l.errorAt(from.Platform.Span, fmt.Sprintf("platform %q is not known", x.Text), "a platform such as linux/amd64 or linux/arm64/v8", l.suggestArg(x.Unset))
	}
	s.platform = &p
	target, _ := l.args.Get("TARGETPLATFORM")
	switch {
	case len(x.Used) == 1 && len(x.Unset) == 0 && x.Used[0] == "TARGETPLATFORM" && x.Text == target:
		l.lint.remarkFix(ruleRedundantPlatform, &from.Head, from.Line, &fix{from.Flags[0].Span, ""}, "platform %s is the default", from.Platform.Value)
	case len(x.Used)+len(x.Unset) == 0 && !strings.Contains(s.name, p.OS) && !strings.Contains(s.name, p.Architecture):
		l.lint.remark(ruleConstPlatform, &from.Head, from.Line, "platform %q is constant", x.Text)
	}
	return nil
}

// expandGlobal expands a word of a FROM.
func (l *lowering) expandGlobal(t syntax.Text, h *syntax.Head) (syntax.Expanded, error) {
	x, err := l.expander().Expand(t.Value, l.args)
	if err != nil {
		return x, l.errorAt(t.Span, err.Error(), "", "")
	}
	for _, name := range x.Unset {
		if l.globals[name] {
			continue
		}
		hint := ""
		if near := l.suggestArg([]string{name}); near != "" {
			hint = " (did you mean " + near + "?)"
		}
		l.lint.remark(ruleUndefinedArgInFrom, h, h.Line, "argument %q is not declared above the first %s%s", name, l.word(syntax.VerbFrom), hint)
	}
	return x, nil
}

// suggestArg is the known argument nearest to one of the names.
func (l *lowering) suggestArg(names []string) string {
	if !l.mayCompare(len(names) * (len(l.args.index) + len(l.globals))) {
		return ""
	}
	known := l.args.keys()
	for name := range l.globals {
		known = append(known, name)
	}
	for _, name := range names {
		if near := syntax.Suggest(name, known); near != "" {
			return near
		}
	}
	return ""
}

// platformOf is the platform of a stage's base.
func (l *lowering) platformOf(s *stage) ocispecs.Platform {
	if s.platform != nil {
		return *s.platform
	}
	return l.in.target
}

// findTarget returns the stage to build.
func (l *lowering) findTarget() (*stage, error) {
	name := l.in.opts.target
	if name == "" {
		return l.stages[len(l.stages)-1], nil
	}
	if s, ok := l.byName[strings.ToLower(name)]; ok {
		return s, nil
	}
	expected := "the name of a stage, but no stage has one"
	if names := l.stageNames(); len(names) > 0 {
		expected = "one of " + strings.Join(names, ", ")
	}
	return nil, fmt.Errorf("target stage %q could not be found%s: expected %s",
		name, didYouMean(syntax.Suggest(name, l.stageNames())), expected)
}

func didYouMean(word string) string {
	if word == "" {
		return ""
	}
	return " (did you mean " + word + "?)"
}

// stageNames are the names of the file's stages in its order.
func (l *lowering) stageNames() []string {
	if l.names != nil {
		return l.names
	}
	l.names = []string{}
	for _, st := range l.in.file.Stages {
		if name := strings.ToLower(st.From.Name.Value); name != "" {
			l.names = append(l.names, name)
		}
	}
	return l.names
}

// planCommands finds what the instructions of all stages read from.
func (l *lowering) planCommands() error {
	for _, s := range l.stages[:len(l.in.file.Stages)] {
		for _, i := range s.decl.Instructions {
			c, err := l.planCommand(s, i)
			if err == nil {
				s.commands = append(s.commands, c)
				if _, isTrigger := i.(*syntax.Onbuild); isTrigger {
					s.triggers++
				}
			} else if err := l.collect(err); err != nil {
				return err
			}
		}
	}
	if err := l.collected(); err != nil {
		return err
	}
	if err := l.refuseCircles(); err != nil {
		return err
	}
	if len(l.stages) == 1 {
		l.stages[0].label = ""
	}
	return nil
}

// planCommand finds the sources of an instruction.
func (l *lowering) planCommand(s *stage, i syntax.Instruction) (command, error) {
	c := command{Instruction: i}
	switch i := i.(type) {
	case *syntax.Copy:
		if i.From == nil {
			return c, nil
		}
		src, err := l.copySource(s, i)
		if err != nil {
			return c, err
		}
		c.sources = []*stage{src}
		s.deps = append(s.deps, dependency{src, i.From.Span})
	case *syntax.Run:
		for _, m := range i.Mounts {
			from, err := l.mountFrom(m)
			if err != nil {
				return c, err
			}
			src := l.sourceStage(from, &i.Head, m.Span)
			c.sources = append(c.sources, src)
			s.deps = append(s.deps, dependency{src, m.Span})
		}
	}
	return c, nil
}

// copySource is the stage that COPY --from names.
func (l *lowering) copySource(s *stage, c *syntax.Copy) (*stage, error) {
	from := *c.From
	if x, err := l.expander().Expand(from.Value, syntax.NoVariables{}); err != nil || x.Text != from.Value {
		return nil, l.errorAt(from.Span, "variable expansion is not supported for --from, define a new stage with "+l.word(syntax.VerbFrom)+" using ARG from global scope as a workaround",
			"a stage or image without variables or quotes", "")
	}
	if from.Value == "" {
		return nil, l.errorAt(from.Span, "--from has no value", "a stage, an image or a named context", "")
	}
	if n, err := strconv.Atoi(from.Value); err == nil {
		declared := len(l.in.file.Stages)
		if n < 0 || n >= declared {
			return nil, l.errorAt(from.Span, fmt.Sprintf("there is no stage number %d", n), fmt.Sprintf("a number from 0 to %d", declared-1), "")
		}
		return l.stages[n], nil
	}
	return l.sourceStage(from.Value, &c.Head, from.Span), nil
}

// sourceStage returns the stage called name; where there is none, the name is
// that of an image or context.
func (l *lowering) sourceStage(name string, head *syntax.Head, at syntax.Span) *stage {
	if s, ok := l.byName[strings.ToLower(name)]; ok {
		return s
	}
	s := &stage{head: head, nameSpan: at, image: name, paths: map[string]bool{}}
	l.stages = append(l.stages, s)
	return s
}

// refuseCircles reports stages that need each other.
func (l *lowering) refuseCircles() error {
	const (
		unseen = iota
		open
		closed
	)
	colour := map[*stage]int{}
	var path []string
	var visit func(s *stage) error
	visit = func(s *stage) error {
		colour[s] = open
		path = append(path, s.label)
		next := s.deps
		if s.base != nil {
			next = append([]dependency{{s.base, s.nameSpan}}, next...)
		}
		for _, d := range next {
			if colour[d.on] == open {
				return l.errorAt(d.at, fmt.Sprintf("stages need each other: %s -> %s", strings.Join(path, " -> "), d.on.label),
					"a stage above this one", "")
			}
			if colour[d.on] == unseen {
				if err := visit(d.on); err != nil {
					return err
				}
			}
		}
		path = path[:len(path)-1]
		colour[s] = closed
		return nil
	}
	for _, s := range l.stages {
		if colour[s] == unseen {
			if err := visit(s); err != nil {
				return err
			}
		}
	}
	return nil
}
