package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/exporter"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/internal/solver"
)

// Caches is what a builder needs to exchange caches with others.
type Caches struct {
	Own    solver.Cache
	Format cache.Format
	Places map[string]cache.Place // by type, such as "registry"
	// Volatile tells whether blobs may vanish from an origin at any time: they
	// are fetched before a cache says that it has them.
	Volatile func(origin string) bool
}

// CacheOption names a cache for others (FEATURES.md section 5).
type CacheOption struct {
	Type  string
	Attrs map[string]string
}

// inlineType is the type of a cache that travels in an image's config.
const inlineType = "inline"

// cacheExport is a CacheOption, checked.
type cacheExport struct {
	CacheOption
	opt   cache.ExportOptions
	place cache.Place // nil for an inline cache
}

// cacheExports checks what a request wants exported, before any work is done.
func (b *Builder) cacheExports(opts []CacheOption) (found []cacheExport, err error) {
	for i, o := range opts {
		if slices.ContainsFunc(opts[:i], func(p CacheOption) bool { return reflect.DeepEqual(p, o) }) {
			return nil, fmt.Errorf("duplicate cache exports [%s]: name each place once", o.Type)
		}
		e := cacheExport{CacheOption: o}
		if e.opt, err = cache.DecodeExport(o.Attrs); err != nil {
			return nil, fmt.Errorf("export cache to %s: %w", o.Type, err)
		}
		place, ok := b.Caches.Places[o.Type]
		switch {
		case ok:
			e.place = place
		case o.Type == inlineType:
		case e.opt.IgnoreError:
			continue
		default:
			return nil, fmt.Errorf("unknown cache exporter: %q: expected one of %v", o.Type, b.cacheTypes(inlineType))
		}
		found = append(found, e)
	}
	return found, nil
}

func (b *Builder) cacheTypes(more ...string) []string {
	return slices.Sorted(slices.Values(append(slices.Collect(maps.Keys(b.Caches.Places)), more...)))
}

// imports are the caches of others that a build looks into. They are fetched in
// the background; who looks for something waits for them.
type imports struct {
	br     *Bridge
	ctx    context.Context // of those that are being fetched
	cancel context.CancelFunc

	mu    sync.Mutex
	known map[string]bool
	list  []*imported
}

func newImports(ctx context.Context) *imports {
	im := &imports{known: map[string]bool{}}
	im.ctx, im.cancel = context.WithCancel(ctx)
	return im
}

// close ends what nobody has waited for.
func (im *imports) close() {
	im.cancel()
	im.mu.Lock()
	list := slices.Clone(im.list)
	im.mu.Unlock()
	for _, one := range list {
		<-one.done
	}
}

