package flight

import (
	"context"
	"sync"
)

// Crew is goroutines whose end can be waited for. Unlike a [sync.WaitGroup] it
// takes new ones at any time, even while somebody waits. The zero value is ready
// for use.
type Crew struct {
	mu   sync.Mutex
	busy int
	none chan struct{} // closed when the last one ends; nil if nobody waits
}

// Go runs f in a goroutine of the crew.
func (c *Crew) Go(f func()) {
	c.begin()
	go func() {
		defer c.end()
		f()
	}()
}

func (c *Crew) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy++
}

func (c *Crew) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy--; c.busy == 0 && c.none != nil {
		close(c.none)
		c.none = nil
	}
}

// Idle tells whether there is none.
func (c *Crew) Idle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.busy == 0
}

// Wait returns when there is a moment without any, or ctx ends.
func (c *Crew) Wait(ctx context.Context) error {
	c.mu.Lock()
	if c.busy == 0 {
		c.mu.Unlock()
		return nil
	}
	if c.none == nil {
		c.none = make(chan struct{})
	}
	none := c.none
	c.mu.Unlock()
	select {
	case <-none:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
