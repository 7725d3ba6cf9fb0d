package dockerfile

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/containerd/platforms"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/dockerfile/syntax"
	"github.com/kiln-build/kiln/llb"
)

// input is all that a lowering depends on but the facts of the world.
type input struct {
	file     *syntax.File
	words    syntax.Words
	opts     *options
	target   ocispecs.Platform // to build for
	build    ocispecs.Platform // to build on
	implicit bool              // nobody asked for the target platform
	all      bool              // lower the stages that the target does not need, too
	context  *llb.Edge         // the main context; nil is the client's directory
	// contextOp is where the main context comes from; nil unless it is remote.
	contextOp *llb.SourceOp
	inputs    map[string]*llb.Graph
}

// facts are what was found out about the world so far.
type facts struct {
	images  map[string]*imageFact
	ignores map[string][]string   // patterns of .dockerignore files, by ignoreQuery.key
	times   map[string]*time.Time // nil for what has none, by timeQuery.key
}

func newFacts() *facts {
	return &facts{images: map[string]*imageFact{}, ignores: map[string][]string{}, times: map[string]*time.Time{}}
}

// imageFact is an image: the source, pinned, and the config.
type imageFact struct {
	op     llb.SourceOp
	config []byte
}

// imageQuery asks for an image.
type imageQuery struct {
	op         llb.SourceOp
	platform   ocispecs.Platform
	mode, log  string
	name       string      // as the file has it
	at         syntax.Span // where
	stages     []string    // that the name may have been meant to be
	laterStage int         // line of a stage of this name that comes too late
}

func (q imageQuery) key() string {
	return strings.Join([]string{q.op.Identifier, q.op.Attrs["oci.store"], platforms.FormatAll(q.platform)}, " ")
}

// ignoreQuery asks for the .dockerignore file of a client's directory.
type ignoreQuery struct {
	local, hint, title string
	at                 syntax.Span
	optional           bool // nothing depends on it yet: it may be missing
}

func (q ignoreQuery) key() string { return q.local + " " + q.hint }

// need is what has to be found out before a file can be lowered.
type need struct {
	images  []imageQuery
	ignores []ignoreQuery
	times   []timeQuery
}

func (n *need) empty() bool { return len(n.images) == 0 && len(n.ignores) == 0 && len(n.times) == 0 }

// lowered is what a file becomes for one platform.
type lowered struct {
	graph   *llb.Graph
	config  *imageConfig
	base    *imageConfig
	epoch   *time.Time
	remarks []remark
	plan    *lowering // what it was made by, for who asks about the file
}

// lowering is one run of lower.
type lowering struct {
	in    *input
	facts *facts
	need  *need
	lint  *linter

	args    *environment    // arguments above the first FROM and the platform's
	globals map[string]bool // declared above the first FROM
	epoch   *time.Time
	// epochText is the epoch in seconds, "" if there is none.
	epochText string
	effort    int // bytes made so far, see spend
	// comparisons are those made so far, see mayCompare.
	comparisons int
	proxy       *llb.ProxyEnv
	secrets     secretName

	stages  []*stage
	names   []string // of those of the file; nil if not needed yet
	byName  map[string]*stage
	target  *stage
	reached map[*stage]bool

	context  llb.Edge // the main context
	mainUse  *localUse
	locals   []localUse
	sources  map[string]llb.Edge // sources by what they are, to have each once
	places   []place
	consumed map[string]bool // build arguments that some ARG declares
	problems syntax.Errors   // found so far, see collect
}

// place is where a vertex was written.
type place struct {
	vertex *llb.Vertex
	at     syntax.Span
}

// lower makes a Dockerfile a graph for one platform. With an error come at least
// the remarks that were made before. It does no I/O: where it
// lacks facts, it returns what it needs instead, as much of it as can be known,
// and is to be called again with it.
func lower(in *input, f *facts) (*lowered, *need, error) {
	l := &lowering{
		in: in, facts: f, need: &need{}, lint: &linter{words: in.words, source: in.file.Source, config: in.opts.check},
		proxy: in.opts.proxy(), secrets: newSecretName(),
		sources: map[string]llb.Edge{}, consumed: map[string]bool{},
	}
	remarks := func() *lowered { return &lowered{remarks: l.lint.remarks} }
	for _, step := range []func() error{
		l.readChecks, l.globalArgs, l.readEpoch, l.planStages, l.planTarget, l.planCommands, l.resolveStages,
	} {
		if err := step(); err != nil {
			return remarks(), nil, err
		}
	}
	l.expectContext()
	if !l.need.empty() {
		return nil, l.need, nil
	}
	l.openContext()
	if err := l.lowerStages(); err != nil {
		return remarks(), nil, err
	}
	out, err := l.finish()
	if err != nil || !l.need.empty() {
		return remarks(), l.need, err
	}
	out.plan = l
	return out, l.need, nil
}

