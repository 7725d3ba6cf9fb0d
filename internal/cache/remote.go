package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/solver"
)

// Entry is a step as it is written into a cache for others.
type Entry struct {
	Key    solver.Key
	Recipe solver.Recipe
	// Results are by output. One without layers says only that there is such a
	// step, for those that are built on it.
	Results []EntryResult
}

// EntryResult is the layers of one output, base first.
type EntryResult struct {
	Layers  []layer.Blob
	SavedAt time.Time
}

// Recipes tell what keys were made of; [solver.Job] does.
type Recipes interface {
	Recipe(k solver.Key) (solver.Recipe, bool)
}

// Index finds results in a cache of others.
type Index interface {
	// Find returns the layers of an output, base first.
	Find(r Recipes, k solver.Key, output int) ([]layer.LazyBlob, bool)
	// Content returns the digest of what a selector chooses of a result, or "".
	Content(r Recipes, of solver.Ingredient) string
	// Empty tells whether nothing can be found.
	Empty() bool
}

// Format is how a cache for others is written.
type Format interface {
	// Encode writes entries and what leads to them; roots are the steps asked for.
	Encode(entries []Entry, roots []Root, o ExportOptions) (*Document, error)
	// EncodeInline writes what of it an image with these layers can carry, or
	// nil if that is nothing.
	EncodeInline(entries []Entry, roots []Root, image []layer.Blob) ([]byte, error)
	// Decode reads what r leads to and counts by p. A place without a cache is no
	// error.
	Decode(ctx context.Context, r Reader, p ReadPolicy) (Index, error)
}

// ReadPolicy says what of a place's documents counts.
type ReadPolicy struct {
	BuildKit bool // records in BuildKit's format, which nobody has signed
	Bundles  bool // records of Kiln in the configs of images, see [Bundle]
	Scope    string
	Trust    Trust
	// Warn is told why a bundle does not count; nil tells nobody.
	Warn func(error)
}

// Root is a result that was asked for.
type Root struct {
	Key    solver.Key
	Output int
}

// Document is a written cache. It has no layers if nothing is worth keeping.
type Document struct {
	Layers   []Upload
	Config   Upload
	Manifest ocispecs.Descriptor
	Data     []byte // of the manifest
	// Bare makes a config that itself tells of its layers, for places that have no
	// manifests.
	Bare func() ([]byte, error)
}

// Upload is a blob on its way into a place.
type Upload struct {
	Desc ocispecs.Descriptor
	// Layer is set for layers, Data for all else.
	Layer *layer.Blob
	Data  []byte
}

// Place is where caches for others are kept, such as a registry.
type Place interface {
	// Name is what an export is shown as, "exporting cache to registry".
	Name() string
	// Reader finds the cache that attrs name.
	Reader(ctx context.Context, attrs map[string]string) (Reader, error)
	// Writer prepares to write the cache that attrs name.
	Writer(ctx context.Context, attrs map[string]string) (Writer, error)
}

// Reader reads the documents of one cache.
type Reader interface {
	// Root is the manifest or index to begin with; its media type may be unknown.
	Root() ocispecs.Descriptor
	// Read returns a document whole, verified.
	Read(ctx context.Context, desc ocispecs.Descriptor) ([]byte, error)
	// Origin is where a [layer.Fetcher] gets the blobs from.
	Origin() string
}

// Writer writes one cache.
type Writer interface {
	// Write keeps a document; open opens its layers.
	Write(ctx context.Context, d *Document, open func(context.Context, layer.Blob) (io.ReadCloser, error)) error
}

// ExportOptions are the attributes that all exports have (BuildKit's README, Cache).
type ExportOptions struct {
	Max           bool // every step's layers, not only those of the result
	IgnoreError   bool // a failure to export is no failure of the build
	ImageManifest bool // an image's manifest, not an index
	OCI           bool // OCI's media types, not Docker's
	Variant       layer.Variant
}

// DecodeExport reads attributes. A mode that is unknown is "min", as in
// BuildKit; all else that is unknown belongs to a place.
func DecodeExport(attrs map[string]string) (ExportOptions, error) {
	o := ExportOptions{Max: attrs["mode"] == "max", ImageManifest: true, OCI: true}
	flag := func(key string, to *bool) (given bool, err error) {
		v, ok := attrs[key]
		if !ok {
			return false, nil
		}
		if *to, err = strconv.ParseBool(v); err != nil {
			err = fmt.Errorf("cache option %s=%q: expected true or false", key, v)
		}
		return true, err
	}
	// BuildKit takes an unreadable value for false.
	o.IgnoreError, _ = strconv.ParseBool(attrs["ignore-error"])
	if _, err := flag("oci-mediatypes", &o.OCI); err != nil {
		return o, err
	}
	given, err := flag("image-manifest", &o.ImageManifest)
	if err != nil {
		return o, err
	}
	if !given && !o.OCI {
		o.ImageManifest = false
	}
	if o.ImageManifest && !o.OCI {
		return o, errors.New("invalid configuration for remote cache, OCI mediatypes are required for image-manifest cache format")
	}
	if _, err := flag("force-compression", &o.Variant.Force); err != nil {
		return o, err
	}
	switch c := attrs["compression"]; c {
	case "", "gzip", "zstd", "uncompressed", "estargz":
		o.Variant.Compression = c
	default:
		return o, fmt.Errorf("cache option compression=%q: expected gzip, estargz, zstd or uncompressed", c)
	}
	if v := attrs["compression-level"]; v != "" {
		if o.Variant.Level, err = strconv.Atoi(v); err != nil || o.Variant.Level < 0 || o.Variant.Level > 22 {
			return o, fmt.Errorf("cache option compression-level=%q: expected a number from 0 to 22", v)
		}
	}
	return o, nil
}
