package cachetest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/layer"
)

// ShelfFixture is an empty place of caches by key under test.
type ShelfFixture struct {
	Place cache.Shelves
	// Read and Write are the attributes of an import and an export.
	Read, Write map[string]string
	// Fetcher gets the blobs that are kept there.
	Fetcher layer.Fetcher
	// Context makes one that calls can be made in; nil takes the test's.
	Context func(context.Context) context.Context
	// Damage changes a byte of a kept blob, Lose removes it.
	Damage, Lose func(t *testing.T, d digest.Digest)
	// Faults are in front of the server; nil if there is none.
	Faults *Faults
}

func (f *ShelfFixture) ctx(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	if f.Context != nil {
		return f.Context(ctx)
	}
	return ctx
}

func (f *ShelfFixture) open(t *testing.T, write bool) cache.Shelf {
	t.Helper()
	attrs := f.Read
	if write {
		attrs = f.Write
	}
	s, err := f.Place.Shelf(f.ctx(t), attrs, write)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Places runs the suite of the places of [cache.Shelf]. start returns a place that nothing is
// kept in, whose server is asked again soon when it fails and is waited for no
// longer than a second or two.
func Places(t *testing.T, start func(t *testing.T) *ShelfFixture) {
	tests := map[string]func(*testing.T, *ShelfFixture){
		"Empty": shelfEmpty, "Put": shelfPut, "Names": shelfNames, "Race": shelfRace, "Writers": shelfWriters,
		"Blobs": shelfBlobs, "Wrong": shelfWrong, "Damaged": shelfDamaged, "Lost": shelfLost,
		"Large": shelfLarge, "Many": shelfMany, "Cancelled": shelfCancelled, "Signed": shelfSigned,
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) { test(t, start(t)) })
	}
	if f := start(t); f.Faults != nil {
		for name, test := range map[string]func(*testing.T, *ShelfFixture){
			"Refused": shelfRefused, "Busy": shelfBusy, "Broken": shelfBroken, "Hangs": shelfHangs,
		} {
			t.Run(name, func(t *testing.T) { test(t, start(t)) })
		}
	}
}

func blobOf(text string) ocispecs.Descriptor {
	return ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageLayerGzip, Digest: digest.FromString(text), Size: int64(len(text))}
}

func opening(text string) func(context.Context) (io.ReadCloser, error) {
	return func(context.Context) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(text)), nil }
}

func (f *ShelfFixture) upload(t *testing.T, s cache.Shelf, text string) ocispecs.Descriptor {
	t.Helper()
	d := blobOf(text)
	if err := s.Upload(f.ctx(t), d, opening(text)); err != nil {
		t.Fatal(err)
	}
	return d
}

// put expects that a record is kept, or not.
func (f *ShelfFixture) put(t *testing.T, s cache.Shelf, name, record string, replace, want bool, needs ...ocispecs.Descriptor) {
	t.Helper()
	stored, err := s.Put(f.ctx(t), name, []byte(record), needs, replace)
	if err != nil || stored != want {
		t.Errorf("put of %s gives %v (%v), want %v", name, stored, err, want)
	}
}

// has expects a record, or none if want is "".
func (f *ShelfFixture) has(t *testing.T, s cache.Shelf, name, want string) {
	t.Helper()
	got, err := s.Records(f.ctx(t), []string{name})
	if b, ok := got[name]; err != nil || ok != (want != "") || string(b) != want || len(got) > 1 {
		t.Errorf("record %s is %d bytes, %.40q (%v), want %d, %.40q", name, len(b), b, err, len(want), want)
	}
}

func (f *ShelfFixture) missing(t *testing.T, s cache.Shelf, blobs, want []ocispecs.Descriptor) {
	t.Helper()
	got, err := s.Missing(f.ctx(t), blobs)
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("missing are %v (%v), want %v", got, err, want)
	}
}

func (f *ShelfFixture) fetch(t *testing.T, s cache.Shelf, d ocispecs.Descriptor) ([]byte, error) {
	t.Helper()
	rc, err := f.Fetcher.Fetch(f.ctx(t), s.Origin(), d)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return io.ReadAll(rc)
}

func shelfEmpty(t *testing.T, f *ShelfFixture) {
	s := f.open(t, true)
	f.has(t, s, "00ff", "")
	d := blobOf("nothing")
	f.missing(t, s, []ocispecs.Descriptor{d}, []ocispecs.Descriptor{d})
	f.missing(t, s, nil, nil)
	if got, err := s.Records(f.ctx(t), nil); err != nil || len(got) != 0 {
		t.Errorf("no names give %v (%v)", got, err)
	}
	if _, err := f.fetch(t, s, d); err == nil {
		t.Error("a blob that was never kept can be fetched")
	}
}

