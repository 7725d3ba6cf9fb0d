package main

import (
	"context"
	"io"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/cache/azblob"
	"github.com/kiln-build/kiln/internal/cache/gha"
	localcache "github.com/kiln-build/kiln/internal/cache/local"
	registrycache "github.com/kiln-build/kiln/internal/cache/registry"
	"github.com/kiln-build/kiln/internal/cache/s3"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/registry"
	layoutsource "github.com/kiln-build/kiln/internal/source/layout"
)

// remotes are the places that blobs come from: registries, folders of clients and
// stores of objects. It is a layer.Fetcher.
type remotes struct {
	registry *registry.Client
	objects  map[string]*cache.ObjectPlace // by type of cache
	clients  localcache.Fetcher
}

func newRemotes(reg *registry.Client) *remotes {
	return &remotes{
		registry: reg, clients: localcache.Fetcher{Next: layoutsource.Fetcher{Next: reg}},
		objects: map[string]*cache.ObjectPlace{
			"s3": s3.New(s3.Config{}), "azblob": azblob.New(azblob.Config{}), "gha": gha.New(gha.Config{}),
		},
	}
}

// caches are where caches for others are kept, by type; writer tells this daemon from others.
func (r *remotes) caches(writer string) map[string]cache.Place {
	all := map[string]cache.Place{"registry": registrycache.New(r.registry), "local": localcache.New(writer)}
	for kind, p := range r.objects {
		all[kind] = p
	}
	return all
}

// Fetch gets a blob from wherever it is kept.
func (r *remotes) Fetch(ctx context.Context, origin string, d ocispecs.Descriptor) (io.ReadCloser, error) {
	for _, p := range r.objects {
		if p.Volatile(origin) {
			return p.Fetch(ctx, origin, d)
		}
	}
	return r.clients.Fetch(ctx, origin, d)
}

// volatile tells whether blobs may vanish from an origin at any time.
func (r *remotes) volatile(origin string) bool {
	for _, p := range r.objects {
		if p.Volatile(origin) {
			return true
		}
	}
	return localcache.Volatile(origin)
}

var _ layer.Fetcher = (*remotes)(nil)
