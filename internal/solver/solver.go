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
//
// The package knows no LLB and does no I/O. Package op gives it operations,
// package cache its tables, package build its jobs.
package solver

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/solver/flight"
)

// ErrNotFound is returned by a [Cache] that has no such entry.
var ErrNotFound = errors.New("not found")

// Solver runs jobs that share work. Its methods may be called concurrently.
type Solver struct {
	cache Cache
	execs *flight.Group[execKey, []Result, *audience]
}

// execKey names an execution. One that must be fresh is shared with no other
// job, for the other's may have begun before this job did; a nested one with no other
// node, for that one may wait for this one.
type execKey struct {
	key  Key
	job  *Job  // that alone has it; nil if shared
	node *node // that alone has it; nil if shared
}

// New returns a Solver that remembers results in cache.
func New(cache Cache) *Solver {
	return &Solver{cache: cache, execs: flight.New[execKey, []Result](newAudience)}
}

// JobOptions say whom a job works for.
type JobOptions struct {
	Sink    progress.Sink // where progress goes; nil discards
	Values  any           // handed to operations, see [Values]
	Imports Imports       // results of others, asked where the cache has none; nil for none
	// Ended is told of each remembered result as soon as there is one, however it
	// was come by. It must not wait for anything. Nil for nobody.
	Ended func(j *Job, k Key, out []Result)
	// Verify has some of what is remembered made again; nil for nothing.
	Verify Verifier
	// Missed is told beside the work of each step that is to run. It finds other
	// steps of the job by their keys. Nil for nobody.
	Missed func(s Step, to *progress.Step, other func(Key) (Step, bool))
}

// A Job is one build: a graph as one client first resolved it. What nobody wants any
// more ends while the job goes on, see [Job.Build]; what it has started when it is
// closed ends soon, see [Job.Wait].
type Job struct {
	solver  *Solver
	ctx     context.Context
	cancel  context.CancelFunc
	sink    progress.Sink
	values  any
	imports Imports
	ended   func(*Job, Key, []Result)
	verify  verifying
	nodes   table[*node]
	recipes table[Recipe] // by key
	work    Crew

	onMiss     func(Step, *progress.Step, func(Key) (Step, bool))
	explaining sync.WaitGroup // calls of onMiss
	missMu     sync.Mutex
	settled    bool // there are no more calls of onMiss; guarded by missMu
}

// NewJob starts an empty job, to be closed by the caller.
func (s *Solver) NewJob(ctx context.Context, opt JobOptions) *Job {
	ctx, cancel := context.WithCancel(ctx)
	j := &Job{
		solver: s, ctx: ctx, cancel: cancel, sink: opt.Sink, values: opt.Values, imports: opt.Imports,
		ended: opt.Ended, verify: verifying{by: opt.Verify}, onMiss: opt.Missed,
	}
	if j.sink == nil {
		j.sink = progress.Discard()
	}
	return j
}

// Close abandons what the job still has under way, and tells the sink so.
func (j *Job) Close() {
	j.cancel()
	j.settle()
	for _, n := range j.nodes.all() {
		n.report.close()
	}
}

// Working tells whether anything that the job began has not come to its end.
func (j *Job) Working() bool { return !j.work.Idle() || !j.solver.execs.Abandoned().Idle() }

// Wait waits until what a closed job has abandoned has ended, or ctx ends: until
// then a step may still hold files, or even complete.
func (j *Job) Wait(ctx context.Context) {
	if j.work.Wait(ctx) == nil {
		_ = j.solver.execs.Abandoned().Wait(ctx) // ctx alone can end it
	}
}

// Build evaluates one edge of the graph. When ctx ends first, so do the steps below the
// edge that no other call of Build reaches; another call may make them anew.
func (j *Job) Build(ctx context.Context, e Edge) (Result, error) {
	n := j.node(e.Vertex)
	n.need(e.Index)
	out, err := n.output(ctx, e.Index)
	if errors.Is(err, errNoOutput) {
		err = &Error{n.report.vertex.Digest, n.report.vertex.Name, fmt.Errorf("has no output %d", e.Index)}
	}
	return out.Result, err
}

