package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/solver"
)

// Caches is what a builder needs to exchange caches with others.
type Caches struct {
	Own    solver.Cache
	Format cache.Format
	Places map[string]cache.Place // by type, such as "registry"; also cache.Shelves, where they can
	// Identity signs records; nil signs none.
	Identity *cache.Identity
	Trust    cache.Trust // whose records count
	// Fetcher gets the blobs of caches by key.
	Fetcher layer.Fetcher
	// Memory remembers what places of others have; nil has all be asked for.
	Memory *cache.Memory
	// Later carries on with exports that builds do not wait for; nil has all wait.
	Later *Later
	// Remember returns a context for work that goes on when the client has left.
	// Nil leaves it.
	Remember func(context.Context) context.Context
	// Volatile tells whether blobs may vanish from an origin at any time: they
	// are fetched before a cache says that it has them.
	Volatile func(origin string) bool
}

// CacheOption names a cache for others (BuildKit's README, Cache).
type CacheOption struct {
	Type  string
	Attrs map[string]string
}

// roots are the steps that a result came of.
func (br *Bridge) roots(ctx context.Context, ps []frontend.PlatformResult) (roots []cache.Root, err error) {
	for _, p := range ps {
		known, ok := br.evaluated.Load(p.Graph)
		edge, _ := known.(solver.Edge)
		if !ok {
			if edge, err = br.edge(ctx, p.Graph); err != nil {
				return nil, err
			}
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
	tell    func(cache.Recipes, solver.Key, []solver.Result) // no results: what was read alone

	mu    sync.Mutex
	blobs map[string]layer.Blob // by layer: those of chains that were made before
}

// gather returns the steps that lead to roots. If final is given, only what it
// consists of comes with layers. Steps, and results that are wanted, go to tell as well.
func (br *Bridge) gather(ctx context.Context, roots []cache.Root, v layer.Variant, final []layer.Blob,
	tell func(cache.Recipes, solver.Key, []solver.Result),
) ([]cache.Entry, error) {
	g := &gatherer{br: br, variant: v, seen: map[solver.Key]bool{}, tell: tell, blobs: map[string]layer.Blob{}}
	if final != nil {
		g.final = map[string]layer.Blob{}
		for _, l := range final {
			g.final[l.Ref.ID()], g.final[string(l.DiffID)] = l, l
			if of := l.Ref.Record().Of; of != "" {
				g.final[of] = l
			}
		}
	}
	for _, r := range roots {
		g.visit(r.Key)
	}
	if len(g.entries) == 0 {
		return nil, nil
	}
	// The first is a root, which has the layers of most others.
	if err := g.results(ctx, &g.entries[0]); err != nil {
		return g.entries, err
	}
	eg, ctx := errgroup.WithContext(ctx)
	eg.SetLimit(8)
	for i := 1; i < len(g.entries); i++ {
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
	// What a step has read is told in any case: who has not its result, but that of
	// a step which has read it, needs it to get there.
	var told []solver.Result
	defer func() { g.tell(g.br.job, e.Key, told) }()
	out, err := g.br.builder.Caches.Own.Load(ctx, e.Key)
	// An image, which is not kept, can be had from where it came from.
	if err != nil && (len(e.Recipe.Inputs) > 0 || g.final == nil) {
		out, err = g.br.imports.Load(ctx, g.br.job, e.Key, func(int) bool { return false })
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return nil // a step that nobody needed
	}
	wanted := g.final == nil
	for _, r := range out {
		ref, _ := r.(*layer.Ref)
		result := cache.EntryResult{SavedAt: ref.Record().CreatedAt}
		if result.Layers, err = g.layers(ctx, ref); err != nil {
			return fmt.Errorf("make layers for the cache: %w", err)
		}
		e.Results = append(e.Results, result)
		wanted = wanted || len(result.Layers) > 0
	}
	if wanted {
		told = out
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
		for _, other := range []string{string(rec.DiffID), rec.Of} {
			if !ok && other != "" {
				b, ok = g.final[other]
			}
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
	if out := g.made(ref); out != nil {
		return out, nil
	}
	blobs, err := g.br.builder.Worker.Layers.Blobs(ctx, ref, g.variant)
	if err != nil || !g.there(ctx, blobs) {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, b := range blobs {
		g.blobs[b.Ref.ID()] = b
	}
	return blobs, nil
}

// made are the layers of a state that another is built on, whose layers were
// asked for before: to look at each layer once for each step above it takes time
// that grows with the square of the steps. Nil says that some were not.
func (g *gatherer) made(ref *layer.Ref) (out []layer.Blob) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for r := ref; r != nil; r = r.Parent() {
		b, ok := g.blobs[r.ID()]
		if !ok {
			return nil
		}
		out = append(out, b)
	}
	slices.Reverse(out)
	return out
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

// readCacheImports reads the frontend's options "cache-imports" and, of before
// there was that, "cache-from", in which clients name caches.
func readCacheImports(opts map[string]string) (found []CacheOption, err error) {
	text := opts["cache-imports"]
	if text == "" {
		for ref := range strings.SplitSeq(opts["cache-from"], ",") {
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
