package build

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/layer"
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
		u.ctx, u.cancel = context.WithCancel(u.context(ctx))
		if shelves, ok := e.place.(cache.Shelves); ok {
			u.opened = make(chan struct{})
			u.begin = sync.OnceFunc(func() { go u.open(shelves) })
			if e.Type != "local" {
				u.begin()
			}
		}
		u.kept = u.keptIndex()
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

	// begin opens the shelf. A client's folder may lie in a context of the build,
	// which must not find a half-written cache: so it is begun when all is built.
	begin  func()
	opened chan struct{} // nil without a shelf
	up     *cache.Uploader
	err    error

	kept <-chan digest.Digest // of the index that the place had, "" for none

	pending sync.WaitGroup
	shown   sync.Once
	began   time.Time
	ended   bool
	alone   atomic.Bool // the build has ended, and left it behind
}

// context is what the upload works in: that of the build, or one that goes on.
func (u *upload) context(ctx context.Context) context.Context {
	br := u.br
	if u.export.later {
		ctx = context.WithoutCancel(ctx)
		if remember := br.builder.Caches.Remember; remember != nil {
			ctx = remember(ctx)
		}
	}
	return progress.WithStep(session.WithGroup(ctx, br), progress.NewStep(progress.SinkFunc(u.emit), u.vertex))
}

// emit tells the build's progress, as long as there is one.
func (u *upload) emit(e progress.Event) {
	if !u.alone.Load() {
		u.br.req.Sink.Emit(e)
	}
}

// leave has the upload go on without its build, which is about to end.
func (us *uploads) leave(u *upload) {
	us.mu.Lock()
	defer us.mu.Unlock()
	us.list = slices.DeleteFunc(us.list, func(o *upload) bool { return o == u })
	u.alone.Store(true)
}

func (u *upload) open(shelves cache.Shelves) {
	defer close(u.opened)
	shelf, err := shelves.Shelf(u.ctx, u.export.Attrs, true)
	if err != nil {
		u.err = err
		return
	}
	b, memory := u.br.builder, u.br.builder.Caches.Memory
	if u.export.Type == "local" {
		memory = nil // a folder is soon asked, and its owner does with it what he likes
	}
	u.up = cache.NewUploader(u.ctx, cache.UploaderConfig{
		Shelf: shelf, Scope: cache.Scope(u.export.Attrs), Trust: b.Caches.Trust, Identity: b.Caches.Identity,
		Layers: openLayers{b.Worker.Layers}, Variant: u.export.opt.Variant, NoRecords: !u.export.records, Memory: memory, Whole: u.export.opt.Max,
		Warn: u.warn,
	})
}

// keptIndex asks which index the place has, while the build goes on. If it is the
// one that the build would write in the end, it is not written again.
func (u *upload) keptIndex() <-chan digest.Digest {
	kept := make(chan digest.Digest, 1)
	if !u.export.index || u.opened == nil {
		kept <- ""
		return kept
	}
	ctx := progress.WithStep(u.ctx, nil) // it has not begun yet for who looks on
	go func() {
		var root digest.Digest
		if r, err := u.export.place.Reader(ctx, u.export.Attrs); err == nil {
			root = r.Root().Digest
		}
		kept <- root
	}()
	return kept
}

// warn tells what is left out.
func (u *upload) warn(err error) {
	u.emit(progress.Event{Warning: &progress.Warning{Vertex: u.vertex, Level: 1, Short: []byte("cache for others: " + err.Error())}})
}

// step has one step written; it does not wait.
func (u *upload) step(recipes cache.Recipes, k solver.Key, out []solver.Result) {
	if u.opened == nil {
		return
	}
	u.shown.Do(u.show)
	u.pending.Go(func() {
		if u.export.Type == "local" {
			u.compress(recipes, k, out)
		}
		if <-u.opened; u.up != nil {
			u.up.Step(k, recipes, out)
		}
	})
}

// compress makes the layers of a step's results, so that they are there when the
// place is opened.
func (u *upload) compress(recipes cache.Recipes, k solver.Key, out []solver.Result) {
	if _, ok := cache.Shared(recipes, k); !ok {
		return
	}
	for _, res := range out {
		if ref, ok := res.(*layer.Ref); ok && cache.Portable(ref) && u.ctx.Err() == nil {
			// Whoever writes the step asks again, and tells of an error.
			_, _ = u.br.builder.Worker.Layers.Blobs(u.ctx, ref, u.export.opt.Variant)
		}
	}
}

// show tells that the export has begun, before its time.
func (u *upload) show() {
	u.began = time.Now()
	u.emit(progress.Event{Vertex: &progress.Vertex{Digest: u.vertex, Name: u.export.place.Name(), Started: &u.began}})
}

// wait returns when all steps are written.
func (u *upload) wait() error {
	u.ended = true
	if u.opened == nil {
		return nil
	}
	u.begin()
	u.pending.Wait()
	<-u.opened
	if u.up == nil {
		return u.err
	}
	return u.up.Wait()
}

// finish has the place tidied up. It returns the descriptor, as JSON, of what the
// place's owner finds all by, if that is wanted and there is such a thing.
func (u *upload) finish(ctx context.Context, root bool) (string, error) {
	if u.up == nil || u.up.Stats().Steps == 0 && !root {
		return "", nil
	}
	f, ok := u.up.Shelf().(cache.Finisher)
	if !ok {
		return "", nil
	}
	desc, err := f.Finish(ctx, root)
	if err != nil || desc == nil {
		return "", err
	}
	b, err := json.Marshal(desc)
	return string(b), err
}

// ready returns when the place has answered.
func (u *upload) ready() error {
	if u.opened == nil {
		return nil
	}
	u.begin()
	<-u.opened
	if u.up == nil {
		return u.err
	}
	return u.up.Ready()
}

// stats tells how far the upload is.
func (u *upload) stats() cache.UploadStats {
	if u.opened != nil {
		u.begin()
		if <-u.opened; u.up != nil {
			return u.up.Stats()
		}
	}
	return cache.UploadStats{}
}

// close abandons an upload whose build has failed.
func (u *upload) close() {
	u.cancel()
	if u.opened == nil {
		return
	}
	u.begin() // in vain, but whoever waits for it goes on
	u.pending.Wait()
	if <-u.opened; u.up != nil {
		u.up.Close()
	}
	if !u.began.IsZero() && !u.ended {
		now := time.Now()
		u.emit(progress.Event{Vertex: &progress.Vertex{
			Digest: u.vertex, Name: u.export.place.Name(), Started: &u.began, Completed: &now, Error: errNotExported.Error(),
		}})
	}
}

var errNotExported = errors.New("the build ended before")
