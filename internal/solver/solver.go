// Package solver evaluates a graph of operations, reusing results it has
// seen before.
//
// In the terms of "Build Systems à la Carte" it is a suspending scheduler
// joined to a constructive-trace rebuilder:
//
//   - The scheduler is the Go runtime. A node asks for what it needs and
//     blocks; there is no queue and no explicit state.
//   - The rebuilder is two memo tables behind [Cache]: results by [Key], and
//     content digests by the key of what was digested.
//
// Every node has exactly one Key: a hash of its operation and, per input,
// either the input's Key or a digest of the input's content, as the operation
// chooses. Two nodes with one Key are interchangeable, whoever defined them.
package solver

import (
	"context"
	"errors"
	"fmt"

	"github.com/kiln-build/kiln/internal/solver/flight"
)

// ErrNotFound is returned by a [Cache] that has no such entry.
var ErrNotFound = errors.New("not found")

// Solver runs jobs that share work. Its methods may be called concurrently.
type Solver struct {
	cache Cache
	execs flight.Group[execKey, []Result]
}

// execKey names an execution. One that must be fresh is shared with no other
// job, for the other's may have begun before this job did.
type execKey struct {
	key  Key
	only *Job // nil if shared
}

// New returns a Solver that remembers results in cache.
func New(cache Cache) *Solver { return &Solver{cache: cache} }

// A Job is one build: a graph as one client first resolved it. The job is the
// unit of cancellation; nothing it starts outlives it.
type Job struct {
	solver *Solver
	ctx    context.Context
	cancel context.CancelFunc
	nodes  table[*node]
}

// NewJob starts an empty job, to be closed by the caller.
func (s *Solver) NewJob(ctx context.Context) *Job {
	ctx, cancel := context.WithCancel(ctx)
	return &Job{solver: s, ctx: ctx, cancel: cancel}
}

// Close abandons whatever the job still has under way.
func (j *Job) Close() { j.cancel() }

// Build evaluates one edge of the graph.
func (j *Job) Build(ctx context.Context, e Edge) (Result, error) {
	n := j.node(e.Vertex)
	out, err := n.result.get(ctx, n.evaluate)
	if err != nil {
		return nil, err
	}
	if e.Index >= len(out) {
		return nil, fmt.Errorf("%s has no output %d", n.name, e.Index)
	}
	return out[e.Index], nil
}

// node is a vertex as one job sees it.
type node struct {
	job    *Job
	name   string
	op     Op
	inputs []input

	identity future[identity]
	result   future[[]Result]
}

// identity is what a node would produce. It is fresh if nothing remembered
// may stand in for it.
type identity struct {
	key   Key
	fresh bool
}

type input struct {
	node  *node
	index int
}

func (j *Job) node(v Vertex) *node {
	if n, ok := j.nodes.load(v.Digest()); ok {
		return n
	}
	n := &node{job: j, name: v.Name(), op: v.Op()}
	for _, e := range v.Inputs() {
		n.inputs = append(n.inputs, input{j.node(e.Vertex), e.Index})
	}
	return j.nodes.loadOrStore(v.Digest(), n)
}

// identify computes the node's identity, doing as little as will tell.
func (n *node) identify() (identity, error) {
	cm, err := n.op.CacheMap(n.job.ctx)
	if err != nil {
		return identity{}, fmt.Errorf("%s: cache map: %w", n.name, err)
	}
	fresh := n.op.IgnoreCache()
	inputs, err := gather(n.inputs, func(_ int, in input) (identity, error) {
		return in.node.identity.get(n.job.ctx, in.node.identify)
	})
	if err != nil {
		return identity{}, err
	}
	parts, err := gather(n.inputs, func(i int, in input) (string, error) {
		if dep := cm.Dep(i); dep.Digest != nil {
			return n.contentPart(in, inputs[i], dep)
		} else {
			return definitionPart(inputs[i].key, in.index, dep.Selector), nil
		}
	})
	if err != nil {
		return identity{}, err
	}
	for i := range inputs {
		fresh = fresh || inputs[i].fresh && cm.Dep(i).Digest == nil
	}
	return identity{newKey(cm.Digest, parts), fresh}, nil
}

// contentPart digests an input's content, evaluating the input only if no one
// has digested the like before.
func (n *node) contentPart(in input, id identity, dep Dep) (string, error) {
	ctx, cache := n.job.ctx, n.job.solver.cache
	memo := definitionPart(id.key, in.index, dep.Selector)
	if !id.fresh {
		if d, err := cache.Digest(ctx, memo); err == nil {
			return d, nil
		} else if ctx.Err() != nil {
			return "", ctx.Err()
		}
	}
	out, err := in.node.result.get(ctx, in.node.evaluate)
	if err != nil {
		return "", err
	}
	d, err := dep.Digest(ctx, out[in.index])
	if err != nil {
		return "", fmt.Errorf("%s: digest input: %w", n.name, err)
	}
	return d, cache.PutDigest(ctx, memo, d)
}

// evaluate computes the node's outputs: from the cache if it has them, or by
// running the operation on the results of the inputs.
func (n *node) evaluate() ([]Result, error) {
	ctx := n.job.ctx
	id, err := n.identity.get(ctx, n.identify)
	if err != nil {
		return nil, err
	}
	if out, err := n.load(ctx, id); !errors.Is(err, ErrNotFound) {
		return out, err
	}
	// The inputs come first, so that the flight below is a leaf.
	ins, err := gather(n.inputs, func(_ int, in input) (Result, error) {
		out, err := in.node.result.get(ctx, in.node.evaluate)
		if err != nil {
			return nil, err
		}
		return out[in.index], nil
	})
	if err != nil {
		return nil, err
	}
	flight := execKey{key: id.key}
	if id.fresh {
		flight.only = n.job
	}
	return n.job.solver.execs.Do(ctx, flight, func(ctx context.Context) ([]Result, error) {
		return n.exec(ctx, id, ins)
	})
}

func (n *node) exec(ctx context.Context, id identity, ins []Result) ([]Result, error) {
	// Another job may have finished since we looked.
	if out, err := n.load(ctx, id); !errors.Is(err, ErrNotFound) {
		return out, err
	}
	out, err := n.op.Exec(WithKey(ctx, id.key), ins)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", n.name, err)
	}
	return out, n.job.solver.cache.Save(ctx, id.key, out)
}

// load looks a result up. A cache that fails has merely forgotten; a caller
// that has left has not been told so.
func (n *node) load(ctx context.Context, id identity) ([]Result, error) {
	if id.fresh {
		return nil, ErrNotFound
	}
	out, err := n.job.solver.cache.Load(ctx, id.key)
	if err != nil && ctx.Err() == nil {
		return nil, ErrNotFound
	}
	return out, err
}
