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
	"strconv"

	"golang.org/x/sync/errgroup"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/exporter"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/session"
)

// cacheExport is a CacheOption, checked.
type cacheExport struct {
	CacheOption
	opt     cache.ExportOptions
	place   cache.Place // nil for an inline cache
	records bool        // write records by key
	index   bool        // write what BuildKit reads
	later   bool        // the build does not wait for it
	mounts  mountChoice // cache mounts that go with it
	upload  *upload     // while the build goes on; nil if there is nothing to
}

// cacheExports checks what a request wants exported, before any work is done.
func (b *Builder) cacheExports(opts []CacheOption) (found []cacheExport, err error) {
	for i, o := range opts {
		if o.Type == inlineType && slices.ContainsFunc(found, func(e cacheExport) bool { return e.Type == inlineType }) {
			continue // an image has one
		}
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
		if err := e.settle(b.Caches.Trust); err != nil {
			return nil, fmt.Errorf("export cache to %s: %w", o.Type, err)
		}
		found = append(found, e)
	}
	return found, nil
}

// settle decides on the formats, and on when to write.
func (e *cacheExport) settle(trust cache.Trust) error {
	_, byKey := e.place.(cache.Shelves)
	e.records, e.index = byKey || e.place == nil, true
	switch f := e.Attrs["format"]; f {
	case "":
		e.index = !e.records || cache.SharesIndex(e.Type, e.Attrs)
	case cache.FormatV0:
		e.records = false
	case cache.FormatKiln:
		if !e.records {
			return errors.New("format=kiln: this type of cache keeps BuildKit's format only")
		}
		e.index = false
	default:
		return fmt.Errorf("format=%q: expected kiln for records by key, v0 for BuildKit's format, or nothing for both", f)
	}
	if e.mounts = mountsOf(e.Attrs); len(e.mounts) > 0 && (!e.records || e.place == nil) {
		return errMountsByKey
	}
	if err := e.settleReset(); err != nil {
		return err
	}
	if scope := cache.Scope(e.Attrs); !trust.Writes(scope) {
		return fmt.Errorf("scope %q: the daemon's configuration (cache.trust) lets builds write only %q", scope, trust.WriteScopes)
	}
	if v, ok := e.Attrs["wait"]; ok {
		wait, err := strconv.ParseBool(v)
		if err != nil {
			return fmt.Errorf("wait=%q: expected true or false", v)
		}
		e.later = !wait
	}
	if e.later && (e.Type == "local" || e.Type == inlineType) {
		return errors.New("wait=false: only the client has this place, and it would be gone: leave it out")
	}
	return nil
}

// settleReset heeds that a client which resets its folder removes all that the
// folder's index.json does not lead to. BuildKit's index leads to no records, so
// both parts stay together only if one is written: the index, or records alone.
func (e *cacheExport) settleReset() error {
	reset, err := strconv.ParseBool(e.Attrs["reset"])
	if e.Type != "local" || err != nil || !reset || !e.index {
		return nil //nolint:nilerr // the client tells what is no truth value
	}
	if len(e.mounts) > 0 {
		return errors.New("reset=true: it removes what BuildKit's index does not name, and so cache mounts: add format=kiln")
	}
	e.records = false
	return nil
}

func (b *Builder) cacheTypes(more ...string) []string {
	return slices.Sorted(slices.Values(append(slices.Collect(maps.Keys(b.Caches.Places)), more...)))
}

// exportCaches writes the caches for others.
func (br *Bridge) exportCaches(ctx context.Context, exports []cacheExport, res *frontend.Result, in exporter.Input) (map[string]string, error) {
	roots, err := br.rootsFor(ctx, exports, res)
	if err != nil {
		return nil, err
	}
	manifests := make([]string, len(exports))
	eg, ctx := errgroup.WithContext(session.WithGroup(ctx, br))
	for i, e := range exports {
		if e.place == nil {
			continue
		}
		write := func(ctx context.Context) (err error) {
			manifests[i], err = br.exportCache(ctx, e, roots, in)
			return err
		}
		if e.later && br.builder.Caches.Later != nil {
			write = func(ctx context.Context) error { return br.exportLater(ctx, e, roots, in) }
		}
		eg.Go(func() error {
			err := progress.RunAs(ctx, br.req.Sink, e.upload.vertex, e.place.Name(), write)
			if e.opt.IgnoreError && ctx.Err() == nil {
				return nil
			}
			return err
		})
	}
	if err := eg.Wait(); err != nil {
		return nil, err
	}
	return answerOf(exports, manifests), nil
}

