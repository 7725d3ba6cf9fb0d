package cache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/solver"
)

// FinderConfig says where and what a [Finder] looks for.
type FinderConfig struct {
	Shelf Shelf
	Scope string
	Trust Trust
	// Memory is told of what is lost; nil is nobody.
	Memory *Memory
	// Warn is told, once for each kind of trouble, why the cache was passed over.
	Warn func(error)
	// Limit is how long one call may take; 0 is a limit that suits most.
	Limit time.Duration
}

const (
	usualLimit = 10 * time.Second
	// failuresToRest is how many calls fail, one after the other, before the
	// cache is not asked any more.
	failuresToRest = 3
	mostWarnings   = 10
	lookUpsAtOnce  = 4
)

// Finder looks into a cache by key for one build. What is missing, not whole, not
// trusted or not found in time is a miss. Its methods may be called concurrently.
type Finder struct {
	c       FinderConfig
	records batch[[]byte]

	mu       sync.Mutex
	known    map[string]*Record // by name; nil for what is not there
	coming   map[string]chan struct{}
	there    map[digest.Digest]bool
	failures int
	warned   map[string]bool
}

// NewFinder returns a Finder whose calls end with ctx.
func NewFinder(ctx context.Context, c FinderConfig) *Finder {
	if c.Limit == 0 {
		c.Limit = usualLimit
	}
	f := &Finder{c: c, known: map[string]*Record{}, coming: map[string]chan struct{}{}, there: map[digest.Digest]bool{}, warned: map[string]bool{}}
	f.records = batch[[]byte]{ctx: ctx, call: f.fetch, atOnce: lookUpsAtOnce}
	return f
}

// Result returns the record of a step's results, or [solver.ErrNotFound]. All
// of its blobs are there. ahead are keys that are likely to be asked for next.
func (f *Finder) Result(ctx context.Context, k solver.Key, ahead []solver.Key) (*Record, error) {
	if len(ahead) > 0 {
		go f.expect(ahead)
	}
	r, err := f.find(ctx, ResultSubject(k))
	if err != nil {
		return nil, err
	}
	lost, err := f.missing(ctx, r.Blobs())
	if err != nil {
		return nil, f.miss(err)
	}
	if lost != nil {
		return nil, f.miss(fmt.Errorf("a step is passed over: its blob %s is lost", lost.Digest))
	}
	return r, nil
}

// Content returns the digest of a part of a result, or [solver.ErrNotFound]. If the
// cache has the result, too, the digest is of that and not of another run's.
func (f *Finder) Content(ctx context.Context, of solver.Ingredient) (solver.Content, error) {
	r, err := f.find(ctx, ContentSubject(of))
	if err != nil {
		return solver.Content{}, err
	}
	if r.Of == "" {
		return solver.Content{Digest: r.Content}, nil
	}
	result, err := f.find(ctx, ResultSubject(of.Key))
	if ctx.Err() != nil {
		return solver.Content{}, ctx.Err()
	}
	if err == nil && result.chain(of.Index) != r.Of {
		return solver.Content{}, solver.ErrNotFound
	}
	return solver.Content{Digest: r.Content, Of: layer.ChainName + r.Of.String()}, nil
}

// Mount returns the snapshot of the cache mount of an id, or
// [solver.ErrNotFound].
func (f *Finder) Mount(ctx context.Context, id string) (json.RawMessage, error) {
	r, err := f.find(ctx, MountSubject(id))
	if err != nil {
		return nil, err
	}
	return r.Mount, nil
}

// About tells whether anybody has written records that count.
func (f *Finder) About(ctx context.Context) bool {
	_, err := f.find(ctx, aboutSubject)
	return err == nil
}

// Shelf is where the cache is.
func (f *Finder) Shelf() Shelf { return f.c.Shelf }

// Lost tells whether the place says that blobs are lost that an index of
// BuildKit's names.
func (f *Finder) Lost(ctx context.Context, blobs []ocispecs.Descriptor) bool {
	lost, err := f.missing(ctx, blobs)
	if err == nil && lost != nil {
		_ = f.miss(fmt.Errorf("a step is passed over: its blob %s is lost", lost.Digest))
	}
	return err == nil && lost != nil
}

// miss tells of trouble, once of each kind, and makes a miss of it.
func (f *Finder) miss(err error) error {
	f.mu.Lock()
	told := f.warned[err.Error()] || len(f.warned) >= mostWarnings
	if !told {
		f.warned[err.Error()] = true
	}
	f.mu.Unlock()
	if !told && f.c.Warn != nil && !errors.Is(err, context.Canceled) {
		f.c.Warn(err)
	}
	return errors.Join(solver.ErrNotFound, err)
}

