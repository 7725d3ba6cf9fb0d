package layer

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// A flight whose callers have left, or still wait, has ended when close
// returns; none begins after it.
func TestFlightsClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flights
		ended := map[string]bool{}
		release := make(chan struct{})
		fly := func(name string) func(context.Context) error {
			return func(ctx context.Context) error {
				<-ctx.Done()
				<-release // to stop takes a while
				ended[name] = true
				return ctx.Err()
			}
		}

		ctx, cancel := context.WithCancel(t.Context())
		left := make(chan error, 1)
		go func() { left <- g.do(ctx, "left", fly("left")) }()
		waited := make(chan error, 1)
		synctest.Wait()
		cancel()
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Errorf("who left was told %v", err)
		}

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
		if !ended["left"] {
			t.Error("a flight outlived close")
		}
		if err := g.do(t.Context(), "late", func(context.Context) error { return nil }); !errors.Is(err, errClosed) {
			t.Errorf("after close a flight began: %v", err)
		}
	})
}
