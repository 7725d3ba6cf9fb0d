package frontend

import (
	"context"
	"errors"

	"github.com/kiln-build/kiln/llb"
)

// Forwarder is a [Gateway] that can hand a request over to another frontend.
type Forwarder interface {
	// Frontend has the frontend called name serve a request. The frontend
	// "gateway.v0" runs the image that the option "source" names.
	Frontend(ctx context.Context, name string, opts map[string]string, inputs map[string]*llb.Graph) (*Result, error)
}

// Located tells whether an error says where in a build file it is: itself, or
// by what another side has told of it.
func Located(err error) bool {
	if len(SourceErrorsIn(err)) > 0 {
		return true
	}
	var other interface{ Located() bool }
	return errors.As(err, &other) && other.Located()
}
