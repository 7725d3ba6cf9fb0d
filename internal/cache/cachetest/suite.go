// Package cachetest is the suite that every implementation of [solver.Cache]
// passes.
package cachetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/kiln-build/kiln/internal/solver"
)

// Fixture is a cache under test and its surroundings.
type Fixture struct {
	Cache solver.Cache
	// Make makes a result, a different one at each call.
	Make func(t *testing.T) solver.Result
	// Empty is the result that is the empty file system.
	Empty solver.Result
	// Content tells what is in a result, so that two can be compared.
	Content func(t *testing.T, r solver.Result) string
	// Evict removes what a result stands for.
	Evict func(t *testing.T, r solver.Result)
	// Reopen closes the cache and returns it as it comes back.
	Reopen func(t *testing.T) solver.Cache
}

// Run runs the suite.
func Run(t *testing.T, start func(t *testing.T) *Fixture) {
	for name, test := range map[string]func(*testing.T, *Fixture){
		"Miss":       miss,
		"Hit":        hit,
		"SaveAgain":  saveAgain,
		"Restart":    restart,
		"Evicted":    evicted,
		"Digests":    digests,
		"Concurrent": concurrent,
		"Refuses":    refuses,
	} {
		t.Run(name, func(t *testing.T) { test(t, start(t)) })
	}
}

func isMiss(t *testing.T, f *Fixture, key solver.Key) {
	t.Helper()
	if out, err := f.Cache.Load(context.Background(), key); !errors.Is(err, solver.ErrNotFound) {
		t.Errorf("load of %q gives %v (%v), want a miss", key, out, err)
	}
}

func save(t *testing.T, f *Fixture, key solver.Key, out ...solver.Result) {
	t.Helper()
	if err := f.Cache.Save(context.Background(), key, out); err != nil {
		t.Fatal(err)
	}
}

// isHit says whether key has results with the given contents.
func isHit(t *testing.T, f *Fixture, key solver.Key, want ...string) {
	t.Helper()
	out, err := f.Cache.Load(context.Background(), key)
	if err != nil || len(out) != len(want) {
		t.Errorf("load of %q gives %v (%v), want %d results", key, out, err, len(want))
		return
	}
	for i := range out {
		if got := f.Content(t, out[i]); got != want[i] {
			t.Errorf("result %d of %q has %q, want %q", i, key, got, want[i])
		}
	}
}

func miss(t *testing.T, f *Fixture) {
	isMiss(t, f, "unknown")
	isMiss(t, f, "")
	if _, err := f.Cache.Digest(context.Background(), "unknown"); !errors.Is(err, solver.ErrNotFound) {
		t.Errorf("an unknown digest gives %v", err)
	}
}

func hit(t *testing.T, f *Fixture) {
	a, b := f.Make(t), f.Make(t)
	save(t, f, "one", a)
	save(t, f, "some", b, f.Empty, a)
	save(t, f, "none")
	isHit(t, f, "one", f.Content(t, a))
	isHit(t, f, "some", f.Content(t, b), f.Content(t, f.Empty), f.Content(t, a))
	isHit(t, f, "none")
}

func saveAgain(t *testing.T, f *Fixture) {
	a, b := f.Make(t), f.Make(t)
	save(t, f, "key", a)
	save(t, f, "key", b)
	isHit(t, f, "key", f.Content(t, b))
}

func restart(t *testing.T, f *Fixture) {
	a := f.Make(t)
	want := f.Content(t, a)
	save(t, f, "key", a, f.Empty)
	if err := f.Cache.PutDigest(context.Background(), "part", solver.Content{Digest: "sha256:1", Of: "layer"}); err != nil {
		t.Fatal(err)
	}
	f.Cache = f.Reopen(t)
	isHit(t, f, "key", want, f.Content(t, f.Empty))
	if d, err := f.Cache.Digest(context.Background(), "part"); err != nil || d != (solver.Content{Digest: "sha256:1", Of: "layer"}) {
		t.Errorf("digest is %q (%v)", d, err)
	}
}

// evicted: a result that has lost one part is no result, and may come again.
func evicted(t *testing.T, f *Fixture) {
	a, b := f.Make(t), f.Make(t)
	save(t, f, "both", a, b)
	save(t, f, "kept", b)
	want := f.Content(t, b)
	f.Evict(t, a)
	isMiss(t, f, "both")
	isHit(t, f, "kept", want)
	save(t, f, "both", b, b)
	isHit(t, f, "both", want, want)
	f.Cache = f.Reopen(t)
	isHit(t, f, "both", want, want)
}

func digests(t *testing.T, f *Fixture) {
	ctx := context.Background()
	parts := []string{"a", "a\x00b", "def:key@0:/src", strings.Repeat("long", 10000)}
	for i, p := range parts {
		if err := f.Cache.PutDigest(ctx, p, solver.Content{Digest: fmt.Sprint("sha256:", i)}); err != nil {
			t.Fatal(err)
		}
	}
	for i, p := range parts {
		if d, err := f.Cache.Digest(ctx, p); err != nil || d.Digest != fmt.Sprint("sha256:", i) {
			t.Errorf("digest of %.20q is %q (%v)", p, d, err)
		}
	}
	if _, err := f.Cache.Load(ctx, "a"); !errors.Is(err, solver.ErrNotFound) {
		t.Errorf("a digest is taken for a result: %v", err)
	}
}

func concurrent(t *testing.T, f *Fixture) {
	a := f.Make(t)
	want := f.Content(t, a)
	var g sync.WaitGroup
	for w := range 4 {
		g.Go(func() {
			for i := range 50 {
				key := solver.Key(fmt.Sprint(w, "-", i))
				if err := f.Cache.Save(context.Background(), key, []solver.Result{a}); err != nil {
					t.Error(err)
				}
				if _, err := f.Cache.Load(context.Background(), key); err != nil {
					t.Errorf("%q cannot be read at once: %v", key, err)
				}
			}
		})
	}
	g.Wait()
	isHit(t, f, "3-49", want)
}

// refuses: what cannot be kept is an error, not a wrong hit later.
func refuses(t *testing.T, f *Fixture) {
	if err := f.Cache.Save(context.Background(), "key", []solver.Result{struct{ x int }{1}}); err == nil {
		t.Error("an unknown kind of result is kept")
	}
	isMiss(t, f, "key")
}
