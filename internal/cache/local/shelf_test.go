package local_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/cache/cachetest"
	"github.com/kiln-build/kiln/internal/cache/local"
	sessioncontent "github.com/kiln-build/kiln/internal/session/content"
	"github.com/kiln-build/kiln/internal/session/sessiontest"
)

// folder offers a directory as a client does.
func folder(t *testing.T, dir string) (func(context.Context) context.Context, *sessioncontent.Output) {
	t.Helper()
	out, err := sessioncontent.NewOutput(dir)
	if err != nil {
		t.Fatal(err)
	}
	c := sessiontest.Connect(t, sessioncontent.NewProvider(map[string]content.Store{"local:dir": out}))
	return func(ctx context.Context) context.Context { return sessiontest.Context(ctx, c) }, out
}

var attrs = map[string]string{"src": "dir", "dest": "dir"}

func TestShelf(t *testing.T) {
	cachetest.Places(t, func(t *testing.T) *cachetest.ShelfFixture {
		dir := t.TempDir()
		ctx, _ := folder(t, dir)
		path := func(d digest.Digest) string { return filepath.Join(dir, "blobs", "sha256", d.Encoded()) }
		return &cachetest.ShelfFixture{
			Place: local.New("test"), Read: attrs, Write: attrs, Fetcher: local.Fetcher{Next: nowhere{}}, Context: ctx,
			Damage: func(t *testing.T, d digest.Digest) {
				b, err := os.ReadFile(path(d))
				if err != nil {
					t.Fatal(err)
				}
				b[len(b)/2]++
				if err := os.Chmod(path(d), 0o644); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path(d), b, 0o644); err != nil {
					t.Fatal(err)
				}
			},
			Lose: func(t *testing.T, d digest.Digest) {
				if err := os.Remove(path(d)); err != nil {
					t.Fatal(err)
				}
			},
		}
	})
}

// gated is a store behind a gate.
type gated struct {
	content.Store
	gate *cachetest.Gate
}

func (g gated) Info(ctx context.Context, d digest.Digest) (content.Info, error) {
	g.gate.Pass()
	return g.Store.Info(ctx, d)
}

func (g gated) Walk(ctx context.Context, fn content.WalkFunc, filters ...string) error {
	g.gate.Pass()
	return g.Store.Walk(ctx, fn, filters...)
}

func (g gated) ReaderAt(ctx context.Context, d ocispecs.Descriptor) (content.ReaderAt, error) {
	g.gate.Pass()
	return g.Store.ReaderAt(ctx, d)
}

func (g gated) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	g.gate.Pass()
	w, err := g.Store.Writer(ctx, opts...)
	return gatedWriter{w, g.gate}, err
}

type gatedWriter struct {
	content.Writer
	gate *cachetest.Gate
}

func (g gatedWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	g.gate.Pass()
	return g.Writer.Commit(ctx, size, expected, opts...)
}

// TestInterleaved: a folder has no names, so that entries for one may come at the
// same instant, and nobody loses by it.
func TestInterleaved(t *testing.T) {
	cachetest.Interleaved(t, func(t *testing.T) *cachetest.Rivals {
		dir, gate := t.TempDir(), &cachetest.Gate{}
		var clients [2]func(context.Context) context.Context // each daemon has its own
		for i := range clients {
			out, err := sessioncontent.NewOutput(dir)
			if err != nil {
				t.Fatal(err)
			}
			c := sessiontest.Connect(t, sessioncontent.NewProvider(map[string]content.Store{"local:dir": gated{out, gate}}))
			clients[i] = func(ctx context.Context) context.Context { return sessiontest.Context(ctx, c) }
		}
		return &cachetest.Rivals{
			Gate: gate, Read: attrs, Write: attrs, Places: [2]cache.Shelves{local.New("one"), local.New("two")},
			Context: func(i int, ctx context.Context) context.Context { return clients[i](ctx) },
		}
	})
}

// TestFinish: many packs become one, which the client's sweep leaves alone, and
// others' records that came in between are in it.
func TestFinish(t *testing.T) {
	dir := t.TempDir()
	within, out := folder(t, dir)
	ctx, place := within(t.Context()), local.New("test")
	shelves := []cache.Shelf{opened(t, within, place, true), opened(t, within, place, true)}
	lay := upload(ocispecs.MediaTypeImageLayerGzip, "a layer")
	unused := upload(ocispecs.MediaTypeImageLayerGzip, "nobody's")
	for _, u := range []cache.Upload{lay, unused} {
		if err := shelves[0].Upload(ctx, u.Desc, opening(u.Data)); err != nil {
			t.Fatal(err)
		}
	}
	var names []string
	for i := range 70 {
		names = append(names, fmt.Sprintf("%04x", i))
		if _, err := shelves[i%2].Put(ctx, names[i], []byte("of "+names[i]), []ocispecs.Descriptor{lay.Desc}, false); err != nil {
			t.Fatal(err)
		}
	}
	for again := range 2 { // the second time there is nothing to do
		root, err := shelves[0].(*local.Shelf).Finish(ctx, true)
		if err != nil {
			t.Fatal(err)
		}
		if err := out.Tag(*root, "latest"); err != nil {
			t.Fatal(err)
		}
		if err := out.Sweep(ctx); err != nil {
			t.Fatal(err)
		}
		blobs, err := os.ReadDir(filepath.Join(dir, "blobs", "sha256"))
		if err != nil || len(blobs) != 4 { // the layer, the pack, the manifest and its empty config
			t.Errorf("after %d: %d blobs are left (%v), expected 4", again, len(blobs), err)
		}
	}
	for what, s := range map[string]cache.Shelf{"the writer": shelves[1], "a new reader": opened(t, within, place, false)} {
		got, err := s.Records(ctx, append(names, "ee"))
		if err != nil || len(got) != 70 || string(got["0022"]) != "of 0022" {
			t.Errorf("%s has %q (%v)", what, got, err)
		}
		if missing, err := s.Missing(ctx, []ocispecs.Descriptor{lay.Desc, unused.Desc}); err != nil || len(missing) != 1 {
			t.Errorf("%s misses %v (%v)", what, missing, err)
		}
	}
}

// TestReadOnly reads records where the client offers its folder only to be read.
func TestReadOnly(t *testing.T) {
	dir := t.TempDir()
	within, _ := folder(t, dir)
	w, err := local.New("test").Shelf(within(t.Context()), attrs, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Put(within(t.Context()), "aa", []byte("record"), nil, false); err != nil {
		t.Fatal(err)
	}
	layout, err := sessioncontent.OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer layout.Close()
	c := sessiontest.Connect(t, sessioncontent.NewProvider(map[string]content.Store{"local:dir": layout}))
	ctx := sessiontest.Context(t.Context(), c)
	r, err := local.New("test").Shelf(ctx, attrs, false)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := r.Records(ctx, []string{"aa"}); err != nil || string(got["aa"]) != "record" {
		t.Errorf("got %q (%v)", got, err)
	}
	if _, err := r.Put(ctx, "bb", []byte("record"), nil, false); err == nil {
		t.Error("something was written into a folder to read from")
	}
}

func opened(t *testing.T, within func(context.Context) context.Context, place cache.Shelves, write bool) cache.Shelf {
	t.Helper()
	s, err := place.Shelf(within(t.Context()), attrs, write)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func opening(b []byte) func(context.Context) (io.ReadCloser, error) {
	return func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
}
