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
	seen := map[digest.Digest]bool{}
	for _, d := range roots {
		reference(ctx, blobs, d, seen, deepestIndex)
	}
	return seen, ctx.Err()
}

func reference(ctx context.Context, blobs content.Provider, d ocispecs.Descriptor, seen map[digest.Digest]bool, depth int) {
	if seen[d.Digest] {
		return
	}
	seen[d.Digest] = true
	if depth == 0 || !isManifest(d.MediaType) || d.Size > largestManifest {
		return
	}
	data, err := content.ReadBlob(ctx, blobs, d)
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
		seen[m.Config.Digest] = true
	}
	for _, l := range m.Layers {
		seen[l.Digest] = true
	}
	for _, child := range m.Manifests {
		reference(ctx, blobs, child, seen, depth-1)
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
