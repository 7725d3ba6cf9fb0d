package op

import (
	"context"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/solver"
	"github.com/kiln-build/kiln/llb"
)

// mergeOp lays its inputs over each other.
type mergeOp struct {
	base
	op *llb.MergeOp
}

func (o *mergeOp) CacheMap(context.Context) (solver.CacheMap, error) {
	d, err := mergeDigest(o.op)
	return solver.CacheMap{Digest: d}, err
}

func (o *mergeOp) Exec(ctx context.Context, inputs []solver.Result) ([]solver.Result, error) {
	ins := refs(inputs)
	var parts []*layer.Ref
	for _, i := range o.op.Inputs {
		parts = append(parts, ins[i])
	}
	ref, err := o.worker.Layers.Merge(withSessions(ctx), parts)
	return []solver.Result{ref}, err
}

// diffOp takes one input's files out of another's.
type diffOp struct {
	base
	op *llb.DiffOp
}

func (o *diffOp) CacheMap(context.Context) (solver.CacheMap, error) {
	d, err := diffDigest(o.op)
	return solver.CacheMap{Digest: d}, err
}

func (o *diffOp) Exec(ctx context.Context, inputs []solver.Result) ([]solver.Result, error) {
	ins := refs(inputs)
	side := func(i int) *layer.Ref {
		if i == llb.None {
			return nil
		}
		return ins[i]
	}
	ref, err := o.worker.Layers.Diff(withSessions(ctx), side(o.op.Lower), side(o.op.Upper))
	return []solver.Result{ref}, err
}

// passthroughOp hands inputs on.
type passthroughOp struct {
	base
	op *llb.PassthroughOp
}

func (o *passthroughOp) CacheMap(context.Context) (solver.CacheMap, error) {
	d, err := passthroughDigest(o.op)
	return solver.CacheMap{Digest: d, Keep: solver.KeepDigests}, err
}

func (o *passthroughOp) Exec(_ context.Context, inputs []solver.Result) (out []solver.Result, err error) {
	for _, i := range o.op.Output {
		out = append(out, inputs[i])
	}
	return out, nil
}
