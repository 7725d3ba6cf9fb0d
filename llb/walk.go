package llb

import (
	"slices"

	digest "github.com/opencontainers/go-digest"
)

// descName is the description that names a vertex to people.
const descName = "llb.customname"

// Name is what to call the vertex in front of people: the custom name in its
// description, or else what its operation does.
func (v *Vertex) Name() string { return v.name(2) }

// name spells out the inputs of merges and diffs depth levels deep. Inputs may
// be shared, so that without a limit a name could grow exponentially.
func (v *Vertex) name(depth int) string {
	if name := v.Meta.Description[descName]; name != "" {
		return name
	}
	if depth == 0 {
		return v.Op.Name()
	}
	switch op := v.Op.(type) {
	case *MergeOp:
		text := "merge ("
		for i, in := range v.Inputs {
			if i > 0 {
				text += ", "
			}
			text += in.Vertex.name(depth - 1)
		}
		return text + ")"
	case *DiffOp:
		side := func(n int) string {
			if n < 0 || n >= len(v.Inputs) {
				return "scratch"
			}
			return "(" + v.Inputs[n].Vertex.name(depth-1) + ")"
		}
		return "diff " + side(op.Lower) + " -> " + side(op.Upper)
	}
	return v.Op.Name()
}

// Vertices lists the vertices that the root needs, each once, inputs before
// those that use them. The order is the one in which BuildKit's client library
// writes definitions.
func (g *Graph) Vertices() []*Vertex {
	order, _ := g.walk()
	return order
}

// walk is Vertices. It also reports whether the graph is free of cycles.
// It does not recurse, since foreign graphs may be hundreds of thousands deep.
func (g *Graph) walk() (order []*Vertex, acyclic bool) {
	if g.Root.Vertex == nil {
		return nil, true
	}
	type visit struct {
		vertex *Vertex
		inputs []int // still to be visited
	}
	const open, closed = 1, 2
	state := map[*Vertex]int{g.Root.Vertex: open}
	stack := []visit{{g.Root.Vertex, visitOrder(g.Root.Vertex)}}
	for len(stack) > 0 {
		top := &stack[len(stack)-1]
		if len(top.inputs) == 0 {
			state[top.vertex] = closed
			order = append(order, top.vertex)
			stack = stack[:len(stack)-1]
			continue
		}
		next := top.vertex.Inputs[top.inputs[0]].Vertex
		top.inputs = top.inputs[1:]
		switch {
		case next == nil || state[next] == closed:
		case state[next] == open:
			return order, false
		default:
			state[next] = open
			stack = append(stack, visit{next, visitOrder(next)})
		}
	}
	return order, true
}

// visitOrder lists the input numbers of v in the order in which BuildKit's
// client library visits them: as they are, except that it goes through the
// actions of a file operation from the last to the first.
func visitOrder(v *Vertex) []int {
	o := fileOrder{inputs: len(v.Inputs), order: make([]int, 0, len(v.Inputs)), taken: make([]bool, len(v.Inputs))}
	if op, ok := v.Op.(*FileOp); ok && len(v.Inputs) > 1 {
		o.visit(op.Actions)
	}
	for i := range v.Inputs {
		o.take(i)
	}
	return o.order
}

// fileOrder collects input numbers, each once.
type fileOrder struct {
	inputs int
	order  []int
	taken  []bool
}

func (o *fileOrder) take(n int) {
	if n >= 0 && n < o.inputs && !o.taken[n] {
		o.taken[n] = true
		o.order = append(o.order, n)
	}
}

// visit goes from the last action to the first. Of each it takes what its chain
// of actions began with, then what it copies from, be it an input or the chain
// that made it, then goes on with the action before it. The operation may not
// be verified yet: only results of earlier actions are followed.
func (o *fileOrder) visit(actions []FileStep) {
	result := func(n, of int) (int, bool) { n -= o.inputs; return n, n >= 0 && n < of }
	base := make([]int, len(actions))
	for i, a := range actions {
		base[i] = a.Input
		if before, ok := result(a.Input, i); ok {
			base[i] = base[before]
		}
	}
	seen := make([]bool, len(actions))
	stack := []int{len(actions) - 1}
	for len(stack) > 0 {
		i := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if i < 0 || seen[i] {
			continue
		}
		seen[i] = true
		o.take(base[i])
		if before, ok := result(actions[i].Input, i); ok {
			stack = append(stack, before)
		}
		if from, ok := result(actions[i].Secondary, i); ok {
			stack = append(stack, from)
		} else {
			o.take(actions[i].Secondary)
		}
	}
}

// Rewrite makes a new graph by passing each vertex, inputs first, through f.
// Before, edges of the vertex's inputs have been replaced by what they became:
// f gets the vertex itself if nothing has changed, else a copy. For each of its
// outputs f's edges say what takes its place; with a single edge, output i
// becomes output i of that edge's vertex. Source locations follow.
func (g *Graph) Rewrite(f func(*Vertex) ([]Edge, error)) (*Graph, error) {
	became := map[*Vertex][]Edge{}
	renamed := map[digest.Digest]digest.Digest{}
	follow := func(e Edge) Edge {
		if e.Vertex == nil {
			return e
		}
		switch to := became[e.Vertex]; {
		case len(to) == 1 && e.Index > 0:
			return Edge{Vertex: to[0].Vertex, Index: e.Index}
		case e.Index < len(to):
			return to[e.Index]
		default:
			return Edge{}
		}
	}
	for _, old := range g.Vertices() {
		v := old
		for i, in := range old.Inputs {
			if to := follow(in); to != in {
				if v == old {
					v = old.With(old.Op, slices.Clone(old.Inputs))
				}
				v.Inputs[i] = to
			}
		}
		edges, err := f(v)
		if err != nil {
			return nil, err
		}
		became[old] = edges
		if len(edges) > 0 && edges[0].Vertex != nil && edges[0].Vertex != old && len(g.Sources.Locations) > 0 {
			renamed[old.Digest()] = edges[0].Vertex.Digest()
		}
	}
	out := &Graph{Root: follow(g.Root), Sources: g.Sources}
	out.Sources.rename(renamed)
	return out, nil
}

// With returns a new vertex that has another operation and inputs and all else from v.
func (v *Vertex) With(op Op, inputs []Edge) *Vertex {
	return &Vertex{Op: op, Inputs: inputs, Platform: v.Platform, Workers: v.Workers, Meta: v.Meta}
}

// rename moves locations to the new digests of their vertices.
func (s *SourceIndex) rename(renamed map[digest.Digest]digest.Digest) {
	if len(renamed) == 0 || len(s.Locations) == 0 {
		return
	}
	locations := make(map[digest.Digest][]Location, len(s.Locations))
	for d, l := range s.Locations {
		if to, ok := renamed[d]; ok {
			d = to
		}
		locations[d] = append(locations[d], l...)
	}
	s.Locations = locations
}
