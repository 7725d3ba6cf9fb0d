package cache_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/cache/cachetest"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/solver"
)

// opener is a cache.LayerStore of a stack.
type opener struct{ *layer.Store }

func (o opener) Open(ctx context.Context, b layer.Blob) (io.ReadCloser, error) {
	ra, err := o.ReaderAt(ctx, b)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(ra, 0, ra.Size()), ra}, nil
}

// recipes are those of a chain of steps: each is made of the one below.
type recipes map[solver.Key]solver.Recipe

func (r recipes) Recipe(k solver.Key) (solver.Recipe, bool) { found, ok := r[k]; return found, ok }

// machine is a daemon's part in the exchange of caches.
type machine struct {
	*stack
	id *cache.Identity
}

func newMachine(t *testing.T, fill byte) *machine {
	t.Helper()
	s, err := openStack(t.TempDir(), "native")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	return &machine{s, identity(t, fill)}
}

// chain makes n layers on top of each other, each the result of a step "S<i>".
func (m *machine) chain(t *testing.T, n int, text string) (recipes, []*layer.Ref) {
	t.Helper()
	known := recipes{}
	var refs []*layer.Ref
	var top *layer.Ref
	for i := range n {
		r := solver.Recipe{Digest: fmt.Sprint("op", i)}
		if i > 0 {
			r.Inputs = []solver.Ingredient{{Key: step(i - 1), Selector: "/src", Content: digest.FromString(fmt.Sprint(text, i)).String()}}
		}
		known[step(i)] = r
		ref, err := m.step(top, fmt.Sprint("file", i), fmt.Sprint(text, i))
		if err != nil {
			t.Fatal(err)
		}
		refs, top = append(refs, ref), ref
	}
	return known, refs
}

func step(i int) solver.Key { return solver.Key(fmt.Sprint("S", i)) }

func (m *machine) uploader(t *testing.T, s cache.Shelf, trust cache.Trust, warn func(error)) *cache.Uploader {
	return cache.NewUploader(t.Context(), cache.UploaderConfig{Shelf: s, Trust: trust, Identity: m.id, Layers: opener{m.layers}, Warn: warn})
}

// export writes all steps of a chain.
func (m *machine) export(t *testing.T, s cache.Shelf, known recipes, refs []*layer.Ref) cache.UploadStats {
	t.Helper()
	return m.exportBy(t, s, cache.Trust{}, known, refs)
}

func (m *machine) exportBy(t *testing.T, s cache.Shelf, trust cache.Trust, known recipes, refs []*layer.Ref) cache.UploadStats {
	t.Helper()
	u := m.uploader(t, s, trust, func(err error) { t.Error(err) })
	defer u.Close()
	for i, r := range refs {
		u.Step(step(i), known, []solver.Result{r})
	}
	if err := u.Wait(); err != nil {
		t.Fatal(err)
	}
	return u.Stats()
}

type warnings struct {
	mu   sync.Mutex
	list []string
}

func (w *warnings) add(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list = append(w.list, err.Error())
}

func (w *warnings) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.list, "; ")
}

func finder(t *testing.T, s cache.Shelf, w *warnings, trust cache.Trust) *cache.Finder {
	return cache.NewFinder(t.Context(), cache.FinderConfig{Shelf: s, Trust: trust, Warn: w.add, Limit: time.Second})
}

func found(t *testing.T, f *cache.Finder, k solver.Key) bool {
	t.Helper()
	r, err := f.Result(t.Context(), k, nil)
	if err != nil && !errors.Is(err, solver.ErrNotFound) {
		t.Errorf("%s: %v, expected a miss", k, err)
	}
	return err == nil && len(r.Outputs) == 1 && len(r.Outputs[0].Layers) > 0
}

