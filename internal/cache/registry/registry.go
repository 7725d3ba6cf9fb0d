// Package registry keeps caches in registries: a manifest under a tag, with its
// config and blobs, or the images that carry a cache in their configs. It is a
// [cache.Place].
package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/distribution/reference"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/registry"
)

// Client is what of [registry.Client] is needed here.
type Client interface {
	Resolve(ctx context.Context, ref string) (ocispecs.Descriptor, error)
	Fetch(ctx context.Context, origin string, d ocispecs.Descriptor) (io.ReadCloser, error)
	Push(ctx context.Context, p registry.Push) error
	Repository(ctx context.Context, ref string, write bool) (*registry.Repository, error)
}

// Place is a cache.Place.
type Place struct {
	client Client
	locks  cache.Locks // of tags
}

// New returns the place that client reaches.
func New(client Client) *Place { return &Place{client: client} }

// Name is what an export is shown as.
func (*Place) Name() string { return "exporting cache to registry" }

// parse reads the attribute "ref".
func parse(attrs map[string]string) (reference.Named, error) {
	if attrs["ref"] == "" {
		return nil, errors.New("registry cache: missing ref: say which repository, as in type=registry,ref=host/name:tag")
	}
	return registry.ParseReference(attrs["ref"])
}

// Reader finds what the reference means now.
func (p *Place) Reader(ctx context.Context, attrs map[string]string) (cache.Reader, error) {
	ref, err := parse(attrs)
	if err != nil {
		return nil, err
	}
	insecure, err := isInsecure(attrs)
	if err != nil {
		return nil, err
	}
	mark := func(ref string) string {
		if insecure {
			return registry.Insecure(ref)
		}
		return ref
	}
	desc, err := p.client.Resolve(ctx, mark(ref.String()))
	if err != nil {
		return nil, err
	}
	pinned, err := reference.WithDigest(reference.TrimNamed(ref), desc.Digest)
	if err != nil {
		return nil, fmt.Errorf("pin %s: %w", ref, err)
	}
	return &reader{p.client, desc, mark(pinned.String())}, nil
}

type reader struct {
	client Client
	root   ocispecs.Descriptor
	origin string
}

// Root is the manifest or index.
func (r *reader) Root() ocispecs.Descriptor { return r.root }

// Origin is the reference, by digest.
func (r *reader) Origin() string { return r.origin }

// Read returns a document; the client checks that it is the right one.
func (r *reader) Read(ctx context.Context, desc ocispecs.Descriptor) ([]byte, error) {
	if desc.Size < 0 || desc.Size > maxDocument {
		return nil, fmt.Errorf("import cache: %s has %d bytes, expected at most %d", desc.Digest, desc.Size, maxDocument)
	}
	rc, err := r.client.Fetch(ctx, r.origin, desc)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return io.ReadAll(io.LimitReader(rc, maxDocument+1))
}

// maxDocument bounds what is read into memory, bytes.
const maxDocument = 64 << 20

// Writer prepares to push.
func (p *Place) Writer(_ context.Context, attrs map[string]string) (cache.Writer, error) {
	ref, err := parse(attrs)
	if err != nil {
		return nil, err
	}
	if _, ok := ref.(reference.Digested); ok {
		return nil, fmt.Errorf("registry cache: ref %q has a digest, which is known only afterwards: give a tag", ref)
	}
	insecure, err := isInsecure(attrs)
	return &writer{client: p.client, ref: ref.String(), insecure: insecure}, err
}

// isInsecure reads the attribute "registry.insecure".
func isInsecure(attrs map[string]string) (bool, error) {
	v, ok := attrs["registry.insecure"]
	if !ok {
		return false, nil
	}
	insecure, err := strconv.ParseBool(v)
	if err != nil {
		err = fmt.Errorf("registry cache: registry.insecure=%q: expected true or false", v)
	}
	return insecure, err
}

type writer struct {
	client   Client
	ref      string
	insecure bool
}

// Write pushes blobs, config and manifest, the manifest last.
func (w *writer) Write(ctx context.Context, d *cache.Document, open func(context.Context, layer.Blob) (io.ReadCloser, error)) error {
	p := registry.Push{Ref: w.ref, Insecure: w.insecure}
	for _, l := range d.Layers {
		p.Blobs = append(p.Blobs, registry.Blob{
			Desc: l.Desc, Origin: l.Layer.Ref.Record().Origin,
			Open: func(ctx context.Context) (io.ReadCloser, error) { return open(ctx, *l.Layer) },
		})
	}
	p.Blobs = append(p.Blobs, registry.Blob{Desc: d.Config.Desc, Open: func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(d.Config.Data)), nil
	}})
	p.Manifests = []registry.Manifest{{Desc: d.Manifest, Data: d.Data}}
	task := progress.StepFrom(ctx).Task("writing cache manifest "+d.Manifest.Digest.String(), 0)
	defer task.Done()
	return w.client.Push(ctx, p)
}