func shelfPut(t *testing.T, f *ShelfFixture) {
	w := f.open(t, true)
	d := f.upload(t, w, "a layer")
	f.put(t, w, "00aa", "first", false, true, d)
	f.put(t, w, "00aa", "second", false, false, d)
	f.has(t, w, "00aa", "first")
	f.put(t, w, "00bb", "alone", false, true)
	r := f.open(t, false)
	f.has(t, r, "00aa", "first")
	f.has(t, r, "00bb", "alone")
	f.put(t, w, "00aa", "third", true, true)
	f.put(t, w, "00aa", "fourth", false, false)
	f.has(t, w, "00aa", "third")
	f.put(t, w, "00cc", "new", true, true)
	r = f.open(t, false)
	f.has(t, r, "00aa", "third")
	f.has(t, r, "00cc", "new")
	if b, err := f.fetch(t, r, d); err != nil || string(b) != "a layer" {
		t.Errorf("fetched %q, %v", b, err)
	}
}

// shelfNames: names that contain each other are different, others are refused.
func shelfNames(t *testing.T, f *ShelfFixture) {
	s := f.open(t, true)
	names := []string{"a", "aa", "a-a", "a.a", "-a", ".a", "a.", strings.Repeat("0", 100)}
	for _, n := range names {
		f.put(t, s, n, "of "+n, false, true)
	}
	for _, n := range names {
		f.has(t, s, n, "of "+n)
	}
	for _, n := range []string{"", "A", "x", "a/b", "a_b", "a b", "ä", "a\x00", strings.Repeat("0", 101)} {
		if _, err := s.Put(f.ctx(t), n, []byte("x"), nil, false); err == nil {
			t.Errorf("the name %q is kept", n)
		}
		if _, err := s.Records(f.ctx(t), []string{n}); err == nil {
			t.Errorf("the name %q is looked for", n)
		}
	}
}

// shelfRace: of several who put the same name, one is told that it did, and its
// record is the one that is there.
func shelfRace(t *testing.T, f *ShelfFixture) {
	shelves := []cache.Shelf{f.open(t, true), f.open(t, true)}
	for round := range 5 {
		name := fmt.Sprintf("%04x", round)
		var winners atomic.Int32
		var won atomic.Value
		var g sync.WaitGroup
		for w := range 6 {
			g.Go(func() {
				record := fmt.Sprint("of ", w)
				stored, err := shelves[w%2].Put(f.ctx(t), name, []byte(record), nil, false)
				if err != nil {
					t.Errorf("writer %d: %v", w, err)
				}
				if stored {
					winners.Add(1)
					won.Store(record)
				}
			})
		}
		g.Wait()
		if winners.Load() != 1 {
			t.Fatalf("%d of 6 writers were told that they put %s", winners.Load(), name)
		}
		f.has(t, f.open(t, false), name, won.Load().(string))
		f.has(t, shelves[0], name, won.Load().(string))
	}
}

// shelfWriters: nobody's records are lost among those of others.
func shelfWriters(t *testing.T, f *ShelfFixture) {
	var g sync.WaitGroup
	for w := range 4 {
		s := f.open(t, true)
		g.Go(func() {
			for i := range 10 {
				text := fmt.Sprintf("layer %d", i) // the same for all
				d := blobOf(text)
				if err := s.Upload(f.ctx(t), d, opening(text)); err != nil {
					t.Error(err)
				}
				f.put(t, s, fmt.Sprintf("%02x-%02x", w, i), fmt.Sprint(w, i), false, true, d)
			}
		})
	}
	g.Wait()
	r := f.open(t, false)
	for w := range 4 {
		for i := range 10 {
			f.has(t, r, fmt.Sprintf("%02x-%02x", w, i), fmt.Sprint(w, i))
		}
	}
}

func shelfBlobs(t *testing.T, f *ShelfFixture) {
	s := f.open(t, true)
	a, c := f.upload(t, s, "a"), f.upload(t, s, "c")
	b := blobOf("b")
	f.missing(t, s, []ocispecs.Descriptor{a, b, c}, []ocispecs.Descriptor{b})
	f.missing(t, f.open(t, true), []ocispecs.Descriptor{b, a}, []ocispecs.Descriptor{b})
	opened := atomic.Int32{}
	err := s.Upload(f.ctx(t), a, func(ctx context.Context) (io.ReadCloser, error) {
		opened.Add(1)
		return opening("a")(ctx)
	})
	if err != nil || opened.Load() > 2 { // one may be to verify it
		t.Errorf("upload of what is there gives %v and opens it %d times", err, opened.Load())
	}
	if err := s.Upload(f.ctx(t), b, func(context.Context) (io.ReadCloser, error) { return nil, io.ErrNoProgress }); err == nil {
		t.Error("what could not be opened is kept")
	}
	f.missing(t, s, []ocispecs.Descriptor{b}, []ocispecs.Descriptor{b})
}

