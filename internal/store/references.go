package store

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	largestManifest = 8 << 20 // bytes
	deepestIndex    = 8       // indexes within indexes
)

// References returns the blobs that the images of the local image store need.
// A manifest that is not here needs nothing further.
func (s *Store) References(ctx context.Context, blobs content.Provider) (map[digest.Digest]bool, error) {
	var roots []ocispecs.Descriptor
	err := s.Images(func(_ string, d ocispecs.Descriptor) error {
		roots = append(roots, d)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	return Closure(ctx, blobs, roots, func(ocispecs.Descriptor) bool { return true })
}

// Closure returns roots and the blobs that they name, directly or not: of
// layers those that keep is true for. A manifest that is not here names nothing.
func Closure(ctx context.Context, blobs content.Provider, roots []ocispecs.Descriptor, keep func(layer ocispecs.Descriptor) bool) (map[digest.Digest]bool, error) {
	c := closure{blobs: blobs, keep: keep, seen: map[digest.Digest]bool{}}
	for _, d := range roots {
		c.add(ctx, d, deepestIndex)
	}
	return c.seen, ctx.Err()
}

type closure struct {
	blobs content.Provider
	keep  func(ocispecs.Descriptor) bool
	seen  map[digest.Digest]bool
}

func (c *closure) add(ctx context.Context, d ocispecs.Descriptor, depth int) {
	if c.seen[d.Digest] {
		return
	}
	c.seen[d.Digest] = true
	if depth == 0 || !isManifest(d.MediaType) || d.Size > largestManifest {
		return
	}
	data, err := content.ReadBlob(ctx, c.blobs, d)
	if err != nil {
		return
	}
	// A manifest and an index in one: the fields have different names.
	var m struct {
		Config    *ocispecs.Descriptor  `json:"config"`
		Layers    []ocispecs.Descriptor `json:"layers"`
		Manifests []ocispecs.Descriptor `json:"manifests"`
	}
	if json.Unmarshal(data, &m) != nil {
		return
	}
	if m.Config != nil {
		c.seen[m.Config.Digest] = true
	}
	for _, l := range m.Layers {
		if c.keep(l) {
			c.seen[l.Digest] = true
		}
	}
	for _, child := range m.Manifests {
		c.add(ctx, child, depth-1)
	}
}

func isManifest(mediaType string) bool {
	switch mediaType {
	case ocispecs.MediaTypeImageManifest, ocispecs.MediaTypeImageIndex,
		"application/vnd.docker.distribution.manifest.v2+json",
		"application/vnd.docker.distribution.manifest.list.v2+json":
		return true
	}
	return false
}
