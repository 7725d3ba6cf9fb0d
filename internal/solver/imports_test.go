package solver

import (
	"context"
	"strings"
	"testing"
)

// others has results by the digest of the operation.
type others struct {
	results map[string][]Result
	content map[string]string
	asked   []string
}

func (o *others) Load(_ context.Context, j *Job, k Key, needed func(int) bool) ([]Result, error) {
	r, ok := j.Recipe(k)
	if !ok {
		return nil, ErrNotFound
	}
	o.asked = append(o.asked, r.Digest)
	out, ok := o.results[r.Digest]
	for i, res := range out {
		if res == (Absent{}) && needed(i) {
			return nil, ErrNotFound
		}
	}
	if !ok {
		return nil, ErrNotFound
	}
	return out, nil
}

func (o *others) Digest(_ context.Context, j *Job, of Ingredient) (Content, error) {
	if r, ok := j.Recipe(of.Key); ok && o.content[r.Digest] != "" {
		return Content{Digest: o.content[r.Digest]}, nil
	}
	return Content{}, ErrNotFound
}

// twin is a vertex with two outputs.
type twin struct {
	fixed
	second string
}

func (v *twin) Op() Op        { return v }
func (v *twin) Outputs() int  { return 2 }
func (v *twin) Private() bool { return false }

func (v *twin) Exec(context.Context, []Result) ([]Result, error) {
	*v.runs++
	return []Result{v.value, v.second}, nil
}

func solveWith(t *testing.T, c Cache, im Imports, e Edge) string {
	t.Helper()
	j := New(c).NewJob(t.Context(), JobOptions{Imports: im})
	defer j.Close()
	r, err := j.Build(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	return r.(string)
}

// What others made is used, kept, and asked for once.
func TestImports(t *testing.T) {
	var runs int
	base := &fixed{name: "base", value: "b", runs: &runs}
	top := &fixed{name: "top", value: "t", runs: &runs, inputs: []Edge{{Vertex: base}}}
	im := &others{results: map[string][]Result{"top": {"imported"}}}
	c := newTables()
	for range 2 {
		if got := solveWith(t, c, im, Edge{Vertex: top}); got != "imported" || runs != 0 {
			t.Errorf("got %q after %d runs", got, runs)
		}
	}
	if strings.Join(im.asked, " ") != "top" {
		t.Errorf("others were asked for %v, expected top, once", im.asked)
	}
	if got := solveWith(t, newTables(), nil, Edge{Vertex: top}); got != "t" || runs != 2 {
		t.Errorf("without others: got %q after %d runs", got, runs)
	}
	fresh := &fixed{name: "top", value: "anew", ignore: true, runs: &runs}
	if got := solveWith(t, c, im, Edge{Vertex: fresh}); got != "anew" {
		t.Errorf("a step that is to run anew gave %q", got)
	}
}

// A digest of others saves making what it is of.
func TestImportedDigest(t *testing.T) {
	var runs int
	base := &fixed{name: "base", value: "b", runs: &runs}
	top := &fixed{name: "top", value: "t", byContent: true, runs: &runs, inputs: []Edge{{Vertex: base}}}
	im := &others{results: map[string][]Result{"top": {"imported"}}, content: map[string]string{"base": "content of b"}}
	if got := solveWith(t, newTables(), im, Edge{Vertex: top}); got != "imported" || runs != 0 {
		t.Errorf("got %q after %d runs", got, runs)
	}
	// The key is the same as when the content was looked at.
	c := newTables()
	if got := solveWith(t, c, nil, Edge{Vertex: top}); got != "t" {
		t.Fatalf("got %q", got)
	}
	runs = 0
	if got := solveWith(t, c, &others{content: im.content}, Edge{Vertex: top}); got != "t" || runs != 0 {
		t.Errorf("with others' digest: got %q after %d runs", got, runs)
	}
}

// An output that others do not have is made when it is wanted, not before.
func TestAbsentOutput(t *testing.T) {
	var runs int
	v := &twin{fixed: fixed{name: "twin", value: "one", runs: &runs}, second: "two"}
	im := &others{results: map[string][]Result{"twin": {Absent{}, "imported"}}}
	c := newTables()
	if got := solveWith(t, c, im, Edge{Vertex: v, Index: 1}); got != "imported" || runs != 0 {
		t.Fatalf("the output that others have: got %q after %d runs", got, runs)
	}
	if got := solveWith(t, c, nil, Edge{Vertex: v, Index: 1}); got != "imported" || runs != 0 {
		t.Errorf("the same from our own cache: got %q after %d runs", got, runs)
	}
	// Wanted later in the same job, and in another.
	j := New(c).NewJob(t.Context(), JobOptions{Imports: im})
	defer j.Close()
	for i, want := range []string{"imported", "one"} {
		r, err := j.Build(t.Context(), Edge{Vertex: v, Index: 1 - i})
		if err != nil || r != want {
			t.Errorf("output %d: got %v, %v, expected %q", 1-i, r, err, want)
		}
	}
	if runs != 1 {
		t.Errorf("%d runs, expected 1", runs)
	}
	if got := solveWith(t, c, im, Edge{Vertex: v, Index: 0}); got != "one" || runs != 1 {
		t.Errorf("once it was made: got %q after %d runs", got, runs)
	}
	if _, err := j.Build(t.Context(), Edge{Vertex: v, Index: 2}); err == nil || !strings.Contains(err.Error(), "has no output 2") {
		t.Errorf("an output that there is not: %v", err)
	}
}
