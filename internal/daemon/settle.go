package daemon

import (
	"context"
	"log/slog"
	"time"
)

// settling bounds how long a prune waits for builds that end.
const settling = 30 * time.Second

// settle returns when builds that have ended, or that nobody waits for any more,
// hold nothing: what they held would be in use, and stay. Should one of them be
// stuck, the rest is pruned all the same.
func (s *Server) settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, settling)
	defer cancel()
	for _, r := range s.builds.stopped() {
		select {
		case <-r.done:
		case <-ctx.Done():
		}
	}
	if err := s.config.Builder.Settle(ctx); err != nil {
		slog.Warn("a prune leaves what a build still holds", "error", err)
	}
}

// stopped are the builds whose client has gone, or that were told to end, and
// that have not ended yet.
func (b *builds) stopped() (all []*running) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.byRef {
		if r.ctx == nil || r.ctx.Err() == nil {
			continue
		}
		select {
		case <-r.done:
		default:
			all = append(all, r)
		}
	}
	return all
}