// shelfWrong: bytes that are not the blob's are refused, and the right ones are
// taken afterwards.
func shelfWrong(t *testing.T, f *ShelfFixture) {
	s := f.open(t, true)
	text := strings.Repeat("0123456789", 50_000)
	d := blobOf(text)
	for what, wrong := range map[string]string{
		"cut off": text[:400_000], "others": "x" + text[1:], "none": "",
	} {
		if err := s.Upload(f.ctx(t), d, opening(wrong)); err == nil {
			t.Errorf("%s: bytes that are not the blob's are kept", what)
		}
		f.missing(t, s, []ocispecs.Descriptor{d}, []ocispecs.Descriptor{d})
	}
	breaks := func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(strings.NewReader(text[:400_000]), failing{})), nil
	}
	if err := s.Upload(f.ctx(t), d, breaks); err == nil {
		t.Error("a blob that could not be read is kept")
	}
	f.missing(t, s, []ocispecs.Descriptor{d}, []ocispecs.Descriptor{d})
	// What is too long may be cut to what it should be, and be kept as that.
	if err := s.Upload(f.ctx(t), d, opening(text+"x")); err != nil {
		f.upload(t, s, text)
	}
	if b, err := f.fetch(t, s, d); err != nil || string(b) != text {
		t.Errorf("fetched %d bytes, %v", len(b), err)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, io.ErrNoProgress }

func shelfDamaged(t *testing.T, f *ShelfFixture) {
	s := f.open(t, true)
	d := f.upload(t, s, strings.Repeat("a layer", 1000))
	f.Damage(t, d.Digest)
	if b, err := f.fetch(t, f.open(t, false), d); err == nil {
		t.Errorf("%d damaged bytes were believed", len(b))
	}
}

// shelfLost: what was lost is missing, which is no error, and may come again.
func shelfLost(t *testing.T, f *ShelfFixture) {
	s := f.open(t, true)
	d, kept := f.upload(t, s, "a layer"), f.upload(t, s, "another")
	f.put(t, s, "00aa", "record", false, true, d, kept)
	f.Lose(t, d.Digest)
	s = f.open(t, true)
	f.missing(t, s, []ocispecs.Descriptor{kept, d}, []ocispecs.Descriptor{d})
	f.has(t, s, "00aa", "record")
	if b, err := f.fetch(t, s, d); err == nil {
		t.Errorf("a lost blob is %q", b)
	}
	f.upload(t, s, "a layer")
	f.missing(t, s, []ocispecs.Descriptor{kept, d}, nil)
}

func shelfLarge(t *testing.T, f *ShelfFixture) {
	s := f.open(t, true)
	large := string(bytes.Repeat([]byte("0123456789abcdef\x00\xff"), 3<<20/18))
	f.put(t, s, "00aa", large, false, true)
	f.put(t, s, "00bb", large+"x", true, true)
	r := f.open(t, false)
	f.has(t, r, "00aa", large)
	f.has(t, r, "00bb", large+"x")
	if _, err := s.Put(f.ctx(t), "00cc", make([]byte, cache.MaxRecord+1), nil, false); err == nil {
		t.Error("a record of more than the limit is kept")
	}
	f.has(t, s, "00cc", "")
	text := strings.Repeat("0123456789abcdef", 1<<20)
	d := f.upload(t, s, text)
	if b, err := f.fetch(t, r, d); err != nil || string(b) != text {
		t.Errorf("fetched %d bytes, %v", len(b), err)
	}
}

// shelfMany asks for 1,000 names and 1,000 blobs at once.
func shelfMany(t *testing.T, f *ShelfFixture) {
	s := f.open(t, true)
	var names []string
	var blobs, lost []ocispecs.Descriptor
	kept := 0
	for i := range 1000 {
		names = append(names, fmt.Sprintf("%04x", i))
		d := blobOf(fmt.Sprint("layer ", i))
		blobs = append(blobs, d)
		if i%50 != 0 {
			lost = append(lost, d)
			continue
		}
		kept++
		f.upload(t, s, fmt.Sprint("layer ", i))
		f.put(t, s, names[i], "of "+names[i], false, true, d)
	}
	r := f.open(t, false)
	got, err := r.Records(f.ctx(t), names)
	if err != nil || len(got) != kept {
		t.Fatalf("%d of %d records (%v)", len(got), kept, err)
	}
	for n, b := range got {
		if string(b) != "of "+n {
			t.Errorf("record %s is %q", n, b)
		}
	}
	f.missing(t, r, blobs, lost)
}

