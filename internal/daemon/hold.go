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
	// holdShare bounds what looking costs: this many times as long is not looked,
	// but for when the disk fills.
	holdShare = 10
	// holdTick is how often it is asked how fast the disk fills.
	holdTick = 10 * time.Millisecond
)

// holdCap keeps the root folder below its cap while builds write. Room is made
// of what nobody uses; if there is none left, the build that began last ends.
// What is written between the limit (see [gc.Collector.Limit]) and that moment is
// what steps write in one tick and two measurements.
func (s *Server) holdCap(stop chan struct{}) {
	c := s.config.Collector
	if c == nil || c.Cap == 0 {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var looked time.Time // when the last look ended
	var took time.Duration
	stopped := false // a build was told to end: whether that was enough shows soon
	seen := -1
	for wait := time.Duration(0); ; {
		select {
		case <-stop:
			return
		case <-time.After(wait):
		}
		wait = holdEvery
		ended, running := s.builds.ended(), s.builds.running()
		if running == 0 && ended == seen {
			continue
		}
		if running > 0 {
			wait = holdTick
		}
		pause := max(holdEvery, holdShare*took)
		switch {
		case stopped:
			pause = max(holdEvery, took)
		case c.Pressing():
			pause = took
		}
		if time.Since(looked) < pause {
			continue
		}
		seen = ended
		began := time.Now()
		err := c.Hold(ctx, 0)
		looked, took, stopped = time.Now(), time.Since(began), false
		var full *gc.FullError
		switch {
		case err == nil:
		case errors.As(err, &full):
			stopped = s.builds.stopNewest(err)
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