func TestRoundTrip(t *testing.T) {
	shelf := cachetest.NewShelf()
	one := newMachine(t, 1)
	known, refs := one.chain(t, 5, "text")
	stats := one.export(t, shelf, known, refs)
	if stats.Blobs != 5 || stats.Steps != 5+4+1 || stats.StepsLeft+stats.BlobsLeft != 0 {
		t.Errorf("wrote %+v, expected 5 blobs; 5 steps, 4 digests and one record about them", stats)
	}
	var w warnings
	f := finder(t, shelf, &w, cache.Trust{})
	r, err := f.Result(t.Context(), step(4), []solver.Key{step(3), step(2)})
	if err != nil || len(r.Outputs[0].Layers) != 5 || !f.About(t.Context()) {
		t.Fatalf("found %+v, %v", r, err)
	}
	if _, pulled := shelf.Calls("Fetch"); pulled > 0 {
		t.Error("something was pulled to find a hit")
	}
	d, err := f.Content(t.Context(), solver.Ingredient{Key: step(0), Selector: "/src"})
	if err != nil || d.Digest != digest.FromString("text1").String() {
		t.Errorf("content digest %q, %v", d, err)
	}
	if found(t, f, "unknown") || w.String() != "" {
		t.Errorf("warnings: %s", &w)
	}
	// Pulled, it is what was made.
	for _, l := range r.Outputs[0].Layers {
		rc, err := shelf.Fetch(t.Context(), "", l.Descriptor())
		if err != nil {
			t.Fatal(err)
		}
		data, _ := io.ReadAll(rc)
		if digest.FromBytes(data) != l.Digest {
			t.Errorf("blob %s has another digest", l.Digest)
		}
	}
	// To write it again writes nothing, and asks in few calls.
	calls, _ := shelf.Calls("Missing")
	if stats := one.export(t, shelf, known, refs); stats.Blobs+stats.Steps != 0 {
		t.Errorf("written again: %+v", stats)
	}
	if again, _ := shelf.Calls("Missing"); again-calls > 10 {
		t.Errorf("%d calls to learn that 5 steps are there", again-calls)
	}
}

// Two machines write at once; neither's records are lost, and both find all.
func TestWritersMerge(t *testing.T) {
	shelf := cachetest.NewShelf()
	var g sync.WaitGroup
	for i := range 2 {
		m := newMachine(t, byte(i))
		known, refs := m.chain(t, 6, "text")
		g.Go(func() {
			if i == 0 {
				m.export(t, shelf, known, refs[:4])
			} else {
				m.export(t, shelf, known, refs[2:])
			}
		})
	}
	g.Wait()
	var w warnings
	f := finder(t, shelf, &w, cache.Trust{})
	// The second machine's steps have other numbers: it exported refs[2:] as S0...
	for i := range 4 {
		if !found(t, f, step(i)) {
			t.Errorf("step %d is not found: %s", i, &w)
		}
	}
}

// What a policy does not trust is a miss however it is asked for, and does not
// hide what is written later by who is trusted, nor is it overwritten by that.
func TestUntrustedRecords(t *testing.T) {
	shelf := cachetest.NewShelf()
	us, stranger := newMachine(t, 1), newMachine(t, 2)
	known, refs := stranger.chain(t, 3, "evil")
	stranger.export(t, shelf, known, refs)
	trust := cache.Trust{Writers: []cache.TrustedWriter{{Name: "us", Key: us.id.Public()}}}
	var w warnings
	f := finder(t, shelf, &w, trust)
	for range 2 {
		if _, err := f.Result(t.Context(), step(2), []solver.Key{step(1), step(0)}); err == nil {
			t.Fatal("a stranger's record counts")
		}
		for i := range 3 {
			if found(t, f, step(i)) {
				t.Fatalf("a stranger's record of step %d counts, when it was fetched ahead", i)
			}
		}
	}
	if _, err := f.Content(t.Context(), solver.Ingredient{Key: step(0), Selector: "/src"}); err == nil {
		t.Error("a stranger's content digest counts")
	}
	if !strings.Contains(w.String(), "does not let write scope") {
		t.Errorf("warnings: %s", &w)
	}
	known, refs = us.chain(t, 3, "good")
	us.exportBy(t, shelf, trust, known, refs)
	if r, err := finder(t, shelf, &w, trust).Result(t.Context(), step(2), nil); err != nil || r.Writer != us.id.Public() {
		t.Errorf("after we wrote it: %+v, %v", r, err)
	}
	theirs := cache.Trust{Writers: []cache.TrustedWriter{{Key: stranger.id.Public()}}}
	if r, err := finder(t, shelf, &w, theirs).Result(t.Context(), step(2), nil); err != nil || r.Writer != stranger.id.Public() {
		t.Errorf("after we wrote it, who trusts the stranger finds %+v, %v", r, err)
	}
	if stats := us.exportBy(t, shelf, trust, known, refs); stats.Steps != 0 {
		t.Errorf("written again: %+v", stats)
	}
}

