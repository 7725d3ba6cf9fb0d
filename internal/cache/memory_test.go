package cache_test

import (
	"testing"
	"time"

	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/cache/cachetest"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/solver"
)

// again exports a chain with a memory, and returns what was written and for how
// many records and blobs the place was asked.
func (m *machine) again(t *testing.T, s *cachetest.Shelf, memory *cache.Memory, known recipes, refs []*layer.Ref) (stats cache.UploadStats, records, blobs int) {
	t.Helper()
	_, recordsBefore := s.Calls("Records")
	_, blobsBefore := s.Calls("Missing")
	u := cache.NewUploader(t.Context(), cache.UploaderConfig{
		Shelf: s, Identity: m.id, Layers: opener{m.layers}, Memory: memory, Warn: func(err error) { t.Error(err) },
	})
	defer u.Close()
	for i, r := range refs {
		u.Step(step(i), known, []solver.Result{r})
	}
	if err := u.Wait(); err != nil {
		t.Fatal(err)
	}
	_, records = s.Calls("Records")
	_, blobs = s.Calls("Missing")
	return u.Stats(), records - recordsBefore, blobs - blobsBefore
}

// What was put or seen lately is not asked for again, and not one thing more.
func TestMemorySparesQuestions(t *testing.T) {
	shelf, memory := cachetest.NewShelf(), cache.NewMemory(time.Hour)
	m := newMachine(t, 1)
	known, refs := m.chain(t, 6, "text")
	if stats, _, _ := m.again(t, shelf, memory, known, refs[:5]); stats.Blobs != 5 || stats.Steps != 5+4+1 {
		t.Errorf("wrote %+v, expected 5 blobs, 5 steps, 4 digests and one record about them", stats)
	}
	if stats, records, blobs := m.again(t, shelf, memory, known, refs[:5]); records != 1 || blobs != 0 || stats.Steps+stats.Blobs != 0 {
		t.Errorf("asked for %d records and %d blobs and wrote %+v, expected the record about the place alone", records, blobs, stats)
	}
	if stats, records, _ := m.again(t, shelf, memory, known, refs); records != 1+2 || stats.Steps != 2 || stats.Blobs != 1 {
		t.Errorf("asked for %d records and wrote %+v, expected what the sixth step adds", records, stats)
	}
	// Another daemon's memory learns by asking.
	other := cache.NewMemory(time.Hour)
	if stats, records, blobs := m.again(t, shelf, other, known, refs); records != 6+5+1 || blobs == 0 || stats.Steps+stats.Blobs != 0 {
		t.Errorf("asked for %d records and %d blobs and wrote %+v, expected 12 and some", records, blobs, stats)
	}
	if _, records, blobs := m.again(t, shelf, other, known, refs); records != 1 || blobs != 0 {
		t.Errorf("asked for %d records and %d blobs of what was seen before", records, blobs)
	}
}

// A memory is of use only as long as it is right.
func TestMemoryForgets(t *testing.T) {
	m := newMachine(t, 1)
	known, refs := m.chain(t, 4, "text")
	for name, c := range map[string]struct {
		life time.Duration
		// harm does something to the place, of which the memory is to learn.
		harm func(t *testing.T, s *cachetest.Shelf, memory *cache.Memory)
	}{
		"when its time is over": {time.Nanosecond, func(_ *testing.T, s *cachetest.Shelf, _ *cache.Memory) { loseAll(s) }},
		"when the place is emptied": {time.Hour, func(_ *testing.T, s *cachetest.Shelf, _ *cache.Memory) {
			loseAll(s)
			for _, n := range s.Names() {
				s.Change(n, nil)
			}
		}},
		"when a reader finds a loss": {time.Hour, func(t *testing.T, s *cachetest.Shelf, memory *cache.Memory) {
			loseAll(s)
			var w warnings
			f := cache.NewFinder(t.Context(), cache.FinderConfig{Shelf: s, Memory: memory, Warn: w.add})
			if found(t, f, step(3)) || w.String() == "" {
				t.Errorf("a step without blobs is found; warnings: %s", &w)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			shelf, memory := cachetest.NewShelf(), cache.NewMemory(c.life)
			m.again(t, shelf, memory, known, refs)
			c.harm(t, shelf, memory)
			if stats, _, _ := m.again(t, shelf, memory, known, refs); stats.Blobs != 4 {
				t.Errorf("wrote %+v, expected the 4 blobs that were lost", stats)
			}
			var w warnings
			f := finder(t, shelf, &w, cache.Trust{})
			for i := range refs {
				if !found(t, f, step(i)) {
					t.Errorf("step %d is not found: %s", i, &w)
				}
			}
		})
	}
}

func loseAll(s *cachetest.Shelf) {
	for _, d := range s.Blobs() {
		s.Lose(d)
	}
}
