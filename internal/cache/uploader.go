package cache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/solver"
)

// LayerStore is what of [layer.Store] is needed to write caches.
type LayerStore interface {
	Get(ctx context.Context, id string) (*layer.Ref, error)
	Blobs(ctx context.Context, r *layer.Ref, v layer.Variant) ([]layer.Blob, error)
	Open(ctx context.Context, b layer.Blob) (io.ReadCloser, error)
}

// UploaderConfig says where and what an [Uploader] writes.
type UploaderConfig struct {
	Shelf    Shelf
	Scope    string
	Trust    Trust     // beside records that do not count by it are others written
	Identity *Identity // nil signs nothing
	Layers   LayerStore
	Variant  layer.Variant
	// Whole tells that results of all steps are written.
	Whole bool
	// NoRecords uploads layers alone, for a cache in another format.
	NoRecords bool
	// Memory spares questions about what is there; nil asks all.
	Memory *Memory
	// Warn is told which steps are left out, and why. Nil tells nobody.
	Warn func(error)
}

const (
	stepsAtOnce   = 32 // that are looked at; few of them compress or upload
	uploadsAtOnce = 8
)

// Uploader writes a cache by key while a build goes on. What is there already is
// left alone. Its methods may be called concurrently.
type Uploader struct {
	c       UploaderConfig
	ctx     context.Context
	cancel  context.CancelFunc
	trust   Trust // under which what was written before counts, too
	own     bool  // whether records are kept under names of the writer's own as well
	records batch[kept]
	blobs   batch[bool] // by digest: it is there
	slots   chan struct{}
	work    errgroup.Group
	steps   chan struct{}
	place   string               // what the memory knows it as
	about   func() (kept, error) // the record about the place
	met     func() error         // sees to it that there is one

	mu     sync.Mutex
	taken  map[string]bool // subjects
	sizes  map[string]ocispecs.Descriptor
	sent   map[digest.Digest]*sending
	there  map[string]bool // digests of blobs that were
	failed error
	stats  UploadStats
}

// UploadStats is how far an [Uploader] is.
type UploadStats struct {
	Steps, Blobs         int   // that were written
	Bytes                int64 // of those blobs
	BlobsLeft, StepsLeft int
}

type sending struct {
	blob layer.Blob
	done chan struct{}
	err  error
}

// NewUploader returns an Uploader whose work ends with ctx.
func NewUploader(ctx context.Context, c UploaderConfig) *Uploader {
	u := &Uploader{
		c: c, slots: make(chan struct{}, uploadsAtOnce), steps: make(chan struct{}, stepsAtOnce),
		taken: map[string]bool{}, sizes: map[string]ocispecs.Descriptor{}, sent: map[digest.Digest]*sending{}, there: map[string]bool{},
	}
	u.ctx, u.cancel = context.WithCancel(ctx)
	u.trust, u.own = c.Trust.with(c.Identity), len(c.Trust.Writers) > 0 && c.Identity != nil
	u.records = batch[kept]{ctx: u.ctx, call: u.askRecords, atOnce: 1}
	u.blobs = batch[bool]{ctx: u.ctx, call: u.ask, atOnce: 1}
	u.place, u.met = placeKey(c.Shelf, c.Scope), sync.OnceValue(u.meet)
	u.about = sync.OnceValues(func() (kept, error) { return u.look(aboutSubject) })
	if !c.NoRecords {
		u.work.Go(func() error { // who needs the answer has it sooner
			_, _ = u.about()
			return nil
		})
	}
	return u
}

// Ready returns when the place has answered a question, and so knows who asks.
func (u *Uploader) Ready() error {
	_, err := u.about()
	return err
}

// Shared returns the recipe of a step whose results others may have.
func Shared(recipes Recipes, k solver.Key) (solver.Recipe, bool) {
	recipe, ok := recipes.Recipe(k)
	return recipe, ok && !recipe.Local && !recipe.Private
}

// Portable tells whether a layer means something without what it was made on:
// the marks of a diff do not.
func Portable(ref *layer.Ref) bool {
	for r := ref; r != nil; r = r.Parent() {
		if r.Record().Loose {
			return false
		}
	}
	return true
}

