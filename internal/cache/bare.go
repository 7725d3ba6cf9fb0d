package cache

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/kiln-build/kiln/internal/layer"
)

// MaxBare is the largest config that is read of a place without manifests, bytes.
const MaxBare = 64 << 20

// configType is the media type of BuildKit's configs of caches.
const configType = "application/vnd.buildkit.cacheconfig.v0"

// NewBareReader returns the reader of configs that were read already, of a place
// that has no manifests. Those that are nil are left out.
func NewBareReader(origin string, configs ...[]byte) Reader {
	r := &bareReader{origin: origin, documents: map[digest.Digest][]byte{}}
	index := ocispecs.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageIndex}
	for _, c := range configs {
		if c != nil {
			index.Manifests = append(index.Manifests, r.add(configType, c))
		}
	}
	b, err := json.Marshal(index)
	if err != nil {
		b = nil // an index of descriptors always can be
	}
	r.root = r.add(index.MediaType, b)
	return r
}

type bareReader struct {
	origin    string
	root      ocispecs.Descriptor
	documents map[digest.Digest][]byte
}

func (r *bareReader) add(mediaType string, b []byte) ocispecs.Descriptor {
	d := ocispecs.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	r.documents[d.Digest] = b
	return d
}

// Root is an index of the configs.
func (r *bareReader) Root() ocispecs.Descriptor { return r.root }

// Origin is where the blobs are.
func (r *bareReader) Origin() string { return r.origin }

// Read returns the index or a config.
func (r *bareReader) Read(_ context.Context, desc ocispecs.Descriptor) ([]byte, error) {
	b, ok := r.documents[desc.Digest]
	if !ok {
		return nil, fmt.Errorf("import cache: %s is no config of this cache", desc.Digest)
	}
	return b, nil
}

// Task is a piece of work that its user is shown; internal/progress has them.
type Task interface {
	Reader(r io.Reader) io.Reader
	Done()
}

// bareWriter writes documents into a place without manifests.
type bareWriter struct {
	shelf  Shelf
	atOnce int // uploads
	task   func(ctx context.Context, what string, size int64) Task
	open   func(context.Context, layer.Blob) (io.ReadCloser, error)
	save   func(context.Context, []byte) error
}

// write uploads the layers that are missing, and then saves the config.
func (w *bareWriter) write(ctx context.Context, d *Document) error {
	var blobs []ocispecs.Descriptor
	layers := map[digest.Digest]Upload{}
	for _, l := range d.Layers {
		blobs = append(blobs, l.Desc)
		layers[l.Desc.Digest] = l
	}
	missing, err := w.shelf.Missing(ctx, blobs)
	if err != nil {
		return fmt.Errorf("look for layers: %w", err)
	}
	eg, gctx := errgroup.WithContext(ctx)
	eg.SetLimit(w.atOnce)
	for _, m := range missing {
		eg.Go(func() error { return w.upload(gctx, m, *layers[m.Digest].Layer) })
	}
	if err := eg.Wait(); err != nil {
		return fmt.Errorf("write layers: %w", err)
	}
	config, err := d.Bare()
	if err != nil {
		return err
	}
	defer w.task(ctx, "writing cache manifest "+digest.FromBytes(config).String(), int64(len(config))).Done()
	return w.save(ctx, config)
}

func (w *bareWriter) upload(ctx context.Context, d ocispecs.Descriptor, l layer.Blob) error {
	task := w.task(ctx, "writing layer "+d.Digest.String(), d.Size)
	defer task.Done()
	counted := false
	return w.shelf.Upload(ctx, d, func(ctx context.Context) (io.ReadCloser, error) {
		rc, err := w.open(ctx, l)
		if err != nil || counted {
			return rc, err
		}
		counted = true
		return struct {
			io.Reader
			io.Closer
		}{task.Reader(rc), rc}, nil
	})
}

// Resuming reads a blob whose download may break off: open begins at an offset,
// in bytes, and is called again where the bytes have ended, not more than times times.
func Resuming(ctx context.Context, size int64, times int, open func(ctx context.Context, offset int64) (io.ReadCloser, error)) (io.ReadCloser, error) {
	r := &resuming{ctx: ctx, size: size, left: times, open: open}
	var err error
	if r.rc, err = open(ctx, 0); err != nil {
		return nil, err
	}
	return r, nil
}

type resuming struct {
	ctx  context.Context
	size int64
	left int
	open func(context.Context, int64) (io.ReadCloser, error)
	at   int64

	mu     sync.Mutex // Close may come while a read waits
	rc     io.ReadCloser
	closed bool
}

func (r *resuming) Read(p []byte) (int, error) {
	for {
		r.mu.Lock()
		rc := r.rc
		r.mu.Unlock()
		n, err := rc.Read(p)
		r.at += int64(n)
		if err == nil || n > 0 {
			return n, nil
		}
		whole := err == io.EOF && r.at >= r.size
		if whole || r.left <= 0 || r.ctx.Err() != nil {
			return 0, err
		}
		r.left--
		if err := r.again(); err != nil {
			return 0, err
		}
	}
}

func (r *resuming) again() error {
	select {
	case <-time.After(100 * time.Millisecond):
	case <-r.ctx.Done():
		return context.Cause(r.ctx)
	}
	rc, err := r.open(r.ctx, r.at)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = r.rc.Close() // it broke off
	r.rc = rc
	if r.closed {
		return rc.Close()
	}
	return nil
}

// Close ends the download.
func (r *resuming) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	return r.rc.Close()
}
