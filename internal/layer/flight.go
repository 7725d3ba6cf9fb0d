package layer

import (
	"context"
	"sync"
)

// flights run a function once for all who ask for the same key at the same
// time. It is cancelled when the last of them has left.
type flights struct {
	mu    sync.Mutex
	calls map[string]*flight
}

type flight struct {
	done    chan struct{}
	err     error
	waiting int
	cancel  context.CancelFunc
}

func (g *flights) do(ctx context.Context, key string, f func(context.Context) error) error {
	g.mu.Lock()
	c := g.calls[key]
	if c == nil {
		c = &flight{done: make(chan struct{})}
		var own context.Context
		own, c.cancel = context.WithCancel(context.WithoutCancel(ctx))
		if g.calls == nil {
			g.calls = map[string]*flight{}
		}
		g.calls[key] = c
		go func() {
			c.err = f(own)
			g.mu.Lock()
			g.forget(key, c)
			g.mu.Unlock()
			c.cancel()
			close(c.done)
		}()
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

func (g *flights) forget(key string, c *flight) {
	if g.calls[key] == c {
		delete(g.calls, key)
	}
}
