package cache

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/layer"
)

// Objects is a store of bytes by key, as clouds have it. All methods may be
// called concurrently.
type Objects interface {
	// Get returns a document, or nil if there is none; one of more than limit
	// bytes is an error.
	Get(ctx context.Context, key string, limit int64) ([]byte, error)
	// Put keeps a document. With ifAbsent, one that is there stays, and stored is
	// false; the store decides between those who come at once.
	Put(ctx context.Context, key string, data []byte, ifAbsent bool) (stored bool, err error)
	// Has tells whether there is an object of size bytes.
	Has(ctx context.Context, key string, size int64) (bool, error)
	// Upload keeps an object of size bytes, whole or not at all. What open opens
	// fails at its end if it is not what it should be; it may be called again.
	Upload(ctx context.Context, key string, size int64, open func(context.Context) (io.ReadCloser, error)) error
	// Open reads an object from an offset on, in bytes.
	Open(ctx context.Context, key string, offset int64) (io.ReadCloser, error)
}

// ReadObject reads what [Objects.Get] returns, for implementations of it.
func ReadObject(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("it has more than %d bytes", limit)
	}
	return data, err
}

// Layout is how the objects of caches are called.
type Layout struct {
	Origin string // of blobs, without any secret
	// Manifest is the key of a cache in BuildKit's format, Blob that of a blob, and
	// Record that of a record of a cache by key.
	Manifest func(name string) string
	Blob     func(d digest.Digest) string
	Record   func(name, record string) string
	// Write are the names that a cache is written under, Read those that it is read
	// under, in this order. There is one at least.
	Write, Read []string
	AtOnce      int // uploads
	Questions   int // small requests at a time; 0 is 32
	// Task shows a piece of work as part of ctx's step.
	Task func(ctx context.Context, what string, size int64) Task
}

// ObjectCache keeps caches in a store of objects: BuildKit's as configs under
// names, and those by key as an object per record. Both share their blobs. It is
// a [Shelf] and a [Writer].
type ObjectCache struct {
	objects Objects
	layout  Layout
}

// NewObjectCache returns the cache that layout describes.
func NewObjectCache(o Objects, layout Layout) *ObjectCache {
	if layout.Questions == 0 {
		layout.Questions = 32
	}
	return &ObjectCache{o, layout}
}

// Origin is the layout's.
func (c *ObjectCache) Origin() string { return c.layout.Origin }

// Reader reads the caches in BuildKit's format. None is no error.
func (c *ObjectCache) Reader(ctx context.Context) (Reader, error) {
	var configs [][]byte
	for _, n := range c.layout.Read {
		b, err := c.objects.Get(ctx, c.layout.Manifest(n), MaxBare)
		if err != nil {
			return nil, err
		}
		configs = append(configs, b)
	}
	return NewBareReader(c.layout.Origin, configs...), nil
}

// Write keeps a document under all names.
func (c *ObjectCache) Write(ctx context.Context, d *Document, open func(context.Context, layer.Blob) (io.ReadCloser, error)) error {
	w := &bareWriter{shelf: c, atOnce: c.layout.AtOnce, task: c.layout.Task, open: open}
	w.save = func(ctx context.Context, config []byte) error {
		for _, n := range c.layout.Write {
			if _, err := c.objects.Put(ctx, c.layout.Manifest(n), config, false); err != nil {
				return err
			}
		}
		return nil
	}
	return w.write(ctx, d)
}

// Records looks under one name after the other.
func (c *ObjectCache) Records(ctx context.Context, names []string) (map[string][]byte, error) {
	return RecordsOf(ctx, names, c.layout.Questions, func(ctx context.Context, record string) ([]byte, error) {
		if err := CheckRecord(record, nil); err != nil {
			return nil, err
		}
		for _, n := range c.layout.Read {
			if b, err := c.objects.Get(ctx, c.layout.Record(n, record), MaxRecord); err != nil || b != nil {
				return b, err
			}
		}
		return nil, nil
	})
}

// Put keeps a record under all names; the first decides. What it needs has to be
// kept by whoever owns the store: an object is in use each time it is asked for.
func (c *ObjectCache) Put(ctx context.Context, record string, data []byte, _ []ocispecs.Descriptor, replace bool) (stored bool, err error) {
	if err := CheckRecord(record, data); err != nil {
		return false, err
	}
	for i, n := range c.layout.Write {
		did, err := c.objects.Put(ctx, c.layout.Record(n, record), data, !replace)
		if err != nil {
			return false, err
		}
		if i == 0 {
			stored = did
		}
	}
	return stored, nil
}