// errNoOutput says that a vertex has fewer outputs.
var errNoOutput = errors.New("no such output")

// output is one of a node's results, and the key of what it was made of.
type output struct {
	Result
	key Key
}

// output evaluates the node and picks an output. One that is absent from what
// others made is made here.
func (n *node) output(ctx context.Context, index int) (output, error) {
	got, err := n.result.get(ctx, n.job, n.evaluate)
	if err == nil && index < len(got.out) && got.out[index] == (Absent{}) {
		got, err = n.made.get(ctx, n.job, n.make)
	}
	if err == nil && n.isLost() {
		got, err = n.anew.get(ctx, n.job, n.remake)
	}
	if err != nil {
		return output{}, err
	}
	if index >= len(got.out) {
		return output{}, errNoOutput
	}
	return output{got.out[index], got.key}, nil
}

// evaluated are a node's outputs, and the key of what they were made of.
type evaluated struct {
	out []Result
	key Key
}

// node is a vertex as one job sees it.
type node struct {
	job    *Job
	vertex Vertex
	op     Op
	inputs []input
	report report

	identity future[identity]
	result   future[evaluated]
	made     future[evaluated] // whole, where result is not
	anew     future[evaluated] // where what was remembered is lost

	mu     sync.Mutex
	needed map[int]bool // outputs that somebody wants
	known  *identity    // what identity holds, once it does, or what it turned out to be
	found  bool         // a result was remembered
	lost   bool         // the files of result are gone
	told   bool         // that it is to run; guarded by job.missMu
}

// identity is what a node would produce. It is fresh if nothing remembered
// may stand in for it.
type identity struct {
	key   Key
	fresh bool
	keep  Keep
	basis *basis // of key
}

type input struct {
	node  *node
	index int
}

func (j *Job) node(v Vertex) *node {
	if n, ok := j.nodes.load(string(v.Digest())); ok {
		return n
	}
	n := &node{job: j, vertex: v, op: v.Op()}
	for _, e := range v.Inputs() {
		in := j.node(e.Vertex)
		in.need(e.Index)
		n.inputs = append(n.inputs, input{in, e.Index})
	}
	n.report.init(j.sink, v, n.inputs)
	got := j.nodes.loadOrStore(string(v.Digest()), n)
	if got == n {
		n.report.announce()
	}
	return got
}

// context is what operations of the node work in when they work for this job alone.
func (n *node) context(ctx context.Context) context.Context {
	ctx = progress.WithStep(ctx, n.report.step())
	return withValues(ctx, func() []any { return []any{n.job.values} })
}

// fail makes err the node's failure, unless it is another's, or nobody wants the
// node any more, which ctx tells.
func (n *node) fail(ctx context.Context, err error) error {
	var inner *Error
	if errors.As(err, &inner) || ctx.Err() != nil {
		return err
	}
	n.report.failed(err)
	return &Error{n.report.vertex.Digest, n.report.vertex.Name, err}
}

// givenUp tells of a node that nobody wants any more, before it was done.
func (n *node) givenUp(ctx context.Context, err error) {
	if err != nil && ctx.Err() != nil && n.job.ctx.Err() == nil {
		n.report.givenUp()
	}
}

// identify computes the node's identity, doing as little as will tell.
func (n *node) identify(ctx context.Context) (_ identity, err error) {
	defer func() { n.givenUp(ctx, err) }()
	if len(n.inputs) == 0 { // a source looks outside to tell what it is
		n.report.started()
	}
	cm, err := safely(func() (CacheMap, error) { return n.op.CacheMap(n.context(ctx)) })
	if err != nil {
		return identity{}, n.fail(ctx, err)
	}
	id := identity{fresh: n.op.IgnoreCache(), keep: cm.Keep}
	// All inputs at once: to learn the content of one can take as long as to
	// make it, and must not wait for what another turns out to be.
	parts, err := gather(&n.job.work, n.inputs, func(i int, in input) (keyPart, error) { return n.part(ctx, in, cm.Dep(i)) })
	if err != nil {
		return identity{}, err
	}
	for _, p := range parts {
		id.fresh = id.fresh || p.fresh
		if p.job {
			id.keep = KeepJob
		}
	}
	return n.identified(id, &basis{cm, parts}), nil
}

