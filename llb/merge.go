package llb

import (
	"fmt"

	"github.com/kiln-build/kiln/llb/pb"
)

// MergeOp lays its inputs over each other, later ones on top.
type MergeOp struct{ Inputs []int }

// Kind returns "merge".
func (*MergeOp) Kind() string { return "merge" }

// Name returns "merge"; [Vertex.Name] says what of.
func (*MergeOp) Name() string { return "merge" }

// Outputs returns 1.
func (*MergeOp) Outputs() int { return 1 }

func (o *MergeOp) verify(inputs int) error {
	if len(o.Inputs) != inputs {
		return fmt.Errorf("merge of %d inputs has %d", len(o.Inputs), inputs)
	}
	for i, n := range o.Inputs {
		if n < 0 || n >= inputs {
			return fmt.Errorf("merge part %d is input number %d of %d", i, n, inputs)
		}
	}
	return nil
}

func (*MergeOp) caps(need func(string)) { need(CapMergeOp) }

func (o *MergeOp) encode(op *pb.Op) {
	m := &pb.MergeOp{}
	for _, n := range o.Inputs {
		m.Inputs = append(m.Inputs, &pb.MergeInput{Input: int64(n)})
	}
	op.Op = &pb.Op_Merge{Merge: m}
}

func decodeMerge(m *pb.MergeOp) *MergeOp {
	o := &MergeOp{}
	for _, in := range m.GetInputs() {
		o.Inputs = append(o.Inputs, number(in.GetInput()))
	}
	return o
}

func (o *MergeOp) print(r refs) form {
	var f form
	for _, n := range o.Inputs {
		f.head = append(f.head, r.ref(n))
	}
	return f
}

func parseMerge(s *statement) (Op, error) {
	op := &MergeOp{}
	for {
		n, found, err := s.takeInput()
		if err != nil || !found {
			return op, err
		}
		op.Inputs = append(op.Inputs, n)
	}
}