// answerOf is what the client is told of the caches: one manifest, which it names in the
// index of its folders. So it is that of the last folder, whatever else was written.
func answerOf(exports []cacheExport, manifests []string) map[string]string {
	out := map[string]string{}
	folder := false
	for i, e := range exports {
		if manifests[i] != "" && (e.Type == "local" || !folder) {
			out["cache.manifest"], folder = manifests[i], e.Type == "local"
		}
	}
	return out
}

// exportLater has a cache written while nobody waits.
func (br *Bridge) exportLater(ctx context.Context, e cacheExport, roots []cache.Root, in exporter.Input) error {
	// The client shows who it is while it is there.
	if err := e.upload.ready(); err != nil {
		return err
	}
	progress.StepFrom(ctx).Task(`goes on in the background: see "kiln cache status"`, 0).Done()
	u, release := e.upload, br.builder.Worker.Layers.Use()
	br.uploads.leave(u)
	err := br.builder.Caches.Later.Start(br.req.Ref, e.Type+" "+importName(e.CacheOption), u.stats, func(life context.Context) error {
		defer release()
		defer u.close()
		stop := context.AfterFunc(life, u.cancel)
		defer stop()
		_, err := br.exportCache(u.ctx, e, roots, in)
		return err
	})
	if err != nil {
		release()
		u.close()
	}
	return err
}

// rootsFor are the steps that the result came of, if somebody wants to know.
func (br *Bridge) rootsFor(ctx context.Context, exports []cacheExport, res *frontend.Result) ([]cache.Root, error) {
	if !slices.ContainsFunc(exports, func(e cacheExport) bool { return e.place != nil }) {
		return nil, nil
	}
	return br.roots(ctx, res.Platforms)
}

// exportCache writes one cache and returns its manifest's descriptor as JSON,
// if it has one.
func (br *Bridge) exportCache(ctx context.Context, e cacheExport, roots []cache.Root, in exporter.Input) (string, error) {
	var w cache.Writer
	var err error
	if e.index {
		if w, err = e.place.Writer(ctx, e.Attrs); err != nil {
			return "", fmt.Errorf("failed to configure %v cache exporter: %w", e.Type, err)
		}
	}
	if e.upload.opened != nil {
		e.upload.begin()
	}
	entries, err := br.cacheEntries(ctx, e, roots, in)
	if err != nil {
		return "", err
	}
	if err := e.upload.wait(); err != nil {
		return "", fmt.Errorf("export cache to %s: %w", e.Type, err)
	}
	if err := br.exportMounts(ctx, e); err != nil {
		return "", fmt.Errorf("export cache to %s: %w", e.Type, err)
	}
	root, err := e.upload.finish(ctx, !e.index)
	if err != nil {
		return "", fmt.Errorf("export cache to %s: %w", e.Type, err)
	}
	if !e.index {
		return root, nil
	}
	doc, err := br.builder.Caches.Format.Encode(entries, roots, e.opt)
	if err != nil {
		return "", err
	}
	if len(doc.Layers) == 0 {
		progress.StepFrom(ctx).Task("skipping cache export for empty result", 0).Done()
		return "", nil
	}
	if <-e.upload.kept == doc.Manifest.Digest { // its layers are there
		return describe(doc)
	}
	if err := w.Write(ctx, doc, openLayers{br.builder.Worker.Layers}.Open); err != nil {
		return "", fmt.Errorf("export cache to %s: %w", e.Type, err)
	}
	return describe(doc)
}

func describe(doc *cache.Document) (string, error) {
	b, err := json.Marshal(doc.Manifest)
	if err != nil {
		return "", fmt.Errorf("encode descriptor: %w", err)
	}
	return string(b), nil
}

// openLayers is a cache.LayerStore.
type openLayers struct{ *layer.Store }

// Open opens a layer's bytes, pulling them if they are not here.
func (s openLayers) Open(ctx context.Context, l layer.Blob) (io.ReadCloser, error) {
	ra, err := s.ReaderAt(ctx, l)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(ra, 0, ra.Size()), ra}, nil
}

// cacheEntries gathers what a cache is to have.
func (br *Bridge) cacheEntries(ctx context.Context, e cacheExport, roots []cache.Root, in exporter.Input) ([]cache.Entry, error) {
	task := progress.StepFrom(ctx).Task("preparing build cache for export", 0)
	defer task.Done()
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
	return br.gather(ctx, roots, e.opt.Variant, final, e.upload.step)
}