// expect has records fetched that will be asked for.
func (f *Finder) expect(keys []solver.Key) {
	var subjects, names []string
	done := make(chan struct{})
	f.mu.Lock()
	for _, k := range keys {
		name := RecordName(ResultSubject(k), f.c.Scope)
		if _, ok := f.known[name]; !ok && f.coming[name] == nil && f.failures < failuresToRest {
			subjects, names = append(subjects, ResultSubject(k)), append(names, name)
			f.coming[name] = done
		}
	}
	f.mu.Unlock()
	found, err := f.records.ask(f.records.ctx, names)
	if err == nil { // else who asks for one of them is told
		for _, s := range subjects {
			_, _ = f.read(s, found)
		}
	}
	f.mu.Lock()
	for _, name := range names {
		delete(f.coming, name)
	}
	f.mu.Unlock()
	close(done)
}

// find returns a record that counts.
func (f *Finder) find(ctx context.Context, subject string) (*Record, error) {
	name := RecordName(subject, f.c.Scope)
	f.mu.Lock()
	coming := f.coming[name]
	f.mu.Unlock()
	if coming != nil {
		select {
		case <-coming:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	f.mu.Lock()
	r, ok := f.known[name]
	resting := f.failures >= failuresToRest
	f.mu.Unlock()
	if ok && r != nil {
		return r, nil
	}
	if ok || resting {
		return nil, solver.ErrNotFound
	}
	found, err := f.records.ask(ctx, []string{name})
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, f.miss(err)
	}
	return f.read(subject, found)
}

// read takes in what was fetched of a subject.
func (f *Finder) read(subject string, found map[string][]byte) (*Record, error) {
	name := RecordName(subject, f.c.Scope)
	var r *Record
	var err error
	if data, ok := found[name]; ok {
		r, err = Usable(data, subject, f.c.Scope, f.c.Trust)
	}
	f.mu.Lock()
	f.known[name] = r
	f.mu.Unlock()
	if err != nil {
		return nil, f.miss(fmt.Errorf("a record is passed over: %w", err))
	}
	if r == nil {
		return nil, solver.ErrNotFound
	}
	return r, nil
}

// Usable returns a record, and nothing else, if it is of what it was asked for and counts.
func Usable(data []byte, subject, scope string, t Trust) (*Record, error) {
	r, err := OpenRecord(data)
	if err != nil {
		return nil, err
	}
	if r.Subject != subject || r.Scope != scope {
		return nil, fmt.Errorf("record is of %.80q in scope %q, and was found under the name of %.80q in scope %q", r.Subject, r.Scope, subject, scope)
	}
	if err := t.accepts(r); err != nil {
		return nil, err
	}
	return r, nil
}

// fetch is one call.
func (f *Finder) fetch(ctx context.Context, names []string) (map[string][]byte, error) {
	found, err := try(ctx, f, func(ctx context.Context) (map[string]kept, error) {
		return lookUp(ctx, f.c.Shelf, names, f.c.Scope, f.c.Trust)
	})
	best := make(map[string][]byte, len(found))
	for name, k := range found {
		best[name] = k.best
	}
	return best, err
}

// try makes a call that may neither take long nor fail often.
func try[V any](ctx context.Context, f *Finder, call func(context.Context) (V, error)) (V, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, f.c.Limit, fmt.Errorf("no answer within %s", f.c.Limit))
	defer cancel()
	type answer struct {
		val V
		err error
	}
	done := make(chan answer, 1)
	go func() {
		val, err := call(ctx)
		done <- answer{val, err}
	}()
	var a answer
	select {
	case a = <-done:
	case <-ctx.Done(): // the call may not heed it
		a.err = ctx.Err()
	}
	if a.err != nil && ctx.Err() != nil {
		a.err = context.Cause(ctx)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if a.err != nil {
		f.failures++
		return a.val, fmt.Errorf("look into the cache: %w", a.err)
	}
	if f.failures < failuresToRest {
		f.failures = 0
	}
	return a.val, nil
}

// missing returns a blob that is not there, if any. Each is asked for once.
func (f *Finder) missing(ctx context.Context, blobs []ocispecs.Descriptor) (*ocispecs.Descriptor, error) {
	var ask []ocispecs.Descriptor
	f.mu.Lock()
	for _, b := range blobs {
		if !f.there[b.Digest] {
			ask = append(ask, b)
		}
	}
	f.mu.Unlock()
	if len(ask) == 0 {
		return nil, nil
	}
	lost, err := try(ctx, f, func(ctx context.Context) ([]ocispecs.Descriptor, error) { return f.c.Shelf.Missing(ctx, ask) })
	if err != nil {
		return nil, err
	}
	if len(lost) > 0 {
		f.c.Memory.forget(placeKey(f.c.Shelf, f.c.Scope))
		return &lost[0], nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, b := range ask {
		f.there[b.Digest] = true
	}
	return nil, nil
}
