package gc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/containerd/containerd/v2/core/content"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	blobs "github.com/kiln-build/kiln/internal/content"
)

// Images is the blobs that images are made of.
type Images interface {
	content.Provider
	content.InfoProvider
}

// Image is a name in the local image store.
type Image struct {
	Name string
	Desc ocispecs.Descriptor
	Size int64 // bytes of its blobs that are here
	// Layers is how many layers it has, of all its platforms.
	Layers int
}

// ListImages lists the names in the local image store, in order.
func (c *Collector) ListImages(ctx context.Context) (all []Image, err error) {
	err = c.Store.Images(func(name string, d ocispecs.Descriptor) error {
		all = append(all, Image{Name: name, Desc: d})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	for i := range all {
		seen := map[digest.Digest]int64{}
		all[i].Layers = c.blobsOf(ctx, all[i].Desc, seen, deepestIndex)
		for _, size := range seen {
			all[i].Size += size
		}
	}
	return all, nil
}

const (
	largestManifest = 8 << 20 // bytes
	deepestIndex    = 8       // indexes within indexes
)

// blobsOf adds the blobs that are here of what d names, with their sizes, and
// returns how many of them are layers.
func (c *Collector) blobsOf(ctx context.Context, d ocispecs.Descriptor, seen map[digest.Digest]int64, depth int) (layers int) {
	if _, ok := seen[d.Digest]; ok || c.Images == nil {
		return 0
	}
	info, err := c.Images.Info(ctx, d.Digest)
	if err != nil {
		return 0 // not here
	}
	seen[d.Digest] = info.Size
	if depth == 0 || d.Size > largestManifest {
		return 0
	}
	data, err := blobs.Read(ctx, c.Images, d, largestManifest)
	if err != nil {
		return 0
	}
	// A manifest and an index in one: the fields have different names.
	var m struct {
		Config    *ocispecs.Descriptor  `json:"config"`
		Layers    []ocispecs.Descriptor `json:"layers"`
		Manifests []ocispecs.Descriptor `json:"manifests"`
	}
	if json.Unmarshal(data, &m) != nil {
		return 0
	}
	if m.Config != nil {
		m.Layers = append(m.Layers, *m.Config)
		layers--
	}
	for _, l := range m.Layers {
		if info, err := c.Images.Info(ctx, l.Digest); err == nil {
			seen[l.Digest] = info.Size
		}
	}
	layers += len(m.Layers)
	for _, child := range m.Manifests {
		layers += c.blobsOf(ctx, child, seen, depth-1)
	}
	return layers
}

// RemoveImages forgets names in the local image store; all forgets all of them.
// It returns which, and how many bytes are free that only they had. While builds
// are under way, the bytes are freed by the next collection of garbage.
func (c *Collector) RemoveImages(ctx context.Context, names []string, all bool) (removed []string, freed int64, err error) {
	if all {
		images, err := c.ListImages(ctx)
		if err != nil {
			return nil, 0, err
		}
		names = nil
		for _, i := range images {
			names = append(names, i.Name)
		}
	}
	for _, name := range names {
		if _, ok := c.Store.Image(name); !ok {
			err = errors.Join(err, fmt.Errorf("no image is called %q: %w", name, fs.ErrNotExist))
			continue
		}
		if derr := c.Store.DeleteImage(name); derr != nil {
			err = errors.Join(err, fmt.Errorf("remove image %s: %w", name, derr))
			continue
		}
		removed = append(removed, name)
	}
	freed, serr := c.Layers.Sweep(ctx)
	return removed, freed, errors.Join(err, serr)
}