// Step has the results of a step written, and the content digests that its
// recipe tells of. It does not wait. A step is written once.
func (u *Uploader) Step(k solver.Key, recipes Recipes, out []solver.Result) {
	recipe, ok := Shared(recipes, k)
	if !ok {
		return
	}
	for _, in := range recipe.Inputs {
		below, ok := recipes.Recipe(in.Key)
		if in.Content != "" && !u.c.NoRecords && ok && !below.Local {
			u.start(ContentSubject(in), func() error { return u.content(in, u.c.Whole && !below.Private) })
		}
	}
	if !u.c.NoRecords {
		u.start(aboutSubject, u.met)
	}
	if len(out) > 0 {
		u.start(ResultSubject(k), func() error { return u.result(k, out) })
	}
}

// Mount writes the snapshot of the cache mount of an id in place of an earlier
// one. The blobs that it needs are there.
func (u *Uploader) Mount(id string, snapshot json.RawMessage, needs []ocispecs.Descriptor) error {
	if err := u.met(); err != nil {
		return err
	}
	return u.put(Record{Subject: MountSubject(id), Mount: snapshot}, needs, kept{})
}

// Shelf is where the cache is.
func (u *Uploader) Shelf() Shelf { return u.c.Shelf }

// Wait waits until all that was to be written has been.
func (u *Uploader) Wait() error {
	_ = u.work.Wait() // failed has it
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.failed
}

// Close abandons what is under way.
func (u *Uploader) Close() {
	u.cancel()
	_ = u.work.Wait() // nobody wants to know any more
}

// Stats tells how far the work is.
func (u *Uploader) Stats() UploadStats {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.stats
}

func (u *Uploader) count(change func(*UploadStats)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	change(&u.stats)
}

// start has one subject written, unless it was before or something failed.
func (u *Uploader) start(subject string, write func() error) {
	u.mu.Lock()
	if u.taken[subject] || u.failed != nil || u.ctx.Err() != nil {
		u.mu.Unlock()
		return
	}
	u.taken[subject] = true
	u.stats.StepsLeft++
	u.mu.Unlock()
	u.work.Go(func() error {
		defer u.count(func(s *UploadStats) { s.StepsLeft-- })
		select {
		case u.steps <- struct{}{}:
			defer func() { <-u.steps }()
		case <-u.ctx.Done():
			u.fail(context.Cause(u.ctx))
			return nil
		}
		err := write()
		var lost *lostError
		if errors.As(err, &lost) && u.ctx.Err() == nil {
			u.mu.Lock()
			delete(u.taken, subject) // it may be made again
			u.mu.Unlock()
			if u.c.Warn != nil {
				u.c.Warn(fmt.Errorf("a step is left out: %w", err))
			}
			err = nil
		}
		u.fail(err)
		return nil
	})
}

// fail keeps the first error; nothing is begun after it.
func (u *Uploader) fail(err error) {
	if err == nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.failed == nil {
		u.failed = err
	}
}

// result writes what a step has made.
func (u *Uploader) result(k solver.Key, out []solver.Result) error {
	r := Record{Subject: ResultSubject(k)}
	if known, err := u.known(r.Subject); err != nil || known {
		return err
	}
	var blobs []layer.Blob
	for _, res := range out {
		o, layers, err := u.output(res)
		if err != nil {
			return err
		}
		if o == nil {
			return nil // cannot be handed over
		}
		r.Outputs, blobs = append(r.Outputs, *o), append(blobs, layers...)
	}
	if u.c.NoRecords {
		return u.sendAll(blobs)
	}
	kept, old, err := u.usable(r.Subject)
	if err != nil {
		return err
	}
	if old != nil && !lacks(old, r.Outputs) {
		lost, err := u.lost(old.Blobs())
		if err == nil && !lost && old.complete() {
			u.c.Memory.add(u.place, r.Subject)
		}
		if err != nil || !lost {
			return err
		}
	}
	if err := u.sendAll(blobs); err != nil {
		return err
	}
	return u.put(r, r.Blobs(), kept)
}

// lacks tells whether a record has not all outputs that were made since.
func lacks(old *Record, outputs []RecordOutput) bool {
	if len(old.Outputs) != len(outputs) {
		return true
	}
	for i, o := range outputs {
		if old.Outputs[i].Absent && !o.Absent {
			return true
		}
	}
	return false
}

// output is one result; nil if it cannot be handed over: marks of a diff mean
// nothing without what lies below.
func (u *Uploader) output(res solver.Result) (*RecordOutput, []layer.Blob, error) {
	switch res := res.(type) {
	case nil:
		return &RecordOutput{}, nil, nil
	case solver.Absent:
		return &RecordOutput{Absent: true}, nil, nil
	case []byte:
		if len(res) > largestValueKept {
			return nil, nil, nil
		}
		return &RecordOutput{Value: res}, nil, nil
	case *layer.Ref:
		if !Portable(res) {
			return nil, nil, nil
		}
		blobs, err := u.c.Layers.Blobs(u.ctx, res, u.c.Variant)
		if err != nil {
			return nil, nil, &lostError{fmt.Errorf("make layers for the cache: %w", err)}
		}
		o := &RecordOutput{}
		for _, b := range blobs {
			o.Layers = append(o.Layers, layerOf(b))
		}
		return o, blobs, nil
	}
	return nil, nil, nil
}

