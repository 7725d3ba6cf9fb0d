package exporter

import (
	"context"
	"fmt"
	"path"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/layer"
)

// Paths tells what a layer brings; [layer.Store] does.
type Paths interface {
	Paths(ctx context.Context, r *layer.Ref, f func(path string)) error
}

// finder finds the layers that files came with. It lists layers from the top,
// and only as many as it needs.
type finder struct {
	paths Paths

	mu    sync.Mutex
	left  []layer.Blob // still to be listed, the base first
	found map[string]digest.Digest
}

// newFinder returns nil if the layers cannot be listed.
func newFinder(store Layers, layers []layer.Blob) *finder {
	p, ok := store.(Paths)
	if !ok {
		return nil
	}
	for _, l := range layers {
		if l.Ref == nil {
			return nil
		}
	}
	return &finder{paths: p, left: layers, found: map[string]digest.Digest{}}
}

// find returns the digest of the topmost layer that has a file, "" if none has.
func (f *finder) find(ctx context.Context, file string) (digest.Digest, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name := strings.TrimPrefix(path.Join("/", file), "/")
	for {
		if d, ok := f.found[name]; ok {
			return d, nil
		}
		if len(f.left) == 0 {
			return "", nil
		}
		top := f.left[len(f.left)-1]
		err := f.paths.Paths(ctx, top.Ref, func(p string) {
			if _, ok := f.found[p]; !ok {
				f.found[p] = top.Desc.Digest
			}
		})
		if err != nil {
			return "", fmt.Errorf("list layer %s: %w", top.Desc.Digest, err)
		}
		f.left = f.left[:len(f.left)-1]
	}
}
