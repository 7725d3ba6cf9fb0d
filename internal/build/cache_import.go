package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/internal/solver"
)

// imports are the caches of others that a build looks into. All are asked at
// once, in both of their formats, and the first answer counts; so it does not
// matter in which order they are named.
type imports struct {
	br     *Bridge
	ctx    context.Context // of those that are being fetched
	cancel context.CancelFunc

	mounts sync.WaitGroup // those on their way
	asking solver.Crew    // who was asked

	mu      sync.Mutex
	known   map[string]bool
	list    []*imported
	failure error // of a mount that was asked for by name
}

func newImports(ctx context.Context, br *Bridge) *imports {
	im := &imports{br: br, known: map[string]bool{}}
	im.ctx, im.cancel = context.WithCancel(ctx)
	return im
}

// close ends what nobody has waited for.
func (im *imports) close() {
	im.cancel()
	im.mounts.Wait()
	for _, one := range im.all() {
		<-one.opened
		one.read.Do(func() { close(one.done) }) // nobody has wanted it
		<-one.done
	}
}

func (im *imports) all() []*imported {
	im.mu.Lock()
	defer im.mu.Unlock()
	return slices.Clone(im.list)
}

// importLimit is how long steps wait for a cache to be opened, all together.
const importLimit = 20 * time.Second

// imported is one cache of others.
type imported struct {
	im     *imports
	option CacheOption
	vertex digest.Digest // of the progress

	opened chan struct{}
	finder *cache.Finder // by key; nil if the place has none
	byKey  bool          // somebody has written records there

	read  sync.Once
	done  chan struct{}
	index cache.Index // BuildKit's; nil if there is none

	began time.Time
	late  sync.Once
}

// ImportCaches has the build look into further caches of others, from now on.
// A cache that cannot be read is told in the progress and is no error.
func (br *Bridge) ImportCaches(opts []CacheOption) {
	im := br.imports
	for _, o := range opts {
		b, err := json.Marshal(o)
		if err != nil {
			continue // strings always can be
		}
		im.mu.Lock()
		if im.known[string(b)] || im.ctx.Err() != nil {
			im.mu.Unlock()
			continue
		}
		im.known[string(b)] = true
		one := &imported{
			im: im, option: o, vertex: progress.NewVertex(string(b)), began: time.Now(), done: make(chan struct{}), opened: make(chan struct{}),
		}
		im.list = append(im.list, one)
		im.mu.Unlock()
		go one.open()
		one.replaceMounts()
	}
}

// importName is what an import is shown as.
func importName(o CacheOption) string {
	if ref := o.Attrs["ref"]; o.Type == "registry" && ref != "" {
		return ref
	}
	if src := o.Attrs["src"]; src != "" {
		return o.Type + ":" + src
	}
	return o.Type
}

// open makes the cache known. What is kept by key is asked first; where there is
// nothing, the index that BuildKit reads is fetched at once, and its vertex tells
// whatever is wrong.
func (one *imported) open() {
	br := one.im.br
	ctx := session.WithGroup(one.im.ctx, br)
	_ = progress.RunAs(ctx, br.req.Sink, one.vertex, "importing cache manifest from "+importName(one.option), func(ctx context.Context) error {
		finder, shelfErr := one.openShelf(ctx)
		one.finder, one.byKey = finder, finder != nil && finder.About(ctx)
		close(one.opened)
		if one.byKey {
			return nil // the index is read when a record is missing
		}
		err := one.fetch(ctx)
		switch {
		case ctx.Err() != nil && br.ctx.Err() == nil:
			return nil // the build is done and nobody has needed it
		case errors.Is(err, errPassedOver):
			return shelfErr
		}
		return err // what is in BuildKit's format alone needs no shelf
	})
}

// fetch reads the index, once.
func (one *imported) fetch(ctx context.Context) (err error) {
	one.read.Do(func() {
		defer close(one.done)
		one.index, err = one.readIndex(ctx)
	})
	return err
}

// errPassedOver says that a cache in BuildKit's format is not to be read.
var errPassedOver = errors.New("BuildKit's format is passed over: it was not asked for, or has no signatures, which the policy of trust asks for")

