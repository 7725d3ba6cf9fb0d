// Package s3 keeps caches in buckets of Amazon S3, and of servers that speak its
// protocol (BuildKit's README, Cache). It is a [cache.Place], with BuildKit's
// attributes and names of objects.
package s3

import (
	"context"
	"os"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/progress"
)

// Config says how to talk to servers. The zero value is ready for use.
type Config struct {
	// Stall is how long a server may be silent; 0 is 30 seconds.
	Stall time.Duration
	// MaxBackoff bounds the pauses before a request is repeated; 0 is 20 seconds.
	MaxBackoff time.Duration
	// Getenv reads the environment; nil reads the process's.
	Getenv func(string) string
}

// place makes caches of buckets.
type place struct{ c Config }

// New returns the place that all buckets are.
func New(c Config) *cache.ObjectPlace {
	if c.Stall == 0 {
		c.Stall = 30 * time.Second
	}
	if c.MaxBackoff == 0 {
		c.MaxBackoff = 20 * time.Second
	}
	if c.Getenv == nil {
		c.Getenv = os.Getenv
	}
	p := &place{c}
	return &cache.ObjectPlace{Title: "exporting cache to Amazon S3", Prefix: originPrefix, Open: p.open, Attrs: attrsOf}
}

// open reads attributes and makes a client.
func (p *place) open(ctx context.Context, attrs map[string]string, _ bool) (*cache.ObjectCache, error) {
	c, err := decode(attrs, p.c.Getenv)
	if err != nil {
		return nil, err
	}
	store, err := p.connect(ctx, c)
	if err != nil {
		return nil, err
	}
	return cache.NewObjectCache(store, cache.Layout{
		Origin:   c.origin(),
		Manifest: func(name string) string { return c.prefix + c.manifests + name },
		Blob:     func(d digest.Digest) string { return c.prefix + c.blobs + d.String() },
		Record:   func(name, record string) string { return c.prefix + "records/" + name + "/" + record },
		Write:    c.names, Read: c.names[:1], AtOnce: c.parallel,
		Task: func(ctx context.Context, what string, size int64) cache.Task {
			return progress.StepFrom(ctx).Task(what, size)
		},
	}), nil
}
