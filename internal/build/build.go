// Package build drives one build from request to exports: it has a frontend
// make graphs, the passes rewrite them, the solver evaluate them and the
// exporters carry the result out.
//
// Here, and nowhere else, an error is given the step that it came from and the
// lines of the build file that the step was written in.
package build

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/exporter"
	"github.com/kiln-build/kiln/internal/op"
	"github.com/kiln-build/kiln/internal/pass"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/internal/solver"
	"github.com/kiln-build/kiln/llb"
)

// Builder runs builds. Its methods may be called concurrently.
type Builder struct {
	Solver    *solver.Solver
	Worker    *op.Worker
	Frontends map[string]frontend.Frontend // by name, such as "dockerfile.v0"
	Exporters map[string]exporter.Exporter // by type, such as "image"
	Caches    Caches
	// Entitlements are what the daemon's configuration grants to builds that ask.
	Entitlements []string
	// ProxyNetwork has all builds use the proxy network.
	ProxyNetwork bool
	Caps         []string // what graphs may need (BuildKit's solver/pb/caps.go)
	// ProvenanceEnv is what the daemon's owner adds to all provenance.
	ProvenanceEnv map[string]any
	// DockerfileVersion is that of the language which the frontend "dockerfile.v0" reads.
	DockerfileVersion string
	Version           string // of Kiln
	// NoRoom explains an error that comes of a full disk, and leaves others as they
	// are. Nil leaves all.
	NoRoom func(error) error

	producers producers
	leaving   solver.Crew // builds that have answered, and still hold something
	ready     ready       // a container that waits for a build
}

// Request is what a client wants built.
type Request struct {
	Ref string // the client's name for the build
	// One of these says what to build: a graph, a frontend by name, or a
	// function that acts as one.
	Graph        *llb.Graph
	Frontend     string
	FrontendFunc func(context.Context, *Bridge) (*frontend.Result, error)

	Opts    map[string]string     // of the frontend
	Inputs  map[string]*llb.Graph // of the frontend
	Exports []Export
	Session *session.Caller // nil if the client offers no services
	// Entitlements are what the user allows, such as "network.host".
	Entitlements []string
	Policies     []pass.Policy // what every source is held against
	Policy       SourcePolicy  // who decides on each source after them; nil for nobody
	Chooser      Chooser       // adds to Exports when the result is known; nil for nobody
	// CacheExports and CacheImports are caches for others, and of others.
	CacheExports, CacheImports []CacheOption
	Sink                       progress.Sink
	// Exported is told what each exporter answered, by its number in Exports; it
	// is called concurrently. Nil for nobody.
	Exported func(exporter int, response map[string]string)
	// Keep takes the documents of images, see [exporter.Target]; concurrently, too.
	Keep func(d ocispecs.Descriptor, document []byte)
	// Missed is told beside the work of each step that is to run, and may say why
	// in its progress. It finds other steps of the build by their keys. Nil for
	// nobody.
	Missed func(s Step, to *progress.Step, other func(Key) (Step, bool))
	// Stepped is told at the end what the cache had of each step. Nil for nobody.
	Stepped func([]Step)
	// Resulted is told the metadata of the result once all of it is made, before it
	// is exported. Nil for nobody.
	Resulted func(meta map[string][]byte)
	// Attested is told the whole provenance of each result, a predicate of SLSA,
	// by the result's platform ID. Nil for nobody.
	Attested func(platform, predicateType string, predicate []byte)
	// CompatibilityVersion is the version of behaviour that the client asks for
	// (see package exporter); 0 is the current one.
	CompatibilityVersion int
	// Trace gives the span of a step, see [op.Job]. Nil for none.
	Trace func(vertex digest.Digest) string
	// ProxyNetwork has steps reach the network through the worker's proxy alone.
	ProxyNetwork bool
}

// Step is what became of a step.
type Step = solver.Step

// Key identifies what a step makes.
type Key = solver.Key

// Export is one thing to make of the result.
type Export struct {
	Type  string
	Attrs map[string]string // by the keys of BuildKit's exporter/containerimage/exptypes
}

// Chooser says how to bring out a result once it is known, such as a client over
// its session (BuildKit's session/exporter).
type Chooser interface {
	// Choose returns further exports. refs are the results, without empty ones.
	Choose(ctx context.Context, meta map[string][]byte, refs []frontend.Ref) ([]Export, error)
	// Done is told what the exports answered.
	Done(ctx context.Context, response map[string]string) error
}

// Error is why a build failed, with where.
type Error struct {
	Vertex  digest.Digest // "" if no step failed
	Sources []Source      // the lines of the build file, innermost first
	Err     error
	Stack   []uintptr // where in the program it came to light, as of [runtime.Callers]
}

