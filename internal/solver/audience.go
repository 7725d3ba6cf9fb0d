package solver

import (
	"context"
	"slices"
	"sync"

	"github.com/kiln-build/kiln/internal/progress"
)

// audience is who waits for one execution.
type audience struct {
	fanout progress.Fanout

	mu      sync.Mutex
	members []*member
}

type member struct{ values any }

func newAudience() *audience { return &audience{} }

func (a *audience) join(step *progress.Step, values any) (leave func()) {
	m := &member{values}
	a.mu.Lock()
	a.members = append(a.members, m)
	a.mu.Unlock()
	silence := a.fanout.Join(step)
	return func() {
		silence()
		a.mu.Lock()
		defer a.mu.Unlock()
		if i := slices.Index(a.members, m); i >= 0 {
			a.members = slices.Delete(a.members, i, i+1)
		}
	}
}

// values are the values of the jobs that wait at this moment.
func (a *audience) values() (vs []any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, m := range a.members {
		vs = append(vs, m.values)
	}
	return vs
}

type valuesInContext struct{}

func withValues(ctx context.Context, values func() []any) context.Context {
	return context.WithValue(ctx, valuesInContext{}, values)
}

// Values returns the [JobOptions].Values of the jobs that ctx's work is done
// for at this moment. Work that jobs share sees all of them, and the set
// changes as jobs come and go.
func Values(ctx context.Context) []any {
	if f, ok := ctx.Value(valuesInContext{}).(func() []any); ok {
		return f()
	}
	return nil
}
