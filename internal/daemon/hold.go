package daemon

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/kiln-build/kiln/internal/gc"
)

const (
	holdEvery = 200 * time.Millisecond
	// holdShare bounds what looking costs: this many times as long is not looked.
	holdShare = 10
)

// holdCap keeps the root folder below its cap while builds write. Room is made
// of what nobody uses; if there is none left, the build that began last ends.
func (s *Server) holdCap(stop chan struct{}) {
	c := s.config.Collector
	if c == nil || c.Cap == 0 {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	seen := -1
	for wait := time.Duration(0); ; {
		select {
		case <-stop:
			return
		case <-time.After(wait):
		}
		wait = holdEvery
		ended := s.builds.ended()
		if s.builds.running() == 0 && ended == seen {
			continue
		}
		seen = ended
		began := time.Now()
		err := c.Hold(ctx, 0)
		wait = max(wait, holdShare*time.Since(began))
		var full *gc.FullError
		switch {
		case err == nil:
		case errors.As(err, &full):
			if s.builds.stopNewest(err) {
				wait = holdEvery // whether that was enough shows soon
			}
		default:
			slog.Error("hold the cap", "error", err)
		}
	}
}

// stoppable notes what a build that has begun works in, and how to end it.
func (b *builds) stoppable(ctx context.Context, r *running, stop context.CancelCauseFunc) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r.ctx, r.stop = ctx, stop
}

// stopNewest ends the build that began last, unless there is none.
func (b *builds) stopNewest(why error) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	var newest *running
	for _, r := range b.byRef {
		select {
		case <-r.done:
			continue
		default:
		}
		if r.stop != nil && (newest == nil || r.began.After(newest.began)) {
			newest = r
		}
	}
	if newest == nil {
		return false
	}
	newest.stop(why)
	newest.stop = nil // once
	return true
}
