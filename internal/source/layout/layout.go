// Package layout brings in images from OCI layouts on a client's machine, over
// its session.
//
// Such an image is named by its digest, so it is pinned as it is. Its layers
// are lazy like a registry's: [Fetcher] gets their blobs from any client of the
// build that offers the layout.
package layout

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/session"
	sessioncontent "github.com/kiln-build/kiln/internal/session/content"
	"github.com/kiln-build/kiln/internal/source"
	"github.com/kiln-build/kiln/llb"
)

const scheme = "oci-layout://"

// storePrefix begins the ids under which clients offer layouts.
const storePrefix = "oci:"

// Layers is what of [layer.Store] is needed here.
type Layers interface {
	FromBlobs(ctx context.Context, blobs []layer.LazyBlob) (*layer.Ref, error)
}

// Sessions finds a client by its session's id; [session.Manager] does.
type Sessions interface {
	Get(ctx context.Context, id string) (*session.Caller, error)
}

// Source is a source.Source for layouts.
type Source struct {
	layers   Layers
	memo     source.Memo
	sessions Sessions
}

// New returns a source that remembers manifests and configs in memo.
func New(layers Layers, memo source.Memo, sessions Sessions) *Source {
	return &Source{layers, memo, sessions}
}

// namespaceDocuments is where manifests, indexes and configs are remembered.
const namespaceDocuments = "source.image.documents"

// Schemes is "oci-layout".
func (s *Source) Schemes() []string { return []string{"oci-layout"} }

// request is a SourceOp, decoded.
type request struct {
	name      string // for people
	digest    digest.Digest
	sessionID string
	store     string
	limit     int
}

func decode(op *llb.SourceOp) (*request, error) {
	body, ok := strings.CutPrefix(op.Identifier, scheme)
	name, dgst, hasDigest := strings.Cut(body, "@")
	r := &request{name: name, digest: digest.Digest(dgst), store: name}
	if !ok || !hasDigest || r.digest.Validate() != nil {
		return nil, fmt.Errorf("malformed identifier %q: expected oci-layout://name@sha256:<64 hex digits>", op.Identifier)
	}
	for k, v := range op.Attrs {
		var err error
		switch k {
		case "oci.session":
			r.sessionID = v
		case "oci.store":
			r.store = v
		case "oci.layerlimit":
			if r.limit, err = strconv.Atoi(v); err != nil || r.limit <= 0 {
				err = fmt.Errorf("attribute %s: invalid layer limit %q: expected a number above 0", k, v)
			}
		case "image.checksum":
			if digest.Digest(v) != r.digest {
				err = fmt.Errorf("attribute %s=%q: the identifier has digest %s", k, v, r.digest)
			}
		default:
			err = source.UnknownAttr(k)
		}
		if err != nil {
			return nil, fmt.Errorf("source %s: %w", op.Identifier, err)
		}
	}
	if r.store == "" {
		return nil, fmt.Errorf("source %s: attribute oci.store is missing", op.Identifier)
	}
	return r, nil
}

// private is what a pin remembers.
type private struct {
	req   *request
	image *source.Image
}

// Resolve reads the image's manifest.
func (s *Source) Resolve(ctx context.Context, op *llb.SourceOp, opt source.Options) (*source.Pin, error) {
	r, err := decode(op)
	if err != nil {
		return nil, err
	}
	ctx, err = s.withSession(ctx, r)
	if err != nil {
		return nil, err
	}
	root, err := s.root(ctx, r)
	if err != nil {
		return nil, err
	}
	platform := opt.Platform
	if platform.OS == "" {
		platform = platforms.DefaultSpec()
	}
	platform = platforms.Normalize(platform)
	read := func(ctx context.Context, d ocispecs.Descriptor) ([]byte, error) { return s.read(ctx, r, d) }
	img, err := source.SelectImage(ctx, op.Identifier, root, platform, read)
	if err != nil {
		return nil, err
	}
	key, err := source.ImageKey(root.Digest, platform, r.limit)
	if err != nil {
		return nil, err
	}
	pin := &source.Pin{
		Op: op, Platform: platform, Key: key, Digest: root.Digest, Name: r.name,
		Private: &private{r, img},
	}
	if opt.WantConfig {
		pin.Config, err = read(ctx, img.Manifest.Config)
	}
	return pin, err
}

// Fetch returns the image's files, lazily.
func (s *Source) Fetch(ctx context.Context, pin *source.Pin) (*layer.Ref, error) {
	p, ok := pin.Private.(*private)
	if !ok {
		return nil, fmt.Errorf("fetch %s: the pin is not of this source", pin.Op.Identifier)
	}
	config := pin.Config
	if config == nil {
		sctx, err := s.withSession(ctx, p.req)
		if err != nil {
			return nil, err
		}
		if config, err = s.read(sctx, p.req, p.image.Manifest.Config); err != nil {
			return nil, err
		}
	}
	blobs, err := p.image.LazyBlobs(config, p.req.limit, scheme+p.req.store, pin.Platform.OS)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", pin.Op.Identifier, err)
	}
	return s.layers.FromBlobs(ctx, blobs)
}

