package source

import (
	"context"
	"errors"
	"sync"

	"github.com/kiln-build/kiln/internal/session"
)

// Answers remembers what was found out for a build until the build is over, so
// that one that asks twice does not see a thing change in between. A build is
// known by its client's session. Nothing is remembered where there is none, and
// no failure is.
//
// The zero value is ready for use.
type Answers[T any] struct {
	mu     sync.Mutex
	builds map[*session.Caller]map[string]*answer[T]
}

type answer[T any] struct {
	done  chan struct{}
	value T
	err   error
}

// Ask returns the answer to the question key, which find gives if nobody of ctx's
// builds has asked before. Who asks at the same time waits for the same answer.
func (a *Answers[T]) Ask(ctx context.Context, key string, find func(context.Context) (T, error)) (T, error) {
	for {
		one, mine := a.claim(session.FromContext(ctx), key)
		if one == nil {
			return find(ctx)
		}
		if mine {
			return a.find(ctx, key, one, find)
		}
		select {
		case <-one.done:
		case <-ctx.Done():
			return one.value, context.Cause(ctx)
		}
		// That another one gave up, or what went wrong for it, is not ours.
		if one.err == nil || !errors.Is(one.err, context.Canceled) && ctx.Err() == nil {
			return one.value, one.err
		}
	}
}

// find finds what one is to be.
func (a *Answers[T]) find(ctx context.Context, key string, one *answer[T], find func(context.Context) (T, error)) (T, error) {
	one.err = context.Canceled // unless find returns
	defer func() {
		if one.err != nil {
			a.forget(key, one)
		}
		close(one.done)
	}()
	one.value, one.err = find(ctx)
	return one.value, one.err
}

// claim returns the answer that callers have, or a new one that the caller has
// to find. It is nil if there are no callers.
func (a *Answers[T]) claim(callers []*session.Caller, key string) (one *answer[T], mine bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range callers {
		if one = a.builds[c][key]; one != nil {
			break
		}
	}
	for _, c := range callers {
		if one == nil {
			one, mine = &answer[T]{done: make(chan struct{})}, true
		}
		if a.builds == nil {
			a.builds = map[*session.Caller]map[string]*answer[T]{}
		}
		if a.builds[c] == nil {
			if c.Context().Err() != nil {
				continue // what is over is not remembered, or it would be for ever
			}
			a.builds[c] = map[string]*answer[T]{}
			context.AfterFunc(c.Context(), func() { a.drop(c) })
		}
		if a.builds[c][key] == nil {
			a.builds[c][key] = one
		}
	}
	return one, mine
}

func (a *Answers[T]) drop(c *session.Caller) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.builds, c)
}

func (a *Answers[T]) forget(key string, one *answer[T]) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, m := range a.builds {
		if m[key] == one {
			delete(m, key)
		}
	}
}
