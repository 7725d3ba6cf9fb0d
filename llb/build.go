package llb

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"

	"github.com/kiln-build/kiln/llb/pb"
)

// BuildOp evaluates a graph that an earlier step wrote.
type BuildOp struct {
	Inputs map[string]int // by name; "buildkit.llb.definition" holds the file
	Attrs  map[string]string
}

// BuildDefinition names the input of a BuildOp that holds the definition, and
// is the name of its file where the operation says no other.
const BuildDefinition = "buildkit.llb.definition"

// BuildInfo says how [Build] reads a definition.
type BuildInfo struct {
	Constraints
	DefinitionFilename string // "" for BuildDefinition
}

// BuildOption sets something of a BuildInfo.
type BuildOption func(*BuildInfo)

// BuildFilename is the name of the file that holds the definition.
func BuildFilename(name string) BuildOption {
	return func(i *BuildInfo) { i.DefinitionFilename = name }
}

// BuildConstraints sets constraints of the operation itself.
func BuildConstraints(opts ...ConstraintsOpt) BuildOption {
	return func(i *BuildInfo) {
		for _, o := range opts {
			o.SetConstraintsOption(&i.Constraints)
		}
	}
}

// Build makes of a State whose files hold a definition what that definition
// says: llb.Image("maker").Run(...).Root().With(llb.Build()).
func Build(opts ...BuildOption) StateOption {
	info := &BuildInfo{}
	for _, o := range opts {
		o(info)
	}
	info.addCap(CapBuildOpLLBFileName)
	return func(s State) State {
		n := &node{own: &info.Constraints, make: func(b *builder) (*Vertex, error) {
			from, err := b.edge(s.out)
			if err != nil {
				return nil, err
			}
			if from.Vertex == nil {
				return nil, errors.New("build: the empty file system holds no definition")
			}
			op := &BuildOp{Inputs: map[string]int{BuildDefinition: 0}}
			if info.DefinitionFilename != "" {
				op.Attrs = map[string]string{AttrBuildFilename: info.DefinitionFilename}
			}
			return b.finish(&Vertex{Op: op, Inputs: []Edge{from}}, &info.Constraints, b.platform(info.Platform)), nil
		}}
		return s.WithOutput(&nodeOutput{node: n})
	}
}

// Kind returns "build".
func (*BuildOp) Kind() string { return "build" }

// Name returns "build".
func (*BuildOp) Name() string { return "build" }

// Outputs returns 1.
func (*BuildOp) Outputs() int { return 1 }

func (o *BuildOp) verify(inputs int) error {
	if _, ok := o.Inputs[BuildDefinition]; !ok {
		return fmt.Errorf("build has no input named %q", BuildDefinition)
	}
	for name, n := range o.Inputs {
		if n < 0 || n >= inputs {
			return fmt.Errorf("build input %q is number %d of %d inputs", name, n, inputs)
		}
	}
	return nil
}

func (o *BuildOp) caps(need func(string)) {
	if o.Attrs[AttrBuildFilename] != "" {
		need(CapBuildOpLLBFileName)
	}
}

func (o *BuildOp) encode(op *pb.Op) {
	m := &pb.BuildOp{Builder: None, Attrs: o.Attrs}
	if len(o.Inputs) > 0 {
		m.Inputs = make(map[string]*pb.BuildInput, len(o.Inputs))
		for name, n := range o.Inputs {
			m.Inputs[name] = &pb.BuildInput{Input: int64(n)}
		}
	}
	op.Op = &pb.Op_Build{Build: m}
}

func decodeBuild(m *pb.BuildOp) (*BuildOp, error) {
	if m.GetBuilder() != None {
		return nil, fmt.Errorf("builder is %d, expected %d", m.GetBuilder(), None)
	}
	if m.GetDef() != nil {
		return nil, fmt.Errorf("build has a definition of its own, expected one in its input %q", BuildDefinition)
	}
	o := &BuildOp{Attrs: m.GetAttrs()}
	if len(m.GetInputs()) > 0 {
		o.Inputs = make(map[string]int, len(m.GetInputs()))
	}
	for name, in := range m.GetInputs() {
		if in == nil {
			return nil, fmt.Errorf("build input %q is nil", name)
		}
		o.Inputs[name] = number(in.GetInput())
	}
	return o, nil
}

// number makes an index of a wire number. What does not fit an int32 becomes
// one that no list is long enough for, so that bounds checks refuse it.
func number(n int64) int {
	if n < math.MinInt32 || n > math.MaxInt32 {
		return math.MaxInt32
	}
	return int(n)
}

func (o *BuildOp) print(r refs) form {
	f := form{tail: attrText(o.Attrs)}
	for _, name := range slices.Sorted(maps.Keys(o.Inputs)) {
		f.body = append(f.body, fmt.Sprintf("input %s %s", strconv.Quote(name), r.ref(o.Inputs[name])))
	}
	return f
}

func parseBuild(s *statement) (Op, error) {
	op := &BuildOp{}
	clauses, err := s.clauses("input")
	if err != nil {
		return nil, err
	}
	for _, c := range clauses {
		args, opts, err := c.take(2)
		if err != nil {
			return nil, err
		}
		if err := opts.done(); err != nil {
			return nil, err
		}
		n, err := s.input(args[1])
		if err != nil {
			return nil, err
		}
		if op.Inputs == nil {
			op.Inputs = map[string]int{}
		}
		op.Inputs[args[0].text] = n
	}
	op.Attrs, err = s.takeAttrs()
	return op, err
}
