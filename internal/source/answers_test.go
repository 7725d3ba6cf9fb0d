package source_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/kiln-build/kiln/internal/session/sessiontest"
	"github.com/kiln-build/kiln/internal/source"
)

func TestAnswers(t *testing.T) {
	var a source.Answers[int]
	var asked atomic.Int32
	find := func(context.Context) (int, error) { return int(asked.Add(1)), nil }
	one, two := sessiontest.Connect(t), sessiontest.Connect(t)
	ask := func(ctx context.Context, key string, want int) {
		t.Helper()
		if got, err := a.Ask(ctx, key, find); err != nil || got != want {
			t.Errorf("got %d, %v; want %d", got, err, want)
		}
	}
	first, second := sessiontest.Context(t.Context(), one), sessiontest.Context(t.Context(), two)
	ask(first, "x", 1)
	ask(first, "x", 1)
	ask(first, "y", 2)
	ask(second, "x", 3)
	both := sessiontest.Context(t.Context(), two, one)
	ask(both, "x", 3) // the nearest one's
	ask(both, "z", 4)
	ask(first, "z", 4)
	ask(second, "z", 4)
	ask(t.Context(), "x", 5) // nobody's build
	ask(t.Context(), "x", 6)
}

func TestAnswersAtOnce(t *testing.T) {
	var a source.Answers[int]
	ctx := sessiontest.Context(t.Context(), sessiontest.Connect(t))
	var asked atomic.Int32
	begun := make(chan struct{})
	var work sync.WaitGroup
	for range 20 {
		work.Go(func() {
			got, err := a.Ask(ctx, "x", func(context.Context) (int, error) {
				close(begun) // panics if it is called twice
				return int(asked.Add(1)), nil
			})
			if err != nil || got != 1 {
				t.Errorf("got %d, %v", got, err)
			}
		})
	}
	work.Wait()
	<-begun
}

// TestAnswersThatFail remembers no failure, and hands none of one who gave up on.
func TestAnswersThatFail(t *testing.T) {
	var a source.Answers[int]
	ctx := sessiontest.Context(t.Context(), sessiontest.Connect(t))
	bad := errors.New("bad")
	if _, err := a.Ask(ctx, "x", func(context.Context) (int, error) { return 0, bad }); !errors.Is(err, bad) {
		t.Errorf("got %v", err)
	}
	first, giveUp := context.WithCancel(ctx)
	begun, waiting := make(chan struct{}), make(chan struct{})
	var work sync.WaitGroup
	work.Go(func() {
		_, err := a.Ask(first, "x", func(ctx context.Context) (int, error) {
			close(begun)
			<-ctx.Done()
			return 0, ctx.Err()
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
	<-begun
	work.Go(func() {
		close(waiting)
		got, err := a.Ask(ctx, "x", func(context.Context) (int, error) { return 7, nil })
		if err != nil || got != 7 {
			t.Errorf("got %d, %v", got, err)
		}
	})
	<-waiting
	giveUp()
	work.Wait()
}