type imported struct {
	done  chan struct{}
	index cache.Index // nil if it could not be had
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
		one := &imported{done: make(chan struct{})}
		im.list = append(im.list, one)
		im.mu.Unlock()
		go func() {
			defer close(one.done)
			one.index = im.fetch(o)
		}()
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

func (im *imports) fetch(o CacheOption) (index cache.Index) {
	br := im.br
	// Whatever is wrong is told by the vertex.
	_ = progress.Run(session.WithGroup(im.ctx, br), br.req.Sink, "importing cache manifest from "+importName(o), func(ctx context.Context) error {
		place, ok := br.builder.Caches.Places[o.Type]
		if !ok {
			return fmt.Errorf("unknown cache importer: %s: expected one of %v", o.Type, br.builder.cacheTypes())
		}
		r, err := place.Reader(ctx, o.Attrs)
		if err != nil {
			return fmt.Errorf("failed to configure %v cache importer: %w", o.Type, err)
		}
		index, err = br.builder.Caches.Format.Decode(ctx, r)
		return err
	})
	return index
}

// each calls f with every cache until f is satisfied.
func (im *imports) each(ctx context.Context, f func(cache.Index) bool) error {
	im.mu.Lock()
	list := slices.Clone(im.list)
	im.mu.Unlock()
	for _, one := range list {
		select {
		case <-one.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		if one.index != nil && f(one.index) {
			return nil
		}
	}
	return solver.ErrNotFound
}

// Load returns the results of a step, to be pulled when they are read.
func (im *imports) Load(ctx context.Context, j *solver.Job, k solver.Key, needed func(int) bool) (out []solver.Result, err error) {
	recipe, _ := j.Recipe(k)
	var found [][]layer.LazyBlob
	err = im.each(ctx, func(x cache.Index) bool {
		found = nil
		some := false
		for i := range max(recipe.Outputs, 1) {
			layers, ok := x.Find(j, k, i)
			if !ok && needed(i) {
				return false
			}
			some = some || ok
			found = append(found, layers)
		}
		return some
	})
	if err != nil {
		return nil, err
	}
	for _, layers := range found {
		if layers == nil {
			out = append(out, solver.Absent{})
			continue
		}
		ref, err := im.br.builder.Worker.Layers.FromBlobs(ctx, layers)
		if err != nil {
			return nil, fmt.Errorf("import result: %w", err)
		}
		out = append(out, ref)
	}
	return out, nil
}

// Digest returns the digest of a part of a result.
func (im *imports) Digest(ctx context.Context, j *solver.Job, of solver.Ingredient) (d string, err error) {
	err = im.each(ctx, func(x cache.Index) bool {
		d = x.Content(j, of)
		return d != ""
	})
	return d, err
}

// roots are the steps that a result came of.
func (br *Bridge) roots(ctx context.Context, ps []frontend.PlatformResult) (roots []cache.Root, err error) {
	for _, p := range ps {
		edge, err := br.edge(ctx, p.Graph)
		if err != nil {
			return nil, err
		}
		if edge.Vertex == nil {
			continue
		}
		k, err := br.job.Key(ctx, edge)
		if err != nil {
			return nil, err
		}
		roots = append(roots, cache.Root{Key: k, Output: edge.Index})
	}
	return roots, nil
}

// gatherer makes entries of steps.
type gatherer struct {
	br      *Bridge
	variant layer.Variant
	final   map[string]layer.Blob // what results must consist of, by layer and by digest; nil takes all
	seen    map[solver.Key]bool
	entries []cache.Entry
}

// gather returns the steps that lead to roots. If final is given, only what it
// consists of comes with layers.
func (br *Bridge) gather(ctx context.Context, roots []cache.Root, v layer.Variant, final []layer.Blob) ([]cache.Entry, error) {
	g := &gatherer{br: br, variant: v, seen: map[solver.Key]bool{}}
	if final != nil {
		g.final = map[string]layer.Blob{}
		for _, l := range final {
			g.final[l.Ref.ID()], g.final[string(l.DiffID)] = l, l
		}
	}
	for _, r := range roots {
		g.visit(r.Key)
	}
	eg, ctx := errgroup.WithContext(ctx)
	eg.SetLimit(8)
	for i := range g.entries {
		eg.Go(func() error { return g.results(ctx, &g.entries[i]) })
	}
	return g.entries, eg.Wait()
}

func (g *gatherer) visit(k solver.Key) {
	recipe, ok := g.br.job.Recipe(k)
	if !ok || recipe.Local || g.seen[k] {
		return
	}
	g.seen[k] = true
	g.entries = append(g.entries, cache.Entry{Key: k, Recipe: recipe})
	for _, in := range recipe.Inputs {
		g.visit(in.Key)
	}
}

// results adds the layers of a step, where they are known.
func (g *gatherer) results(ctx context.Context, e *cache.Entry) error {
	if len(e.Recipe.Inputs) == 0 && g.final != nil {
		return nil // what comes from outside can be had from there
	}
	out, err := g.br.builder.Caches.Own.Load(ctx, e.Key)
	if err != nil {
		out, err = g.br.imports.Load(ctx, g.br.job, e.Key, func(int) bool { return false })
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return nil // a step that nobody needed
	}
	for _, r := range out {
		ref, _ := r.(*layer.Ref)
		result := cache.EntryResult{SavedAt: ref.Record().CreatedAt}
		if result.Layers, err = g.layers(ctx, ref); err != nil {
			return fmt.Errorf("make layers for the cache: %w", err)
		}
		e.Results = append(e.Results, result)
	}
	return nil
}

// layers are those of a result, or none if it is not wanted. What has marks of
// a diff cannot be handed over by layers alone: they mean nothing without what
// lies below.
func (g *gatherer) layers(ctx context.Context, ref *layer.Ref) ([]layer.Blob, error) {
	var out []layer.Blob
	for r := ref; r != nil; r = r.Parent() {
		rec := r.Record()
		if rec.Loose {
			return nil, nil
		}
		if g.final == nil {
			continue
		}
		b, ok := g.final[r.ID()]
		if !ok && rec.DiffID != "" {
			b, ok = g.final[string(rec.DiffID)]
		}
		if !ok {
			return nil, nil
		}
		out = append(out, b)
	}
	if g.final != nil {
		slices.Reverse(out)
		return out, nil
	}
	blobs, err := g.br.builder.Worker.Layers.Blobs(ctx, ref, g.variant)
	if err != nil || !g.there(ctx, blobs) {
		return nil, err
	}
	return blobs, nil
}

// there tells whether blobs that may have vanished are still to be had.
func (g *gatherer) there(ctx context.Context, blobs []layer.Blob) bool {
	for _, b := range blobs {
		if origin := b.Ref.Record().Origin; origin == "" || g.br.builder.Caches.Volatile == nil || !g.br.builder.Caches.Volatile(origin) {
			continue
		}
		ra, err := g.br.builder.Worker.Layers.ReaderAt(ctx, b)
		if err != nil {
			return false
		}
		_ = ra.Close() // nothing was read
	}
	return true
}

// inlineCaches lets exporters put a cache into the configs of images.
func (br *Bridge) inlineCaches(exports []cacheExport, res *frontend.Result, in *exporter.Input) {
	if !slices.ContainsFunc(exports, func(e cacheExport) bool { return e.Type == inlineType }) {
		return
	}
	for i := range in.Platforms {
		in.Platforms[i].MakeCache = func(ctx context.Context, layers []layer.Blob) ([]byte, error) {
			task := progress.StepFrom(ctx).Task("preparing layers for inline cache", 0)
			defer task.Done()
			roots, err := br.roots(ctx, res.Platforms[i:i+1])
			if err != nil {
				return nil, err
			}
			entries, err := br.gather(ctx, roots, layer.Variant{}, append([]layer.Blob{}, layers...))
			if err != nil {
				return nil, err
			}
			return br.builder.Caches.Format.EncodeInline(entries, roots, layers)
		}
	}
}

// exportCaches writes the caches for others.
func (br *Bridge) exportCaches(ctx context.Context, exports []cacheExport, res *frontend.Result, in exporter.Input) (map[string]string, error) {
	out := map[string]string{}
	var mu sync.Mutex
	eg, ctx := errgroup.WithContext(session.WithGroup(ctx, br))
	for _, e := range exports {
		if e.place == nil {
			continue
		}
		eg.Go(func() error {
			err := progress.Run(ctx, br.req.Sink, e.place.Name(), func(ctx context.Context) error {
				desc, err := br.exportCache(ctx, e, res, in)
				if err == nil && desc != "" {
					mu.Lock()
					defer mu.Unlock()
					out["cache.manifest"] = desc
				}
				return err
			})
			if e.opt.IgnoreError && ctx.Err() == nil {
				return nil
			}
			return err
		})
	}
	return out, eg.Wait()
}

// exportCache writes one cache and returns its manifest's descriptor as JSON.
func (br *Bridge) exportCache(ctx context.Context, e cacheExport, res *frontend.Result, in exporter.Input) (string, error) {
	w, err := e.place.Writer(ctx, e.Attrs)
	if err != nil {
		return "", fmt.Errorf("failed to configure %v cache exporter: %w", e.Type, err)
	}
	doc, err := br.cacheDocument(ctx, e, res, in)
	if err != nil {
		return "", err
	}
	if len(doc.Layers) == 0 {
		progress.StepFrom(ctx).Task("skipping cache export for empty result", 0).Done()
		return "", nil
	}
	layers := br.builder.Worker.Layers
	err = w.Write(ctx, doc, func(ctx context.Context, l layer.Blob) (io.ReadCloser, error) {
		ra, err := layers.ReaderAt(ctx, l)
		if err != nil {
			return nil, err
		}
		return struct {
			io.Reader
			io.Closer
		}{io.NewSectionReader(ra, 0, ra.Size()), ra}, nil
	})
	if err != nil {
		return "", fmt.Errorf("export cache to %s: %w", e.Type, err)
	}
	b, err := json.Marshal(doc.Manifest)
	if err != nil {
		return "", fmt.Errorf("encode descriptor: %w", err)
	}
	return string(b), nil
}

func (br *Bridge) cacheDocument(ctx context.Context, e cacheExport, res *frontend.Result, in exporter.Input) (*cache.Document, error) {
	task := progress.StepFrom(ctx).Task("preparing build cache for export", 0)
	defer task.Done()
	roots, err := br.roots(ctx, res.Platforms)
	if err != nil {
		return nil, err
	}
	var final []layer.Blob
	if !e.opt.Max {
		final = []layer.Blob{}
		for _, p := range in.Platforms {
			if p.Ref == nil {
				continue
			}
			layers, err := br.builder.Worker.Layers.Blobs(ctx, p.Ref, e.opt.Variant)
			if err != nil {
				return nil, fmt.Errorf("make layers for the cache: %w", err)
			}
			final = append(final, layers...)
		}
	}
	entries, err := br.gather(ctx, roots, e.opt.Variant, final)
	if err != nil {
		return nil, err
	}
	return br.builder.Caches.Format.Encode(entries, roots, e.opt)
}

// readCacheImports reads the frontend's options "cache-imports" and, of before
// there was that, "cache-from", in which clients name caches.
func readCacheImports(opts map[string]string) (found []CacheOption, err error) {
	text := opts["cache-imports"]
	if text == "" {
		for _, ref := range strings.Split(opts["cache-from"], ",") {
			if ref = strings.TrimSpace(ref); ref != "" {
				found = append(found, CacheOption{Type: "registry", Attrs: map[string]string{"ref": ref}})
			}
		}
		return found, nil
	}
	if err := json.Unmarshal([]byte(text), &found); err != nil {
		return nil, errors.Join(errors.New(`frontend option "cache-imports": expected a JSON list of {"Type": …, "Attrs": …}`), err)
	}
	return found, nil
}
