package registry

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/registry"
)

// A record is an image's manifest under a tag that is made of the cache's own
// and the record's name. It names the blobs that the record needs as its layers,
// so that the registry keeps them as long as the record. The record itself is an
// annotation, to be had by one request, or the first layer if it is large.
const (
	recordType       = "application/vnd.kiln.cache.record.v1"
	recordAnnotation = "kiln.cache.record"
	smallRecord      = 64 << 10 // bytes
)

// atOnce is how many questions a registry is asked at a time.
const atOnce = 16

var _ cache.Shelves = (*Place)(nil)

// Shelf opens the records beside the tag that attrs name. Two daemons that put
// the same name at the same instant may both be told that they did: the protocol
// has no way to prevent it. The last one's record stays; docs/caches.md says why
// nobody loses by it.
func (p *Place) Shelf(ctx context.Context, attrs map[string]string, write bool) (cache.Shelf, error) {
	ref, err := parse(attrs)
	if err != nil {
		return nil, err
	}
	tagged, ok := ref.(reference.Tagged)
	if _, pinned := ref.(reference.Digested); pinned || !ok {
		return nil, fmt.Errorf("registry cache: ref %q has a digest, but a cache by key is many documents: give a tag", ref)
	}
	insecure, err := isInsecure(attrs)
	if err != nil {
		return nil, err
	}
	s := &shelf{client: p.client, locks: &p.locks, ref: ref, insecure: insecure,
		prefix: "kiln-" + digest.FromString(tagged.Tag()).Encoded()[:8] + "-"}
	if s.repo, err = p.client.Repository(ctx, s.Origin(), write); err != nil {
		return nil, err
	}
	return s, nil
}

type shelf struct {
	client   Client
	repo     *registry.Repository
	locks    *cache.Locks
	ref      reference.Named
	insecure bool
	prefix   string      // of tags
	config   atomic.Bool // whether the empty config of all records is there
}

// Origin is the reference.
func (s *shelf) Origin() string {
	if s.insecure {
		return registry.Insecure(s.ref.String())
	}
	return s.ref.String()
}

// Records reads the manifests of names.
func (s *shelf) Records(ctx context.Context, names []string) (map[string][]byte, error) {
	return cache.RecordsOf(ctx, names, atOnce, func(ctx context.Context, name string) ([]byte, error) {
		if err := cache.CheckRecord(name, nil); err != nil {
			return nil, err
		}
		b, err := s.repo.Manifest(ctx, s.prefix+name)
		if err != nil || b == nil {
			return nil, err
		}
		return s.record(ctx, b)
	})
}

// record takes a record out of its manifest. What is not one is none.
func (s *shelf) record(ctx context.Context, manifest []byte) ([]byte, error) {
	var m ocispecs.Manifest
	if json.Unmarshal(manifest, &m) != nil || m.ArtifactType != recordType {
		return nil, nil
	}
	if text, ok := m.Annotations[recordAnnotation]; ok {
		b, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return nil, nil
		}
		return append([]byte{}, b...), nil
	}
	if len(m.Layers) == 0 || m.Layers[0].MediaType != recordType || m.Layers[0].Size > cache.MaxRecord {
		return nil, nil
	}
	if there, err := s.repo.HasBlob(ctx, m.Layers[0].Digest); err != nil || !there {
		return nil, err
	}
	rc, err := s.client.Fetch(ctx, s.Origin(), m.Layers[0])
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return io.ReadAll(io.LimitReader(rc, cache.MaxRecord+1))
}

// Put tags a manifest, after what it names is there.
func (s *shelf) Put(ctx context.Context, name string, record []byte, needs []ocispecs.Descriptor, replace bool) (bool, error) {
	if err := cache.CheckRecord(name, record); err != nil {
		return false, err
	}
	tag := s.prefix + name
	unlock, err := s.locks.Lock(ctx, s.ref.Name()+":"+tag)
	if err != nil {
		return false, err
	}
	defer unlock()
	if !replace {
		if there, err := s.repo.Has(ctx, tag); err != nil || there {
			return false, err
		}
	}
	m := ocispecs.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageManifest,
		ArtifactType: recordType, Config: ocispecs.DescriptorEmptyJSON,
	}
	small := map[digest.Digest][]byte{}
	if !s.config.Load() {
		small[m.Config.Digest] = m.Config.Data
	}
	if len(record) <= smallRecord {
		m.Annotations = map[string]string{recordAnnotation: base64.StdEncoding.EncodeToString(record)}
	} else {
		d := ocispecs.Descriptor{MediaType: recordType, Digest: digest.FromBytes(record), Size: int64(len(record))}
		m.Layers, small[d.Digest] = append(m.Layers, d), record
	}
	for _, n := range needs {
		m.Layers = append(m.Layers, ocispecs.Descriptor{MediaType: n.MediaType, Digest: n.Digest, Size: n.Size})
	}
	if len(m.Layers) == 0 {
		m.Layers = []ocispecs.Descriptor{m.Config} // a manifest without layers is refused by some
	}
	for d, b := range small {
		if err := s.Upload(progress.WithStep(ctx, nil), ocispecs.Descriptor{Digest: d, Size: int64(len(b))}, func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(b)), nil
		}); err != nil {
			return false, err
		}
	}
	s.config.Store(true)
	b, err := json.Marshal(m)
	if err != nil {
		return false, fmt.Errorf("encode record %s: %w", name, err)
	}
	if len(b) > registry.MaxManifest {
		return false, fmt.Errorf("record %s needs %d blobs, more than a manifest can name", name, len(needs))
	}
	return true, s.repo.Tag(ctx, tag, m.MediaType, b)
}

// Missing asks for each blob.
func (s *shelf) Missing(ctx context.Context, blobs []ocispecs.Descriptor) ([]ocispecs.Descriptor, error) {
	return cache.MissingOf(ctx, blobs, atOnce, func(ctx context.Context, d ocispecs.Descriptor) (bool, error) {
		return s.repo.HasBlob(ctx, d.Digest)
	})
}

// Upload pushes a blob. The registry checks it.
func (s *shelf) Upload(ctx context.Context, blob ocispecs.Descriptor, open func(context.Context) (io.ReadCloser, error)) error {
	return s.client.Push(ctx, registry.Push{Ref: s.ref.String(), Insecure: s.insecure, Blobs: []registry.Blob{{
		Desc: ocispecs.Descriptor{MediaType: "application/octet-stream", Digest: blob.Digest, Size: blob.Size}, Open: open,
	}}})
}
