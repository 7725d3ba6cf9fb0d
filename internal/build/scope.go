package build

import (
	"context"
	"maps"
	"slices"
	"sync"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/provenance"
	"github.com/kiln-build/kiln/internal/solver"
	"github.com/kiln-build/kiln/internal/source"
	"github.com/kiln-build/kiln/llb"
)

// A scope is what one request of a build did: the client's own, or one to a
// frontend. What a result depends on is told from the scope that it was made in.
type scope struct {
	parent   *scope // nil for the client's own request
	frontend string
	opts     map[string]string
	inputs   map[string]*llb.Graph

	mu     sync.Mutex
	solved []*solved
	images []provenance.Image
	subs   []*scope
}

// solved is a graph that was solved, as it was given and as the passes left it.
type solved struct{ given, run *llb.Graph }

// resultKey is what a graph makes.
type resultKey struct {
	vertex digest.Digest
	index  int
}

func keyOf(g *llb.Graph) resultKey {
	if g == nil || g.Root.Vertex == nil {
		return resultKey{}
	}
	return resultKey{g.Root.Vertex.Digest(), g.Root.Index}
}

// records are what a build did, to tell provenance from.
type records struct {
	root scope

	mu      sync.Mutex
	pins    map[digest.Digest]provenance.Pin     // of sources, by vertex
	results map[resultKey]*scope                 // which request made it
	made    map[resultKey]bool                   // what was not only solved but made
	proxied map[digest.Digest]provenance.Proxied // what steps asked the network for; by vertex
	proxy   bool                                 // steps have the proxy network

	producers *producers // of all builds
	produced  []product
}

type scopeKey struct{}

// scope is the request that ctx works for.
func (r *records) scope(ctx context.Context) *scope {
	if s, ok := ctx.Value(scopeKey{}).(*scope); ok {
		return s
	}
	return &r.root
}

// enter begins a request to a frontend.
func (r *records) enter(ctx context.Context, name string, opts map[string]string, inputs map[string]*llb.Graph) (context.Context, *scope) {
	outer := r.scope(ctx)
	s := &scope{parent: outer, frontend: name, opts: maps.Clone(opts), inputs: inputs}
	outer.mu.Lock()
	outer.subs = append(outer.subs, s)
	outer.mu.Unlock()
	return context.WithValue(ctx, scopeKey{}, s), s
}

// returned notes which request made a result. The innermost one counts, which
// is the first to return.
func (r *records) returned(s *scope, res *frontend.Result) {
	if res == nil {
		return
	}
	note := func(g *llb.Graph) {
		key := keyOf(g)
		if key.vertex == "" {
			return
		}
		r.producers.add(key, s)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.produced = append(r.produced, product{key, s})
		if _, known := r.results[key]; known {
			return
		}
		if r.results == nil {
			r.results = map[resultKey]*scope{}
		}
		r.results[key] = s
	}
	for _, p := range res.Platforms {
		note(p.Graph)
		for _, a := range p.Attestations {
			note(a.Graph)
		}
	}
}

// close forgets what the build made.
func (r *records) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.produced {
		r.producers.remove(p)
	}
	r.produced = nil
}

// madeBy is the request that made a graph.
func (r *records) madeBy(g *llb.Graph) *scope {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s, ok := r.results[keyOf(g)]; ok {
		return s
	}
	return &r.root
}

// makers are the requests of this build, or else of others that still run, that
// made a graph.
func (r *records) makers(g *llb.Graph) []*scope {
	r.mu.Lock()
	s, ok := r.results[keyOf(g)]
	r.mu.Unlock()
	if ok {
		return []*scope{s}
	}
	return r.producers.of(keyOf(g))
}

// producers knows the requests that made the results of builds under way: a
// client may hand one build's result to another.
type producers struct {
	mu   sync.Mutex
	made map[resultKey][]*scope
}

// product is a result and the request that made it.
type product struct {
	key resultKey
	by  *scope
}

func (p *producers) add(key resultKey, by *scope) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.made == nil {
		p.made = map[resultKey][]*scope{}
	}
	p.made[key] = append(p.made[key], by)
}

func (p *producers) remove(one product) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	left := slices.DeleteFunc(p.made[one.key], func(s *scope) bool { return s == one.by })
	if p.made[one.key] = left; len(left) == 0 {
		delete(p.made, one.key)
	}
}

func (p *producers) of(key resultKey) []*scope {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.made[key])
}

// solving notes a graph that a request solves.
func (r *records) solving(ctx context.Context, given, run *llb.Graph) {
	s := r.scope(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.solved = append(s.solved, &solved{given: given, run: run})
}

// evaluated notes that a result was made.
func (r *records) evaluated(e solver.Edge) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.made == nil {
		r.made = map[resultKey]bool{}
	}
	r.made[resultKey{e.Vertex.Digest(), e.Index}] = true
}

