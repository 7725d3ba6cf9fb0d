// Package op gives the operations of llb a meaning: each gets a key, from
// which the solver tells whether its result is known, and a way to be carried
// out with sources, layers and an executor.
//
// It sits between solver, which knows no LLB, and the parts that do I/O. The
// keys are BuildKit's (keys.go), so that caches can be exchanged.
package op

import (
	"context"
	"fmt"
	"slices"
	"sync"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/cachemount"
	"github.com/kiln-build/kiln/internal/contenthash"
	"github.com/kiln-build/kiln/internal/executor"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/proxy"
	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/internal/solver"
	"github.com/kiln-build/kiln/internal/source"
	"github.com/kiln-build/kiln/llb"
)

// Worker has everything that operations need to be carried out.
type Worker struct {
	Platforms   []ocispecs.Platform // what containers can run here, the native one first
	Sources     []source.Source
	Executor    executor.Executor
	Layers      *layer.Store
	CacheMounts *cachemount.Mounts
	Devices     Devices // nil: there is no support for devices
	Secrets     Secrets
	SecretHash  SecretHash // nil: values of secrets never count
	SSH         SSH
	Scratch     string       // a directory for files of one run
	Proxy       *proxy.Proxy // nil: there is no proxy network
	// Late is the program that calls [executor.RunLate] under the name
	// [executor.LateProgram], as the source of a mount; "" if there is none.
	Late string
	// Listed is told of content that was digested for a key, and may ask for the
	// files that it is of before it returns. Nil is nobody.
	Listed func(content string, files func() ([]contenthash.Listed, error))

	// Slots bounds the file operations that are carried out at a time; nil
	// sets no bound. Containers are not bounded.
	Slots chan struct{}
	// Steps bounds the commands, file operations and sources together that are
	// carried out at a time; nil sets no bound.
	Steps chan struct{}
	// Room lets steps begin while there is room for what they write; key is that of
	// the result, name the step's. Nil lets all.
	Room func(ctx context.Context, key, name string) (leave func(), err error)
	// NoRoom explains why a process failed if the disk is full. Nil never does.
	NoRoom func(error) error
	// Detected tells what containers can run here besides Platforms, by
	// emulators that came later. Nil is nothing.
	Detected func() []ocispecs.Platform
}

// Secrets gets secrets from the clients that ctx's work is done for.
type Secrets interface {
	// Secret returns fs.ErrNotExist if no client has the secret.
	Secret(ctx context.Context, id string) ([]byte, error)
}

// SecretHash is a keyed hash of a secret's value. Who does not have the key
// cannot tell values by it.
type SecretHash func(id string, value []byte) string

// SSH offers the clients' ssh agents to containers.
type SSH interface {
	// Listen makes a unix socket at path that leads to the agent id, until
	// stop. It returns fs.ErrNotExist if no client has the agent.
	Listen(ctx context.Context, id, path string) (stop func(), err error)
}

// Job is what operations need to know of a build that they work for. It is
// the solver.JobOptions.Values of the job.
type Job struct {
	Sessions []*session.Caller
	// Entitlements are what the user allowed and the daemon's configuration
	// grants, such as "network.host".
	Entitlements []string
	// Mode says whether images are looked up anew: "default", "pull", "local".
	Mode string
	// KeyedSecrets are the ids of secrets whose values count: a step that uses one
	// runs again when its value is another.
	KeyedSecrets []string
	// KeepFailed keeps what failed steps left until Close, see [Failure].
	KeepFailed bool
	// Build makes what a graph is of that a step of the job wrote.
	Build func(context.Context, *llb.Graph) (*layer.Ref, error)
	// WritableFiles is for sources, see source.Options.
	WritableFiles bool
	// Proxy is what the job wants of the network of its steps.
	Proxy ProxyNetwork
	// Trace gives a step's span for its process's own spans to be part of, by the
	// step's vertex, as W3C's traceparent. Nil or "" is none.
	Trace func(vertex digest.Digest) string
	// Pinned is told what a source turned out to be. Nil for nobody.
	Pinned func(*llb.Vertex, *source.Pin)

	nested nested

	mu     sync.Mutex
	closed bool
	failed []*State
}

func (j *Job) trace(vertex digest.Digest) string {
	if j == nil || j.Trace == nil {
		return ""
	}
	return j.Trace(vertex)
}

func (j *Job) allows(entitlement string) error {
	if j != nil && slices.Contains(j.Entitlements, entitlement) {
		return nil
	}
	return fmt.Errorf("%s is not allowed: pass --allow %s, and have the daemon's configuration grant it", entitlement, entitlement)
}

// sessions is the session.Group of the jobs that a piece of work is done for.
type sessions struct{ ctx context.Context }

func (s sessions) Sessions() (cs []*session.Caller) {
	for _, v := range solver.Values(s.ctx) {
		if j, ok := v.(*Job); ok {
			cs = append(cs, j.Sessions...)
		}
	}
	return cs
}

