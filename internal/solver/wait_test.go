package solver

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"testing"
	"testing/synctest"

	digest "github.com/opencontainers/go-digest"
)

// stubborn is a vertex that does not heed that nobody wants it any more, and
// takes its time.
type stubborn struct {
	fixed
	run func(context.Context) error
}

func (v *stubborn) Op() Op { return v }

func (v *stubborn) Exec(ctx context.Context, _ []Result) ([]Result, error) {
	return []Result{v.value}, v.run(ctx)
}

// TestWaitForAbandoned ends jobs at many moments of their steps. Nothing is saved
// any more once there is nothing to wait for: a prune then finds all there is.
func TestWaitForAbandoned(t *testing.T) {
	const rounds = 500
	late := 0
	for range rounds {
		memory := newTables()
		s := New(memory)
		ctx, cancel := context.WithCancel(t.Context())
		j := s.NewJob(ctx, JobOptions{})
		pause := func() {
			for range rand.IntN(20) {
				runtime.Gosched()
			}
		}
		slow := func(name string, inputs ...Edge) Edge {
			return Edge{Vertex: &stubborn{fixed{name: name, value: name, inputs: inputs, byContent: true}, func(context.Context) error {
				pause()
				return nil
			}}}
		}
		wrong := Edge{Vertex: &stubborn{fixed{name: "wrong", inputs: []Edge{slow("below")}, byContent: true}, func(context.Context) error {
			pause()
			return errors.New("it fails")
		}}}
		go func() {
			pause()
			cancel()
		}()
		_, err := j.Build(ctx, slow("top", slow("left"), wrong, slow("right")))
		if err == nil {
			t.Fatal("a build that must fail has not")
		}
		j.Close()
		if j.Working() {
			late++
		}
		j.Wait(t.Context())
		memory.mu.Lock()
		saved, digests := len(memory.results), len(memory.digests)
		memory.mu.Unlock()
		for range 50 {
			runtime.Gosched()
		}
		memory.mu.Lock()
		if len(memory.results) != saved || len(memory.digests) != digests {
			t.Fatal("something was saved after the job had nothing under way")
		}
		memory.mu.Unlock()
	}
	t.Logf("%d of %d jobs had something under way when they were closed", late, rounds)
}

// TestWaitForKilledStep waits for a step that takes a while to be killed.
func TestWaitForKilledStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		j := New(newTables()).NewJob(ctx, JobOptions{})
		built := make(chan error, 1)
		go func() {
			_, err := j.Build(ctx, Edge{Vertex: &stubborn{fixed{name: "step"}, func(ctx context.Context) error {
				<-ctx.Done()
				<-release
				return nil
			}}})
			built <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-built; !errors.Is(err, context.Canceled) {
			t.Errorf("the build ended with %v", err)
		}
		j.Close()
		waited := false
		go func() {
			j.Wait(t.Context())
			waited = true
		}()
		synctest.Wait()
		if waited || !j.Working() {
			t.Error("a step that runs is not waited for")
		}
		close(release)
		synctest.Wait()
		if !waited || j.Working() {
			t.Error("a step that has ended is waited for")
		}
	})
}

// nesting is a vertex that builds another one, in a wording of its own.
type nesting struct {
	stubborn
	wording string
}

func (v *nesting) Digest() digest.Digest { return digest.FromString(v.name + v.wording) }
func (v *nesting) Op() Op                { return v }

func (v *nesting) CacheMap(ctx context.Context) (CacheMap, error) {
	cm, err := v.stubborn.CacheMap(ctx)
	cm.Nested = true
	return cm, err
}

// TestNestedRunsAreTheirOwn has a vertex wait for one that has its key: they share
// no run, and do not wait for each other.
func TestNestedRunsAreTheirOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := New(newTables()).NewJob(t.Context(), JobOptions{})
		defer j.Close()
		nested := func(wording string, run func(context.Context) error) Edge {
			return Edge{Vertex: &nesting{stubborn{fixed{name: "nested", value: "made"}, run}, wording}}
		}
		inner := nested("inner", func(context.Context) error { return nil })
		outer := nested("outer", func(ctx context.Context) error {
			_, err := j.Build(ctx, inner)
			return err
		})
		if got, err := j.Build(t.Context(), outer); got != "made" || err != nil {
			t.Errorf("got %v, %v", got, err)
		}
	})
}