func (l *lowering) expander() syntax.Expander { return syntax.Expander{Escape: l.in.file.Escape} }

// errorAt is an error at a place of the file.
func (l *lowering) errorAt(at syntax.Span, message, expected, suggest string) error {
	return &syntax.Error{Source: l.in.file.Source, Span: at, Message: message, Expected: expected, Suggest: suggest}
}

// maxProblems is how many errors of one file are collected.
const maxProblems = 50

// collect keeps an error at a place of the file, so that the others are found as
// well. It returns what ends the lowering at once.
func (l *lowering) collect(err error) error {
	at, ok := err.(*syntax.Error) //nolint:errorlint // one with a cause of its own is not kept
	if !ok || l.effort > maxEffort {
		return err
	}
	l.problems = append(l.problems, at)
	if len(l.problems) >= maxProblems {
		return l.collected()
	}
	return nil
}

// collected are the errors that were kept, in the order of the file.
func (l *lowering) collected() error {
	if len(l.problems) == 0 {
		return nil
	}
	slices.SortStableFunc(l.problems, func(a, b *syntax.Error) int { return a.Span.Start - b.Span.Start })
	return l.problems
}

// relocate moves an error of a trigger that came with an image to the FROM that
// brought it.
func (l *lowering) relocate(err error, c command, s *stage) error {
	var e *syntax.Error
	if !c.foreign || !errors.As(err, &e) {
		return err
	}
	return l.errorAt(s.nameSpan, fmt.Sprintf("ONBUILD trigger %q of %s: %s", syntax.HeadOf(c.Instruction).Code, s.image, e.Text()), "", "")
}

func (l *lowering) readChecks() error {
	if l.lint.config == nil {
		for _, d := range l.in.file.Directives {
			if d.Name != "check" {
				continue
			}
			c, err := parseCheck(d.Value)
			if err != nil {
				return l.errorAt(d.Span, err.Error(), "", "")
			}
			l.lint.config = c
		}
	}
	l.lint.lintFile(l.in.file)
	return nil
}

// globalArgs evaluates the ARGs above the first FROM.
func (l *lowering) globalArgs() error {
	stages := l.in.file.Stages
	target := l.in.opts.target
	if target == "" {
		target = strings.ToLower(stages[len(stages)-1].From.Name.Value)
	}
	l.args = platformArgs(l.in.build, l.in.target, target, l.in.opts.buildArgs)
	l.globals = map[string]bool{}
	for _, inst := range l.in.file.Global {
		for _, a := range inst.Args {
			l.globals[a.Key.Value] = true
			l.consumed[a.Key.Value] = true
			if v, ok := l.in.opts.buildArgs[a.Key.Value]; ok {
				l.args.set(a.Key.Value, v)
				continue
			}
			if a.Default == nil {
				continue
			}
			x, err := l.expander().Expand(a.Default.Value, l.args)
			if err != nil {
				return l.errorAt(a.Default.Span, err.Error(), "", "")
			}
			l.args.set(a.Key.Value, x.Text)
		}
	}
	return nil
}

func (l *lowering) planTarget() (err error) {
	l.target, err = l.findTarget()
	return err
}

// image looks up what is known of an image, and asks for it otherwise.
func (l *lowering) image(q imageQuery) *imageFact {
	if f, ok := l.facts.images[q.key()]; ok {
		return f
	}
	l.need.images = append(l.need.images, q)
	return nil
}

// ignore looks up the patterns of a .dockerignore file, and asks for them otherwise.
func (l *lowering) ignore(q ignoreQuery) (patterns []string, known bool) {
	patterns, known = l.facts.ignores[q.key()]
	if !known {
		l.need.ignores = append(l.need.ignores, q)
	}
	return patterns, known
}

// sourceKey tells sources apart.
func sourceKey(op llb.SourceOp) string {
	key := op.Identifier
	for _, a := range slices.Sorted(maps.Keys(op.Attrs)) {
		key += " " + a + "=" + op.Attrs[a]
	}
	return key
}

// source makes a source vertex, or returns the one that there is already.
func (l *lowering) source(op llb.SourceOp, p *ocispecs.Platform, title string, head *syntax.Head) llb.Edge {
	key := sourceKey(op)
	if p != nil {
		key += " " + platforms.FormatAll(*p)
	}
	if e, ok := l.sources[key]; ok {
		return e
	}
	v := &llb.Vertex{Op: &op, Platform: p, Meta: llb.Metadata{Description: map[string]string{"llb.customname": title}}}
	if head != nil {
		v.Meta.Description[descriptionCommand] = head.Code
		l.places = append(l.places, place{v, head.Span})
	}
	e := llb.Edge{Vertex: v}
	l.sources[key] = e
	return e
}

