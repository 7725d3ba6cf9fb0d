// Package layer keeps file system states and turns them into layer blobs and
// back.
//
// A [Ref] is an immutable state: a chain of layers, each a snapshot, a blob or
// both. A layer from a registry starts as a mere descriptor and is pulled when
// somebody looks at its files; a layer made by a step starts as a snapshot and
// is compressed when somebody exports it. Neither is ever done twice.
//
// It sits between snapshot and content below and sources, operations and
// exporters above. Its knowledge is kept as [Record]s in the metadata database;
// a snapshot or blob that no record names is swept.
package layer

import (
	"context"
	"errors"
	"io"
	"time"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// ErrNotFound says that no such layer is kept.
var ErrNotFound = errors.New("layer not found")

// Record is what is kept of a layer.
type Record struct {
	ID          string        `json:"id"`
	Parent      string        `json:"parent,omitempty"`      // ID of the layer below
	Snapshot    string        `json:"snapshot,omitempty"`    // name of the committed snapshot; "" while there is none
	Flat        string        `json:"flat,omitempty"`        // snapshot of the whole state, where the chain is cut short
	Loose       bool          `json:"loose,omitempty"`       // has marks for deletions with nothing below, as a Diff has
	Of          string        `json:"of,omitempty"`          // ID of the layer that a merge has laid here and whose blobs this one shares
	Origin      string        `json:"origin,omitempty"`      // where blobs can be had again, such as a pinned image reference
	Description string        `json:"description,omitempty"` // the step that made it
	Type        string        `json:"type,omitempty"`        // "regular", "source.local", "internal", "frontend", "exec.cachemount"
	Windows     bool          `json:"windows,omitempty"`     // its blobs are laid out as Windows wants them
	DiffID      digest.Digest `json:"diffID,omitempty"`
	ChainID     digest.Digest `json:"chainID,omitempty"` // set for layers of images
	// Blobs are the layer as blobs, by variant: "image" is the one it came
	// with; others are named by compression and what else forms their bytes.
	// The map is never changed, only replaced.
	Blobs      map[string]ocispecs.Descriptor `json:"blobs,omitempty"`
	Size       int64                          `json:"size"` // bytes of the snapshot's own files
	CreatedAt  time.Time                      `json:"createdAt"`
	LastUsed   time.Time                      `json:"lastUsed"`
	UsageCount int                            `json:"usageCount"`
}

// Records is the part of the metadata database that package layer needs.
type Records interface {
	// Layer returns ErrNotFound for an unknown id.
	Layer(id string) (Record, error)
	PutLayer(Record) error
	DeleteLayers(ids ...string) error
	// Layers calls f with every record, in no order.
	Layers(f func(Record) error) error
}

// Fetcher gets blobs back from where a layer came from.
type Fetcher interface {
	Fetch(ctx context.Context, origin string, desc ocispecs.Descriptor) (io.ReadCloser, error)
}
