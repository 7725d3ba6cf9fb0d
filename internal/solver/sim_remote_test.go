package solver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/internal/progress"
)

// remote is a cache of others in the simulated world: what jobs make travels
// there, late, twice or never, and what has arrived may rot, go, or be promised
// and then not be had.
type remote struct {
	*sim
	transit []parcel
	shelf   map[string]*parcel // by subject
}

// parcel is a record: of a result, or of a content digest.
type parcel struct {
	subject string
	text    string
	sum     string // of the text; a rotten parcel has another
	gone    bool   // its blobs are, though the record is there
}

var errRemote = errors.New("remote store does not answer")

// lossError is what reading files says that are gone.
type lossError struct{}

func (lossError) Error() string { return "blob is gone" }
func (lossError) Lost() bool    { return true }

// lazy is a result that was promised, to be had when it is read.
type lazy struct {
	tree
	from *parcel
}

// read returns a result's files.
func (s *sim) read(r Result) (tree, error) {
	l, ok := r.(lazy)
	if !ok {
		return r.(tree), nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.from.gone {
		s.losses++
		return tree{}, lossError{}
	}
	return l.tree, nil
}

func (r *remote) send(subject, text string) {
	p := parcel{subject: subject, text: text, sum: hash(text)}
	// Goroutines come in any order; histories must not depend on it.
	i, _ := slices.BinarySearchFunc(r.transit, p, func(a, b parcel) int { return strings.Compare(a.subject+a.text, b.subject+b.text) })
	r.transit = slices.Insert(r.transit, i, p)
}

// ended is told of results as jobs have them.
func (r *remote) ended(j *Job, k Key, out []Result) {
	recipe, _ := j.Recipe(k)
	r.mu.Lock()
	defer r.mu.Unlock()
	if recipe.Local || r.life.Err() != nil {
		return
	}
	if t, ok := out[0].(tree); ok {
		r.send("result "+string(k), strings.Join(t[:], "|"))
	}
	for _, in := range recipe.Inputs {
		if below, _ := j.Recipe(in.Key); in.Content != "" && !below.Local {
			r.send(fmt.Sprint("content ", in.Key, in.Index, in.Selector), in.Content)
		}
	}
}

// weather is what happens to the store between two effects.
func (r *remote) weather() {
	if r.rnd.IntN(6) == 0 { // another machine takes over, which knows nothing
		for k := range r.results {
			r.dirty[k] = true
		}
		clear(r.results)
		clear(r.digests)
	}
	for n := len(r.transit); n > 0 && r.rnd.IntN(4) > 0; n = len(r.transit) {
		i := r.rnd.IntN(n) // order is not kept
		p := r.transit[i]
		if r.rnd.IntN(8) > 0 { // else it is there, and will come again
			r.transit = slices.Delete(r.transit, i, i+1)
		}
		if _, ok := r.shelf[p.subject]; r.rnd.IntN(8) > 0 && (!ok || r.shelf[p.subject].gone) { // else it is lost
			r.shelf[p.subject] = &p
		}
	}
	subjects := slices.Sorted(maps.Keys(r.shelf))
	if len(subjects) == 0 {
		return
	}
	p := r.shelf[subjects[r.rnd.IntN(len(subjects))]]
	switch r.rnd.IntN(20) {
	case 0:
		delete(r.shelf, p.subject)
	case 1:
		rotten := *p
		rotten.text = "rotten" + p.text
		r.shelf[p.subject] = &rotten
	case 2:
		// Who has been promised it, in whatever life, will not get it.
		p.gone = true
	}
}

// look finds a parcel that is what it claims to be.
func (r *remote) look(ctx context.Context, subject string) (*parcel, error) {
	label := "remote " + subject
	if strings.HasPrefix(subject, "content") { // what is asked for by steps that histories tell apart
		label += fmt.Sprint(" for ", progress.StepFrom(ctx).Vertex())
	}
	if err := r.effect(ctx, label); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.shelf[subject]
	switch {
	case r.rnd.IntN(10) == 0:
		return nil, errRemote
	case p == nil || hash(p.text) != p.sum || r.rnd.IntN(2) == 0 && p.gone:
		return nil, ErrNotFound // now and then its loss is not noticed
	}
	r.imported++
	return p, nil
}

func (r *remote) Load(ctx context.Context, _ *Job, k Key, _ func(int) bool) ([]Result, error) {
	p, err := r.look(ctx, "result "+string(k))
	if err != nil {
		return nil, err
	}
	a, b, _ := strings.Cut(p.text, "|")
	return []Result{lazy{tree{a, b}, p}}, nil
}

func (r *remote) Digest(ctx context.Context, _ *Job, of Ingredient) (Content, error) {
	p, err := r.look(ctx, fmt.Sprint("content ", of.Key, of.Index, of.Selector))
	if err != nil {
		return Content{}, err
	}
	return Content{Digest: p.text}, nil
}

// collect reads the result of a job as an exporter does: what is lost is made anew.
func (s *sim) collect(ctx context.Context, j *Job, g *simVertex, r Result) (tree, error) {
	t, err := s.read(r)
	if err == nil {
		return t, nil
	}
	defer s.wanting(j, g)()
	if r, err = j.Remake(ctx, Edge{Vertex: g}, err); err != nil {
		return tree{}, err
	}
	return s.read(r)
}

// The remote store must have been of use, and have done harm, or the simulation
// shows nothing.
func TestSimulationHasRemote(t *testing.T) {
	var imported, losses int
	for seed := range uint64(300) {
		_, s := relive(t, seed+1)
		imported, losses = imported+s.imported, losses+s.losses
	}
	if imported < 100 || losses < 10 {
		t.Errorf("%d results and digests came from the remote store, %d were lost, expected more", imported, losses)
	}
	t.Logf("%d results and digests came from the remote store, %d were lost", imported, losses)
}