// mainIgnore asks for the .dockerignore file of the main context.
func mainIgnore() ignoreQuery {
	return ignoreQuery{
		local: contextName, hint: contextName + "-.dockerignore", title: "[internal] load .dockerignore",
	}
}

// openContext makes the main context's vertex. What is to be transferred of it
// is filled in at the end, before anyone else sees the vertex.
func (l *lowering) openContext() {
	if l.in.context != nil {
		l.context = *l.in.context
		return
	}
	v := l.in.opts.localVertex(contextName, "[internal] load build context", map[string]string{
		"local.sharedkeyhint": contextName,
	})
	l.mainUse = &localUse{vertex: v, paths: map[string]bool{}}
	l.mainUse.patterns = l.facts.ignores[mainIgnore().key()]
	l.context = llb.Edge{Vertex: v}
}

// expectContext asks for the main context's ignore file as soon as a stage that
// is needed copies from there, so that it comes together with the images. It is
// asked for even if none does, as BuildKit's frontend asks, whose provenance
// names the context of every build; then it need not be there.
func (l *lowering) expectContext() {
	if l.in.context != nil {
		return
	}
	for s := range l.reached {
		for _, c := range s.commands {
			if i, ok := c.Instruction.(*syntax.Copy); ok && i.From == nil && len(i.Sources) > 0 {
				l.ignore(mainIgnore())
				return
			}
		}
	}
	q := mainIgnore()
	q.optional = true
	l.ignore(q)
}

// useContext notes that a path of the main context is read.
func (l *lowering) useContext(path string) {
	if l.mainUse != nil {
		l.mainUse.paths[path] = true
	}
}

// finish completes the graph and the config.
func (l *lowering) finish() (*lowered, error) {
	if l.mainUse != nil && len(l.mainUse.paths) == 0 && l.scansContext() {
		l.useContext("/")
	}
	if l.mainUse != nil && len(l.mainUse.paths) > 0 {
		l.ignore(mainIgnore()) // known, or needed
		l.locals = append(l.locals, *l.mainUse)
	}
	l.target.paths["/"] = true
	for _, u := range l.locals {
		if err := u.finish(); err != nil {
			return nil, err
		}
	}
	l.lintBuildArgs()
	if err := l.lint.err(); err != nil && l.in.opts.request != requestLint {
		return nil, err
	}
	g := &llb.Graph{Root: l.target.state.edge}
	g.Sources = l.sourceIndex()
	return &lowered{
		graph: g, config: l.finalConfig(), base: l.target.baseConfig, epoch: l.epoch, remarks: l.lint.remarks,
	}, nil
}

// sourceIndex says where the vertices were written.
func (l *lowering) sourceIndex() llb.SourceIndex {
	src := l.in.file.Source
	index := llb.SourceIndex{Files: []llb.SourceFile{src.LLB()}, Locations: map[digest.Digest][]llb.Location{}}
	for _, p := range l.places {
		d := p.vertex.Digest()
		index.Locations[d] = append(index.Locations[d], llb.Location{Ranges: src.LineRanges(p.at)})
	}
	return index
}

// finalConfig is the target's config with the labels and platform of the request.
func (l *lowering) finalConfig() *imageConfig {
	c := l.target.config
	if len(l.in.opts.labels) > 0 && c.Config.Labels == nil {
		c.Config.Labels = map[string]string{}
	}
	maps.Copy(c.Config.Labels, l.in.opts.labels)
	if !l.in.implicit {
		t := l.in.target
		same := c.OS == t.OS && c.Architecture == t.Architecture
		c.OS, c.Architecture = t.OS, t.Architecture
		if t.Variant != "" || !same {
			c.Variant = t.Variant
		}
		if t.OSVersion != "" || !same {
			c.OSVersion = t.OSVersion
		}
		if t.OSFeatures != nil {
			c.OSFeatures = t.OSFeatures
		}
	}
	if c.OS == "" || c.Architecture == "" {
		c.Platform = l.in.target
	}
	c.Platform = platforms.Normalize(c.Platform)
	return c
}

// lintBuildArgs remarks on build arguments that nothing declares, where the
// name is near one that something does.
func (l *lowering) lintBuildArgs() {
	var declared []string
	for name := range l.consumed {
		declared = append(declared, name)
	}
	first := &l.in.file.Stages[0].From.Head
	for name := range l.in.opts.buildArgs {
		if l.consumed[name] {
			continue
		}
		if near := syntax.Suggest(name, declared); near != "" {
			if _, given := l.in.opts.buildArgs[near]; !given {
				l.lint.remark(ruleUnknownBuildArg, first, first.Line, "build argument %s is not declared (did you mean %s?)", name, near)
			}
		}
	}
}

// word is the language's name of an instruction.
func (l *lowering) word(v syntax.Verb) string { return l.in.words.Name(v) }
