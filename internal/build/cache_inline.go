package build

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/exporter"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/solver"
)

// inlineType is the type of a cache that travels in an image's config.
const inlineType = "inline"

// inlineV0 is the field of an image's config that BuildKit reads.
const inlineV0 = "moby.buildkit.cache.v0"

// inlineCaches lets exporters put a cache into the configs of images.
func (br *Bridge) inlineCaches(exports []cacheExport, res *frontend.Result, in *exporter.Input) {
	at := slices.IndexFunc(exports, func(e cacheExport) bool { return e.Type == inlineType })
	if at < 0 {
		return
	}
	for i := range in.Platforms {
		in.Platforms[i].MakeCache = func(ctx context.Context, layers []layer.Blob) (map[string]json.RawMessage, error) {
			task := progress.StepFrom(ctx).Task("preparing layers for inline cache", 0)
			defer task.Done()
			roots, err := br.roots(ctx, res.Platforms[i:i+1])
			if err != nil {
				return nil, err
			}
			entries, err := br.gather(ctx, roots, layer.Variant{}, append([]layer.Blob{}, layers...), func(cache.Recipes, solver.Key, []solver.Result) {})
			if err != nil {
				return nil, err
			}
			return br.builder.inlineFields(exports[at], entries, roots, layers)
		}
	}
}

// inlineFields are those of an image's config: BuildKit's records, and our own,
// which are found by key and are signed. An image has only layers of its own, so
// both modes are the same.
func (b *Builder) inlineFields(e cacheExport, entries []cache.Entry, roots []cache.Root, layers []layer.Blob) (map[string]json.RawMessage, error) {
	fields := map[string]json.RawMessage{}
	if e.index {
		data, err := b.Caches.Format.EncodeInline(entries, roots, layers)
		if err != nil {
			return nil, err
		}
		if data != nil {
			if fields[inlineV0], err = json.Marshal(data); err != nil {
				return nil, fmt.Errorf("encode inline cache: %w", err)
			}
		}
	}
	if !e.records {
		return fields, nil
	}
	bundle := cache.NewBundle(entries, layers, cache.Scope(e.Attrs))
	if bundle == nil {
		return fields, nil
	}
	var err error
	fields[cache.ImageField], err = b.Caches.Identity.SealBundle(*bundle)
	return fields, err
}
