package layer

import (
	"context"
	"errors"
	"sync"
)

var errClosed = errors.New("the layer store is closed")

// flights run a function once for all who ask for the same key at the same
// time. It is cancelled when the last of them has left.
type flights struct {
	mu      sync.Mutex
	closed  bool
	calls   map[string]*flight   // those that a caller may join
	running map[*flight]struct{} // also those that all callers have left
	work    sync.WaitGroup       // one for each that runs
}

type flight struct {
	done    chan struct{}
	err     error
	waiting int
	cancel  context.CancelFunc
}

func (g *flights) do(ctx context.Context, key string, f func(context.Context) error) error {
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return errClosed
	}
	c := g.calls[key]
	if c == nil {
		c = g.start(ctx, key, f)
	}
	c.waiting++
	g.mu.Unlock()

	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		g.mu.Lock()
		if c.waiting--; c.waiting == 0 {
			g.forget(key, c) // a later caller begins anew
			c.cancel()
		}
		g.mu.Unlock()
		return context.Cause(ctx)
	}
}

// start runs f for key. The caller holds mu.
func (g *flights) start(ctx context.Context, key string, f func(context.Context) error) *flight {
	c := &flight{done: make(chan struct{})}
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c.cancel = cancel
	if g.calls == nil {
		g.calls, g.running = map[string]*flight{}, map[*flight]struct{}{}
	}
	g.calls[key], g.running[c] = c, struct{}{}
	g.work.Go(func() {
		c.err = f(own)
		g.mu.Lock()
		g.forget(key, c)
		delete(g.running, c)
		g.mu.Unlock()
		cancel()
		close(c.done)
	})
	return c
}

func (g *flights) forget(key string, c *flight) {
	if g.calls[key] == c {
		delete(g.calls, key)
	}
}

// close cancels what runs, waits until it has ended, and lets nothing begin
// any more.
func (g *flights) close() {
	g.mu.Lock()
	g.closed = true
	for c := range g.running {
		c.cancel()
	}
	g.mu.Unlock()
	g.work.Wait()
}