// Missing asks for each blob.
func (c *ObjectCache) Missing(ctx context.Context, blobs []ocispecs.Descriptor) ([]ocispecs.Descriptor, error) {
	return MissingOf(ctx, blobs, c.layout.Questions, func(ctx context.Context, d ocispecs.Descriptor) (bool, error) {
		return c.objects.Has(ctx, c.layout.Blob(d.Digest), d.Size)
	})
}

// Upload keeps a blob, which is verified before the store has all of it.
func (c *ObjectCache) Upload(ctx context.Context, blob ocispecs.Descriptor, open func(context.Context) (io.ReadCloser, error)) error {
	return c.objects.Upload(ctx, c.layout.Blob(blob.Digest), blob.Size, func(ctx context.Context) (io.ReadCloser, error) {
		rc, err := open(ctx)
		if err != nil {
			return nil, fmt.Errorf("read %s, which is to be kept: %w", blob.Digest, err)
		}
		return Verified(rc, blob, "what is to be kept"), nil
	})
}

// breaks is how often a download may break off.
const breaks = 4

// Fetch opens a blob, whose last read fails if it is damaged.
func (c *ObjectCache) Fetch(ctx context.Context, d ocispecs.Descriptor) (io.ReadCloser, error) {
	rc, err := Resuming(ctx, d.Size, breaks, func(ctx context.Context, offset int64) (io.ReadCloser, error) {
		return c.objects.Open(ctx, c.layout.Blob(d.Digest), offset)
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", d.Digest, err)
	}
	return Verified(rc, d, "the cache"), nil
}

// ObjectPlace is the [Place] and the [Shelves] that a kind of store of objects is.
// It remembers caches by their origins, since an origin has no credentials: whoever
// opened a cache last can read its blobs.
type ObjectPlace struct {
	// Title is what an export is shown as, Prefix begins the origins of blobs.
	Title, Prefix string
	// Open reads attributes.
	Open func(ctx context.Context, attrs map[string]string, write bool) (*ObjectCache, error)
	// Attrs reads an origin.
	Attrs func(origin string) (map[string]string, error)

	mu    sync.Mutex
	known map[string]*ObjectCache // by origin
}

var (
	_ Place   = (*ObjectPlace)(nil)
	_ Shelves = (*ObjectPlace)(nil)
	_ Shelf   = (*ObjectCache)(nil)
	_ Writer  = (*ObjectCache)(nil)
)

// mostKnown bounds how many caches are remembered.
const mostKnown = 256

func (p *ObjectPlace) open(ctx context.Context, attrs map[string]string, write bool) (*ObjectCache, error) {
	c, err := p.Open(ctx, attrs, write)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known == nil {
		p.known = map[string]*ObjectCache{}
	}
	if _, ok := p.known[c.Origin()]; !ok && len(p.known) >= mostKnown {
		for other := range p.known { // any: it can be opened again
			delete(p.known, other)
			break
		}
	}
	p.known[c.Origin()] = c
	return c, nil
}

// Name is what an export is shown as.
func (p *ObjectPlace) Name() string { return p.Title }

// Reader reads a cache in BuildKit's format.
func (p *ObjectPlace) Reader(ctx context.Context, attrs map[string]string) (Reader, error) {
	c, err := p.open(ctx, attrs, false)
	if err != nil {
		return nil, err
	}
	return c.Reader(ctx)
}

// Writer prepares to write a cache in BuildKit's format.
func (p *ObjectPlace) Writer(ctx context.Context, attrs map[string]string) (Writer, error) {
	c, err := p.open(ctx, attrs, true)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Shelf opens a cache by key.
func (p *ObjectPlace) Shelf(ctx context.Context, attrs map[string]string, write bool) (Shelf, error) {
	c, err := p.open(ctx, attrs, write)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Volatile tells whether an origin is such a store, whose owner may remove blobs
// at any time.
func (p *ObjectPlace) Volatile(origin string) bool { return strings.HasPrefix(origin, p.Prefix) }

// Fetch opens a blob, with the credentials of whoever used the cache last, or those
// of the machine.
func (p *ObjectPlace) Fetch(ctx context.Context, origin string, d ocispecs.Descriptor) (io.ReadCloser, error) {
	p.mu.Lock()
	c, ok := p.known[origin]
	p.mu.Unlock()
	if !ok {
		attrs, err := p.Attrs(origin)
		if err != nil {
			return nil, err
		}
		if c, err = p.open(ctx, attrs, false); err != nil {
			return nil, err
		}
	}
	return c.Fetch(ctx, d)
}
