package solver

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	digest "github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/progress"
)

// --- the simulated world -------------------------------------------------

// sim runs solver code inside a synctest bubble. Every effect parks; whenever
// all goroutines are blocked, the driver picks one parked effect by the seed.
type sim struct {
	t    *testing.T
	rnd  *rand.Rand
	mu   sync.Mutex
	park map[string]*effect // by label
	seen map[string]int     // effects so far by label
	log  []string

	results  map[Key][]Result
	digests  map[string]Content
	dirty    map[Key]bool // evicted or forced since last saved
	stands   map[Key]tree // what a key stands for that is made of content alone
	executed int
	injected int
	failRate float64
	forces   bool
	forceOne int // one vertex in so many is forced
	noEvict  bool
	remote   *remote // nil for none
	imported int     // from there
	losses   int     // of what it had promised

	// What the disk holds for sure: a crash falls back to it.
	diskResults map[Key][]Result
	diskDigests map[string]Content
	crashes     bool
	life        context.Context // ends with the daemon
	die         context.CancelFunc
	solver      *Solver

	wants map[want]int // what clients wait for
}

// want is a vertex that somebody waits for.
type want struct {
	job    *Job
	vertex *simVertex
}

func newSim(t *testing.T, seed uint64) *sim {
	return &sim{
		t: t, rnd: rand.New(rand.NewPCG(seed, 1)),
		park: map[string]*effect{}, seen: map[string]int{}, results: map[Key][]Result{}, digests: map[string]Content{}, dirty: map[Key]bool{}, stands: map[Key]tree{},
		diskResults: map[Key][]Result{}, diskDigests: map[string]Content{}, wants: map[want]int{},
	}
}

// build has a job build a vertex, and knows meanwhile that it is wanted.
func (s *sim) build(ctx context.Context, j *Job, v *simVertex) (Result, error) {
	defer s.wanting(j, v)()
	return j.Build(ctx, Edge{Vertex: v})
}

func (s *sim) wanting(j *Job, v *simVertex) (enough func()) {
	count := func(by int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.wants[want{j, v}] += by
	}
	count(1)
	return func() { count(-1) }
}

// checkWanted is called when everybody waits. What is executed then must be below
// something that somebody waits for.
func (s *sim) checkWanted() {
	s.mu.Lock()
	defer s.mu.Unlock()
	keys := map[string]bool{}
	seen := map[*node]bool{}
	note := func(n *node) {
		if n.known != nil {
			keys[string(n.known.key[:8])] = true
		}
	}
	for w, n := range s.wants {
		if top, ok := w.job.nodes.load(string(w.vertex.Digest())); ok && n > 0 {
			top.visit(seen, note)
		}
	}
	for label := range s.park {
		if key, ok := strings.CutPrefix(label, "exec "); ok && !keys[key[:8]] {
			s.t.Errorf("%q is executed and nobody wants it", label)
		}
	}
}

// boot starts a daemon on what the disk holds.
func (s *sim) boot() {
	s.life, s.die = context.WithCancel(context.Background())
	s.solver = New(&memory{s, s.life})
}

// sync makes everything remembered so far durable.
func (s *sim) sync() {
	s.diskResults, s.diskDigests = maps.Clone(s.results), maps.Clone(s.digests)
}

// crash ends the daemon at once: what was not synced is lost, and so is, now
// and then, a snapshot that the disk still names.
func (s *sim) crash() {
	s.die()
	for k := range s.results {
		if _, ok := s.diskResults[k]; !ok {
			s.dirty[k] = true
		}
	}
	s.results, s.digests = maps.Clone(s.diskResults), maps.Clone(s.diskDigests)
	if s.rnd.IntN(2) == 0 {
		s.evict()
	}
	s.boot()
}

type effect struct{ out chan error }

type jobID struct{}

var errInjected = errors.New("injected")

func (s *sim) effect(ctx context.Context, label string) error {
	e := &effect{make(chan error, 1)}
	if id := ctx.Value(jobID{}); id != nil { // flights belong to no job
		label = fmt.Sprint(label, " for ", id)
	}
	s.mu.Lock()
	s.seen[label]++
	label = fmt.Sprintf("%s #%d", label, s.seen[label])
	s.park[label] = e
	s.mu.Unlock()
	select {
	case err := <-e.out:
		return err
	case <-ctx.Done():
		s.mu.Lock()
		delete(s.park, label)
		s.mu.Unlock()
		if strings.HasPrefix(label, "exec") { // a process takes its time to die
			_ = s.effect(context.Background(), "reap "+label) // dying cannot fail
		}
		return ctx.Err()
	}
}