// readIndex reads the cache that is kept in BuildKit's format.
func (one *imported) readIndex(ctx context.Context) (cache.Index, error) {
	b, o := one.im.br.builder, one.option
	place, ok := b.Caches.Places[o.Type]
	if !ok {
		return nil, fmt.Errorf("unknown cache importer: %s: expected one of %v", o.Type, b.cacheTypes())
	}
	trust, err := b.Caches.Trust.Narrow(o.Attrs)
	if err != nil {
		return nil, err
	}
	if scope := cache.Scope(o.Attrs); !trust.Reads(scope) {
		return nil, fmt.Errorf("cache scope %q: the daemon's configuration (cache.trust) lets builds read only %q", scope, trust.ReadScopes)
	}
	policy := cache.ReadPolicy{
		BuildKit: !trust.Signed() && cache.SharesIndex(o.Type, o.Attrs) && o.Attrs["format"] != cache.FormatKiln,
		Bundles:  o.Type == "registry" && o.Attrs["format"] != cache.FormatV0, // where images are
		Scope:    cache.Scope(o.Attrs), Trust: trust, Warn: one.warn,
	}
	if !policy.BuildKit && !policy.Bundles {
		return nil, errPassedOver
	}
	r, err := place.Reader(ctx, o.Attrs)
	if err != nil && !policy.BuildKit {
		return nil, errPassedOver // there need not be an image
	}
	if err != nil {
		return nil, fmt.Errorf("failed to configure %v cache importer: %w", o.Type, err)
	}
	index, err := b.Caches.Format.Decode(ctx, r, policy)
	if err == nil && index.Empty() && !policy.BuildKit {
		err = errPassedOver
	}
	return index, err
}

// openShelf prepares to look into the cache by key.
func (one *imported) openShelf(ctx context.Context) (*cache.Finder, error) {
	b, o := one.im.br.builder, one.option
	shelves, ok := b.Caches.Places[o.Type].(cache.Shelves)
	if !ok || o.Attrs["format"] == cache.FormatV0 {
		return nil, nil
	}
	trust, err := b.Caches.Trust.Narrow(o.Attrs)
	scope := cache.Scope(o.Attrs)
	if err != nil || !trust.Reads(scope) {
		return nil, nil //nolint:nilerr // readIndex tells
	}
	shelf, err := shelves.Shelf(ctx, o.Attrs, false)
	if err != nil {
		return nil, fmt.Errorf("failed to configure %v cache importer: %w", o.Type, err)
	}
	return cache.NewFinder(ctx, cache.FinderConfig{Shelf: shelf, Scope: scope, Trust: trust, Memory: b.Caches.Memory, Warn: one.warn}), nil
}

// warn tells why the cache was passed over.
func (one *imported) warn(err error) {
	one.im.br.req.Sink.Emit(progress.Event{Warning: &progress.Warning{
		Vertex: one.vertex, Level: 1, Short: []byte("cache from " + importName(one.option) + ": " + err.Error()),
	}})
}

// within waits for a part of the cache, but not for ever.
func (one *imported) within(ctx context.Context, ready <-chan struct{}) bool {
	t := time.NewTimer(importLimit - time.Since(one.began))
	defer t.Stop()
	select {
	case <-ready:
		return true
	default:
	}
	select {
	case <-ready:
		return true
	case <-ctx.Done():
	case <-t.C:
		one.late.Do(func() { one.warn(fmt.Errorf("no answer within %s, so it is passed over", importLimit)) })
	}
	return false
}

// first returns the first answer of any, or solver.ErrNotFound.
func first[V any](ctx context.Context, by *solver.Crew, asks []func(context.Context) (V, error)) (V, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		val V
		err error
	}
	answers := make(chan answer, len(asks))
	for _, ask := range asks {
		by.Go(func() {
			val, err := ask(ctx)
			answers <- answer{val, err}
		})
	}
	for range asks {
		if a := <-answers; a.err == nil {
			return a.val, nil
		}
	}
	var none V
	if ctx.Err() != nil {
		return none, ctx.Err()
	}
	return none, solver.ErrNotFound
}

// ask looks into one cache: by key first, if that is how it is kept.
func ask[V any](ctx context.Context, one *imported, records, index func(context.Context) (V, error)) (none V, err error) {
	if !one.within(ctx, one.opened) {
		return none, solver.ErrNotFound
	}
	read := func(ctx context.Context) (V, error) {
		if !one.within(ctx, one.done) || one.index == nil {
			return none, solver.ErrNotFound
		}
		return index(ctx)
	}
	switch {
	case one.finder == nil:
		return read(ctx)
	case !one.byKey: // perhaps by now
		return first(ctx, &one.im.asking, []func(context.Context) (V, error){records, read})
	}
	val, err := records(ctx)
	if err != nil && ctx.Err() == nil {
		go func() { _ = one.fetch(session.WithGroup(one.im.ctx, one.im.br)) }() // without one, records are all there is
		val, err = read(ctx)
	}
	return val, err
}

