// Package exporter says what it is to turn a build's result into something
// outside: an image, an archive, a directory.
//
// Implementations live below this folder and pass the suite in exportertest.
package exporter

import (
	"context"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/session"
)

// Exporter makes something of a result.
type Exporter interface {
	// Export does it and returns what is to be told to the client, by the keys
	// of WIRE.md section 13.3.
	Export(ctx context.Context, in Input, to Target) (map[string]string, error)
}

// Input is the result of a build.
type Input struct {
	Platforms []Platform        // at least one
	Meta      map[string][]byte // by the keys of WIRE.md section 13.4
	// Epoch is SOURCE_DATE_EPOCH: no time in the output is later. Nil sets no bound.
	Epoch *time.Time
}

// Platform is the result for one platform.
type Platform struct {
	ID       string // such as "linux/arm64"; empty in a build for one platform
	Platform ocispecs.Platform
	Ref      *layer.Ref // nil is the empty file system
	Config   []byte     // image config JSON as the frontend made it, nil for a default
}

// Target is where a result goes.
type Target struct {
	Attrs   map[string]string // by the keys of WIRE.md section 13.2
	ID      int               // the exporter's number in the request
	Session *session.Caller   // the client to send files to; nil if there is none
}