// step completes one parked effect and reports whether there was one.
func (s *sim) step() bool {
	s.mu.Lock()
	labels := slices.Sorted(maps.Keys(s.park))
	if len(labels) == 0 {
		s.mu.Unlock()
		return false
	}
	l := labels[s.rnd.IntN(len(labels))]
	e := s.park[l]
	delete(s.park, l)
	var err error
	if strings.HasPrefix(l, "exec") && s.rnd.Float64() < s.failRate {
		err = errInjected
		s.injected++
	}
	s.log = append(s.log, fmt.Sprint(l, " ", err))
	if s.remote != nil {
		s.remote.weather()
	}
	if !s.noEvict && s.rnd.IntN(4) == 0 { // garbage collection may strike at any time
		s.evict()
	}
	s.mu.Unlock()
	e.out <- err
	return true
}

func (s *sim) evict() {
	ks := slices.Sorted(maps.Keys(s.results))
	if len(ks) > 0 {
		k := ks[s.rnd.IntN(len(ks))]
		delete(s.results, k)
		s.dirty[k] = true
	}
}

// --- Cache ---------------------------------------------------------------

// memory is the cache as one life of the daemon sees it.
type memory struct {
	*sim
	life context.Context
}

func (s *memory) Load(ctx context.Context, k Key) ([]Result, error) {
	if err := s.effect(ctx, "load "+string(k[:8])); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if out, ok := s.results[k]; ok && s.life.Err() == nil {
		return out, nil
	}
	return nil, ErrNotFound
}

func (s *memory) Save(ctx context.Context, k Key, out []Result) error {
	if err := s.effect(ctx, "save "+string(k[:8])); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life.Err() != nil { // the dead write nothing
		return s.life.Err()
	}
	if _, ok := s.results[k]; ok && !s.dirty[k] && !s.forces && s.remote == nil {
		s.t.Errorf("%s executed twice with no reason to", k[:8])
	}
	s.results[k], s.dirty[k] = out, false
	return nil
}

func (s *memory) Digest(_ context.Context, part string) (Content, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d, ok := s.digests[part]; ok && s.life.Err() == nil {
		return d, nil
	}
	return Content{}, ErrNotFound
}

func (s *memory) PutDigest(_ context.Context, part string, d Content) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life.Err() == nil {
		s.digests[part] = d
	}
	return nil
}

// --- operations ----------------------------------------------------------

const (
	source    = iota // no inputs
	plain            // all inputs by definition
	reader           // input 0 by content of one file
	identical        // input 0 by content, returned as is
	volatile         // like plain, but differs whenever it runs
)

// tree is a result: two files.
type tree [2]string

// ID and Is make it an Identified.
func (t tree) ID() string        { return hash(t[0], t[1]) }
func (t tree) Is(id string) bool { return id == t.ID() }

type simVertex struct {
	sim    *sim
	name   string
	kind   int // see the constants
	sel    int // file read of input 0 if kind is 2
	value  tree
	salt   string // makes a source's identity private to a job
	inputs []*simVertex
	forced bool
	owner  string       // the job whose graph it is in
	parts  []*simVertex // of the last one: the graph
	pick   int          // of the last one: which part a second client wants

	digest string
	want   *tree
}

func hash(a ...any) string { return fmt.Sprintf("%x", sha256.Sum256(fmt.Append(nil, a...)))[:12] }

func (v *simVertex) Digest() digest.Digest  { return digest.Digest(v.digest) }
func (v *simVertex) Group() *progress.Group { return nil }

func (v *simVertex) seal() {
	a := []any{v.name, v.kind, v.sel, v.salt, v.value, v.forced}
	for _, in := range v.inputs {
		a = append(a, in.Digest())
	}
	v.digest = hash(a...)
}
func (v *simVertex) Name() string      { return v.name }
func (v *simVertex) Op() Op            { return v }
func (v *simVertex) IgnoreCache() bool { return v.forced }
func (v *simVertex) Inputs() (es []Edge) {
	for _, in := range v.inputs {
		es = append(es, Edge{Vertex: in})
	}
	return es
}

func (v *simVertex) opName() string {
	if v.kind == identical {
		return "identity"
	}
	return v.name
}

func (v *simVertex) CacheMap(ctx context.Context) (CacheMap, error) {
	if v.kind == source {
		if err := v.sim.effect(ctx, "resolve "+v.name+v.salt); err != nil {
			return CacheMap{}, err
		}
		cm := CacheMap{Digest: hash(v.name, v.salt, v.value), Keep: KeepDigests}
		if v.salt != "" {
			cm.Keep = KeepJob
		}
		return cm, nil
	}
	cm := CacheMap{Digest: hash(v.opName(), v.kind, v.sel)}
	if v.byContent() {
		sel := fmt.Sprint(v.sel)
		if v.kind == identical {
			sel = "all"
		}
		cm.Deps = []Dep{{Selector: sel, Digest: func(ctx context.Context, r Result) (string, error) {
			if err := v.sim.effect(ctx, "digest "+v.digest); err != nil {
				return "", err
			}
			t, err := v.sim.read(r)
			return hash("content", v.view(t)), err
		}}}
	}
	return cm, nil
}