const deepestStack = 32 // calls

// Source is a stretch of a build file.
type Source struct {
	File   llb.SourceFile
	Ranges []llb.Range
}

// Error is what went wrong, led by the name of the step where the error does
// not name it itself.
func (e *Error) Error() string {
	text := e.Err.Error()
	var step *solver.Error
	var process *op.ProcessError
	if errors.As(e.Err, &step) && errors.As(step.Err, &process) {
		text = strings.Replace(text, step.Name+": "+process.Error(), process.Error(), 1)
	}
	return text
}

// Unwrap returns what went wrong.
func (e *Error) Unwrap() error { return e.Err }

// Build does what req says and returns what the exporters have to tell, by the
// keys of BuildKit's exporter/containerimage/exptypes.
func (b *Builder) Build(ctx context.Context, req Request) (map[string]string, error) {
	if req.Sink == nil {
		req.Sink = progress.Discard()
	}
	req.Frontend, req.Opts = withoutImage(req.Frontend, req.Opts)
	share, opts, err := verifyShare(req.Opts)
	if err != nil {
		return nil, err
	}
	req.Opts = opts
	br, err := b.newBridge(ctx, req, share)
	if err != nil {
		return nil, err
	}
	defer br.close()
	out, err := b.build(ctx, req, br)
	if req.Stepped != nil {
		req.Stepped(br.job.Steps())
	}
	if err != nil {
		return nil, br.Locate(err)
	}
	return out, nil
}

func (b *Builder) newBridge(ctx context.Context, req Request, verify float64) (*Bridge, error) {
	for _, e := range req.Entitlements {
		kind, _, _ := strings.Cut(e, "=") // the rest says which devices
		if !slices.Contains(op.Entitlements(), kind) {
			return nil, fmt.Errorf("unknown entitlement %s: expected one of %v", e, op.Entitlements())
		}
		if !slices.Contains(b.Entitlements, kind) || kind != e && kind != op.EntitlementDevice {
			return nil, fmt.Errorf("granting entitlement %s is not allowed by build daemon configuration: start the daemon with --allow-insecure-entitlement %s", e, kind)
		}
	}
	job := &op.Job{
		Entitlements: req.Entitlements, Mode: req.Opts["image-resolve-mode"], KeyedSecrets: keyedSecrets(req.Opts),
		KeepFailed:    req.FrontendFunc != nil || req.Frontend == ImageFrontendName,
		WritableFiles: req.CompatibilityVersion == exporter.Compat013, Trace: req.Trace,
	}
	id := ""
	if req.Session != nil {
		job.Sessions = []*session.Caller{req.Session}
		id = req.Session.ID()
	}
	br := &Bridge{
		builder: b, req: req, values: job, sessionID: id, ctx: ctx,
		release: b.Worker.Layers.Use(), invocation: rand.Text(), started: time.Now().UTC(),
	}
	br.imports = newImports(ctx, br)
	br.job = b.Solver.NewJob(ctx, solver.JobOptions{
		Sink: req.Sink, Values: job, Imports: br.imports, Ended: br.uploads.ended, Missed: req.Missed, Verify: newVerifier(br, verify),
	})
	job.Proxy = br.proxyNetwork()
	job.Pinned, job.Build = br.records.pinned, br.solve
	br.records.producers = &b.producers
	br.records.root = scope{frontend: req.Frontend, opts: req.Opts, inputs: req.Inputs}
	br.records.proxy = job.Proxy.On
	br.ImportCaches(req.CacheImports)
	return br, nil
}

func (b *Builder) build(ctx context.Context, req Request, br *Bridge) (map[string]string, error) {
	req.Exports = withEpoch(req.Exports, req.Opts)
	exports, err := b.exporters(req.Exports)
	if err != nil {
		return nil, err
	}
	asked, err := parseAttests(req.Opts)
	if err != nil {
		return nil, err
	}
	caches, err := b.cacheExports(req.CacheExports)
	if err != nil {
		return nil, err
	}
	br.uploads.start(ctx, br, caches)
	res, err := b.result(ctx, req, br)
	if err != nil {
		return nil, err
	}
	br.verifyPlatforms(ctx, res)
	if err := br.scan(ctx, res, asked); err != nil {
		return nil, err
	}
	in, err := br.evaluate(ctx, res)
	if err != nil {
		return nil, err
	}
	meta, err := req.tell(res)
	if err != nil {
		return nil, err
	}
	if err := br.attest(ctx, res, &in, asked); err != nil {
		return nil, err
	}
	defer br.recordProvenance(res, in, asked)
	out := answered(meta)
	br.inlineCaches(caches, res, &in)
	chosen, err := br.chooseExports(ctx, res, meta)
	if err != nil {
		return nil, err
	}
	more, err := b.exporters(chosen)
	if err != nil {
		return nil, err
	}
	all, by := append(slices.Clone(req.Exports), chosen...), append(exports, more...)
	err = br.exportAll(ctx, by, all, in, out)
	if err != nil && br.remake(ctx, res, &in, err) {
		err = br.exportAll(ctx, by, all, in, out)
	}
	if err != nil {
		return nil, err
	}
	if err := br.imports.replaced(); err != nil {
		return nil, err
	}
	// After the exports, so that the layers that they made are used again.
	made, err := br.exportCaches(ctx, caches, res, in)
	if err != nil {
		return nil, err
	}
	maps.Copy(out, made)
	br.job.Verified()
	if req.Chooser != nil {
		err = req.Chooser.Done(ctx, out)
	}
	return out, err
}

