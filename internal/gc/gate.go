package gc

import (
	"context"
	"errors"
	"sync"
)

// Gate lets steps begin while there is room for them below the cap.
type Gate struct {
	Collector *Collector
	// Expect is how many bytes a step is likely to make, by the key of its result
	// and its name; 0 is unknown.
	Expect func(key, name string) int64

	mu     sync.Mutex
	inside int
	left   chan struct{} // closed and replaced whenever one leaves
}

// Enter waits until a step may begin: room is made for what it is expected to
// write, and where that is not enough it waits for other steps to end. If there
// is none whose end could help, it is a [*FullError]. The step must leave.
func (g *Gate) Enter(ctx context.Context, key, name string) (leave func(), err error) {
	for {
		err := g.Collector.Hold(ctx, g.Expect(key, name))
		g.mu.Lock()
		if err == nil {
			g.inside++
			g.mu.Unlock()
			return sync.OnceFunc(g.leave), nil
		}
		full := new(FullError)
		if !errors.As(err, &full) || g.inside == 0 {
			g.mu.Unlock()
			return nil, err
		}
		if g.left == nil {
			g.left = make(chan struct{})
		}
		left := g.left
		g.mu.Unlock()
		select {
		case <-left:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (g *Gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	if g.left != nil {
		close(g.left)
		g.left = nil
	}
}
