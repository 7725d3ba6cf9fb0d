package op

import (
	"context"
	"errors"
	"fmt"
	"slices"

	digest "github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/safepath"
	"github.com/kiln-build/kiln/internal/solver"
	"github.com/kiln-build/kiln/llb"
)

// mostNested is how deep builds may be inside each other.
const mostNested = 16

// buildOp evaluates a graph that a step wrote into a file (BuildKit's
// solver/llbsolver/ops/build.go).
//
// It waits for steps of other graphs, which no other operation does. So its run is
// shared with no other vertex, and what waits for what is known within the job: a build
// that is inside itself is found out when its graph is read, by way of the builds around
// it, and of those that the job is at (nested.go).
type buildOp struct {
	base
	op    *llb.BuildOp
	job   *Job
	above []digest.Digest // the builds that this one is in, the outermost first
}

func newBuildOp(b base, o *llb.BuildOp, job *Job, above []digest.Digest) (*buildOp, error) {
	if slices.Contains(above, b.vertex.Digest()) {
		return nil, errInsideItself
	}
	if len(above) >= mostNested {
		return nil, fmt.Errorf("more than %d builds inside each other", mostNested)
	}
	return &buildOp{b, o, job, above}, nil
}

func (o *buildOp) CacheMap(context.Context) (solver.CacheMap, error) {
	d, err := buildDigest(o.op)
	return solver.CacheMap{Digest: d, Nested: true}, err
}

// Exec reads the definition and has the job evaluate it.
func (o *buildOp) Exec(ctx context.Context, inputs []solver.Result) ([]solver.Result, error) {
	n := o.op.Inputs[llb.BuildDefinition]
	g, err := o.read(ctx, refs(inputs)[n])
	if err != nil {
		return nil, err
	}
	leave, err := o.job.nested.enter(o.vertex.Digest(), g)
	if err != nil {
		return nil, err
	}
	defer leave()
	ctx = context.WithValue(ctx, aroundKey{}, append(slices.Clone(o.above), o.vertex.Digest()))
	ref, err := o.job.Build(ctx, g)
	if err != nil {
		return nil, err
	}
	return []solver.Result{ref}, nil
}

// read reads the graph from a file of ref.
func (o *buildOp) read(ctx context.Context, ref *layer.Ref) (_ *llb.Graph, err error) {
	name := o.op.Attrs[llb.AttrBuildFilename]
	if name == "" {
		name = llb.BuildDefinition
	}
	dir, release, err := o.worker.Layers.Mount(withSessions(ctx), ref)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, release()) }()
	root, err := safepath.Open(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read definition: %w", err)
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("read definition: %s is not a regular file", name)
	}
	def, err := llb.ReadFrom(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	g, err := llb.Unmarshal(def.ToPB())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return g, nil
}

type aroundKey struct{}

// BuildsAround are the builds that ctx's graph was found in, for [Worker.Edge].
func BuildsAround(ctx context.Context) []digest.Digest {
	above, _ := ctx.Value(aroundKey{}).([]digest.Digest)
	return above
}

func buildDigest(o *llb.BuildOp) (string, error) {
	type input struct {
		Input int `json:"input,omitempty"`
	}
	type build struct {
		Builder int               `json:"builder,omitempty"`
		Inputs  map[string]input  `json:"inputs,omitempty"`
		Attrs   map[string]string `json:"attrs,omitempty"`
	}
	b := build{Builder: llb.None, Inputs: map[string]input{}, Attrs: o.Attrs}
	for name, n := range o.Inputs {
		b.Inputs[name] = input{n}
	}
	return digestJSON(struct {
		Type string
		Exec build
	}{"buildkit.build.v0", b})
}