// A lost blob makes its records misses until somebody writes them again.
func TestLostBlobs(t *testing.T) {
	shelf := cachetest.NewShelf()
	m := newMachine(t, 1)
	known, refs := m.chain(t, 3, "text")
	m.export(t, shelf, known, refs)
	r, err := finder(t, shelf, &warnings{}, cache.Trust{}).Result(t.Context(), step(2), nil)
	if err != nil {
		t.Fatal(err)
	}
	shelf.Lose(r.Outputs[0].Layers[1].Digest)
	var w warnings
	f := finder(t, shelf, &w, cache.Trust{})
	if found(t, f, step(2)) || found(t, f, step(1)) || !found(t, f, step(0)) {
		t.Error("the two steps that need the lost blob are to be misses, the first not")
	}
	if !strings.Contains(w.String(), "is lost") {
		t.Errorf("warnings: %s", &w)
	}
	if stats := m.export(t, shelf, known, refs); stats.Blobs != 1 || stats.Steps > 2 {
		// A record whose blob has come back meanwhile is as good as new.
		t.Errorf("wrote %+v, expected the lost blob and at most two records", stats)
	}
	if !found(t, finder(t, shelf, &w, cache.Trust{}), step(2)) {
		t.Error("still a miss")
	}
}

// A place that fails or is slow is a miss and a warning, and is let alone soon.
func TestBadPlaces(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	for name, fault := range map[string]func(string) error{
		"fails": func(string) error { return errors.New("no route to host") },
		"hangs": func(string) error { <-hang; return nil },
	} {
		t.Run(name, func(t *testing.T) {
			shelf := cachetest.NewShelf()
			shelf.Fault = fault
			var w warnings
			f := cache.NewFinder(t.Context(), cache.FinderConfig{Shelf: shelf, Warn: w.add, Limit: 20 * time.Millisecond})
			began := time.Now()
			for i := range 50 {
				if found(t, f, step(i)) {
					t.Fatal("found something")
				}
			}
			if calls, _ := shelf.Calls("Records"); calls > 3 || time.Since(began) > 5*time.Second {
				t.Errorf("%d calls in %s, expected it to be let alone after 3", calls, time.Since(began))
			}
			if !strings.Contains(w.String(), "look into the cache") {
				t.Errorf("warnings: %s", &w)
			}
		})
	}
}

// An upload that fails is told, and nothing is begun after it; a layer that we
// have lost ourselves costs its step alone.
func TestUploadFails(t *testing.T) {
	shelf := cachetest.NewShelf()
	m := newMachine(t, 1)
	known, refs := m.chain(t, 4, "text")
	var n atomic.Int32
	shelf.Fault = func(method string) error {
		if method == "Upload" && n.Add(1) == 2 {
			return errors.New("disk full")
		}
		return nil
	}
	u := m.uploader(t, shelf, cache.Trust{}, nil)
	for i, r := range refs {
		u.Step(step(i), known, []solver.Result{r})
	}
	if err := u.Wait(); err == nil || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("error %v", err)
	}
	u.Close()
	shelf.Fault = nil
	for _, name := range shelf.Names() {
		if _, err := cache.OpenRecord(shelf.Record(name)); err != nil {
			t.Errorf("left behind: %v", err)
		}
	}
	var w warnings
	f := finder(t, shelf, &w, cache.Trust{})
	for i := range 4 {
		found(t, f, step(i)) // whatever is there is whole
	}
	if w.String() != "" {
		t.Errorf("warnings: %s", &w)
	}
}