// Load returns the results of a step, to be pulled when they are read.
func (im *imports) Load(ctx context.Context, j *solver.Job, k solver.Key, needed func(int) bool) ([]solver.Result, error) {
	var asks []func(context.Context) ([]solver.Result, error)
	for _, one := range im.all() {
		asks = append(asks, func(ctx context.Context) ([]solver.Result, error) {
			return ask(ctx, one, func(ctx context.Context) ([]solver.Result, error) { return one.fromRecords(ctx, j, k, needed) },
				func(ctx context.Context) ([]solver.Result, error) { return one.fromIndex(ctx, j, k, needed) })
		})
	}
	return first(session.WithGroup(ctx, im.br), &im.asking, asks)
}

func (one *imported) fromIndex(ctx context.Context, j *solver.Job, k solver.Key, needed func(int) bool) (out []solver.Result, err error) {
	recipe, _ := j.Recipe(k)
	some := false
	for i := range max(recipe.Outputs, 1) {
		layers, ok := one.index.Find(j, k, i)
		ok = ok && !one.lost(ctx, layers)
		if !ok && needed(i) {
			return nil, solver.ErrNotFound
		}
		if !ok {
			out = append(out, solver.Absent{})
			continue
		}
		some = true
		ref, err := one.im.br.builder.Worker.Layers.FromBlobs(ctx, layers)
		if err != nil {
			return nil, fmt.Errorf("import result: %w", err)
		}
		out = append(out, ref)
	}
	if !some {
		return nil, solver.ErrNotFound
	}
	return out, nil
}

// lost tells whether the place does not have all layers, if it can be asked.
func (one *imported) lost(ctx context.Context, layers []layer.LazyBlob) bool {
	if one.finder == nil {
		return false
	}
	var blobs []ocispecs.Descriptor
	for _, l := range layers {
		blobs = append(blobs, l.Desc)
	}
	return one.finder.Lost(ctx, blobs)
}

func (one *imported) fromRecords(ctx context.Context, j *solver.Job, k solver.Key, needed func(int) bool) ([]solver.Result, error) {
	r, err := one.finder.Result(ctx, k, ahead(j, k))
	if err != nil {
		return nil, err
	}
	var out []solver.Result
	for i, o := range r.Outputs {
		switch {
		case o.Absent && needed(i):
			return nil, solver.ErrNotFound
		case o.Absent:
			out = append(out, solver.Absent{})
		case o.Value != nil:
			out = append(out, o.Value)
		default:
			var lazy []layer.LazyBlob
			for _, l := range o.Layers {
				lazy = append(lazy, l.Lazy(one.finder.Shelf().Origin()))
			}
			ref, err := one.im.br.builder.Worker.Layers.FromBlobs(ctx, lazy)
			if err != nil {
				return nil, fmt.Errorf("import result: %w", err)
			}
			out = append(out, ref)
		}
	}
	return out, nil
}

// mostAhead is how many keys are looked up before anybody asks.
const mostAhead = 64

// ahead are the keys that are asked for next if k is a miss, the nearest first.
func ahead(j *solver.Job, k solver.Key) (keys []solver.Key) {
	seen := map[solver.Key]bool{k: true}
	for queue := []solver.Key{k}; len(queue) > 0; queue = queue[1:] {
		recipe, _ := j.Recipe(queue[0])
		for _, in := range recipe.Inputs {
			below, ok := j.Recipe(in.Key)
			if seen[in.Key] || !ok || below.Local || len(keys) == mostAhead {
				continue
			}
			seen[in.Key] = true
			queue = append(queue, in.Key)
			if len(below.Inputs) > 0 { // what comes from outside is in no cache
				keys = append(keys, in.Key)
			}
		}
	}
	return keys
}

// Digest returns the digest of a part of a result.
func (im *imports) Digest(ctx context.Context, j *solver.Job, of solver.Ingredient) (solver.Content, error) {
	var asks []func(context.Context) (solver.Content, error)
	for _, one := range im.all() {
		asks = append(asks, func(ctx context.Context) (solver.Content, error) {
			return ask(ctx, one, func(ctx context.Context) (solver.Content, error) { return one.finder.Content(ctx, of) },
				func(context.Context) (solver.Content, error) {
					if d := one.index.Content(j, of); d != "" {
						return solver.Content{Digest: d}, nil
					}
					return solver.Content{}, solver.ErrNotFound
				})
		})
	}
	return first(session.WithGroup(ctx, im.br), &im.asking, asks)
}
