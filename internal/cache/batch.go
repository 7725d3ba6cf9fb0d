package cache

import (
	"context"
	"sync"
)

// batch joins questions that come at the same time into one call.
type batch[V any] struct {
	ctx  context.Context // of calls
	call func(ctx context.Context, keys []string) (map[string]V, error)
	// atOnce is how many calls are under way; what comes meanwhile waits and is
	// asked for together.
	atOnce int

	mu      sync.Mutex
	waiting []*question[V]
	calls   int
}

type question[V any] struct {
	keys []string
	done chan struct{}
	vals map[string]V
	err  error
}

// ask returns what there is of keys.
func (b *batch[V]) ask(ctx context.Context, keys []string) (map[string]V, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	q := &question[V]{keys: keys, done: make(chan struct{})}
	b.mu.Lock()
	b.waiting = append(b.waiting, q)
	if b.calls < b.atOnce {
		b.calls++
		go b.work()
	}
	b.mu.Unlock()
	select {
	case <-q.done:
		return q.vals, q.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// work calls until nobody waits.
func (b *batch[V]) work() {
	for {
		b.mu.Lock()
		qs := b.waiting
		b.waiting = nil
		if len(qs) == 0 {
			b.calls--
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
		seen := map[string]bool{}
		var keys []string
		for _, q := range qs {
			for _, k := range q.keys {
				if !seen[k] {
					seen[k] = true
					keys = append(keys, k)
				}
			}
		}
		vals, err := b.call(b.ctx, keys)
		for _, q := range qs {
			q.vals, q.err = vals, err
			close(q.done)
		}
	}
}
