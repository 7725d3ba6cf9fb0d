package llb

import (
	"errors"
	"fmt"

	"github.com/kiln-build/kiln/llb/pb"
)

// DiffOp is what Upper has that Lower does not; either may be None.
type DiffOp struct{ Lower, Upper int }

// Kind returns "diff".
func (*DiffOp) Kind() string { return "diff" }

// Name returns "diff"; [Vertex.Name] says what of.
func (*DiffOp) Name() string { return "diff" }

// Outputs returns 1.
func (*DiffOp) Outputs() int { return 1 }

func (o *DiffOp) verify(inputs int) error {
	sides := 0
	for _, side := range []struct {
		name string
		n    int
	}{{"lower", o.Lower}, {"upper", o.Upper}} {
		if side.n == None {
			continue
		}
		sides++
		if side.n < 0 || side.n >= inputs {
			return fmt.Errorf("diff %s is input number %d of %d", side.name, side.n, inputs)
		}
	}
	if sides != inputs {
		return fmt.Errorf("diff of %d sides has %d inputs", sides, inputs)
	}
	return nil
}

func (*DiffOp) caps(need func(string)) { need(CapDiffOp) }

func (o *DiffOp) encode(op *pb.Op) {
	op.Op = &pb.Op_Diff{Diff: &pb.DiffOp{
		Lower: &pb.LowerDiffInput{Input: int64(o.Lower)},
		Upper: &pb.UpperDiffInput{Input: int64(o.Upper)},
	}}
}

func decodeDiff(m *pb.DiffOp) (*DiffOp, error) {
	if m.GetLower() == nil || m.GetUpper() == nil {
		return nil, errors.New("diff lacks its lower or upper side")
	}
	return &DiffOp{Lower: number(m.Lower.GetInput()), Upper: number(m.Upper.GetInput())}, nil
}

func (o *DiffOp) print(r refs) form {
	lower := r.ref(o.Lower)
	return form{head: []string{lower, r.ref(o.Upper)}}
}

func parseDiff(s *statement) (Op, error) {
	op := &DiffOp{}
	for _, side := range []*int{&op.Lower, &op.Upper} {
		n, found, err := s.takeInput()
		if err != nil {
			return nil, err
		}
		if !found {
			return nil, errors.New("expected a lower and an upper side")
		}
		*side = n
	}
	return op, nil
}
