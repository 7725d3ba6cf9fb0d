package layer

import (
	"context"
	"errors"
	"sync"
)

var errClosed = errors.New("the layer store is closed")

// flights run a function once for all who ask for the same key at the same
// time. It is cancelled when the last of them has left; who comes then begins
// anew, but not before the cancelled one has ended: for one key, one function
// runs at a time.
type flights struct {
	mu     sync.Mutex
	closed bool
	calls  map[string]*flight // the newest of each key
	work   sync.WaitGroup     // one for each that has not ended
}

type flight struct {
	done    chan struct{}
	err     error
	waiting int
	left    bool // by all callers, and cancelled
	cancel  context.CancelFunc
}

func (g *flights) do(ctx context.Context, key string, f func(context.Context) error) error {
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return errClosed
	}
	c := g.calls[key]
	if c == nil || c.left {
		c = g.start(ctx, key, c, f)
	}
	c.waiting++
	g.mu.Unlock()

	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		g.mu.Lock()
		if c.waiting--; c.waiting == 0 {
			c.left = true
			c.cancel()
		}
		g.mu.Unlock()
		return context.Cause(ctx)
	}
}

// start runs f for key once the flight before it, if any, has ended. The caller
// holds mu.
func (g *flights) start(ctx context.Context, key string, before *flight, f func(context.Context) error) *flight {
	c := &flight{done: make(chan struct{})}
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c.cancel = cancel
	if g.calls == nil {
		g.calls = map[string]*flight{}
	}
	g.calls[key] = c
	g.work.Go(func() {
		if before != nil {
			<-before.done
		}
		if c.err = own.Err(); c.err == nil {
			c.err = f(own)
		}
		g.mu.Lock()
		if g.calls[key] == c {
			delete(g.calls, key)
		}
		g.mu.Unlock()
		cancel()
		close(c.done)
	})
	return c
}

// settle returns when what all callers have left has ended, or ctx has.
func (g *flights) settle(ctx context.Context) error {
	for {
		var one *flight
		g.mu.Lock()
		for _, c := range g.calls {
			if c.left {
				one = c
			}
		}
		g.mu.Unlock()
		if one == nil {
			return nil
		}
		select {
		case <-one.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// close cancels what runs, waits until it has ended, and lets nothing begin
// any more.
func (g *flights) close() {
	g.mu.Lock()
	g.closed = true
	for _, c := range g.calls {
		c.cancel()
	}
	g.mu.Unlock()
	g.work.Wait()
}
