package solver

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"testing"

	digest "github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/progress"
)

// fixed is a vertex that always gives the same value.
type fixed struct {
	name      string
	value     string
	keep      Keep
	ignore    bool
	byContent bool // its inputs count by content
	inputs    []Edge
	runs      *int
}

func (v *fixed) Digest() digest.Digest  { return digest.FromString(v.name) }
func (v *fixed) Name() string           { return v.name }
func (v *fixed) Group() *progress.Group { return nil }
func (v *fixed) Op() Op                 { return v }
func (v *fixed) Inputs() []Edge         { return v.inputs }
func (v *fixed) IgnoreCache() bool      { return v.ignore }

func (v *fixed) CacheMap(context.Context) (CacheMap, error) {
	cm := CacheMap{Digest: v.name, Keep: v.keep}
	for range v.inputs {
		var d Dep
		if v.byContent {
			d.Digest = func(_ context.Context, r Result) (string, error) { return fmt.Sprint("content of ", r), nil }
		}
		cm.Deps = append(cm.Deps, d)
	}
	return cm, nil
}

func (v *fixed) Exec(context.Context, []Result) ([]Result, error) {
	*v.runs++
	return []Result{v.value}, nil
}

// tables is a Cache in memory.
type tables struct {
	mu      sync.Mutex
	results map[Key][]Result
	digests map[string]Content
}

func newTables() *tables { return &tables{results: map[Key][]Result{}, digests: map[string]Content{}} }

func (c *tables) Load(_ context.Context, k Key) ([]Result, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r, ok := c.results[k]; ok {
		return r, nil
	}
	return nil, ErrNotFound
}

func (c *tables) Save(_ context.Context, k Key, out []Result) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.results[k] = out
	return nil
}

func (c *tables) Digest(_ context.Context, part string) (Content, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d, ok := c.digests[part]; ok {
		return d, nil
	}
	return Content{}, ErrNotFound
}

func (c *tables) PutDigest(_ context.Context, part string, d Content) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.digests[part] = d
	return nil
}

func buildOnce(t *testing.T, c Cache, v Vertex) map[string]progress.Vertex {
	t.Helper()
	var mu sync.Mutex
	told := map[string]progress.Vertex{}
	sink := progress.SinkFunc(func(e progress.Event) {
		mu.Lock()
		defer mu.Unlock()
		if e.Vertex != nil {
			told[e.Vertex.Name] = *e.Vertex
		}
	})
	j := New(c).NewJob(t.Context(), JobOptions{Sink: sink})
	if _, err := j.Build(t.Context(), Edge{Vertex: v}); err != nil {
		t.Fatal(err)
	}
	j.Close()
	mu.Lock()
	defer mu.Unlock()
	return maps.Clone(told)
}

// A step that must run anew has what is built on it by definition run anew,
// and what is built on its content only if the content changed.
func TestNoCacheStopsAtContent(t *testing.T) {
	for _, byContent := range []bool{true, false} {
		cache, below, above := newTables(), 0, 0
		graph := func() Vertex {
			forced := &fixed{name: "forced", value: "same", ignore: true, runs: &below}
			return &fixed{name: "top", value: "x", byContent: byContent, inputs: []Edge{{Vertex: forced}}, runs: &above}
		}
		buildOnce(t, cache, graph())
		buildOnce(t, cache, graph())
		want := 2
		if byContent {
			want = 1
		}
		if below != 2 || above != want {
			t.Errorf("by content %v: the forced step ran %d times, want 2; the one above %d, want %d", byContent, below, above, want)
		}
	}
}

// What holds for one job leaves nothing behind, nor does what is built on it
// by definition.
func TestKeepJobLeavesNothing(t *testing.T) {
	cache, runs := newTables(), 0
	local := &fixed{name: "local", value: "files", keep: KeepJob, runs: &runs}
	buildOnce(t, cache, &fixed{name: "above", value: "x", inputs: []Edge{{Vertex: local}}, runs: &runs})
	if len(cache.results) != 0 || len(cache.digests) != 0 {
		t.Errorf("kept results %v and digests %v", cache.results, cache.digests)
	}
	buildOnce(t, cache, &fixed{name: "reader", value: "x", byContent: true, inputs: []Edge{{Vertex: local}}, runs: &runs})
	if len(cache.results) != 1 || len(cache.digests) != 0 {
		t.Errorf("a step on the content keeps its result alone: results %v, digests %v", cache.results, cache.digests)
	}
}

// A hit shows everything beneath it as cached, though nothing of it was looked at.
func TestHitShowsWholeChainCached(t *testing.T) {
	cache, runs := newTables(), 0
	graph := func() Vertex {
		a := &fixed{name: "a", value: "1", keep: KeepDigests, runs: &runs}
		b := &fixed{name: "b", value: "2", inputs: []Edge{{Vertex: a}}, runs: &runs}
		return &fixed{name: "c", value: "3", inputs: []Edge{{Vertex: b}}, runs: &runs}
	}
	first := buildOnce(t, cache, graph())
	for _, name := range []string{"a", "b", "c"} {
		if v := first[name]; v.Cached || v.Completed == nil {
			t.Errorf("first build: %s: cached %v, completed %v", name, v.Cached, v.Completed)
		}
	}
	before := runs
	for name, v := range buildOnce(t, cache, graph()) {
		if !v.Cached || v.Completed == nil || v.Started == nil {
			t.Errorf("second build: %s: cached %v, started %v, completed %v", name, v.Cached, v.Started, v.Completed)
		}
	}
	if runs != before {
		t.Errorf("second build ran %d steps", runs-before)
	}
}

type panicking struct{ fixed }

func (v *panicking) Op() Op { return v }

func (v *panicking) Exec(context.Context, []Result) ([]Result, error) { panic("boom") }

func TestPanicIsAnError(t *testing.T) {
	runs := 0
	j := New(newTables()).NewJob(t.Context(), JobOptions{})
	defer j.Close()
	_, err := j.Build(t.Context(), Edge{Vertex: &panicking{fixed{name: "bad", runs: &runs}}})
	if err == nil {
		t.Fatal("no error")
	}
}
