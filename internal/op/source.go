package op

import (
	"context"
	"fmt"
	"slices"
	"strings"

	digest "github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/solver"
	"github.com/kiln-build/kiln/internal/source"
	"github.com/kiln-build/kiln/llb"
)

// sourceOp brings files in.
type sourceOp struct {
	base
	op       *llb.SourceOp
	source   source.Source
	mode     string
	writable bool
	pinned   func(*llb.Vertex, *source.Pin) // nil for nobody

	pin *source.Pin // set by CacheMap, which comes before Exec
}

func newSourceOp(b base, o *llb.SourceOp, job *Job) (*sourceOp, error) {
	s, err := b.worker.source(o)
	if err != nil {
		return nil, err
	}
	return &sourceOp{base: b, op: o, source: s, mode: job.Mode, writable: job.WritableFiles, pinned: job.Pinned}, nil
}

// source finds the source that takes an operation.
func (w *Worker) source(op *llb.SourceOp) (source.Source, error) {
	var all []string
	for _, s := range w.Sources {
		if slices.Contains(s.Schemes(), op.Scheme()) {
			return s, nil
		}
		all = append(all, s.Schemes()...)
	}
	return nil, fmt.Errorf("no source takes %q: its scheme must be one of %s", op.Identifier, strings.Join(all, ", "))
}

func (o *sourceOp) CacheMap(ctx context.Context) (solver.CacheMap, error) {
	pin, err := o.source.Resolve(withSessions(ctx), o.op, source.Options{Platform: o.platform(), Mode: o.mode, WritableFiles: o.writable})
	if err != nil {
		return solver.CacheMap{}, err
	}
	o.pin = pin
	if o.pinned != nil {
		o.pinned(o.vertex, pin)
	}
	return solver.CacheMap{
		Digest: string(digest.FromString("buildkit.source.v0:" + pin.Key)),
		Keep:   keepSource(o.op.Scheme(), pin.Key),
	}, nil
}

// keepSource tells what of a source is worth remembering: an image that is
// pinned is not pulled before it is read, so nothing is gained by a record of it.
func keepSource(scheme, key string) solver.Keep {
	switch {
	case strings.HasPrefix(key, "session:"):
		return solver.KeepJob
	case scheme == "docker-image", scheme == "oci-layout":
		return solver.KeepDigests
	}
	return solver.KeepAlways
}

func (o *sourceOp) Exec(ctx context.Context, _ []solver.Result) ([]solver.Result, error) {
	release, err := o.worker.step(ctx, o.vertex)
	if err != nil {
		return nil, err
	}
	defer release()
	ref, err := o.source.Fetch(withSessions(ctx), o.pin)
	if err != nil {
		return nil, err
	}
	return []solver.Result{ref}, nil
}

// Resolve pins a source outside of any graph, for a frontend that wants to
// know an image's config.
func (w *Worker) Resolve(ctx context.Context, op *llb.SourceOp, opt source.Options) (*source.Pin, error) {
	s, err := w.source(op)
	if err != nil {
		return nil, err
	}
	return s.Resolve(ctx, op, opt)
}