// keyPart is what one input adds to a node's identity.
type keyPart struct {
	text  string
	fresh bool // the input must be made anew, and so must what is built on it
	job   bool // the input holds for this job alone

	ingredient Ingredient
	remember   bool // what is learnt of the input's content
}

func (n *node) part(ctx context.Context, in input, dep Dep) (keyPart, error) {
	id, err := in.node.identity.get(ctx, n.job, in.node.identify)
	if err != nil {
		return keyPart{}, err
	}
	from := Ingredient{Key: id.key, Index: in.index, Selector: dep.Selector, Link: dep.Link}
	if dep.Digest == nil {
		return keyPart{
			text: definitionPart(id.key, in.index, dep.Selector), fresh: id.fresh, job: id.keep == KeepJob, ingredient: from,
		}, nil
	}
	return n.contentPart(ctx, in, id, dep, from)
}

// contentPart digests an input's content, evaluating the input only if no one
// has digested the like before.
func (n *node) contentPart(ctx context.Context, in input, id identity, dep Dep, from Ingredient) (keyPart, error) {
	cache := n.job.solver.cache
	part := keyPart{ingredient: from, remember: id.keep != KeepJob}
	if part.remember && !id.fresh {
		memo := definitionPart(id.key, in.index, dep.Selector)
		c, err := cache.Digest(ctx, memo)
		if err != nil && ctx.Err() == nil {
			if imported, ok := n.importedDigest(ctx, from); ok {
				c, err = imported, cache.PutDigest(ctx, memo, imported)
			}
		}
		if ctx.Err() != nil {
			return keyPart{}, ctx.Err()
		}
		if err == nil && !in.keepsOther(ctx, id, c) {
			return part.by(c), nil
		}
	}
	got, err := in.get(ctx)
	if err != nil {
		return keyPart{}, err
	}
	of, err := n.digested(ctx, part, in, dep, got)
	if isLoss(err) && in.node.lose() {
		if got, err = in.get(ctx); err == nil {
			of, err = n.digested(ctx, part, in, dep, got)
		}
	}
	if err != nil {
		return keyPart{}, n.fail(ctx, err)
	}
	return of, nil
}

// get evaluates the input's node and picks the output.
func (in input) get(ctx context.Context) (output, error) {
	out, err := in.node.output(ctx, in.index)
	if errors.Is(err, errNoOutput) {
		err = fmt.Errorf("%s has no output %d", in.node.report.vertex.Name, in.index)
	}
	return out, err
}

// evaluate computes the node's outputs: from the cache if it has them, or by
// running the operation on the results of the inputs.
func (n *node) evaluate(ctx context.Context) (_ evaluated, err error) {
	defer func() { n.givenUp(ctx, err) }()
	id, err := n.identity.get(ctx, n.job, n.identify)
	if err != nil {
		return evaluated{}, err
	}
	if out, err := n.remembered(ctx, id); !errors.Is(err, ErrNotFound) {
		return evaluated{out, id.key}, err
	}
	return n.make(ctx)
}

// remembered is a result that the cache has, or others have.
func (n *node) remembered(ctx context.Context, id identity) ([]Result, error) {
	out, err := n.load(ctx, id)
	if errors.Is(err, ErrNotFound) {
		out, err = n.importResult(ctx, id)
	}
	if err == nil {
		n.mu.Lock()
		n.found = true
		n.mu.Unlock()
		n.report.cached()
		n.tellEnded(id, out)
		n.verify(id, out)
	}
	return out, err
}

