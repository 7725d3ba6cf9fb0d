package history

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"
)

// Records go when they are both too many and too old; pinned ones never.
func TestRetention(t *testing.T) {
	for name, tc := range map[string]struct {
		r    Retention
		age  time.Duration
		kept []string
	}{
		"few":             {Retention{MaxEntries: 5}, time.Hour, []string{"0", "1", "2", "3"}},
		"too many":        {Retention{MaxEntries: 2}, time.Hour, []string{"0", "2", "3"}},
		"many, but young": {Retention{MaxEntries: 2, MaxAge: 2 * time.Hour}, time.Hour, []string{"0", "1", "2", "3"}},
		"all too old":     {Retention{MaxAge: time.Minute}, time.Hour, []string{"0"}},
	} {
		w := newWorld(t, DefaultRetention())
		for i := range 4 {
			w.build(Record{Ref: fmt.Sprint(i)}, Outcome{Error: []byte("same")}, fmt.Sprint(i))
		}
		if err := w.Pin("0", true); err != nil {
			t.Error(err)
		}
		w.mu.Lock()
		w.retention = tc.r
		w.mu.Unlock()
		w.collect(time.Now().Add(tc.age))
		var kept []string
		for _, e := range w.heard(ListenOptions{}) {
			kept = append(kept, e[len("1 "):])
		}
		if !slices.Equal(kept, tc.kept) {
			t.Errorf("%s: kept are %q, want %q", name, kept, tc.kept)
		}
		if got, want := len(w.Blobs()), len(tc.kept)+1; got != want {
			t.Errorf("%s: %d blobs are left, want %d", name, got, want)
		}
	}
}

// While the history is off, builds have logs and no records.
func TestRetentionOff(t *testing.T) {
	w := newWorld(t, Retention{Off: true})
	w.build(Record{Ref: "a"}, Outcome{}, "line")
	if got := w.heard(ListenOptions{}); len(got) > 0 {
		t.Errorf("told of %q", got)
	}
	if err := w.AttachTrace("a", Blob{Data: []byte("x")}); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	checkFiles(t, w)
}

// Builds that have ended take no memory to speak of.
func TestThousandBuilds(t *testing.T) {
	w := newWorld(t, DefaultRetention())
	heap := func() int64 {
		var m runtime.MemStats
		if err := w.db.Flush(); err != nil {
			t.Error(err)
		}
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	line := string(make([]byte, 10_000))
	attrs := map[string]string{"filename": "Dockerfile", "context": string(make([]byte, 1000))}
	var before int64
	for i := range 1000 {
		if i == 10 {
			before = heap()
		}
		w.build(Record{Ref: fmt.Sprint("build", i), FrontendAttrs: attrs}, Outcome{}, line, line)
	}
	if grown := heap() - before; grown > 1<<20 {
		t.Errorf("%d bytes are held for 990 builds", grown)
	}
	if got := w.heard(ListenOptions{}); len(got) != 1000 {
		t.Errorf("told of %d builds", len(got))
	}
	if got := w.heard(ListenOptions{Limit: 2}); !slices.Equal(got, []string{"1 build999", "1 build998"}) {
		t.Errorf("told of %q", got)
	}
	w.collect(time.Now().Add(72 * time.Hour))
	if got := w.heard(ListenOptions{}); len(got) != 50 {
		t.Errorf("after three days told of %d builds", len(got))
	}
}

// To shrink takes the oldest first, neither what is pinned nor the last build, and
// counts what others share no byte of.
func TestShrink(t *testing.T) {
	w := newWorld(t, DefaultRetention())
	for i := range 6 {
		w.build(Record{Ref: fmt.Sprint(i)}, Outcome{Error: []byte("same")}, fmt.Sprint(i))
	}
	if err := w.Pin("1", true); err != nil {
		t.Error(err)
	}
	kept := func() (all []string) {
		for _, e := range w.heard(ListenOptions{}) {
			all = append(all, e[len("1 "):])
		}
		return all
	}
	for _, tc := range []struct {
		bytes, freed int64
		kept         []string
	}{
		{0, 0, []string{"0", "1", "2", "3", "4", "5"}},
		{1, 4096, []string{"1", "2", "3", "4", "5"}},
		{8192, 8192, []string{"1", "4", "5"}},
		{1 << 40, 4096, []string{"1", "5"}},
		{1 << 40, 0, []string{"1", "5"}},
	} {
		freed, err := w.Shrink(tc.bytes)
		if got := kept(); err != nil || freed != tc.freed || !slices.Equal(got, tc.kept) {
			t.Errorf("to shrink by %d has freed %d and left %q (%v), want %d and %q", tc.bytes, freed, got, err, tc.freed, tc.kept)
		}
	}
	if got := len(w.Blobs()); got != 3 {
		t.Errorf("%d blobs are left, want two logs and the error that both have", got)
	}
}
