package solver

import (
	"context"
	"slices"
	"sync"
	"testing"

	digest "github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/progress"
)

// TestMissed is told of each step that is to run, with what its key is made of,
// and of none that was remembered.
func TestMissed(t *testing.T) {
	s := New(&missCache{results: map[Key][]Result{}})
	build := func() (missed []string, steps []Step) {
		var mu sync.Mutex
		j := s.NewJob(t.Context(), JobOptions{Missed: func(st Step, _ *progress.Step, other func(Key) (Step, bool)) {
			mu.Lock()
			defer mu.Unlock()
			missed = append(missed, st.Name)
			for _, in := range st.Recipe.Inputs {
				if o, ok := other(in.Key); !ok || o.Key != in.Key {
					t.Errorf("%s: its input %s is not to be had", st.Name, in.Key)
				}
			}
			if len(st.Parts) != 1 || st.Parts[0].Value != st.Name {
				t.Errorf("%s: parts are %+v", st.Name, st.Parts)
			}
		}})
		defer j.Close()
		below := &missVertex{name: "below"}
		if _, err := j.Build(t.Context(), Edge{Vertex: &missVertex{name: "top", inputs: []Edge{{Vertex: below}}}}); err != nil {
			t.Fatal(err)
		}
		steps = j.Steps()
		slices.Sort(missed)
		return missed, steps
	}
	missed, steps := build()
	if !slices.Equal(missed, []string{"below", "top"}) {
		t.Errorf("missed are %v", missed)
	}
	if len(steps) != 2 || steps[0].Name != "below" || !steps[0].Ran || !steps[1].Made || steps[1].Cached {
		t.Errorf("steps are %+v, want each after its inputs", steps)
	}
	if missed, steps = build(); len(missed) > 0 || !steps[1].Cached || !steps[1].Made || steps[1].Ran {
		t.Errorf("missed are %v of steps that are remembered, %+v", missed, steps)
	}
}

// missCache is a Cache in memory.
type missCache struct {
	mu      sync.Mutex
	results map[Key][]Result
}

func (c *missCache) Load(_ context.Context, k Key) ([]Result, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if out, ok := c.results[k]; ok {
		return out, nil
	}
	return nil, ErrNotFound
}

func (c *missCache) Save(_ context.Context, k Key, out []Result) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.results[k] = out
	return nil
}

func (c *missCache) Digest(context.Context, string) (Content, error)  { return Content{}, ErrNotFound }
func (c *missCache) PutDigest(context.Context, string, Content) error { return nil }

// missVertex is a vertex whose operation returns its name.
type missVertex struct {
	name   string
	inputs []Edge
}

func (v *missVertex) Digest() digest.Digest  { return digest.FromString(v.name) }
func (v *missVertex) Name() string           { return v.name }
func (v *missVertex) Op() Op                 { return v }
func (v *missVertex) Inputs() []Edge         { return v.inputs }
func (v *missVertex) Group() *progress.Group { return nil }
func (v *missVertex) IgnoreCache() bool      { return false }
func (v *missVertex) Parts() []Part          { return []Part{{Kind: "instruction", Value: v.name}} }

func (v *missVertex) CacheMap(context.Context) (CacheMap, error) {
	return CacheMap{Digest: "op " + v.name}, nil
}

func (v *missVertex) Exec(context.Context, []Result) ([]Result, error) { return []Result{v.name}, nil }
