package layer

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// leave starts a flight for key, whose caller leaves it at once, and which ends
// when the result is closed.
func leave(t *testing.T, g *flights, key string, ended *bool) (release chan struct{}) {
	t.Helper()
	release = make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		left <- g.do(ctx, key, func(ctx context.Context) error {
			<-ctx.Done()
			<-release // to stop takes a while
			*ended = true
			return ctx.Err()
		})
	}()
	synctest.Wait()
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("who left was told %v", err)
	}
	return release
}

// A flight begins when the one for its key that all have left has ended.
func TestFlightsDoNotOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flights
		var ended, began bool
		release := leave(t, &g, "a", &ended)
		done := make(chan error, 1)
		go func() {
			done <- g.do(t.Context(), "a", func(context.Context) error {
				began = true
				if !ended {
					t.Error("two flights for one key at a time")
				}
				return nil
			})
		}()
		synctest.Wait()
		if began {
			t.Error("the second flight began before the first had ended")
		}
		if err := g.do(t.Context(), "b", func(context.Context) error { return nil }); err != nil {
			t.Errorf("a flight for another key: %v", err)
		}
		close(release)
		if err := <-done; err != nil || !began {
			t.Errorf("the second flight: %v", err)
		}
	})
}

// All flights have ended when close returns, whether callers have left them or
// still wait; none begins after it.
func TestFlightsClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flights
		var ended bool
		release := leave(t, &g, "left", &ended)
		waited := make(chan error, 1)
		go func() {
			waited <- g.do(t.Context(), "waited", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		}()
		synctest.Wait()
		closed := make(chan struct{})
		go func() { g.close(); close(closed) }()
		if err := <-waited; !errors.Is(err, context.Canceled) {
			t.Errorf("who waited was told %v", err)
		}
		synctest.Wait()
		select {
		case <-closed:
			t.Fatal("close has not waited for a flight that its callers have left")
		default:
		}
		close(release)
		<-closed
		if !ended {
			t.Error("a flight outlived close")
		}
		if err := g.do(t.Context(), "late", func(context.Context) error { return nil }); !errors.Is(err, errClosed) {
			t.Errorf("after close a flight began: %v", err)
		}
	})
}

// Who settles waits for what was left, and for nothing else.
func TestFlightsSettle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flights
		var ended bool
		wanted := make(chan struct{})
		go func() {
			if err := g.do(t.Context(), "b", func(context.Context) error { <-wanted; return nil }); err != nil {
				t.Error(err)
			}
		}()
		release := leave(t, &g, "a", &ended)
		settled := make(chan error, 1)
		go func() { settled <- g.settle(t.Context()) }()
		synctest.Wait()
		if len(settled) > 0 {
			t.Error("what was left is not waited for")
		}
		close(release)
		if err := <-settled; err != nil || !ended {
			t.Errorf("settled with %v, ended is %v", err, ended)
		}
		close(wanted)
		synctest.Wait()
	})
}
