// Command cue makes LLB of a description in CUE and writes it to its output:
//
//	go run . build.cue | kiln build --local context=. --output type=image,name=...
//
// The schema that descriptions must meet is Kiln's own llb/pb/ops.proto, as CUE's
// importer reads it: a wrong name or value is an error at its line of the
// description. A step names the steps that it needs, which become the digests
// that an operation's inputs have.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"

	"cuelang.org/go/cue"
	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/cuecontext"
	cueerrors "cuelang.org/go/cue/errors"
	"cuelang.org/go/cue/format"
	"cuelang.org/go/encoding/protobuf"
	digest "github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/llb/pb"
)

// frame says what a description is, beside what the operations are.
const frame = `
#Step: {
	op:      #Op
	inputs?: [...string]  // names of steps whose first result this one uses
	name?:   string       // what progress shows
}
#Build: {
	steps: [string]: #Step
	result: string        // the step whose files are the build's
}
`

func main() {
	ops := flag.String("proto", "../../llb/pb/ops.proto", "`FILE` that says what operations are")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: cue [-proto FILE] DESCRIPTION")
		os.Exit(2)
	}
	if err := run(*ops, flag.Arg(0), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "cue:", err)
		os.Exit(1)
	}
}

func run(ops, description string, to io.Writer) error {
	text, err := os.ReadFile(description)
	if err != nil {
		return err
	}
	build, err := load(ops, description, text)
	if err != nil {
		return err
	}
	def, err := marshal(build)
	if err != nil {
		return err
	}
	return llb.WriteTo(def, to)
}

// step is a part of a description.
type step struct {
	op     *pb.Op
	inputs []string
	name   string
}

// description is a build as it was described.
type description struct {
	steps  map[string]step
	result string
}

// load reads a description and holds it against the schema.
func load(ops, file string, text []byte) (*description, error) {
	schema, err := schemaOf(ops)
	if err != nil {
		return nil, err
	}
	ctx := cuecontext.New()
	scope := ctx.CompileBytes(schema, cue.Filename(ops))
	if scope.Err() != nil {
		return nil, fmt.Errorf("compile schema: %w", scope.Err())
	}
	value := ctx.CompileBytes(text, cue.Filename(file)).Unify(scope.LookupPath(cue.ParsePath("#Build")))
	if err := value.Validate(cue.Concrete(true)); err != nil {
		return nil, fmt.Errorf("check %s:\n%s", file, cueerrors.Details(err, nil))
	}
	d := &description{steps: map[string]step{}}
	if d.result, err = value.LookupPath(cue.ParsePath("result")).String(); err != nil {
		return nil, err
	}
	fields, err := value.LookupPath(cue.ParsePath("steps")).Fields()
	if err != nil {
		return nil, err
	}
	for fields.Next() {
		s, err := decode(fields.Value())
		if err != nil {
			return nil, fmt.Errorf("step %s: %w", fields.Selector().Unquoted(), err)
		}
		d.steps[fields.Selector().Unquoted()] = s
	}
	return d, nil
}

// schemaOf is the .proto file in CUE, and the frame.
func schemaOf(ops string) ([]byte, error) {
	file, err := protobuf.Extract(ops, nil, &protobuf.Config{})
	if err != nil {
		return nil, fmt.Errorf("import %s: %w", ops, err)
	}
	file.Decls = slices.DeleteFunc(file.Decls, func(d ast.Decl) bool {
		_, isPackage := d.(*ast.Package)
		return isPackage
	})
	schema, err := format.Node(file)
	if err != nil {
		return nil, err
	}
	return append(schema, frame...), nil
}

// decode reads a step. JSON is what CUE and protobuf have in common.
func decode(v cue.Value) (s step, err error) {
	data, err := v.LookupPath(cue.ParsePath("op")).MarshalJSON()
	if err != nil {
		return s, err
	}
	s.op = &pb.Op{}
	if err := protojson.Unmarshal(data, s.op); err != nil {
		return s, err
	}
	if inputs := v.LookupPath(cue.ParsePath("inputs")); inputs.Exists() {
		if err := inputs.Decode(&s.inputs); err != nil {
			return s, err
		}
	}
	if name := v.LookupPath(cue.ParsePath("name")); name.Exists() {
		s.name, err = name.String()
	}
	return s, err
}

// marshaler makes a definition of steps, those that a step needs before it.
type marshaler struct {
	*description
	def     *llb.Definition
	digests map[string]digest.Digest
	within  []string // steps whose needs are being met
}

func marshal(d *description) (*llb.Definition, error) {
	m := &marshaler{d, &llb.Definition{Metadata: map[digest.Digest]llb.OpMetadata{}}, map[string]digest.Digest{}, nil}
	root, err := m.step(d.result)
	if err != nil {
		return nil, err
	}
	if _, err := m.add(&pb.Op{Inputs: []*pb.Input{{Digest: string(root)}}}); err != nil {
		return nil, err
	}
	if _, err := llb.Unmarshal(m.def.ToPB()); err != nil {
		return nil, fmt.Errorf("the description makes no valid build: %w", err)
	}
	return m.def, nil
}

func (m *marshaler) step(name string) (digest.Digest, error) {
	if d, ok := m.digests[name]; ok {
		return d, nil
	}
	s, ok := m.steps[name]
	if !ok {
		return "", fmt.Errorf("there is no step %q", name)
	}
	if slices.Contains(m.within, name) {
		return "", errors.New("step " + name + " needs itself")
	}
	m.within = append(m.within, name)
	for _, input := range s.inputs {
		d, err := m.step(input)
		if err != nil {
			return "", err
		}
		s.op.Inputs = append(s.op.Inputs, &pb.Input{Digest: string(d)})
	}
	m.within = m.within[:len(m.within)-1]
	d, err := m.add(s.op)
	if err != nil {
		return "", fmt.Errorf("step %s: %w", name, err)
	}
	if s.name != "" {
		m.def.Metadata[d] = llb.OpMetadata{Description: map[string]string{"llb.customname": s.name}}
	}
	m.digests[name] = d
	return d, nil
}

// add encodes an operation. Its digest is that of these bytes.
func (m *marshaler) add(op *pb.Op) (digest.Digest, error) {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(op)
	if err != nil {
		return "", err
	}
	m.def.Def = append(m.def.Def, data)
	return digest.FromBytes(data), nil
}
