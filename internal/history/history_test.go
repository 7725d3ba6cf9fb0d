package history

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/store"
)

// world is a history and the database below it, which can be opened again.
type world struct {
	*History
	t    testing.TB
	root string
	db   *store.Store
}

func newWorld(t testing.TB, r Retention) *world {
	w := &world{t: t, root: t.TempDir()}
	w.open(r)
	t.Cleanup(w.close)
	return w
}

func (w *world) open(r Retention) {
	w.t.Helper()
	db, err := store.Open(w.root)
	if err != nil {
		w.t.Fatal(err)
	}
	h, err := Open(w.root+"/history", db, r)
	if err != nil {
		w.t.Fatal(errors.Join(err, db.Close()))
	}
	w.db, w.History = db, h
}

func (w *world) close() {
	if err := errors.Join(w.History.Close(), w.db.Close()); err != nil {
		w.t.Error(err)
	}
}

// build runs a build that tells lines.
func (w *world) build(r Record, o Outcome, lines ...string) {
	w.t.Helper()
	b, err := w.Begin(r, false)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, line := range lines {
		b.Log().Append([]byte(line))
	}
	if err := b.End(o); err != nil {
		w.t.Error(err)
	}
	b.Release()
}

// replay is what a build has told.
func (w *world) replay(ref string) (lines []string) {
	w.t.Helper()
	err := w.Replay(w.t.Context(), ref, collect(&lines))
	if err != nil {
		w.t.Errorf("replay %s: %v", ref, err)
	}
	return lines
}

func collect(lines *[]string) func([][]byte) error {
	return func(frames [][]byte) error {
		for _, f := range frames {
			*lines = append(*lines, string(f))
		}
		return nil
	}
}

// read returns a blob.
func (w *world) read(d digest.Digest) string {
	w.t.Helper()
	b, err := w.Open(d)
	if err != nil {
		w.t.Fatal(err)
	}
	defer b.Close()
	data, err := io.ReadAll(io.NewSectionReader(b, 0, b.Size()))
	if err != nil {
		w.t.Error(err)
	}
	return string(data)
}

// heard is what a listener is told at once.
func (w *world) heard(o ListenOptions) (all []string) {
	w.t.Helper()
	o.EarlyExit = true
	err := w.Listen(w.t.Context(), o, func(e Event) error {
		all = append(all, fmt.Sprint(e.Kind, " ", e.Ref))
		return nil
	})
	if err != nil {
		w.t.Error(err)
	}
	return all
}

func attestation(text string) Blob {
	return Blob{MediaType: MediaTypeAttestation, Annotations: map[string]string{PredicateType: "test"}, Data: []byte(text)}
}

// What is attached to a build, under way or ended, is in its record and can be
// read, also after a restart.
func TestAttach(t *testing.T) {
	w := newWorld(t, DefaultRetention())
	b, err := w.Begin(Record{Ref: "a"}, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.AttachAttestation("a", "", attestation("before")); err != nil {
		t.Error(err)
	}
	if err := b.End(Outcome{}); err != nil {
		t.Error(err)
	}
	b.Release()
	image := ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageIndex, Digest: digest.FromString("index"), Size: 5}
	err = errors.Join(
		w.AttachAttestation("a", "linux/arm64", attestation("after")), w.AttachCacheReasons("a", Blob{MediaTypeCacheReasons, nil, []byte("why")}),
		w.AttachTrace("a", Blob{MediaTypeTrace, nil, []byte("when")}), w.SetImage("a", "", 1, image),
		w.AttachDocument("a", Blob{ocispecs.MediaTypeImageIndex, nil, []byte("index")}))
	if err != nil {
		t.Error(err)
	}
	for range 2 {
		r, err := w.Get("a")
		if err != nil || r.Generation != 5 || len(r.Result.Attestations) != 1 || r.Result.Images[1].Digest != image.Digest {
			t.Fatalf("record is %+v (%v)", r, err)
		}
		got := w.read(r.Result.Attestations[0].Digest) + w.read(r.Results["linux/arm64"].Attestations[0].Digest) +
			w.read(r.CacheReasons.Digest) + w.read(r.Trace.Digest)
		if got != "beforeafterwhywhen" {
			t.Errorf("attached is %q", got)
		}
		if d := r.Result.Attestations[0]; d.Annotations[PredicateType] != "test" || d.MediaType != MediaTypeAttestation {
			t.Errorf("descriptor is %+v", d)
		}
		if w.read(image.Digest) != "index" {
			t.Error("the image is another")
		}
		w.close()
		w.open(DefaultRetention())
	}
	if err := w.AttachAttestation("b", "", attestation("x")); !errors.Is(err, ErrNotFound) {
		t.Errorf("attaching to no build: %v", err)
	}
	if _, err := w.Open(digest.FromString("x")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was attached to no build stays: %v", err)
	}
}

