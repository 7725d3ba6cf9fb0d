package solver

import (
	"context"
	"testing"
)

// dice is an operation that makes something else whenever it runs.
type dice struct {
	fixed
	rolls []string
}

func (v *dice) Op() Op { return v }

func (v *dice) Exec(context.Context, []Result) ([]Result, error) {
	*v.runs++
	return []Result{named(v.rolls[*v.runs-1])}, nil
}

// named is a result that is told from others by what it says.
type named string

func (n named) ID() string           { return "id of " + string(n) }
func (n named) Is(other string) bool { return other == n.ID() }

// copying gives back what it reads, by which it counts.
type copying struct {
	fixed
	by Edge
}

func (v *copying) Op() Op         { return v }
func (v *copying) Inputs() []Edge { return []Edge{v.by} }

func (v *copying) CacheMap(context.Context) (CacheMap, error) {
	return CacheMap{Digest: "copy", Deps: []Dep{{Digest: func(_ context.Context, r Result) (string, error) {
		return "content " + string(r.(named)), nil
	}}}}, nil
}

func (v *copying) Exec(_ context.Context, in []Result) ([]Result, error) {
	*v.runs++
	return []Result{in[0]}, nil
}

// above is built on what others have made, and holds it.
type above struct{ copying }

func (v *above) Op() Op { return v }
func (v *above) CacheMap(context.Context) (CacheMap, error) {
	return CacheMap{Digest: v.name}, nil
}

func solveNamed(t *testing.T, c Cache, im Imports, v Vertex) string {
	t.Helper()
	j := New(c).NewJob(t.Context(), JobOptions{Imports: im})
	defer j.Close()
	r, err := j.Build(t.Context(), Edge{Vertex: v})
	if err != nil {
		t.Fatal(err)
	}
	return string(r.(named))
}

// What is remembered of a step's content may be of another run than the result that
// there is of it, for steps need not make the same twice: its digest may come from
// another writer than its layers, or outlive them. What was made of the one is not to
// be kept as made of the other.
func TestContentOfAnotherRun(t *testing.T) {
	var rolled, copied, built int
	step := &dice{fixed{name: "dice", runs: &rolled}, []string{"ours", "ours later"}}
	reads := &copying{fixed{name: "copy of dice", runs: &copied}, Edge{Vertex: step}}
	top := &above{copying{fixed{name: "top", runs: &built}, Edge{Vertex: reads}}}

	theirs := &fixed{name: "theirs", value: "", runs: new(int)}
	same := &dice{*theirs, []string{"theirs"}}
	readsTheirs := &copying{fixed{name: "copy of theirs", runs: &copied}, Edge{Vertex: same}}
	topOfTheirs := &above{copying{fixed{name: "top", runs: &built}, Edge{Vertex: readsTheirs}}}

	c := newTables()
	im := &others{content: map[string]string{"dice": "content theirs"}}
	if got := solveNamed(t, c, im, top); got != "ours" {
		t.Errorf("got %q", got)
	}
	if got := solveNamed(t, c, nil, topOfTheirs); got != "theirs" {
		t.Errorf("what was made of our run is a hit for what is made of theirs: got %q", got)
	}
	if got := solveNamed(t, c, nil, top); got != "ours" || rolled != 1 || copied != 2 || built != 2 {
		t.Errorf("got %q after %d, %d and %d runs, expected hits for all", got, rolled, copied, built)
	}

	// The result goes, and what is known of its content stays.
	clear(c.results)
	if got := solveNamed(t, c, nil, top); got != "ours later" {
		t.Errorf("got %q", got)
	}
	before := built
	if got := solveNamed(t, c, nil, top); got != "ours later" || built != before {
		t.Errorf("got %q, which ran %d times more", got, built-before)
	}
	rolled = 0 // it makes what it made at first
	clear(c.results)
	if got := solveNamed(t, c, nil, top); got != "ours" {
		t.Errorf("what was made of another run is a hit: got %q", got)
	}
}