// view is what the operation can see of its first input.
func (v *simVertex) view(t tree) any {
	if v.kind == reader {
		return t[v.sel]
	}
	return t
}

func (v *simVertex) run(ins []tree) tree {
	switch {
	case v.kind == source:
		return v.value
	case v.kind == identical:
		return ins[0]
	case v.kind == volatile:
		return tree{"any", "any"}
	}
	a := []any{v.opName(), v.view(ins[0])}
	for _, in := range ins[1:] {
		a = append(a, in)
	}
	return tree{hash(append(a, 0)...), hash(append(a, 1)...)}
}

func (v *simVertex) Exec(ctx context.Context, ins []Result) ([]Result, error) {
	label := fmt.Sprint("exec ", KeyFrom(ctx)[:8])
	if v.forced { // jobs do not share it: which one's it is must not be left to chance
		label += " forced by " + v.owner + v.digest
	}
	if err := v.sim.effect(ctx, label); err != nil {
		return nil, err
	}
	ts := make([]tree, len(ins))
	for i := range ins {
		var err error
		if ts[i], err = v.sim.read(ins[i]); err != nil {
			return nil, fmt.Errorf("read input %d: %w", i, err)
		}
	}
	v.sim.mu.Lock()
	if v.kind != source { // to make a source's result costs nothing
		v.sim.executed++
	}
	run := v.sim.executed
	if v.byContent() && len(ts) == 1 {
		key := KeyFrom(ctx)
		if was, ok := v.sim.stands[key]; ok && was != v.run(ts) {
			v.sim.t.Errorf("key %s of %s stands for %v and for %v", key[:8], v.name, was, v.run(ts))
		}
		v.sim.stands[key] = v.run(ts)
	}
	v.sim.mu.Unlock()
	if v.kind == volatile {
		s := fmt.Sprintf("run %06d", run)
		return []Result{tree{s, s}}, nil
	}
	return []Result{v.run(ts)}, nil
}

// oracle evaluates with no cleverness at all.
func (v *simVertex) oracle() tree {
	if v.want != nil {
		return *v.want
	}
	var ts []tree
	for _, in := range v.inputs {
		ts = append(ts, in.oracle())
	}
	t := v.run(ts)
	v.want = &t
	return t
}

// audit checks what one job saw: fresh nodes were made in its time from what it
// saw itself, and with nothing volatile about, everything is as it should be.
func (s *sim) audit(j *Job, g *simVertex, got tree, since int) error {
	if !has(g, func(v *simVertex) bool { return v.kind == volatile }) && got != g.oracle() {
		return fmt.Errorf("got %v want %v", got, g.oracle())
	}
	s.mu.Lock()
	lost := s.losses > 0
	s.mu.Unlock()
	if lost { // what was seen before a loss may differ from what was made after it
		return nil
	}
	for _, n := range j.nodes.m {
		v := n.op.(*simVertex)
		made := n.result.value().out
		if made == nil || !v.fresh() && !v.readsFresh() {
			continue
		}
		got := files(made[0])
		if v.kind == volatile {
			if got[0] <= fmt.Sprintf("run %06d", since) {
				return fmt.Errorf("%s is stale: %s, job began after %d", v.name, got[0], since)
			}
			continue
		}
		var ins []tree
		for _, in := range n.inputs {
			ins = append(ins, files(in.node.result.value().out[0]))
		}
		if want := v.run(ins); got != want {
			return fmt.Errorf("%s is not made of what the job saw", v.name)
		}
	}
	return nil
}

// files is what a result has, or had.
func files(r Result) tree {
	if l, ok := r.(lazy); ok {
		return l.tree
	}
	return r.(tree)
}

// fresh says whether nothing remembered may stand in for v.
func (v *simVertex) fresh() bool {
	for i, in := range v.inputs {
		if in.fresh() && !(i == 0 && v.byContent()) {
			return true
		}
	}
	return v.forced
}

// readsFresh says whether v is decided by the content of one fresh input.
func (v *simVertex) readsFresh() bool {
	return len(v.inputs) == 1 && v.byContent() && v.inputs[0].fresh()
}

func (v *simVertex) byContent() bool { return v.kind == reader || v.kind == identical }

// has reports whether f holds for v or anything beneath it.
func has(v *simVertex, f func(*simVertex) bool) bool {
	return f(v) || slices.ContainsFunc(v.inputs, func(in *simVertex) bool { return has(in, f) })
}
