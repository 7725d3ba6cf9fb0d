package build

import (
	"context"
	"fmt"
)

// mostFrontends is how many frontends may call each other in a row.
const mostFrontends = 16

type frontendDepthKey struct{}

// deeper counts the frontends that a request went through.
func deeper(ctx context.Context) (context.Context, error) {
	depth, _ := ctx.Value(frontendDepthKey{}).(int)
	if depth >= mostFrontends {
		return ctx, fmt.Errorf("more than %d frontends call each other: one of them may be calling itself", mostFrontends)
	}
	return context.WithValue(ctx, frontendDepthKey{}, depth+1), nil
}
