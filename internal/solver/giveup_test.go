package solver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	digest "github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/progress"
)

// kitchen is a job of steps that run until they are released or nobody wants them.
type kitchen struct {
	job     *Job
	release map[string]chan struct{}

	mu   sync.Mutex
	log  []string
	last map[digest.Digest]progress.Vertex
}

func newKitchen(ctx context.Context) *kitchen {
	k := &kitchen{release: map[string]chan struct{}{}, last: map[digest.Digest]progress.Vertex{}}
	k.job = New(newTables()).NewJob(ctx, JobOptions{Sink: progress.SinkFunc(func(e progress.Event) {
		k.mu.Lock()
		defer k.mu.Unlock()
		if e.Vertex != nil {
			k.last[e.Vertex.Digest] = *e.Vertex
		}
	})})
	return k
}

func (k *kitchen) step(name string, inputs ...Edge) Edge {
	release := make(chan struct{})
	k.release[name] = release
	return Edge{Vertex: &stubborn{fixed{name: name, value: name, inputs: inputs}, func(ctx context.Context) error {
		k.note(name + " runs")
		select {
		case <-release:
			k.note(name + " is done")
			return nil
		case <-ctx.Done():
			k.note(name + " is ended")
			return ctx.Err()
		}
	}}}
}

func (k *kitchen) note(text string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.log = append(k.log, text)
}

// told is what came to pass since it was last called, in any order.
func (k *kitchen) told() string {
	synctest.Wait()
	k.mu.Lock()
	defer k.mu.Unlock()
	slices.Sort(k.log)
	text := fmt.Sprint(k.log)
	k.log = nil
	return text
}

func (k *kitchen) expect(t *testing.T, want string) {
	t.Helper()
	if got := k.told(); got != want {
		t.Errorf("this came to pass: %s, expected %s", got, want)
	}
}

// order has an edge built in the background.
func (k *kitchen) order(ctx context.Context, e Edge) (giveUp func(), outcome chan error) {
	ctx, giveUp = context.WithCancel(ctx)
	outcome = make(chan error, 1)
	go func() {
		_, err := k.job.Build(ctx, e)
		outcome <- err
	}()
	return giveUp, outcome
}

// TestGiveUp gives up what is asked of a job that goes on: steps that nobody else
// wants end, those that somebody else reaches do not notice, and what was given up is
// made when it is asked for again.
func TestGiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKitchen(t.Context())
		defer k.job.Close()
		shared := k.step("shared")
		below := k.step("below")
		mine := k.step("mine", below, shared)
		other := k.step("other", shared)

		leaveMine, outcome := k.order(t.Context(), mine)
		_, others := k.order(t.Context(), other)
		k.expect(t, "[below runs shared runs]")
		leaveMine()
		k.expect(t, "[below is ended]")
		if err := <-outcome; !errors.Is(err, context.Canceled) {
			t.Errorf("what was given up ended with %v", err)
		}
		if v := k.last[below.Vertex.Digest()]; v.Completed == nil || v.Error == "" {
			t.Errorf("progress has the given-up step as %+v, expected it to have ended", v)
		}
		close(k.release["shared"])
		k.expect(t, "[other runs shared is done]")
		close(k.release["other"])
		if err := <-others; err != nil {
			t.Errorf("the other one failed: %v", err)
		}
		k.expect(t, "[other is done]")

		_, outcome = k.order(t.Context(), mine)
		k.expect(t, "[below runs]")
		if v := k.last[below.Vertex.Digest()]; v.Completed != nil || v.Started == nil || v.Error != "" {
			t.Errorf("progress has the step that runs again as %+v", v)
		}
		close(k.release["below"])
		close(k.release["mine"])
		if err := <-outcome; err != nil {
			t.Errorf("what was given up and asked for again failed: %v", err)
		}
		k.expect(t, "[below is done mine is done mine runs]")
	})
}

// TestGiveUpAmongJobs gives up a step in one job that another job waits for.
func TestGiveUpAmongJobs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKitchen(t.Context())
		defer k.job.Close()
		step := k.step("step")
		second := k.job.solver.NewJob(t.Context(), JobOptions{})
		defer second.Close()
		leave, first := k.order(t.Context(), step)
		k.expect(t, "[step runs]")
		outcome := make(chan error, 1)
		go func() {
			_, err := second.Build(t.Context(), step)
			outcome <- err
		}()
		synctest.Wait()
		leave()
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Errorf("what was given up ended with %v", err)
		}
		k.expect(t, "[]")
		close(k.release["step"])
		if err := <-outcome; err != nil {
			t.Errorf("the other job failed: %v", err)
		}
		k.expect(t, "[step is done]")
	})
}

// TestFailureEndsSiblings has a step fail in a job that goes on: what only the
// failed build wanted ends with it.
func TestFailureEndsSiblings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKitchen(t.Context())
		defer k.job.Close()
		wrong := Edge{Vertex: &stubborn{fixed{name: "wrong"}, func(context.Context) error { return errors.New("it fails") }}}
		_, outcome := k.order(t.Context(), k.step("top", k.step("sibling"), wrong))
		if err := <-outcome; err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("the build ended with %v, expected the failure", err)
		}
		if got := k.told(); got != "[sibling is ended sibling runs]" && got != "[]" {
			t.Errorf("this came to pass: %s", got)
		}
		if !k.job.work.Idle() {
			t.Error("something of a failed build goes on")
		}
	})
}
