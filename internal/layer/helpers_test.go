package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/moby/sys/mountinfo"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	blobs "github.com/kiln-build/kiln/internal/content"
	"github.com/kiln-build/kiln/internal/snapshot"
)

// memory is a Records in memory.
type memory struct {
	mu   sync.Mutex
	recs map[string]Record
}

func (m *memory) Layer(id string) (Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.recs[id]
	if !ok {
		return r, ErrNotFound
	}
	return r, nil
}

func (m *memory) PutLayer(r Record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.recs[r.ID] = r
	return nil
}

func (m *memory) DeleteLayers(ids ...string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range ids {
		delete(m.recs, id)
	}
	return nil
}

func (m *memory) Layers(f func(Record) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.recs {
		if err := f(r); err != nil {
			return err
		}
	}
	return nil
}

// shelf is a Fetcher with blobs in memory.
type shelf struct {
	mu    sync.Mutex
	blobs map[digest.Digest][]byte
	reads int
	fail  error
}

func (f *shelf) Fetch(_ context.Context, _ string, d ocispecs.Descriptor) (io.ReadCloser, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reads++
	if f.fail != nil {
		return nil, f.fail
	}
	b, ok := f.blobs[d.Digest]
	if !ok {
		return nil, errors.New("no such blob")
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// world is a store and all that it stands on.
type world struct {
	*Store
	t     testing.TB
	root  string
	kind  string
	recs  *memory
	shelf *shelf
	snaps *snapshot.Store
}

func newWorld(t testing.TB, kind string) *world {
	t.Helper()
	w := &world{
		t: t, root: t.TempDir(), kind: kind,
		recs: &memory{recs: map[string]Record{}}, shelf: &shelf{blobs: map[digest.Digest][]byte{}},
	}
	w.open()
	t.Cleanup(func() {
		w.close()
		mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(w.root))
		if err != nil || len(mounts) > 0 {
			t.Errorf("%d mounts are left (%v)", len(mounts), err)
		}
	})
	return w
}

func (w *world) open() {
	w.t.Helper()
	ctx := context.Background()
	snaps, err := snapshot.Open(filepath.Join(w.root, "snapshots"), w.kind)
	if err != nil {
		w.t.Fatalf("these tests run as root on a machine that has overlayfs: %v", err)
	}
	cs, err := blobs.Open(ctx, filepath.Join(w.root, "content"))
	if err != nil {
		w.t.Fatal(err)
	}
	w.snaps = snaps
	w.Store, err = NewStore(ctx, Config{
		Dir: filepath.Join(w.root, "layers"), Snapshots: snaps, Content: cs, Records: w.recs, Fetcher: w.shelf,
		References: func(context.Context) (map[digest.Digest]bool, error) { return nil, nil },
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) close() {
	w.t.Helper()
	if err := errors.Join(w.Store.Close(), w.snaps.Close()); err != nil {
		w.t.Error(err)
	}
}

func (w *world) reopen() {
	w.close()
	w.open()
}

// step makes a layer on parent by changing files at a directory.
func (w *world) step(parent *Ref, change func(dir string) error) *Ref {
	w.t.Helper()
	ctx := context.Background()
	m, err := w.New(ctx, parent, NewOptions{Description: "step"})
	if err != nil {
		w.t.Fatal(err)
	}
	dir, release, err := m.Mount(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := errors.Join(change(dir), release()); err != nil {
		w.t.Fatal(err)
	}
	r, err := m.Commit(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// files writes files: "path=content", "path/" for a directory, "-path" to remove.
func files(names ...string) func(string) error {
	return func(dir string) error {
		for _, n := range names {
			name, text, isFile := strings.Cut(n, "=")
			p := filepath.Join(dir, strings.TrimPrefix(name, "-"))
			var err error
			switch {
			case strings.HasPrefix(name, "-"):
				err = os.RemoveAll(p)
			case isFile:
				if err = os.MkdirAll(filepath.Dir(p), 0o755); err == nil {
					err = os.WriteFile(p, []byte(text), 0o644)
				}
			default:
				err = os.MkdirAll(p, 0o755)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
}

// list tells what a state has: a line per entry.
func (w *world) list(r *Ref) []string {
	w.t.Helper()
	dir, release, err := w.Mount(context.Background(), r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() {
		if err := release(); err != nil {
			w.t.Error(err)
		}
	}()
	return listDir(w.t, dir)
}

func listDir(t testing.TB, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		switch {
		case e.IsDir():
			rel += "/"
		case e.Type().IsRegular():
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			if len(data) > 40 {
				data = []byte(digest.FromBytes(data))
			}
			rel += "=" + string(data)
		default:
			rel += "!" + e.Type().String()
		}
		out = append(out, rel)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (w *world) want(r *Ref, want ...string) {
	w.t.Helper()
	if got := w.list(r); !slices.Equal(got, want) {
		w.t.Errorf("files are\n%q, want\n%q", got, want)
	}
}

// entry is one entry of an archive for tests.
type entry struct {
	tar.Header
	body string
}

func file(name, body string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(body))}, body}
}

func folder(name string) entry {
	return entry{tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}, ""}
}

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, e := range entries {
		if err := tw.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(e.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// lazy puts a gzipped archive on the shelf.
func (w *world) lazy(archive []byte) LazyBlob {
	w.t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(archive); err != nil {
		w.t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		w.t.Fatal(err)
	}
	return w.shelve(b.Bytes(), digest.FromBytes(archive))
}

func (w *world) shelve(blob []byte, diffID digest.Digest) LazyBlob {
	d := digest.FromBytes(blob)
	w.shelf.blobs[d] = blob
	return LazyBlob{
		Desc:   ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageLayerGzip, Digest: d, Size: int64(len(blob))},
		DiffID: diffID, Origin: "registry.test/image@sha256:0",
	}
}

func (w *world) image(layers ...LazyBlob) *Ref {
	w.t.Helper()
	r, err := w.FromBlobs(context.Background(), layers)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// readBlob returns the names and the bytes of a layer's archive.
func (w *world) readBlob(b Blob) (names []string, raw []byte) {
	w.t.Helper()
	ra, err := w.ReaderAt(context.Background(), b)
	if err != nil {
		w.t.Fatal(err)
	}
	defer ra.Close()
	blob, err := io.ReadAll(io.NewSectionReader(ra, 0, ra.Size()))
	if err != nil {
		w.t.Fatal(err)
	}
	if got := digest.FromBytes(blob); got != b.Desc.Digest || int64(len(blob)) != b.Desc.Size {
		w.t.Errorf("blob is %s with %d bytes, descriptor says %s with %d", got, len(blob), b.Desc.Digest, b.Desc.Size)
	}
	z, err := decompress(bytes.NewReader(blob))
	if err != nil {
		w.t.Fatal(err)
	}
	if raw, err = io.ReadAll(z); err != nil {
		w.t.Fatal(err)
	}
	if got := digest.FromBytes(raw); got != b.DiffID {
		w.t.Errorf("archive has digest %s, diff id is %s", got, b.DiffID)
	}
	tr := tar.NewReader(bytes.NewReader(raw))
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return names, raw
		} else if err != nil {
			w.t.Fatal(err)
		}
		name := h.Name
		if h.Linkname != "" {
			name += "->" + h.Linkname
		}
		names = append(names, name)
	}
}

func (w *world) blobs(r *Ref, v Variant) []Blob {
	w.t.Helper()
	out, err := w.Blobs(context.Background(), r, v)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// onBoth runs a test with overlayfs and with native snapshots.
func onBoth(t *testing.T, f func(t *testing.T, w *world)) {
	for _, kind := range []string{snapshot.Overlay, snapshot.Native} {
		t.Run(kind, func(t *testing.T) { f(t, newWorld(t, kind)) })
	}
}

// debris fails the test if something is left under way once what was cancelled
// has ended.
func (w *world) debris() {
	w.t.Helper()
	for _, g := range []*flights{&w.merges, &w.flats, &w.makes, &w.unpacks, &w.pulls} {
		g.work.Wait()
	}
	for _, dir := range []string{w.dir.tmp, w.dir.mounts} {
		left, err := os.ReadDir(dir)
		if err != nil || len(left) > 0 {
			w.t.Errorf("left in %s: %v (%v)", dir, left, err)
		}
	}
	dirs, strays, err := w.snaps.FrozenDirs(context.Background())
	if err != nil || len(strays) > 0 {
		w.t.Errorf("left snapshots %v (%v)", strays, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	named := w.namedSnapshots()
	for name := range dirs {
		if !named[name] {
			w.t.Errorf("snapshot %s belongs to nothing", name)
		}
	}
	statuses, err := w.c.Content.ListStatuses(context.Background())
	if err != nil || len(statuses) > 0 {
		w.t.Errorf("left half-written blobs %v (%v)", statuses, err)
	}
}

var epochZero = time.Unix(0, 0)

func (w *world) released(release func() error) {
	w.t.Helper()
	if err := release(); err != nil {
		w.t.Error(err)
	}
}
