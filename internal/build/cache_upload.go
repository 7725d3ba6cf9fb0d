package build

import (
	"context"
	"errors"
	"sync"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/internal/solver"
)

// uploads are what caches for others a build writes while it goes on.
type uploads struct {
	mu   sync.Mutex
	list []*upload
}

// start begins to write the caches of a build.
func (us *uploads) start(ctx context.Context, br *Bridge, exports []cacheExport) {
	for i := range exports {
		e := &exports[i]
		if e.place == nil {
			continue
		}
		u := &upload{br: br, export: *e, vertex: progress.NewVertex(e.place.Name() + e.Type)}
		e.upload = u
		if shelves, ok := e.place.(cache.Shelves); ok {
			u.opened = make(chan struct{})
			u.ctx, u.cancel = context.WithCancel(session.WithGroup(ctx, br))
			go u.open(shelves)
		}
		us.mu.Lock()
		us.list = append(us.list, u)
		us.mu.Unlock()
	}
}

// ended has caches with every step take one, as soon as it has a result.
func (us *uploads) ended(j *solver.Job, k solver.Key, out []solver.Result) {
	us.mu.Lock()
	defer us.mu.Unlock()
	for _, u := range us.list {
		if u.export.opt.Max {
			u.step(j, k, out)
		}
	}
}

// close ends what is still under way.
func (us *uploads) close() {
	us.mu.Lock()
	list := us.list
	us.list = nil
	us.mu.Unlock()
	for _, u := range list {
		u.close()
	}
}

// upload is one cache that is written while the build goes on. Without a shelf
// it does nothing: there is only an index to write at the end.
type upload struct {
	br     *Bridge
	export cacheExport
	vertex digest.Digest // of the progress
	ctx    context.Context
	cancel context.CancelFunc

	opened chan struct{} // nil without a shelf
	up     *cache.Uploader
	err    error

	pending sync.WaitGroup
	shown   sync.Once
	began   time.Time
	ended   bool
}

func (u *upload) open(shelves cache.Shelves) {
	defer close(u.opened)
	ctx := progress.WithStep(u.ctx, progress.NewStep(u.br.req.Sink, u.vertex))
	shelf, err := shelves.Shelf(ctx, u.export.Attrs, true)
	if err != nil {
		u.err = err
		return
	}
	b := u.br.builder
	u.up = cache.NewUploader(ctx, cache.UploaderConfig{
		Shelf: shelf, Scope: cache.Scope(u.export.Attrs), Trust: b.Caches.Trust, Identity: b.Caches.Identity,
		Layers: openLayers{b.Worker.Layers}, Variant: u.export.opt.Variant, NoRecords: !u.export.records,
		Warn: func(err error) {
			u.br.req.Sink.Emit(progress.Event{Warning: &progress.Warning{Vertex: u.vertex, Level: 1, Short: []byte("cache for others: " + err.Error())}})
		},
	})
}

// step has one step written; it does not wait.
func (u *upload) step(recipes cache.Recipes, k solver.Key, out []solver.Result) {
	if u.opened == nil {
		return
	}
	u.shown.Do(u.show)
	u.pending.Go(func() {
		if <-u.opened; u.up != nil {
			u.up.Step(k, recipes, out)
		}
	})
}

// show tells that the export has begun, before its time.
func (u *upload) show() {
	u.began = time.Now()
	u.br.req.Sink.Emit(progress.Event{Vertex: &progress.Vertex{Digest: u.vertex, Name: u.export.place.Name(), Started: &u.began}})
}

// wait returns when all steps are written.
func (u *upload) wait() error {
	u.ended = true
	if u.opened == nil {
		return nil
	}
	u.pending.Wait()
	<-u.opened
	if u.up == nil {
		return u.err
	}
	return u.up.Wait()
}

// close abandons an upload whose build has failed.
func (u *upload) close() {
	if u.opened == nil {
		return
	}
	u.cancel()
	u.pending.Wait()
	if <-u.opened; u.up != nil {
		u.up.Close()
	}
	if !u.began.IsZero() && !u.ended {
		now := time.Now()
		u.br.req.Sink.Emit(progress.Event{Vertex: &progress.Vertex{
			Digest: u.vertex, Name: u.export.place.Name(), Started: &u.began, Completed: &now, Error: errNotExported.Error(),
		}})
	}
}

var errNotExported = errors.New("the build ended before")
