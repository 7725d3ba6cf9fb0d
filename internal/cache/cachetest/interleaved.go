package cachetest

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/solver"
)

// Gate holds one of many requests until it is opened. The zero value holds none.
type Gate struct {
	mu      sync.Mutex
	left    int // requests up to the one that is held; 0 holds none
	reached chan struct{}
	opened  chan struct{}
}

// Arm has the n-th request from now on held, n from 1. The channel is closed when it comes.
func (g *Gate) Arm(n int) <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.left, g.reached, g.opened = n, make(chan struct{}), make(chan struct{})
	return g.reached
}

// Open lets the request that is held go on, or the one that would be held later.
func (g *Gate) Open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.left = 0
	close(g.opened)
}

// Pass is a request.
func (g *Gate) Pass() {
	g.mu.Lock()
	held := g.left == 1
	g.left = max(0, g.left-1)
	opened := g.opened
	if held {
		close(g.reached)
	}
	g.mu.Unlock()
	if held {
		<-opened
	}
}

// Rivals are two daemons that have one place, empty at first, behind a gate.
type Rivals struct {
	Places [2]cache.Shelves
	Gate   *Gate
	// Read and Write are the attributes of an import and an export.
	Read, Write map[string]string
	// Context makes one that calls of a daemon can be made in; nil takes the test's.
	Context func(daemon int, ctx context.Context) context.Context
}

// Interleaved runs two daemons that write the same record: one is held before each of
// its requests in turn, while the other writes all of its own. Whoever trusts one of
// them finds that one's record afterwards, and whoever trusts both finds one, too.
func Interleaved(t *testing.T, start func(t *testing.T) *Rivals) {
	ids := identities(t)
	for what, trust := range map[string][2]cache.Trust{
		"Apart":    {trusts(ids[0]), trusts(ids[1])},
		"Together": {trusts(ids[0], ids[1]), trusts(ids[1], ids[0])},
		"Everyone": {},
	} {
		t.Run(what, func(t *testing.T) {
			for n := 1; ; n++ {
				r := start(t)
				held := r.compete(t, n, ids, trust)
				for i, id := range ids {
					want := id
					if what != "Apart" {
						want = nil
					}
					r.finds(t, n, trust[i], want)
				}
				if t.Failed() || !held {
					break
				}
			}
		})
	}
}

func identities(t *testing.T) (ids [2]*cache.Identity) {
	t.Helper()
	for i := range ids {
		id, err := cache.NewIdentity(bytes.Repeat([]byte{byte(i + 1)}, 32))
		if err != nil {
			t.Fatal(err)
		}
		ids[i] = id
	}
	return ids
}

func trusts(ids ...*cache.Identity) (t cache.Trust) {
	for _, id := range ids {
		t.Writers = append(t.Writers, cache.TrustedWriter{Key: id.Public()})
	}
	return t
}

func (r *Rivals) ctx(t *testing.T, daemon int) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	if r.Context != nil {
		return r.Context(daemon, ctx)
	}
	return ctx
}

const rivalKey = solver.Key("a step")

// known are the recipes of the one step.
type known struct{}

func (known) Recipe(solver.Key) (solver.Recipe, bool) { return solver.Recipe{Digest: "op"}, true }

// write is what one of the daemons does.
func (r *Rivals) write(t *testing.T, i int, id *cache.Identity, trust cache.Trust) error {
	s, err := r.Places[i].Shelf(r.ctx(t, i), r.Write, true)
	if err != nil {
		return err
	}
	// With a memory, one request follows the other.
	u := cache.NewUploader(r.ctx(t, i), cache.UploaderConfig{Shelf: s, Trust: trust, Identity: id, Memory: cache.NewMemory(time.Hour)})
	defer u.Close()
	u.Step(rivalKey, known{}, []solver.Result{[]byte(id.Public())})
	return u.Wait()
}

// compete has the second daemon held before its n-th request while the first writes,
// and tells whether it came to that.
func (r *Rivals) compete(t *testing.T, n int, ids [2]*cache.Identity, trust [2]cache.Trust) (held bool) {
	t.Helper()
	reached, done := r.Gate.Arm(n), make(chan error, 1)
	go func() { done <- r.write(t, 1, ids[1], trust[1]) }()
	var err error
	select {
	case <-reached:
		held = true
	case err = <-done:
	}
	if !held {
		r.Gate.Open()
	}
	if err := r.write(t, 0, ids[0], trust[0]); err != nil {
		t.Errorf("held before request %d, the one that is not held: %v", n, err)
	}
	if held {
		r.Gate.Open()
		err = <-done
	}
	if err != nil {
		t.Errorf("held before request %d: %v", n, err)
	}
	return held
}

// finds looks for the step as somebody who trusts by trust, and expects it, by want if
// that is somebody.
func (r *Rivals) finds(t *testing.T, n int, trust cache.Trust, want *cache.Identity) {
	t.Helper()
	s, err := r.Places[0].Shelf(r.ctx(t, 0), r.Read, false)
	if err != nil {
		t.Fatal(err)
	}
	f := cache.NewFinder(r.ctx(t, 0), cache.FinderConfig{Shelf: s, Trust: trust, Limit: time.Minute, Warn: func(err error) { t.Error(err) }})
	found, err := f.Result(r.ctx(t, 0), rivalKey, nil)
	switch {
	case errors.Is(err, solver.ErrNotFound):
		t.Errorf("one was held before request %d: who trusts %d writers misses the record: %v", n, len(trust.Writers), err)
	case err != nil:
		t.Error(err)
	case string(found.Outputs[0].Value) != found.Writer || want != nil && found.Writer != want.Public():
		t.Errorf("one was held before request %d: found %+v, not by the one who is trusted", n, found)
	case !f.About(r.ctx(t, 0)):
		t.Errorf("one was held before request %d: nothing is known about the place", n)
	}
}
