package solver

import (
	"context"
	"sync"
)

// Verifier chooses remembered results to be made a second time, and compares.
type Verifier interface {
	// Wants tells whether to make a result again.
	Wants(k Key) bool
	// Compare is given a result as it was remembered and as it came out now, or
	// why it could not be made.
	Compare(ctx context.Context, v Vertex, remembered, again []Result, err error)
}

// verifying is what a job makes a second time.
type verifying struct {
	by   Verifier // nil for nobody
	work sync.WaitGroup
}

// Verified waits until all that was to be compared has been.
func (j *Job) Verified() { j.verify.work.Wait() }

// verify runs the operation beside what goes on, for its result to be compared
// with what was remembered, and to be used for nothing else.
func (n *node) verify(id identity, remembered []Result) {
	by := n.job.verify.by
	if by == nil || !by.Wants(id.key) {
		return
	}
	n.job.verify.work.Go(func() {
		ctx := n.context(n.job.ctx)
		again, err := gather(&n.job.work, n.inputs, func(_ int, in input) (Result, error) {
			got, err := in.get(ctx)
			return got.Result, err
		})
		if err == nil {
			again, err = safely(func() ([]Result, error) { return n.op.Exec(WithKey(ctx, id.key), again) })
		}
		if ctx.Err() == nil {
			by.Compare(ctx, n.vertex, remembered, again, err)
		}
	})
}