// make runs the operation on the results of the inputs.
func (n *node) make(ctx context.Context) (evaluated, error) {
	id, err := n.identity.get(ctx, n.job, n.identify)
	if err != nil {
		return evaluated{}, err
	}
	if id.keep == KeepAlways {
		n.missed()
	}
	return n.produce(ctx, id, false)
}

// produce runs the operation, or shares its run with others. With anew, as for a
// result that has lost files, nothing remembered may stand in for it.
func (n *node) produce(ctx context.Context, id identity, anew bool) (_ evaluated, err error) {
	defer func() { n.givenUp(ctx, err) }()
	// The inputs come first, so that the flight below is a leaf.
	before, own := id.key, true
	id, ins, err := n.confirmed(ctx, id)
	if err == nil && id.key != before && !anew { // it may be remembered as what it is
		if out, err := n.remembered(ctx, id); !errors.Is(err, ErrNotFound) {
			return evaluated{out, id.key}, err
		}
	}
	var out []Result
	if err == nil {
		out, own, err = n.share(ctx, id, ins, anew)
	}
	if isLoss(err) {
		out, id, err = n.shareAgain(ctx, id, own, err)
	}
	if err != nil {
		return evaluated{}, n.fail(ctx, err)
	}
	n.report.completed()
	n.tellEnded(id, out)
	return evaluated{out, id.key}, nil
}

// tellEnded tells of a result that others may have, too.
func (n *node) tellEnded(id identity, out []Result) {
	if n.job.ended != nil && id.keep == KeepAlways {
		n.job.ended(n.job, id.key, out)
	}
}

// share runs the operation, or waits for a job that runs the same; own tells
// which. anew is that of produce.
func (n *node) share(ctx context.Context, id identity, ins []Result, anew bool) (out []Result, own bool, err error) {
	flight := execKey{key: id.key}
	if id.fresh || anew || id.keep == KeepJob {
		flight.job = n.job
	}
	if id.basis.cm.Nested {
		flight.node = n
	}
	enter := func(a *audience) (leave func()) {
		n.report.executing()
		return a.join(n.report.step(), n.job.values)
	}
	var ours atomic.Bool
	out, err = n.job.solver.execs.Do(ctx, flight, enter, func(ctx context.Context, a *audience) ([]Result, error) {
		ours.Store(true)
		ctx = withValues(progress.WithStep(ctx, a.fanout.Step()), a.values)
		return n.exec(ctx, id, ins, anew)
	})
	return out, ours.Load(), err
}

func (n *node) exec(ctx context.Context, id identity, ins []Result, anew bool) ([]Result, error) {
	// Another job may have finished since we looked.
	if out, err := n.load(ctx, id); !anew && !errors.Is(err, ErrNotFound) {
		return out, err
	}
	out, err := safely(func() ([]Result, error) { return n.op.Exec(WithKey(ctx, id.key), ins) })
	if err != nil {
		return nil, err
	}
	if id.keep != KeepAlways {
		return out, nil
	}
	if err := n.job.solver.cache.Save(ctx, id.key, out); err != nil {
		return nil, fmt.Errorf("save result: %w", err)
	}
	return out, nil
}

// load looks a result up. A cache that fails has merely forgotten; a caller
// that has left has not been told so.
func (n *node) load(ctx context.Context, id identity) ([]Result, error) {
	if id.fresh || id.keep != KeepAlways {
		return nil, ErrNotFound
	}
	out, err := n.job.solver.cache.Load(ctx, id.key)
	if err != nil && ctx.Err() == nil || err == nil && n.lacks(out) {
		return nil, ErrNotFound
	}
	return out, err
}

// safely makes a panic of an operation an error of its vertex: a fault in one
// build ends that build alone.
func safely[V any](f func() (V, error)) (val V, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("internal error, please report it: %v\n%s", p, debug.Stack())
		}
	}()
	return f()
}
