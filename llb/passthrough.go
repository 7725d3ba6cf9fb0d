package llb

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/kiln-build/kiln/llb/pb"
)

// PassthroughOp hands inputs on as its outputs, for the sake of order.
type PassthroughOp struct {
	ID     string
	Output []int // input numbers
}

// Kind returns "passthrough".
func (*PassthroughOp) Kind() string { return "passthrough" }

// Name returns "passthrough" and the id.
func (o *PassthroughOp) Name() string { return "passthrough " + o.ID }

// Outputs returns how many inputs are handed on.
func (o *PassthroughOp) Outputs() int { return len(o.Output) }

func (o *PassthroughOp) verify(inputs int) error {
	if o.ID == "" {
		return errors.New("passthrough has no id")
	}
	if len(o.Output) == 0 {
		return errors.New("passthrough has no outputs")
	}
	for i, n := range o.Output {
		if n < 0 || n >= inputs {
			return fmt.Errorf("passthrough output %d is input number %d of %d", i, n, inputs)
		}
	}
	return nil
}

func (*PassthroughOp) caps(need func(string)) { need(CapPassthroughOp) }

func (o *PassthroughOp) encode(op *pb.Op) {
	m := &pb.PassthroughOp{Id: o.ID}
	for _, n := range o.Output {
		m.Outputs = append(m.Outputs, int64(n))
	}
	op.Op = &pb.Op_Passthrough{Passthrough: m}
}

func decodePassthrough(m *pb.PassthroughOp) *PassthroughOp {
	o := &PassthroughOp{ID: m.GetId()}
	for _, n := range m.GetOutputs() {
		o.Output = append(o.Output, number(n))
	}
	return o
}

// print names all inputs, also those that are only waited for, and then the
// numbers of those that are handed on.
func (o *PassthroughOp) print(r refs) form {
	f := form{head: []string{strconv.Quote(o.ID)}}
	if natural, ok := r.(*naturalRefs); ok {
		for n := range natural.vertex.Inputs {
			f.head = append(f.head, r.ref(n))
		}
	}
	numbers := make([]string, len(o.Output))
	for i, n := range o.Output {
		numbers[i] = strconv.Itoa(n)
	}
	f.tail = []string{"out=" + strings.Join(numbers, ",")}
	return f
}

func parsePassthrough(s *statement) (Op, error) {
	id, err := s.takeWord("id")
	if err != nil {
		return nil, err
	}
	op := &PassthroughOp{ID: id}
	for {
		_, found, err := s.takeInput()
		if err != nil {
			return nil, err
		}
		if !found {
			break
		}
	}
	i := slices.IndexFunc(s.head, func(t token) bool { return !t.quoted() && strings.HasPrefix(t.text, "out=") })
	if i < 0 {
		return nil, errors.New("passthrough has no out=")
	}
	for n := range strings.SplitSeq(strings.TrimPrefix(s.head[i].text, "out="), ",") {
		number, err := strconv.Atoi(n)
		if err != nil {
			return nil, fmt.Errorf("output %q is not a number", n)
		}
		op.Output = append(op.Output, number)
	}
	s.head = slices.Delete(s.head, i, i+1)
	return op, nil
}