// lostError says that a layer of our own is not to be had any more.
type lostError struct{ error }

func (e *lostError) Unwrap() error { return e.error }

// ask is one call for what is there.
func (u *Uploader) ask(ctx context.Context, digests []string) (map[string]bool, error) {
	var descs []ocispecs.Descriptor
	there := map[string]bool{}
	u.mu.Lock()
	for _, d := range digests {
		descs = append(descs, u.sizes[d])
		there[d] = true
	}
	u.mu.Unlock()
	missing, err := u.c.Shelf.Missing(ctx, descs)
	for _, d := range missing {
		there[d.Digest.String()] = false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for d, ok := range there {
		if ok && err == nil {
			u.there[d] = true
		}
	}
	return there, err
}

// lost tells whether one of blobs is not there.
func (u *Uploader) lost(blobs []ocispecs.Descriptor) (bool, error) {
	there, err := u.askFor(blobs)
	if err != nil {
		return false, err
	}
	for _, b := range blobs {
		if !there[b.Digest.String()] {
			return true, nil
		}
	}
	return false, nil
}

func (u *Uploader) askFor(blobs []ocispecs.Descriptor) (map[string]bool, error) {
	var keys []string
	u.mu.Lock()
	for _, b := range blobs {
		if !u.there[b.Digest.String()] {
			keys = append(keys, b.Digest.String())
		}
		u.sizes[b.Digest.String()] = b
	}
	u.mu.Unlock()
	if _, err := u.blobs.ask(u.ctx, keys); err != nil {
		return nil, fmt.Errorf("ask for blobs: %w", err)
	}
	there := map[string]bool{}
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, b := range blobs {
		there[b.Digest.String()] = u.there[b.Digest.String()]
	}
	return there, nil
}

// sendAll sees to it that blobs are there.
func (u *Uploader) sendAll(blobs []layer.Blob) error {
	var own, wait []*sending // those that nobody else sends, and all
	u.mu.Lock()
	for _, b := range blobs {
		s := u.sent[b.Desc.Digest]
		if s == nil {
			s = &sending{blob: b, done: make(chan struct{})}
			u.sent[b.Desc.Digest] = s
			own = append(own, s)
		}
		wait = append(wait, s)
	}
	u.stats.BlobsLeft += len(own)
	u.mu.Unlock()
	u.send(own)
	for _, s := range wait {
		<-s.done
		if s.err != nil {
			return s.err
		}
	}
	return nil
}

// send uploads what is not there.
func (u *Uploader) send(own []*sending) {
	var descs []ocispecs.Descriptor
	for _, s := range own {
		descs = append(descs, s.blob.Desc)
	}
	there, err := u.askFor(descs)
	var wg sync.WaitGroup
	for _, s := range own {
		wg.Go(func() {
			if s.err = err; err == nil && !there[s.blob.Desc.Digest.String()] {
				s.err = u.upload(s.blob)
			}
			u.mu.Lock()
			if u.stats.BlobsLeft--; s.err != nil {
				delete(u.sent, s.blob.Desc.Digest) // who makes it again may send it
			}
			u.mu.Unlock()
			close(s.done)
		})
	}
	wg.Wait()
}

func (u *Uploader) upload(b layer.Blob) error {
	select {
	case u.slots <- struct{}{}:
		defer func() { <-u.slots }()
	case <-u.ctx.Done():
		return context.Cause(u.ctx)
	}
	var lost error
	err := u.c.Shelf.Upload(u.ctx, b.Desc, func(ctx context.Context) (io.ReadCloser, error) {
		rc, err := u.c.Layers.Open(ctx, b)
		if err != nil {
			lost = &lostError{fmt.Errorf("read layer: %w", err)}
			return nil, lost
		}
		return rc, nil
	})
	if lost != nil {
		return lost
	}
	if err != nil {
		return fmt.Errorf("upload %s: %w", b.Desc.Digest, err)
	}
	u.count(func(s *UploadStats) { s.Blobs, s.Bytes = s.Blobs+1, s.Bytes+b.Desc.Size })
	return nil
}
