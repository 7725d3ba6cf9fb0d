package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/cachemount"
	"github.com/kiln-build/kiln/internal/op"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/internal/solver"
	"github.com/kiln-build/kiln/llb"
)

// mountChoice is which cache mounts travel with a cache: names, or patterns as
// path.Match has them.
type mountChoice []string

// Attributes of caches that are about cache mounts.
const (
	attrMounts        = "mounts"         // names, separated by commas or semicolons
	attrMountsReplace = "mounts-replace" // import them at once, in place of those that there are
)

var errMountsByKey = errors.New("mounts=…: cache mounts are kept by key, which format=v0 and this type of cache are not")

func mountsOf(attrs map[string]string) mountChoice {
	return strings.FieldsFunc(attrs[attrMounts], func(r rune) bool { return r == ',' || r == ';' })
}

// has tells whether the mount of an id is chosen.
func (c mountChoice) has(id string) bool {
	return slices.ContainsFunc(c, func(p string) bool {
		if p == id || p == cachemount.Name(id) || p == "*" { // names that are paths have slashes
			return true
		}
		ok, err := path.Match(p, cachemount.Name(id))
		return err == nil && ok
	})
}

// ids are those that the choice has by name.
func (c mountChoice) ids(all *cachemount.Mounts) (out []string) {
	for _, p := range c {
		if !strings.ContainsAny(p, `*?[\`) {
			out = append(out, all.Named(p))
		}
	}
	return out
}

// prepareMounts sees to the cache mounts of a graph before its steps run: those
// of steps that ignore the cache are emptied, others that are not here come
// from caches of others.
func (br *Bridge) prepareMounts(g *llb.Graph) error {
	used, renewed := op.CacheMountIDs(g)
	for _, id := range renewed {
		if err := br.builder.Worker.CacheMounts.Renew(id); err != nil {
			return err
		}
	}
	br.mu.Lock()
	var fresh []string
	for _, id := range used {
		if !slices.Contains(br.mountIDs, id) {
			br.mountIDs = append(br.mountIDs, id)
			fresh = append(fresh, id)
		}
	}
	br.mu.Unlock()
	for _, id := range fresh {
		if !slices.Contains(renewed, id) {
			br.imports.expectMount(id)
		}
	}
	return nil
}

// expectMount imports a cache mount from the first cache that was asked for it
// and has it, if there is none of its id here. Steps wait for it.
func (im *imports) expectMount(id string) {
	var from []*imported
	for _, one := range im.all() {
		if mountsOf(one.option.Attrs).has(id) {
			from = append(from, one)
		}
	}
	if len(from) == 0 {
		return
	}
	done, needed := im.br.builder.Worker.CacheMounts.Expect(id)
	if !needed {
		return
	}
	im.mounts.Go(func() {
		defer done()
		for _, one := range from {
			err := one.importMount(id)
			if err == nil {
				return
			}
			if !errors.Is(err, solver.ErrNotFound) && im.ctx.Err() == nil {
				one.warn(err)
			}
		}
	})
}

// replaceMounts imports what a cache was asked to import in any case.
func (one *imported) replaceMounts() {
	if one.option.Attrs[attrMountsReplace] != "true" {
		return
	}
	im := one.im
	for _, id := range mountsOf(one.option.Attrs).ids(im.br.builder.Worker.CacheMounts) {
		im.mounts.Go(func() {
			err := one.importMount(id)
			if errors.Is(err, solver.ErrNotFound) {
				err = fmt.Errorf("import cache mount %q: %s has none of this name: %w", cachemount.Name(id), importName(one.option), err)
			}
			im.mu.Lock()
			defer im.mu.Unlock()
			im.failure = errors.Join(im.failure, err)
		})
	}
}

// replaced returns when the mounts are here that were asked for in any case.
func (im *imports) replaced() error {
	if !slices.ContainsFunc(im.all(), func(one *imported) bool { return one.option.Attrs[attrMountsReplace] == "true" }) {
		return nil
	}
	im.mounts.Wait()
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.failure
}

// importMount makes the files that a cache has of a mount those of the mount.
func (one *imported) importMount(id string) error {
	br := one.im.br
	ctx := session.WithGroup(one.im.ctx, br)
	if !one.within(ctx, one.opened) || one.finder == nil {
		return solver.ErrNotFound
	}
	data, err := one.finder.Mount(ctx, id)
	if err != nil {
		return err
	}
	name := fmt.Sprintf("importing cache mount %s from %s", cachemount.Name(id), importName(one.option))
	return progress.RunAs(ctx, br.req.Sink, progress.NewVertex(name), name, func(ctx context.Context) error {
		s, err := cachemount.DecodeSnapshot(data)
		if err != nil {
			return err
		}
		if s.ID != id {
			return fmt.Errorf("the record of cache mount %q has the files of %q", id, s.ID)
		}
		origin := one.finder.Shelf().Origin()
		got, err := br.builder.Worker.CacheMounts.Import(ctx, s, func(ctx context.Context, d ocispecs.Descriptor) (io.ReadCloser, error) {
			return br.builder.Caches.Fetcher.Fetch(ctx, origin, d)
		})
		if err == nil {
			progress.StepFrom(ctx).Task(fmt.Sprintf("fetched %d of %d chunks", got.Chunks, len(s.Chunks)), got.Bytes).Done()
		}
		return err
	})
}

// mountWait is how long an export waits for steps of other builds that use a
// mount.
const mountWait = 30 * time.Second

// exportMounts writes the cache mounts that were chosen: those that the build
// used, and those that are chosen by their ids.
func (br *Bridge) exportMounts(ctx context.Context, e cacheExport) error {
	if len(e.mounts) == 0 {
		return nil
	}
	br.mu.Lock()
	ids := slices.Clone(br.mountIDs)
	br.mu.Unlock()
	ids = slices.DeleteFunc(ids, func(id string) bool { return !e.mounts.has(id) })
	for _, id := range e.mounts.ids(br.builder.Worker.CacheMounts) {
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	for _, id := range ids {
		if err := br.exportMount(ctx, e, id); err != nil {
			return err
		}
	}
	return nil
}

func (br *Bridge) exportMount(ctx context.Context, e cacheExport, id string) error {
	task := progress.StepFrom(ctx).Task("exporting cache mount "+cachemount.Name(id), 0)
	defer task.Done()
	up := e.upload.up
	s, sent, err := br.builder.Worker.CacheMounts.Export(ctx, id, mountWait, up.Shelf())
	switch {
	case errors.Is(err, cachemount.ErrNone):
		e.upload.warn(fmt.Errorf("export cache mount %q: there is none; no RUN --mount=type=cache with this id (or target) has run here", cachemount.Name(id)))
		return nil
	case errors.Is(err, cachemount.ErrInUse):
		e.upload.warn(fmt.Errorf("%w: it is left out this time", err))
		return nil
	case err != nil:
		return err
	}
	data, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("export cache mount %q: %w", cachemount.Name(id), err)
	}
	if err := up.Mount(id, data, s.Blobs()); err != nil {
		return fmt.Errorf("export cache mount %q: %w", cachemount.Name(id), err)
	}
	progress.StepFrom(ctx).Task(fmt.Sprintf("sent %d of %d chunks of cache mount %s", sent.Chunks, len(s.Chunks), cachemount.Name(id)), sent.Bytes).Done()
	return nil
}
