package build

import (
	"context"
	"fmt"
	"maps"
	"strings"
)

// ImageFrontendName is the frontend that runs an image as a frontend.
const ImageFrontendName = "gateway.v0"

// dockerfileName is the frontend that needs no image, also where it is asked
// for as if it were one.
const dockerfileName = "dockerfile.v0"

// withoutImage has the Dockerfile frontend serve a request that asks for it as
// if it were an image, unless the user puts an image in its place.
func withoutImage(name string, opts map[string]string) (string, map[string]string) {
	if name != ImageFrontendName || opts["source"] != dockerfileName {
		return name, opts
	}
	for k := range opts {
		if replaced, _, _ := strings.Cut(k, "::"); replaced == "context:"+dockerfileName {
			return name, opts
		}
	}
	opts = maps.Clone(opts)
	delete(opts, "source")
	return dockerfileName, opts
}

// FrontendError is why a frontend has no result. It says nothing itself: frontends
// call each other, and people want to know what went wrong.
type FrontendError struct {
	Name  string
	Image string // that it is made of; "" if of none
	Err   error
}

// Error is what went wrong.
func (e *FrontendError) Error() string { return e.Err.Error() }

// Unwrap returns what went wrong.
func (e *FrontendError) Unwrap() error { return e.Err }

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