// withSessions returns ctx with the sessions of the jobs it works for.
func withSessions(ctx context.Context) context.Context {
	return session.WithGroup(ctx, sessions{ctx})
}

// Edge turns a graph into what the solver evaluates. Entitlements that the graph
// needs and job lacks are an error. If the graph was found in builds, they are
// above.
func (w *Worker) Edge(g *llb.Graph, job *Job, above ...digest.Digest) (solver.Edge, error) {
	b := binder{worker: w, job: job, above: above, done: map[*llb.Vertex]*vertex{}}
	v, err := b.bind(g.Root.Vertex)
	if err != nil {
		return solver.Edge{}, err
	}
	return solver.Edge{Vertex: v, Index: g.Root.Index}, nil
}

type binder struct {
	worker *Worker
	job    *Job
	above  []digest.Digest
	done   map[*llb.Vertex]*vertex
}

func (b *binder) bind(v *llb.Vertex) (*vertex, error) {
	if sv, ok := b.done[v]; ok {
		return sv, nil
	}
	sv := &vertex{v: v}
	for _, e := range v.Inputs {
		in, err := b.bind(e.Vertex)
		if err != nil {
			return nil, err
		}
		sv.inputs = append(sv.inputs, solver.Edge{Vertex: in, Index: e.Index})
	}
	var err error
	if sv.op, err = b.worker.op(v, b.job, b.above); err != nil {
		return nil, &solver.Error{Vertex: v.Digest(), Name: sv.Name(), Err: err}
	}
	b.done[v] = sv
	return sv, nil
}

// vertex is an llb vertex as the solver sees it.
type vertex struct {
	v      *llb.Vertex
	op     solver.Op
	inputs []solver.Edge
}

func (v *vertex) Digest() digest.Digest { return v.v.Digest() }
func (v *vertex) Op() solver.Op         { return v.op }
func (v *vertex) Inputs() []solver.Edge { return v.inputs }
func (v *vertex) Name() string          { return v.v.Name() }

func (v *vertex) Group() *progress.Group {
	if g := v.v.Meta.Group; g != nil {
		return &progress.Group{ID: g.ID, Name: g.Name, Weak: g.Weak}
	}
	return nil
}

func (w *Worker) op(v *llb.Vertex, job *Job, above []digest.Digest) (solver.Op, error) {
	b := base{w, v}
	switch o := v.Op.(type) {
	case *llb.SourceOp:
		return newSourceOp(b, o, job)
	case *llb.ExecOp:
		return newExecOp(b, o, job)
	case *llb.FileOp:
		return &fileOp{b, o}, nil
	case *llb.MergeOp:
		return &mergeOp{b, o}, nil
	case *llb.DiffOp:
		return &diffOp{b, o}, nil
	case *llb.PassthroughOp:
		return &passthroughOp{b, o}, nil
	case *llb.BuildOp:
		return newBuildOp(b, o, job, above)
	}
	return nil, fmt.Errorf("unknown operation %T", v.Op)
}

// slot waits for the right to carry out a file operation.
func (w *Worker) slot(ctx context.Context, v *llb.Vertex) (release func(), err error) {
	slot, err := take(ctx, w.Slots)
	if err != nil {
		return nil, err
	}
	step, err := w.step(ctx, v)
	if err != nil {
		slot()
		return nil, err
	}
	return func() { step(); slot() }, nil
}

// step waits for the right to carry out a step. Whoever has it waits for no
// other step.
func (w *Worker) step(ctx context.Context, v *llb.Vertex) (release func(), err error) {
	slot, err := take(ctx, w.Steps)
	if err != nil || w.Room == nil {
		return slot, err
	}
	leave, err := w.Room(ctx, string(solver.KeyFrom(ctx)), v.Name())
	if err != nil {
		slot()
		return nil, err
	}
	return func() { leave(); slot() }, nil
}

func take(ctx context.Context, slots chan struct{}) (release func(), err error) {
	if slots == nil {
		return func() {}, nil
	}
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// base is what all operations have.
type base struct {
	worker *Worker
	vertex *llb.Vertex
}

// IgnoreCache tells whether the user wants the operation run anew.
func (b base) IgnoreCache() bool { return b.vertex.Meta.IgnoreCache }

// Outputs is how many results the operation has; see [solver.Described].
func (b base) Outputs() int { return b.vertex.Op.Outputs() }

// Private tells whether the user keeps the results out of caches of others.
func (b base) Private() bool { return b.vertex.Meta.NoExport }

func (b base) platform() ocispecs.Platform {
	if b.vertex.Platform != nil {
		return *b.vertex.Platform
	}
	return b.worker.Platforms[0]
}

// refs are results as layers.
func refs(rs []solver.Result) []*layer.Ref {
	out := make([]*layer.Ref, len(rs))
	for i, r := range rs {
		out[i], _ = r.(*layer.Ref)
	}
	return out
}