// withSession puts the session that op names before those of ctx.
func (s *Source) withSession(ctx context.Context, r *request) (context.Context, error) {
	if r.sessionID == "" {
		return ctx, nil
	}
	callers := session.FromContext(ctx)
	for _, c := range callers {
		if c.ID() == r.sessionID {
			return ctx, nil
		}
	}
	wait, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := s.sessions.Get(wait, r.sessionID)
	if err != nil {
		return nil, fmt.Errorf("read OCI layout %q: find session %q: %w", r.name, r.sessionID, err)
	}
	return session.WithGroup(ctx, group(append([]*session.Caller{c}, callers...))), nil
}

type group []*session.Caller

func (g group) Sessions() []*session.Caller { return g }

// root makes a descriptor of the digest. The kind of document is told by what
// is in it.
func (s *Source) root(ctx context.Context, r *request) (ocispecs.Descriptor, error) {
	desc := ocispecs.Descriptor{Digest: r.digest}
	if b, ok := s.memo.Value(namespaceDocuments, r.digest.String()); ok {
		desc.Size = int64(len(b))
		return desc, nil
	}
	err := withStore(ctx, r.store, func(ctx context.Context, store content.Store) error {
		info, err := store.Info(ctx, r.digest)
		desc.Size = info.Size
		return err
	})
	return desc, err
}

// read returns a manifest, index or config, from our own store if it is there.
func (s *Source) read(ctx context.Context, r *request, d ocispecs.Descriptor) ([]byte, error) {
	b, ok := s.memo.Value(namespaceDocuments, d.Digest.String())
	if ok && d.Digest.Algorithm().FromBytes(b) == d.Digest {
		return b, nil
	}
	err := withStore(ctx, r.store, func(ctx context.Context, store content.Store) (err error) {
		b, err = content.ReadBlob(ctx, store, d)
		return err
	})
	if err != nil {
		return nil, err
	}
	if got := d.Digest.Algorithm().FromBytes(b); got != d.Digest {
		return nil, fmt.Errorf("OCI layout %q is damaged: blob %s has digest %s", r.name, d.Digest, got)
	}
	if err := s.memo.PutValue(namespaceDocuments, d.Digest.String(), b); err != nil {
		return nil, fmt.Errorf("keep %s of OCI layout %q: %w", d.Digest, r.name, err)
	}
	return b, nil
}

// withStore calls f with a layout as one client after the other offers it.
func withStore(ctx context.Context, id string, f func(context.Context, content.Store) error) error {
	err := session.Any(ctx, sessioncontent.MethodRead, func(ctx context.Context, c *session.Caller) error {
		store, err := sessioncontent.Store(c, storePrefix+strings.TrimPrefix(id, storePrefix))
		if err != nil {
			return err
		}
		return f(ctx, store)
	})
	if err != nil {
		return fmt.Errorf("read OCI layout %q of client: %w", id, err)
	}
	return nil
}

// Blobs opens blobs, also those of which only the digest is known.
type Blobs interface {
	layer.Fetcher
	OpenBlob(ctx context.Context, origin string, d digest.Digest) (io.ReadCloser, int64, error)
}

// Fetcher gets blobs of layouts from clients, and all others from Next. It is
// a layer.Fetcher.
type Fetcher struct{ Next Blobs }

// OpenBlob opens a blob by its digest and tells its size in bytes.
func (f Fetcher) OpenBlob(ctx context.Context, origin string, d digest.Digest) (io.ReadCloser, int64, error) {
	id, ok := strings.CutPrefix(origin, scheme)
	if !ok {
		return f.Next.OpenBlob(ctx, origin, d)
	}
	desc := ocispecs.Descriptor{Digest: d}
	err := withStore(ctx, id, func(ctx context.Context, store content.Store) error {
		info, err := store.Info(ctx, d)
		desc.Size = info.Size
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	rc, err := f.Fetch(ctx, origin, desc)
	return rc, desc.Size, err
}

// Fetch opens a blob.
func (f Fetcher) Fetch(ctx context.Context, origin string, desc ocispecs.Descriptor) (io.ReadCloser, error) {
	id, ok := strings.CutPrefix(origin, scheme)
	if !ok {
		return f.Next.Fetch(ctx, origin, desc)
	}
	r := &blobReader{ctx: ctx, id: id, desc: desc}
	if err := r.open(); err != nil {
		return nil, err
	}
	return r, nil
}

// reopenings is how often a blob is asked for again when the client that sent
// it has left and another offers it, too.
const reopenings = 3

// blobReader reads a blob from one client after the other, going on where the
// last one stopped.
type blobReader struct {
	ctx    context.Context
	id     string
	desc   ocispecs.Descriptor
	blob   content.ReaderAt
	offset int64
	opened int
}

func (r *blobReader) open() error {
	r.opened++
	return withStore(r.ctx, r.id, func(ctx context.Context, store content.Store) (err error) {
		r.blob, err = store.ReaderAt(ctx, r.desc)
		return err
	})
}

// Read goes on with another client if the one at hand fails.
func (r *blobReader) Read(p []byte) (int, error) {
	for {
		n, err := r.blob.ReadAt(p, r.offset)
		r.offset += int64(n)
		if n > 0 {
			return n, nil // an error will come again
		}
		if err == nil || errors.Is(err, io.EOF) || r.ctx.Err() != nil || r.opened > reopenings {
			return 0, err
		}
		_ = r.blob.Close() // it is of no more use, whatever it says
		if again := r.open(); again != nil {
			r.opened = reopenings + 1
			return 0, errors.Join(err, again)
		}
	}
}

// Close lets go of the blob.
func (r *blobReader) Close() error { return r.blob.Close() }
