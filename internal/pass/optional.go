package pass

import (
	"errors"
	"maps"
	"slices"

	digest "github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/llb"
)

// simplify replaces a merge of one part by that part, a merge of nothing and a
// diff of nothing by the empty file system, and a diff against nothing by its
// upper side.
func simplify(g *llb.Graph) (*llb.Graph, error) {
	return g.Rewrite(func(v *llb.Vertex) ([]llb.Edge, error) {
		v, err := withoutEmptyInputs(v)
		if err != nil {
			return nil, err
		}
		switch op := v.Op.(type) {
		case *llb.MergeOp:
			switch len(op.Inputs) {
			case 0:
				return []llb.Edge{{}}, nil
			case 1:
				return []llb.Edge{v.Inputs[op.Inputs[0]]}, nil
			}
		case *llb.DiffOp:
			switch {
			case op.Upper == llb.None && op.Lower == llb.None:
				return []llb.Edge{{}}, nil
			case op.Lower == llb.None:
				return []llb.Edge{v.Inputs[op.Upper]}, nil
			}
		}
		return keep(v)
	})
}

// withoutEmptyInputs removes inputs that became the empty file system.
func withoutEmptyInputs(v *llb.Vertex) (*llb.Vertex, error) {
	if !slices.ContainsFunc(v.Inputs, func(e llb.Edge) bool { return e.Vertex == nil }) {
		return v, nil
	}
	var left []llb.Edge
	moved := make([]int, len(v.Inputs)) // new numbers
	for i, e := range v.Inputs {
		moved[i] = llb.None
		if e.Vertex != nil {
			moved[i] = len(left)
			left = append(left, e)
		}
	}
	// Numbers from the count of inputs on name results of actions.
	to := func(n int) int {
		switch {
		case n < 0:
			return n
		case n >= len(moved):
			return n - len(moved) + len(left)
		default:
			return moved[n]
		}
	}
	op, err := renumber(v.Op, to)
	if err != nil {
		return nil, err
	}
	return v.With(op, left), nil
}

// renumber returns op with its input numbers passed through to.
func renumber(op llb.Op, to func(int) int) (llb.Op, error) {
	switch op := op.(type) {
	case *llb.ExecOp:
		changed := *op
		changed.Mounts = slices.Clone(op.Mounts)
		for i := range changed.Mounts {
			m := &changed.Mounts[i]
			if m.Input = to(m.Input); m.Input == llb.None && m.Selector != "" {
				return nil, errors.New("a mount selects a path of the empty file system")
			}
		}
		return &changed, nil
	case *llb.FileOp:
		changed := &llb.FileOp{Actions: slices.Clone(op.Actions)}
		for i := range changed.Actions {
			a := &changed.Actions[i]
			a.Input, a.Secondary, a.Do = to(a.Input), to(a.Secondary), llb.WithOwnerInputs(a.Do, to)
		}
		return changed, nil
	case *llb.MergeOp:
		changed := &llb.MergeOp{}
		for _, n := range op.Inputs {
			if n = to(n); n != llb.None {
				changed.Inputs = append(changed.Inputs, n)
			}
		}
		return changed, nil
	case *llb.DiffOp:
		return &llb.DiffOp{Lower: to(op.Lower), Upper: to(op.Upper)}, nil
	default:
		return nil, errors.New("an input of " + op.Name() + " is the empty file system")
	}
}

// dedupe makes vertices of equal digest one. What is said of any is said of it.
func dedupe(g *llb.Graph) (*llb.Graph, error) {
	first := map[digest.Digest]*llb.Vertex{}
	said := map[digest.Digest]llb.Metadata{}
	double := false
	for _, v := range g.Vertices() {
		d := v.Digest()
		if known := first[d]; known != nil {
			double = true
			said[d] = merged(said[d], v.Meta, known.Caps(), v.Caps())
			continue
		}
		first[d], said[d] = v, v.Meta
	}
	if !double {
		return g, nil
	}
	one := map[digest.Digest]*llb.Vertex{}
	return g.Rewrite(func(v *llb.Vertex) ([]llb.Edge, error) {
		d := v.Digest()
		if one[d] == nil {
			one[d] = v
			if meta := said[d]; !sameMeta(meta, v.Meta) {
				one[d] = v.With(v.Op, v.Inputs)
				one[d].Meta = meta
			}
		}
		return keep(one[d])
	})
}

// sameMeta compares what merged may change.
func sameMeta(a, b llb.Metadata) bool {
	return a.IgnoreCache == b.IgnoreCache && a.NoExport == b.NoExport && a.ForceExport == b.ForceExport &&
		maps.Equal(a.Description, b.Description) && maps.Equal(a.Caps, b.Caps) && (a.Caps == nil) == (b.Caps == nil) &&
		a.Group == b.Group && a.Resources == b.Resources && a.Timeout == b.Timeout
}

// merged is a with what b adds. The first wins where only one can.
func merged(a, b llb.Metadata, aCaps, bCaps map[string]bool) llb.Metadata {
	a.IgnoreCache = a.IgnoreCache || b.IgnoreCache
	a.ForceExport = a.ForceExport || b.ForceExport
	a.NoExport = a.NoExport && b.NoExport
	if len(b.Description) > 0 {
		both := maps.Clone(b.Description)
		maps.Copy(both, a.Description)
		a.Description = both
	}
	if !maps.Equal(aCaps, bCaps) {
		a.Caps = maps.Clone(aCaps)
		maps.Copy(a.Caps, bCaps)
	}
	if a.Group == nil {
		a.Group = b.Group
	}
	if a.Resources == nil {
		a.Resources = b.Resources
	}
	if a.Timeout == 0 {
		a.Timeout = b.Timeout
	}
	return a
}

// pruneSources drops places in files of vertices that are not in the graph, and
// files that nothing refers to.
func pruneSources(g *llb.Graph) (*llb.Graph, error) {
	if len(g.Sources.Files) == 0 && len(g.Sources.Locations) == 0 {
		return g, nil
	}
	out := &llb.Graph{Root: g.Root}
	moved := map[int]int{}
	for _, v := range g.Vertices() {
		d := v.Digest()
		if _, done := out.Sources.Locations[d]; done {
			continue
		}
		for _, l := range g.Sources.Locations[d] {
			n, ok := moved[l.File]
			if !ok {
				n = len(moved)
				moved[l.File] = n
				out.Sources.Files = append(out.Sources.Files, g.Sources.Files[l.File])
			}
			if out.Sources.Locations == nil {
				out.Sources.Locations = map[digest.Digest][]llb.Location{}
			}
			out.Sources.Locations[d] = append(out.Sources.Locations[d], llb.Location{File: n, Ranges: l.Ranges})
		}
	}
	return out, nil
}
