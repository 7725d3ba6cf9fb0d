package build

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/op"
	"github.com/kiln-build/kiln/internal/pass"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/safepath"
	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/internal/solver"
	"github.com/kiln-build/kiln/llb"
)

// Bridge is the frontend.Gateway of one build.
type Bridge struct {
	builder   *Builder
	req       Request
	job       *solver.Job
	values    *op.Job
	sessionID string
	release   func()

	policed    policed
	imports    *imports
	uploads    uploads
	ctx        context.Context // of the build
	containers containers
	records    records
	invocation string // names this run of the build
	started    time.Time
	finished   sync.Once
	finishedAt time.Time
	evaluated  sync.Map // of results: the edge of a *llb.Graph

	mu       sync.Mutex
	graphs   []*llb.Graph                    // what was solved, to find where steps were written
	solved   map[digest.Digest]digest.Digest // what became of the last step of each graph
	failures map[*solver.Error]*Failed
	mountIDs []string // cache mounts that steps of it use
	mounts   mounts   // of results that were read
}

func (br *Bridge) close() {
	br.containers.close()
	br.mounts.close()
	br.uploads.close()
	br.imports.close()
	br.records.close()
	br.job.Close()
	if !br.job.Working() && br.imports.asking.Idle() {
		br.leave()
		return
	}
	// The answer does not wait for a step that is being killed, or for a cache
	// of others that takes its time; but whoever prunes does.
	br.builder.leaving.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), leavingLimit)
		defer cancel()
		br.job.Wait(ctx)
		_ = br.imports.asking.Wait(ctx)
		br.leave()
	})
}

// leavingLimit bounds how long a build that has ended keeps its files in use: a
// step that cannot be killed must not do so for ever.
const leavingLimit = time.Minute

// leave lets go of what the build has used.
func (br *Bridge) leave() {
	br.release()
	_ = br.values.Close() // what it could not remove goes at the next start
}

// Settle returns when builds that have ended, and containers that wait for the next
// one, hold nothing any more, or ctx ends.
func (b *Builder) Settle(ctx context.Context) error {
	if err := b.ready.settle(ctx); err != nil {
		return fmt.Errorf("wait for containers that were started ahead: %w", err)
	}
	if err := b.leaving.Wait(ctx); err != nil {
		return fmt.Errorf("wait for builds that have ended: %w", err)
	}
	return b.Worker.Layers.Settle(ctx)
}

// Close ends what waits for a build. It is called after the last one.
func (b *Builder) Close() error {
	return b.ready.close()
}

// Sessions are the client sessions that serve the build.
func (br *Bridge) Sessions() []*session.Caller { return br.values.Sessions }

// Inputs are the graphs that the request hands to the frontend.
func (br *Bridge) Inputs() map[string]*llb.Graph { return br.req.Inputs }

// Sink takes the build's progress.
func (br *Bridge) Sink() progress.Sink { return br.req.Sink }

// SessionID is that of the client's session; "" without one.
func (br *Bridge) SessionID() string { return br.sessionID }

// Frontend runs a frontend by name.
func (br *Bridge) Frontend(ctx context.Context, name string, opts map[string]string, inputs map[string]*llb.Graph) (*frontend.Result, error) {
	name, opts = withoutImage(name, opts)
	f, ok := br.builder.Frontends[name]
	if !ok {
		return nil, fmt.Errorf("invalid frontend: %s: expected one of %v", name, slices.Sorted(maps.Keys(br.builder.Frontends)))
	}
	caches, err := readCacheImports(opts)
	if err != nil {
		return nil, err
	}
	br.ImportCaches(caches)
	if ctx, err = deeper(ctx); err != nil {
		return nil, fmt.Errorf("frontend %s: %w", name, err)
	}
	ctx, s := br.records.enter(ctx, name, opts, inputs)
	res, err := f.Build(ctx, frontend.Request{Opts: opts, Inputs: inputs, Worker: br.builder.Worker.Platforms[0]}, br)
	br.records.returned(s, res)
	if err != nil {
		return nil, &FrontendError{Name: name, Image: opts["source"], Err: err}
	}
	return res, nil
}

// Solve checks a graph and returns its result, to be made when it is read.
func (br *Bridge) Solve(ctx context.Context, g *llb.Graph) (frontend.Ref, error) {
	edge, err := br.edge(ctx, g)
	if err != nil {
		return nil, err
	}
	return &Ref{br: br, edge: edge}, nil
}

// edge makes a graph known to the build's job. No vertex is no edge.
func (br *Bridge) edge(ctx context.Context, g *llb.Graph) (solver.Edge, error) {
	if g == nil || g.Root.Vertex == nil {
		return solver.Edge{}, nil
	}
	given := g
	g, err := br.ApplyPolicies(ctx, g, nil)
	if err != nil {
		return solver.Edge{}, err
	}
	g, err = pass.Run(g, pass.Options{Worker: br.builder.Worker.Platforms[0], SessionID: br.sessionID, Caps: br.builder.Caps})
	if err != nil {
		return solver.Edge{}, err
	}
	br.mu.Lock()
	br.graphs = append(br.graphs, g)
	if g.Root.Vertex != nil {
		if br.solved == nil {
			br.solved = map[digest.Digest]digest.Digest{}
		}
		br.solved[given.Root.Vertex.Digest()] = g.Root.Vertex.Digest()
	}
	br.mu.Unlock()
	br.records.solving(ctx, given, g)
	if g.Root.Vertex == nil {
		return solver.Edge{}, nil
	}
	if err := br.prepareMounts(g); err != nil {
		return solver.Edge{}, err
	}
	return br.builder.Worker.Edge(g, br.values, op.BuildsAround(ctx)...)
}

