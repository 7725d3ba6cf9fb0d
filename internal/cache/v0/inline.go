package v0

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/solver"
)

// imageConfig is what of an image's config tells of caches.
type imageConfig struct {
	RootFS struct {
		DiffIDs []digest.Digest `json:"diff_ids"`
	} `json:"rootfs"`
	Cache   []byte          `json:"moby.buildkit.cache.v0"`
	Bundle  json.RawMessage `json:"kiln.cache.v1"` // [cache.ImageField]
	History []struct {
		Created    *time.Time `json:"created"`
		CreatedBy  string     `json:"created_by"`
		EmptyLayer bool       `json:"empty_layer"`
	} `json:"history"`
}

// inline reads the records that an image's config carries, if it does: those of
// Kiln, which are found by key, before BuildKit's.
func (d *decoder) inline(desc ocispecs.Descriptor, layers []ocispecs.Descriptor) error {
	data, err := d.r.Read(d.ctx, desc)
	if err != nil {
		return err
	}
	var image imageConfig
	if err := json.Unmarshal(data, &image); err != nil || len(image.RootFS.DiffIDs) != len(layers) {
		return nil // an image without a cache
	}
	if image.Bundle != nil && d.policy.Bundles {
		b, err := cache.UsableBundle(image.Bundle, d.policy.Scope, d.policy.Trust)
		if err == nil {
			err = b.Matches(layers)
		}
		if err == nil {
			d.found = append(d.found, bundled{b, d.r.Origin()})
		} else if d.policy.Warn != nil {
			d.policy.Warn(fmt.Errorf("the records in image config %s are passed over: %w", desc.Digest, err))
		}
	}
	if image.Cache == nil || !d.policy.BuildKit {
		return nil
	}
	return d.inlineV0(desc, layers, image)
}

// inlineV0 reads BuildKit's records.
func (d *decoder) inlineV0(desc ocispecs.Descriptor, layers []ocispecs.Descriptor, image imageConfig) error {
	c := &config{}
	if err := json.Unmarshal(image.Cache, &c.Records); err != nil {
		return fmt.Errorf("import cache: decode the inline cache of %s: %w", desc.Digest, err)
	}
	layers = slices.Clone(layers)
	for i := range layers {
		layers[i].Annotations = map[string]string{annotationDiffID: image.RootFS.DiffIDs[i].String()}
		c.Layers = append(c.Layers, layerEntry{Blob: layers[i].Digest, Parent: i - 1})
	}
	at := 0
	for _, h := range image.History {
		if h.EmptyLayer || at >= len(layers) {
			continue
		}
		if h.Created != nil {
			layers[at].Annotations[annotationCreatedAt] = h.Created.UTC().Format(time.RFC3339Nano)
		}
		if h.CreatedBy != "" {
			layers[at].Annotations[annotationDescription] = h.CreatedBy
		}
		at++
	}
	if err := c.check(); err != nil {
		return fmt.Errorf("import cache: %w", err)
	}
	d.found = append(d.found, newIndex(c, layers, d.r.Origin()))
	return nil
}

// bundled finds records by key.
type bundled struct {
	bundle *cache.Bundle
	origin string
}

func (x bundled) find(_ cache.Recipes, k solver.Key, output int) ([]layer.LazyBlob, bool) {
	return x.bundle.Find(k, output, x.origin)
}

func (x bundled) contentOf(_ cache.Recipes, of solver.Ingredient) string {
	return string(x.bundle.Contents[cache.ContentSubject(of)])
}