func shelfCancelled(t *testing.T, f *ShelfFixture) {
	s := f.open(t, true)
	d := f.upload(t, s, "a layer")
	f.put(t, s, "00aa", "record", false, true, d)
	ctx, cancel := context.WithCancel(f.ctx(t))
	cancel()
	if _, err := s.Put(ctx, "00bb", []byte("x"), nil, false); err == nil {
		t.Error("a cancelled put is done")
	}
	if _, err := s.Missing(ctx, []ocispecs.Descriptor{d}); err == nil {
		t.Error("a cancelled question for blobs is answered")
	}
	if _, err := s.Records(ctx, []string{"00aa", "00bb"}); err == nil {
		t.Error("a cancelled question for records is answered")
	}
	if err := s.Upload(ctx, blobOf("other"), opening("other")); err == nil {
		t.Error("a cancelled upload is done")
	}
	f.has(t, s, "00aa", "record")
	f.has(t, s, "00bb", "")
	f.missing(t, s, []ocispecs.Descriptor{blobOf("other")}, []ocispecs.Descriptor{blobOf("other")})
}

// shelfRefused: a server that wants other credentials gives an error, no miss.
func shelfRefused(t *testing.T, f *ShelfFixture) {
	s := f.open(t, true)
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden} {
		f.Faults.Fail(1000, status, nil)
		f.allFail(t, s, fmt.Sprint("status ", status))
	}
	f.Faults.Fail(0, 0, nil)
	f.put(t, s, "00aa", "record", false, true)
}

// allFail expects that nothing can be done.
func (f *ShelfFixture) allFail(t *testing.T, s cache.Shelf, when string) {
	t.Helper()
	d := blobOf("a layer")
	if got, err := s.Records(f.ctx(t), []string{"00aa"}); err == nil {
		t.Errorf("%s: records are %v", when, got)
	}
	if stored, err := s.Put(f.ctx(t), "00aa", []byte("record"), nil, false); err == nil {
		t.Errorf("%s: put gives %v", when, stored)
	}
	if got, err := s.Missing(f.ctx(t), []ocispecs.Descriptor{d}); err == nil {
		t.Errorf("%s: missing are %v", when, got)
	}
	if err := s.Upload(f.ctx(t), d, opening("a layer")); err == nil {
		t.Errorf("%s: an upload is done", when)
	}
}

// shelfBusy: a server that has no time at first is asked again, whatever is done.
func shelfBusy(t *testing.T, f *ShelfFixture) {
	s := f.open(t, true)
	for _, status := range []int{http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusServiceUnavailable} {
		name, text := fmt.Sprintf("%04x", status), fmt.Sprint("layer ", status)
		for _, do := range []func(){
			func() { f.upload(t, s, text) },
			func() { f.put(t, s, name, "record", false, true, blobOf(text)) },
			func() { f.has(t, s, name, "record") },
			func() { f.missing(t, s, []ocispecs.Descriptor{blobOf(text)}, nil) },
		} {
			f.Faults.Fail(1, status, nil)
			do()
			if f.Faults.Failed() != 1 {
				t.Errorf("status %d: %d requests failed, expected 1", status, f.Faults.Failed())
			}
		}
	}
}

// shelfBroken: a server that is out of order gives errors, not at once but soon.
func shelfBroken(t *testing.T, f *ShelfFixture) {
	s := f.open(t, true)
	f.Faults.Fail(1000, http.StatusInternalServerError, nil)
	start := time.Now()
	f.allFail(t, s, "status 500")
	if f.Faults.Failed() < 5 {
		t.Errorf("only %d requests were made, so nothing was asked for again", f.Faults.Failed())
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("it took %v", took)
	}
}

// shelfHangs: a server that does not answer is left after a while, and at once
// by who does not want to wait.
func shelfHangs(t *testing.T, f *ShelfFixture) {
	s := f.open(t, true)
	f.Faults.Fail(1000, 0, nil)
	ctx, cancel := context.WithTimeout(f.ctx(t), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := s.Records(ctx, []string{"00aa"}); err == nil {
		t.Error("there is an answer")
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("a cancelled question took %v", took)
	}
	if _, err := s.Missing(f.ctx(t), []ocispecs.Descriptor{blobOf("a layer")}); err == nil {
		t.Error("there is an answer")
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("it took %v", took)
	}
}