// chooseExports asks the client what else to make of the result.
func (br *Bridge) chooseExports(ctx context.Context, res *frontend.Result, meta map[string][]byte) ([]Export, error) {
	if br.req.Chooser == nil {
		return nil, nil
	}
	var refs []frontend.Ref
	for _, p := range res.Platforms {
		if p.Graph == nil || p.Graph.Root.Vertex == nil {
			continue
		}
		ref, err := br.Solve(ctx, p.Graph)
		if err != nil {
			return nil, err
		}
		refs = append(refs, ref)
	}
	return br.req.Chooser.Choose(ctx, meta, refs)
}

// exportAll carries the result out by all exporters at once and adds to out
// what they tell.
func (br *Bridge) exportAll(ctx context.Context, by []exporter.Exporter, exports []Export, in exporter.Input, out map[string]string) error {
	var mu sync.Mutex
	var later []func() error
	eg, gctx := errgroup.WithContext(ctx)
	answers := make([]map[string]string, len(exports))
	for i, e := range exports {
		step := progress.NewVertex(fmt.Sprint(e.stepName(), i))
		eg.Go(func() (err error) {
			answers[i], err = br.export(gctx, by[i], e, i, in, step, func(f func(context.Context) error) {
				mu.Lock()
				defer mu.Unlock()
				later = append(later, func() error { return br.exporting(ctx, e, step, f) })
			})
			return err
		})
	}
	if err := eg.Wait(); err != nil {
		return err
	}
	for _, answer := range answers { // of two that say the same thing, the last one counts
		maps.Copy(out, answer)
	}
	eg = &errgroup.Group{}
	for _, f := range later {
		eg.Go(f)
	}
	return eg.Wait()
}

// exporters finds the exporters of a request, before any work is done.
func (b *Builder) exporters(es []Export) (found []exporter.Exporter, err error) {
	for _, e := range es {
		ex, ok := b.Exporters[e.Type]
		if !ok {
			return nil, fmt.Errorf("exporter %q could not be found: expected one of %v", e.Type, slices.Sorted(maps.Keys(b.Exporters)))
		}
		if c, ok := ex.(exporter.Checker); ok {
			if err := c.Check(e.Attrs); err != nil {
				return nil, fmt.Errorf("export to %s: %w", e.Type, err)
			}
		}
		found = append(found, ex)
	}
	return found, nil
}

// result has whoever is the frontend make the graphs.
func (b *Builder) result(ctx context.Context, req Request, br *Bridge) (*frontend.Result, error) {
	switch {
	case req.FrontendFunc != nil:
		defer br.containers.close()
		return req.FrontendFunc(ctx, br)
	case req.Graph != nil:
		return &frontend.Result{Platforms: []frontend.PlatformResult{{Platform: b.Worker.Platforms[0], Graph: req.Graph}}}, nil
	}
	return br.Frontend(ctx, req.Frontend, req.Opts, req.Inputs)
}

// Locate gives an error the place that it came from.
func (br *Bridge) Locate(err error) error {
	var done *Error
	if err == nil || errors.As(err, &done) {
		return err
	}
	if explain := br.builder.NoRoom; explain != nil {
		err = explain(err)
	}
	e := &Error{Err: err, Stack: make([]uintptr, deepestStack)}
	e.Stack = e.Stack[:runtime.Callers(1, e.Stack)]
	var step *solver.Error
	if errors.As(err, &step) {
		e.Vertex = step.Vertex
		e.Sources = br.sources(step.Vertex)
	}
	for _, src := range frontend.SourceErrorsIn(err) {
		e.Sources = append(e.Sources, Source{src.File, src.Ranges})
	}
	return e
}
