package llb

import "fmt"

// Merge lays States over each other, later ones on top. Those of the empty file
// system do not count; of one State alone, Merge is that State.
func Merge(inputs []State, opts ...ConstraintsOpt) State {
	var parts []State
	for _, s := range inputs {
		if s.out != nil {
			parts = append(parts, s)
		}
	}
	switch len(parts) {
	case 0:
		return Scratch()
	case 1:
		return parts[0]
	}
	own := applied(opts)
	n := &node{own: own, make: func(b *builder) (*Vertex, error) {
		v := &Vertex{}
		op := &MergeOp{}
		for _, s := range parts {
			e, err := b.edge(s.out)
			if err != nil {
				return nil, err
			}
			if e.Vertex != nil {
				op.Inputs = append(op.Inputs, len(v.Inputs))
				v.Inputs = append(v.Inputs, e)
			}
		}
		v.Op = op
		return b.finish(v, own, nil), nil
	}}
	return parts[0].WithOutput(&nodeOutput{node: n})
}

// Diff returns what upper has that lower does not.
func Diff(lower, upper State, opts ...ConstraintsOpt) State {
	if lower.out == nil {
		if upper.out == nil {
			return Scratch()
		}
		return upper
	}
	own := applied(opts)
	n := &node{own: own, make: func(b *builder) (*Vertex, error) {
		v := &Vertex{}
		op := &DiffOp{}
		for _, side := range []struct {
			to   *int
			from State
		}{{&op.Lower, lower}, {&op.Upper, upper}} {
			e, err := b.edge(side.from.out)
			if err != nil {
				return nil, err
			}
			*side.to = None
			if e.Vertex != nil {
				*side.to = len(v.Inputs)
				v.Inputs = append(v.Inputs, e)
			}
		}
		v.Op = op
		return b.finish(v, own, nil), nil
	}}
	return lower.WithOutput(&nodeOutput{node: n})
}

// PassthroughInput is what a passthrough waits for.
type PassthroughInput struct {
	State  State
	Output bool // hand it on
}

// Passthrough is an operation that hands inputs on when all of them are there.
type Passthrough struct {
	node    *node
	outputs int
}

// NewPassthroughOp makes a passthrough. Inputs of the empty file system do not count.
func NewPassthroughOp(id string, inputs []PassthroughInput, opts ...ConstraintsOpt) *Passthrough {
	own := applied(opts)
	p := &Passthrough{}
	var parts []PassthroughInput
	for _, in := range inputs {
		if in.State.out == nil {
			continue
		}
		parts = append(parts, in)
		if in.Output {
			p.outputs++
		}
	}
	p.node = &node{own: own, make: func(b *builder) (*Vertex, error) {
		v := &Vertex{}
		op := &PassthroughOp{ID: id}
		for _, in := range parts {
			e, err := b.edge(in.State.out)
			if err != nil {
				return nil, err
			}
			if e.Vertex == nil {
				return nil, fmt.Errorf("passthrough %q: an input turned out to be the empty file system", id)
			}
			if in.Output {
				op.Output = append(op.Output, len(v.Inputs))
			}
			v.Inputs = append(v.Inputs, e)
		}
		v.Op = op
		return b.finish(v, own, nil), nil
	}}
	return p
}

// NewPassthrough is the first output of a passthrough.
func NewPassthrough(id string, inputs []PassthroughInput, opts ...ConstraintsOpt) State {
	return NewState(NewPassthroughOp(id, inputs, opts...).Output())
}

// Output returns the first output.
func (p *Passthrough) Output() Output { return p.OutputAt(0) }

// OutputAt returns one of the outputs.
func (p *Passthrough) OutputAt(i int) Output {
	if i < 0 || i >= p.outputs {
		return errOutput{fmt.Errorf("passthrough has no output %d", i)}
	}
	return &nodeOutput{node: p.node, index: func(Op) (int, error) { return i, nil }}
}

// Requires returns s, but only once deps are done.
func (s State) Requires(id string, deps ...State) State {
	if len(deps) == 0 {
		return s
	}
	inputs := []PassthroughInput{{State: s, Output: true}}
	for _, d := range deps {
		inputs = append(inputs, PassthroughInput{State: d})
	}
	return s.WithOutput(NewPassthroughOp(id, inputs).Output())
}