// resolved notes an image that a frontend asked about.
func (r *records) resolved(ctx context.Context, op *llb.SourceOp, platform *ocispecs.Platform, d digest.Digest) {
	c := provenance.Capture{}
	c.AddSource(provenance.Pin{Op: op, Platform: platform, Digest: d})
	s := r.scope(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.images = append(s.images, c.Images...)
}

// pinned notes what a source turned out to be.
func (r *records) pinned(v *llb.Vertex, pin *source.Pin) {
	op, ok := v.Op.(*llb.SourceOp)
	if !ok {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pins == nil {
		r.pins = map[digest.Digest]provenance.Pin{}
	}
	r.pins[v.Digest()] = provenance.Pin{Op: op, Platform: v.Platform, Digest: pin.Digest}
}

// capture tells what a result depends on. others are the build's other results,
// which do not count; all, the platforms that it has results for.
func (r *records) capture(g *llb.Graph, others []*llb.Graph, platform ocispecs.Platform, all []ocispecs.Platform) *provenance.Capture {
	s := r.madeBy(g)
	r.mu.Lock()
	pins, made, proxied, proxy := maps.Clone(r.pins), maps.Clone(r.made), maps.Clone(r.proxied), r.proxy
	r.mu.Unlock()
	skip := map[resultKey]bool{}
	for _, o := range others {
		skip[keyOf(o)] = keyOf(o) != keyOf(g)
	}
	c := &provenance.Capture{}
	var images []provenance.Image
	for _, one := range s.reachable() {
		one.mu.Lock()
		images = append(images, one.images...)
		list := slices.Clone(one.solved)
		one.mu.Unlock()
		for _, x := range list {
			if made[keyOf(x.run)] && !skip[keyOf(x.given)] {
				part := provenance.Capture{}
				part.AddGraph(x.run, pins)
				if proxy {
					part.AddProxied(x.run, proxied)
				}
				c.Merge(&part)
			}
		}
	}
	for _, i := range forPlatform(images, platform, all) {
		c.AddImage(i)
	}
	if s.frontend != "" {
		c.Request.Frontend, c.Request.Args = s.frontend, provenance.FilterArgs(s.opts)
		r.addRequests(c, s)
	}
	c.Tidy()
	return c
}

// reachable are the scopes whose work a result of s may depend on: its own, those
// within it and those around it.
func (s *scope) reachable() []*scope {
	var all []*scope
	for outer := s.parent; outer != nil; outer = outer.parent {
		all = append(all, outer)
	}
	inner := []*scope{s}
	for len(inner) > 0 {
		one := inner[0]
		all = append(all, one)
		one.mu.Lock()
		inner = append(inner[1:], one.subs...)
		one.mu.Unlock()
	}
	return all
}

// addRequests tells of the inputs that a request was given, where it is known
// who made them, and of the client's own request if that is another.
func (r *records) addRequests(c *provenance.Capture, s *scope) {
	own := r.request(s, c, 0)
	c.Request.Inputs = own.Request.Inputs
	if root := &r.root; root.frontend != "" || len(root.opts) > 0 || len(root.inputs) > 0 {
		req := r.request(root, c, 0)
		if !req.Equal(own) && (root.frontend != "" || len(req.Request.Args) > 0 || len(req.Request.Inputs) > 0) {
			c.Request.Root = req
		}
	}
}

// deepestInput bounds how far inputs of inputs are told of.
const deepestInput = 16

// request describes what was asked of a frontend, with its inputs.
func (r *records) request(s *scope, c *provenance.Capture, depth int) *provenance.Request {
	out := provenance.NewRequest(s.frontend, provenance.FilterArgs(s.opts), c)
	if depth >= deepestInput {
		return out
	}
	for name, g := range s.inputs {
		var made *provenance.Request
		for i, maker := range r.makers(g) {
			one := r.request(maker, c, depth+1)
			if i > 0 && !one.Equal(made) {
				made = nil // nobody can tell which of them it was
				break
			}
			made = one
		}
		if made == nil {
			continue
		}
		if out.Request.Inputs == nil {
			out.Request.Inputs = map[string]*provenance.Request{}
		}
		out.Request.Inputs[name] = made
	}
	return out
}

// forPlatform leaves out images that are for other platforms, where an image
// was looked up for every platform of the result.
func forPlatform(images []provenance.Image, platform ocispecs.Platform, all []ocispecs.Platform) []provenance.Image {
	same := func(p *ocispecs.Platform, q ocispecs.Platform) bool {
		return p != nil && p.OS == q.OS && p.Architecture == q.Architecture
	}
	everywhere := func(i provenance.Image) bool {
		for _, q := range all {
			if !slices.ContainsFunc(images, func(o provenance.Image) bool { return o.Ref == i.Ref && same(o.Platform, q) }) {
				return false
			}
		}
		return len(all) > 1
	}
	return slices.DeleteFunc(slices.Clone(images), func(i provenance.Image) bool {
		return i.Platform != nil && everywhere(i) && !same(i.Platform, platform)
	})
}
