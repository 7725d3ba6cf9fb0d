package op

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// TimeoutError says that a step's process was stopped because it ran too long.
type TimeoutError struct {
	Args  []string
	After time.Duration
}

// Error names the process and the time it had.
func (e *TimeoutError) Error() string {
	return fmt.Sprintf("process %q did not complete within %v, the timeout of its step, and was ended", strings.Join(e.Args, " "), e.After)
}

// limited is ctx with the step's timeout, if it has one.
func (o *execOp) limited(ctx context.Context) (context.Context, context.CancelFunc) {
	after := o.vertex.Meta.Timeout
	if after <= 0 {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, after, &TimeoutError{Args: o.op.Args, After: after})
}