func (br *Bridge) solve(ctx context.Context, g *llb.Graph) (*layer.Ref, error) {
	edge, err := br.edge(ctx, g)
	if err != nil {
		return nil, err
	}
	return br.build(ctx, edge)
}

func (br *Bridge) build(ctx context.Context, e solver.Edge) (*layer.Ref, error) {
	if e.Vertex == nil {
		return nil, nil
	}
	r, err := br.job.Build(ctx, e)
	if err != nil {
		return nil, err
	}
	br.records.evaluated(e)
	ref, _ := r.(*layer.Ref)
	return ref, nil
}

// Warn shows the user a warning; the build goes on. The progress knows the last
// step of a graph by what passes made of it.
func (br *Bridge) Warn(_ context.Context, vertex digest.Digest, w frontend.Warning) {
	br.mu.Lock()
	if solved, ok := br.solved[vertex]; ok {
		vertex = solved
	}
	br.mu.Unlock()
	pw := &progress.Warning{Vertex: vertex, Level: w.Level, Short: []byte(w.Short), URL: w.URL}
	for _, d := range w.Detail {
		pw.Detail = append(pw.Detail, []byte(d))
	}
	if w.File != nil {
		pw.Source = &progress.Source{Filename: w.File.Name, Language: w.File.Language, Data: w.File.Data}
		for _, r := range w.Ranges {
			pw.Source.Ranges = append(pw.Source.Ranges, progress.Range{
				StartLine: r.Start.Line, StartChar: r.Start.Character, EndLine: r.End.Line, EndChar: r.End.Character,
			})
		}
	}
	br.req.Sink.Emit(progress.Event{Warning: pw})
}

// sources is where a step was written.
func (br *Bridge) sources(vertex digest.Digest) (found []Source) {
	br.mu.Lock()
	defer br.mu.Unlock()
	for _, g := range slices.Backward(br.graphs) {
		for _, l := range g.Sources.Locations[vertex] {
			if l.File >= 0 && l.File < len(g.Sources.Files) {
				found = append(found, Source{g.Sources.Files[l.File], l.Ranges})
			}
		}
		if found != nil {
			return found
		}
	}
	return nil
}

// Ref is a result of a build, made when it is first read.
type Ref struct {
	br    *Bridge
	edge  solver.Edge
	state *op.State // in place of edge: what a failed step left

	mu  sync.Mutex
	dir string // where its files are mounted, once they were read
}

// Evaluate makes the result.
func (r *Ref) Evaluate(ctx context.Context) error {
	_, err := r.Layer(ctx)
	return err
}

// Layer makes the result and returns it; nil is the empty file system.
func (r *Ref) Layer(ctx context.Context) (*layer.Ref, error) {
	if r.state != nil {
		return r.state.Layer(ctx)
	}
	return r.br.build(ctx, r.edge)
}

// WithRoot calls f with the result's files.
func (r *Ref) WithRoot(ctx context.Context, f func(*safepath.Root) error) error {
	dir, err := r.mounted(ctx)
	if err != nil {
		return err
	}
	root, err := safepath.Open(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return f(root)
}

// mounted returns the directory of the result's files. They stay mounted for
// the build: who reads one file reads more.
func (r *Ref) mounted(ctx context.Context) (string, error) {
	ref, err := r.Layer(ctx)
	if err != nil {
		return "", err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dir != "" {
		return r.dir, nil
	}
	dir, release, err := r.br.builder.Worker.Layers.View(session.WithGroup(ctx, r.br), ref)
	if err != nil && r.edge.Vertex != nil {
		again, lostErr := r.br.job.Remake(ctx, r.edge, err)
		if lostErr != nil {
			return "", err
		}
		ref, _ = again.(*layer.Ref)
		dir, release, err = r.br.builder.Worker.Layers.View(session.WithGroup(ctx, r.br), ref)
	}
	if err != nil {
		return "", err
	}
	if !r.br.mounts.add(release) {
		return "", errors.Join(errors.New("the build has ended"), release())
	}
	r.dir = dir
	return dir, nil
}

// mounts are what a build's frontend has had mounted.
type mounts struct {
	mu     sync.Mutex
	list   []func() error
	closed bool
}

// add takes a mount over, unless the build has ended.
func (m *mounts) add(release func() error) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed {
		m.list = append(m.list, release)
	}
	return !m.closed
}

// close unmounts. What cannot be unmounted goes at the daemon's next start.
func (m *mounts) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, release := range m.list {
		_ = release()
	}
	m.list, m.closed = nil, true
}
