// Package local keeps caches in folders of clients, which offer them over their
// sessions as content stores (BuildKit's session/content). The client writes the
// folder's index.json itself. It is a [cache.Place].
package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/session"
	sessioncontent "github.com/kiln-build/kiln/internal/session/content"
)

// storePrefix begins the ids under which clients offer folders, and the origins
// of blobs in them.
const storePrefix = "local:"

const maxDocument = 64 << 20 // bytes of what is read into memory

// Place is a cache.Place.
type Place struct {
	writer string
	locks  cache.Locks // of folders
	turns  turns
}

// New returns the place that the folders of all clients are. The writer's name is part
// of what a blob is called while it is on its way: two daemons that write the same one
// into a folder, each through a client of its own, must not go on with each other's half.
func New(writer string) *Place { return &Place{writer: digest.FromString(writer).Encoded()[:16]} }

// Name is what an export is shown as.
func (*Place) Name() string { return "exporting cache to client directory" }

// Reader finds a cache by its folder and digest.
func (*Place) Reader(ctx context.Context, attrs map[string]string) (cache.Reader, error) {
	d := digest.Digest(attrs["digest"])
	switch {
	case attrs["src"] == "":
		return nil, errors.New("local cache importer requires src: say which folder, as in type=local,src=DIR")
	case d == "":
		return nil, errors.New("local cache importer requires explicit digest")
	case d.Validate() != nil:
		return nil, fmt.Errorf("local cache: malformed digest %q: expected sha256:<64 hex digits>", d)
	}
	r := &reader{id: storePrefix + attrs["src"], root: ocispecs.Descriptor{Digest: d}}
	err := withStore(ctx, r.id, func(ctx context.Context, s content.Store) error {
		info, err := s.Info(ctx, d)
		r.root.Size = info.Size
		return err
	})
	return r, err
}

type reader struct {
	id   string
	root ocispecs.Descriptor
}

// Root is the manifest.
func (r *reader) Root() ocispecs.Descriptor { return r.root }

// Origin names the folder.
func (r *reader) Origin() string { return r.id }

// Read returns a document, verified.
func (r *reader) Read(ctx context.Context, desc ocispecs.Descriptor) (b []byte, err error) {
	if desc.Size < 0 || desc.Size > maxDocument {
		return nil, fmt.Errorf("import cache: %s has %d bytes, expected at most %d", desc.Digest, desc.Size, maxDocument)
	}
	err = withStore(ctx, r.id, func(ctx context.Context, s content.Store) (err error) {
		b, err = content.ReadBlob(ctx, s, desc)
		return err
	})
	if err == nil && desc.Digest.Algorithm().FromBytes(b) != desc.Digest {
		return nil, fmt.Errorf("import cache: %s is damaged in the folder of the client", desc.Digest)
	}
	return b, err
}

// withStore calls f with a folder as one client after the other offers it.
func withStore(ctx context.Context, id string, f func(context.Context, content.Store) error) error {
	err := session.Any(ctx, sessioncontent.MethodRead, func(ctx context.Context, c *session.Caller) error {
		s, err := sessioncontent.Store(c, id)
		if err != nil {
			return err
		}
		return f(ctx, s)
	})
	if err != nil {
		return fmt.Errorf("use cache folder %q of client: %w", strings.TrimPrefix(id, storePrefix), err)
	}
	return nil
}

// Writer prepares to write into a folder.
func (p *Place) Writer(_ context.Context, attrs map[string]string) (cache.Writer, error) {
	if attrs["dest"] == "" {
		return nil, errors.New("local cache exporter requires dest: say which folder, as in type=local,dest=DIR")
	}
	return writer{storePrefix + attrs["dest"], p.writer}, nil
}

type writer struct{ id, who string }

// atOnce is how many blobs are sent at a time.
const atOnce = 4

// Write sends blobs, config and manifest, the manifest last.
func (w writer) Write(ctx context.Context, d *cache.Document, open func(context.Context, layer.Blob) (io.ReadCloser, error)) error {
	return withStore(ctx, w.id, func(ctx context.Context, s content.Store) error {
		eg, gctx := errgroup.WithContext(ctx)
		eg.SetLimit(atOnce)
		for _, l := range d.Layers {
			eg.Go(func() error {
				return write(gctx, s, w.who, "writing layer", l.Desc, func() (io.ReadCloser, error) { return open(gctx, *l.Layer) })
			})
		}
		if err := eg.Wait(); err != nil {
			return err
		}
		if err := write(ctx, s, w.who, "writing config", d.Config.Desc, bytesOf(d.Config.Data)); err != nil {
			return err
		}
		return write(ctx, s, w.who, "writing cache manifest", d.Manifest, bytesOf(d.Data))
	})
}

func bytesOf(b []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
}

// write sends a blob that is not there yet.
func write(ctx context.Context, s content.Store, who, verb string, d ocispecs.Descriptor, open func() (io.ReadCloser, error)) error {
	task := progress.StepFrom(ctx).Task(verb+" "+d.Digest.String(), d.Size)
	defer task.Done()
	if _, err := s.Info(ctx, d.Digest); err == nil {
		return nil
	} else if !errdefs.IsNotFound(err) {
		return fmt.Errorf("look for %s: %w", d.Digest, err)
	}
	r, err := open()
	if err != nil {
		return err
	}
	defer r.Close()
	plain := ocispecs.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
	ref := "cache-" + who + "-" + d.Digest.String()
	if err := content.WriteBlob(ctx, s, ref, task.Reader(r), plain); err != nil {
		_ = s.Abort(context.WithoutCancel(ctx), ref) // or the next attempt would go on after what was wrong
		return fmt.Errorf("write %s: %w", d.Digest, err)
	}
	return nil
}

// Volatile tells whether an origin is a folder, which a client may change or
// not offer any more.
func Volatile(origin string) bool { return strings.HasPrefix(origin, storePrefix) }

// Fetcher gets blobs of folders from clients, and all others from Next. It is a
// layer.Fetcher.
type Fetcher struct{ Next layer.Fetcher }

// Fetch opens a blob. The folder may be one that another client offers now.
func (f Fetcher) Fetch(ctx context.Context, origin string, desc ocispecs.Descriptor) (rc io.ReadCloser, err error) {
	if !Volatile(origin) {
		return f.Next.Fetch(ctx, origin, desc)
	}
	err = withStore(ctx, origin, func(ctx context.Context, s content.Store) error {
		ra, err := s.ReaderAt(ctx, desc)
		if err != nil {
			return err
		}
		rc = cache.Verified(section{io.NewSectionReader(ra, 0, ra.Size()), ra}, desc, "the folder of the client")
		return nil
	})
	return rc, err
}

type section struct {
	*io.SectionReader
	io.Closer
}