func TestRecordSurvivesRestart(t *testing.T) {
	w := newWorld(t, DefaultRetention())
	r := Record{Ref: "a", Frontend: "f", FrontendAttrs: map[string]string{"k": "v"}, Exporters: []Exporter{{Type: "image"}}}
	o := Outcome{
		Failure: &Failure{2, "it broke"}, Error: []byte("details"), ExporterResponse: map[string]string{"d": "e"},
		Steps: Steps{Cached: 1, Completed: 2, Total: 3, Warnings: 4},
	}
	w.build(r, o, "one", "two")
	w.close()
	w.open(DefaultRetention())
	got, err := w.Get("a")
	if err != nil {
		t.Fatal(err)
	}
	if got.Frontend != "f" || got.FrontendAttrs["k"] != "v" || got.Exporters[0].Type != "image" || *got.Failure != *o.Failure ||
		got.ExporterResponse["d"] != "e" || got.Steps != o.Steps || got.CompletedAt.Before(got.CreatedAt) {
		t.Errorf("record is %+v", got)
	}
	if text := w.read(got.Error.Digest); text != "details" || got.Error.MediaType != MediaTypeError {
		t.Errorf("error is %q", text)
	}
	if text := w.read(got.Logs.Digest); text != "\x03\x00\x00\x00one\x03\x00\x00\x00two" {
		t.Errorf("log is %q", text)
	}
	if lines := w.replay("a"); !slices.Equal(lines, []string{"one", "two"}) {
		t.Errorf("log tells %q", lines)
	}
}

// A listener hears of builds as they come and go, and can read what they name.
func TestListen(t *testing.T) {
	w := newWorld(t, DefaultRetention())
	w.build(Record{Ref: "old"}, Outcome{})
	running, err := w.Begin(Record{Ref: "running"}, false)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	told := make(chan Event)
	done := make(chan error, 1)
	go func() {
		done <- w.Listen(ctx, ListenOptions{}, func(e Event) error { told <- e; return nil })
	}()
	expect := func(kind Kind, ref string) *Record {
		t.Helper()
		select {
		case e := <-told:
			if e.Kind != kind || e.Ref != ref {
				t.Fatalf("told %d %s, want %d %s", e.Kind, e.Ref, kind, ref)
			}
			r := &Record{}
			if err := r.decodeMessage(e.Message); err != nil || r.Ref != ref {
				t.Fatalf("told %+v (%v) of %s", r, err, ref)
			}
			return r
		case <-ctx.Done():
			t.Fatalf("not told %d %s", kind, ref)
		}
		return nil
	}
	expect(Started, "running")
	expect(Complete, "old")
	running.Log().Append([]byte("line"))
	if err := running.End(Outcome{}); err != nil {
		t.Error(err)
	}
	if got := w.read(expect(Complete, "running").Logs.Digest); got != "\x04\x00\x00\x00line" {
		t.Errorf("log is %q", got)
	}
	running.Release()
	if err := errors.Join(w.Pin("old", true), w.Delete("running")); err != nil {
		t.Error(err)
	}
	if r := expect(Complete, "old"); !r.Pinned || r.Generation != 1 {
		t.Errorf("pinned record is %+v", r)
	}
	expect(Deleted, "running")
	if err := w.History.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Errorf("at the end: %v", err)
	}
}
