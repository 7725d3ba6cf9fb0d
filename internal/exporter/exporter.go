// Package exporter defines how a build's result becomes something outside: an
// image, an archive, a directory.
//
// Implementations live below this folder and pass the suite in exportertest.
package exporter

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/session"
)

// Exporter makes something of a result.
type Exporter interface {
	// Export does it and returns what is to be told to the client, by the keys of
	// BuildKit's exporter/containerimage/exptypes.
	Export(ctx context.Context, in Input, to Target) (map[string]string, error)
}

// Checker is an exporter that can tell bad attributes before there is a result.
type Checker interface {
	Check(attrs map[string]string) error
}

// Input is the result of a build.
type Input struct {
	Platforms []Platform        // at least one
	Meta      map[string][]byte // by the keys of BuildKit's exporter/containerimage/exptypes
	// Epoch is SOURCE_DATE_EPOCH: no time in the output is later. Nil sets no bound.
	Epoch *time.Time
	// CompatibilityVersion is the version of behaviour that the client asks
	// for, such as [Compat031]; 0 is the current one.
	CompatibilityVersion int
}

// Platform is the result for one platform.
type Platform struct {
	ID       string // such as "linux/arm64"; empty in a build for one platform
	Platform ocispecs.Platform
	Ref      *layer.Ref // nil is the empty file system
	Config   []byte     // image config JSON as the frontend made it, nil for a default
	Base     []byte     // config of the image that it is based on, nil if unknown
	Epoch    *time.Time // where Input has none
	// MakeCache makes what an image of these layers is to say of the build cache,
	// as fields of its config; nil says nothing.
	MakeCache func(ctx context.Context, layers []layer.Blob) (map[string]json.RawMessage, error)
	// Attestations are statements about the result.
	Attestations []Attestation
}

// Attestation is a statement about a result, which is made when it is known
// what it is about.
type Attestation struct {
	Path          string // its base is the file's name in exports of files
	PredicateType string
	InlineOnly    bool // only for images in a store, not for archives and files
	// Statement returns the in-toto statement, JSON.
	Statement func(context.Context, About) ([]byte, error)
}

// About is what a statement is about.
type About struct {
	Subjects []Subject
	// LayerOf finds the layer of an image that a file came with; nil if the
	// result has no layers. A file that is in none has the empty digest.
	LayerOf func(ctx context.Context, path string) (digest.Digest, error)
}

// Subject is an image by a name, or a file by its path.
type Subject struct {
	Image    string
	Platform ocispecs.Platform // of the image
	File     string
	Digest   digest.Digest
}

// Target is where a result goes.
type Target struct {
	Attrs   map[string]string // by the keys of BuildKit's exporter/containerimage/exptypes
	ID      int               // the exporter's number in the request
	Session *session.Caller   // the client to send files to; nil if there is none
	// Later takes what is to be done once every exporter of the build has
	// succeeded, such as a push. Nil does it at once.
	Later func(func(context.Context) error)
	// Keep takes each document that an image is made of besides its layers:
	// manifests, configs and statements, for the build's record. Nil for nobody.
	Keep func(d ocispecs.Descriptor, document []byte)
}

// KeepDocuments hands on the documents of an image.
func (t Target) KeepDocuments(img *Image) {
	if t.Keep == nil {
		return
	}
	for _, b := range slices.Concat(img.Configs, img.Manifests) {
		t.Keep(b.Desc, b.Data)
	}
}

// Finish does f now or when all exporters have succeeded.
func (t Target) Finish(ctx context.Context, f func(context.Context) error) error {
	if t.Later != nil {
		t.Later(f)
		return nil
	}
	return f(ctx)
}
