package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

func TestBlobsHaveTheChanges(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world) {
		a := w.step(nil, files("etc/conf=1", "old/a=1", "old/b=2", "usr/x=1"))
		b := w.step(a, files("etc/conf=2", "-old", "-usr/x", "new/y=1"))
		c := w.step(b, files("old/c=4"))
		got := w.blobs(c, Variant{})
		if len(got) != 3 || got[2].Ref != c {
			t.Fatalf("blobs are %+v", got)
		}
		for i, want := range [][]string{
			{"etc/", "etc/conf", "old/", "old/a", "old/b", "usr/", "usr/x"},
			{"etc/", "etc/conf", "new/", "new/y", ".wh.old", "usr/", "usr/.wh.x"},
			{"old/", "old/c"},
		} {
			names, _ := w.readBlob(got[i])
			if !slices.Equal(names, want) {
				t.Errorf("layer %d has %q, want %q", i, names, want)
			}
		}
	})
}

// A directory made anew in the place of another one hides the other's files, and
// its layer says so of each of them.
func TestBlobsTellOpaqueDirectories(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world) {
		a := w.step(nil, files("d/a=1", "d/b=1", "d/sub/x=1", "d/sub/y/z=1"))
		b := w.step(a, func(dir string) error {
			return errors.Join(os.RemoveAll(filepath.Join(dir, "d")), files("d/c=1", "d/sub/w=1")(dir))
		})
		w.want(b, "d/", "d/c=1", "d/sub/", "d/sub/w=1")
		blobs := w.blobs(b, Variant{})
		names, _ := w.readBlob(blobs[1])
		want := []string{"d/", "d/.wh.a", "d/.wh.b", "d/c", "d/sub/", "d/sub/.wh.x", "d/sub/.wh.y", "d/sub/w"}
		slices.Sort(names)
		if !slices.Equal(names, want) {
			t.Errorf("layer has %q, want %q", names, want)
		}
		// Whoever unpacks the blobs gets the same.
		w.want(w.again(blobs), "d/", "d/c=1", "d/sub/", "d/sub/w=1")
	})
}

// again makes an image of blobs and forgets all else.
func (w *world) again(blobs []Blob) *Ref {
	w.t.Helper()
	var lazy []LazyBlob
	for _, b := range blobs {
		ra, err := w.ReaderAt(context.Background(), b)
		if err != nil {
			w.t.Fatal(err)
		}
		data, err := io.ReadAll(io.NewSectionReader(ra, 0, ra.Size()))
		if err = errors.Join(err, ra.Close()); err != nil {
			w.t.Fatal(err)
		}
		l := w.shelve(data, b.DiffID)
		l.Desc, l.Windows = b.Desc, b.Ref.Record().Windows
		lazy = append(lazy, l)
	}
	if err := w.Prune(context.Background(), PruneOptions{All: true}, nil); err != nil {
		w.t.Fatal(err)
	}
	return w.image(lazy...)
}

// netRaw is a struct vfs_cap_data, revision 2: cap_net_raw, permitted and effective.
const netRaw = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

func special(dir string) error {
	p := func(name string) string { return filepath.Join(dir, name) }
	sparse, err := os.Create(p("sparse"))
	if err != nil {
		return err
	}
	return errors.Join(
		sparse.Truncate(3<<20), sparse.Close(),
		os.WriteFile(p("suid"), []byte("x"), 0o755), os.Chown(p("suid"), 100, 200), unix.Chmod(p("suid"), 0o4755),
		os.Link(p("suid"), p("twin")),
		os.Symlink("/nowhere", p("link")), os.Lchown(p("link"), 7, 8),
		unix.Mkfifo(p("pipe"), 0o600),
		unix.Mknod(p("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		os.WriteFile(p("capable"), nil, 0o755),
		unix.Setxattr(p("capable"), "security.capability", []byte(netRaw), 0),
		unix.Setxattr(p("capable"), "user.note", []byte("hi"), 0),
		os.WriteFile(p(strings.Repeat("long", 60)), nil, 0o644),
		os.WriteFile(p("ünïcödé"), nil, 0o644),
	)
}

func TestBlobsKeepAllKindsOfFiles(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world) {
		blobs := w.blobs(w.step(nil, special), Variant{Compression: "zstd"})
		r := w.again(blobs)
		dir, release, err := w.Mount(context.Background(), r)
		if err != nil {
			t.Fatal(err)
		}
		defer w.released(release)
		var suid, twin, link, null unix.Stat_t
		for name, st := range map[string]*unix.Stat_t{"suid": &suid, "twin": &twin, "link": &link, "null": &null} {
			if err := unix.Lstat(filepath.Join(dir, name), st); err != nil {
				t.Fatal(err)
			}
		}
		if suid.Mode&0o7777 != 0o4755 || suid.Uid != 100 || suid.Gid != 200 || suid.Ino != twin.Ino {
			t.Errorf("suid is %+v, twin %+v", suid, twin)
		}
		if link.Uid != 7 || link.Gid != 8 || null.Rdev != unix.Mkdev(1, 3) {
			t.Errorf("link is %+v, null %+v", link, null)
		}
		value := make([]byte, 100)
		n, err := unix.Getxattr(filepath.Join(dir, "capable"), "security.capability", value)
		if err != nil || string(value[:n]) != netRaw {
			t.Errorf("the capability is %q (%v)", value[:max(n, 0)], err)
		}
		if _, err := unix.Getxattr(filepath.Join(dir, "capable"), "user.note", value); !errors.Is(err, unix.ENODATA) {
			t.Errorf("the layer has an attribute that BuildKit's have not (%v)", err)
		}
		if fi, err := os.Stat(filepath.Join(dir, "sparse")); err != nil || fi.Size() != 3<<20 {
			t.Errorf("sparse is %v (%v)", fi, err)
		}
		for _, name := range []string{"ünïcödé", strings.Repeat("long", 60), "pipe"} {
			if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestBlobsAreMadeOnce(t *testing.T) {
	w := newWorld(t, "overlayfs")
	r := w.step(nil, files("a=1"))
	var all [8][]Blob
	var g sync.WaitGroup
	for i := range all {
		g.Go(func() { all[i] = w.blobs(r, Variant{}) })
	}
	g.Wait()
	first := all[0][0]
	for _, b := range all {
		if b[0].Desc.Digest != first.Desc.Digest {
			t.Errorf("one call gives %v, another %v", b, first)
		}
	}
	if first.Desc.Annotations != nil || first.Desc.MediaType != ocispecs.MediaTypeImageLayerGzip {
		t.Errorf("descriptor is %+v", first.Desc)
	}
	info, err := w.c.Content.Info(context.Background(), first.Desc.Digest)
	if err != nil {
		t.Fatal(err)
	}
	w.reopen()
	again, err := w.Get(context.Background(), r.ID())
	if err != nil {
		t.Fatal(err)
	}
	docker := w.blobs(again, Variant{DockerTypes: true})[0]
	if docker.Desc.Digest != first.Desc.Digest || docker.DiffID != first.DiffID || docker.Desc.MediaType != dockerLayer+".gzip" {
		t.Errorf("after restart, blob is %+v, was %+v", docker, first)
	}
	if now, err := w.c.Content.Info(context.Background(), first.Desc.Digest); err != nil || now.CreatedAt != info.CreatedAt {
		t.Errorf("blob was written at %v, then at %v (%v)", info.CreatedAt, now.CreatedAt, err)
	}
	plain := w.blobs(again, Variant{Compression: "uncompressed"})[0]
	if plain.Desc.Digest != first.DiffID || plain.DiffID != first.DiffID {
		t.Errorf("uncompressed is %+v, diff id of the other %s", plain, first.DiffID)
	}
}

func TestEpochBoundsTimes(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world) {
		epoch := int64(1000)
		make := func(when time.Time) []Blob {
			r := w.step(nil, func(dir string) error {
				return errors.Join(files("a=1", "b=1")(dir),
					os.Chtimes(filepath.Join(dir, "a"), when, when),
					os.Chtimes(filepath.Join(dir, "b"), time.Unix(500, 0), time.Unix(500, 0)))
			})
			plain, bounded := w.blobs(r, Variant{})[0], w.blobs(r, Variant{Epoch: &epoch})[0]
			if plain.DiffID == bounded.DiffID {
				t.Error("the epoch changes nothing")
			}
			if r.Record().DiffID != plain.DiffID {
				t.Errorf("record has diff id %s, want %s", r.Record().DiffID, plain.DiffID)
			}
			return []Blob{plain, bounded}
		}
		one, two := make(time.Unix(2e9, 0)), make(time.Unix(3e9, 0))
		if one[0].Desc.Digest == two[0].Desc.Digest || one[1].Desc.Digest != two[1].Desc.Digest {
			t.Errorf("without epoch %s and %s, with %s and %s", one[0].Desc.Digest, two[0].Desc.Digest, one[1].Desc.Digest, two[1].Desc.Digest)
		}
	})
}

func TestPulledLayersStayAsTheyAre(t *testing.T) {
	w := newWorld(t, "overlayfs")
	epoch := int64(0)
	lazy := w.lazy(archive(t, file("a", "1")))
	top := w.step(w.image(lazy), files("b=1"))
	w.shelf.reads = 0
	got := w.blobs(top, Variant{Compression: "zstd", Epoch: &epoch})
	if got[0].Desc.Digest != lazy.Desc.Digest || got[0].DiffID != lazy.DiffID || w.shelf.reads > 0 {
		t.Errorf("blob is %+v, want %+v, %d reads", got[0], lazy, w.shelf.reads)
	}
	forced := w.blobs(top, Variant{Compression: "zstd", Epoch: &epoch, Force: true})
	if forced[0].Desc.MediaType != ocispecs.MediaTypeImageLayerZstd || forced[0].DiffID != lazy.DiffID {
		t.Errorf("converted blob is %+v", forced[0])
	}
	w.readBlob(forced[0])
	if forced[1].Desc.Digest != got[1].Desc.Digest {
		t.Error("force changes layers made here")
	}
	if same := w.blobs(top, Variant{Force: true})[0]; same.Desc.Digest != lazy.Desc.Digest {
		t.Errorf("gzip was converted to gzip: %+v", same)
	}
}

func TestUnknownVariants(t *testing.T) {
	w := newWorld(t, "overlayfs")
	for _, v := range []Variant{{Compression: "xz"}, {Level: 10}, {Level: -3}, {Compression: "zstd", Level: 23}} {
		if _, err := w.Blobs(context.Background(), nil, v); err == nil {
			t.Errorf("%+v is taken", v)
		}
	}
}

// TestZstdStores puts what does not compress into the very frame that the
// encoder makes of it, without the encoder's work.
func TestZstdStores(t *testing.T) {
	for _, size := range []int{256 << 10, zstdChunk - 1, zstdChunk} {
		chunk := make([]byte, size)
		if _, err := rand.NewChaCha8([32]byte{byte(size)}).Read(chunk); err != nil {
			t.Fatal(err)
		}
		made, err := newCodec(Variant{Compression: "zstd"})
		if err != nil {
			t.Fatal(err)
		}
		c := made.(*zstdCodec)
		if random, err := c.probe.incompressible(chunk); err != nil || !random {
			t.Errorf("%d random bytes: taken for others, %v", size, err)
		}
		if got, want := storeZstd(nil, chunk), c.e.EncodeAll(chunk, nil); !bytes.Equal(got, want) {
			t.Errorf("%d random bytes: stored in %d bytes, the encoder makes %d, and others", size, len(got), len(want))
		}
		clear(chunk[:size/4])
		if random, err := c.probe.incompressible(chunk); err != nil || random {
			t.Errorf("%d bytes, a quarter of which compress: taken for random ones, %v", size, err)
		}
	}
}

// mixed has what compresses and what does not, over many chunks.
func mixed(size int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	out := make([]byte, 0, size)
	for len(out) < size {
		n := min(size-len(out), 1+r.IntN(3<<20))
		if r.IntN(2) == 0 {
			for range n {
				out = append(out, byte(r.Uint32()))
			}
		} else {
			for len(out) < cap(out) && n > 0 {
				line := fmt.Sprintf("line %d of some text\n", r.IntN(1000))
				line = line[:min(n, len(line))]
				out = append(out, line...)
				n -= len(line)
			}
		}
	}
	return out[:size]
}

func compress(t testing.TB, v Variant, cores int, data []byte) []byte {
	t.Helper()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(cores))
	c, err := newCodec(v)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	z := newCompressor(context.Background(), c, make(chan struct{}, cores), &out)
	// The pieces in which the data comes must not matter either.
	r := rand.New(rand.NewPCG(uint64(cores), 3))
	for rest := data; len(rest) > 0; {
		n := min(len(rest), 1+r.IntN(700_000))
		if _, err := z.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	diffID, err := z.finish(nil)
	if err != nil || diffID != digest.FromBytes(data) {
		t.Fatalf("digest is %s (%v)", diffID, err)
	}
	return out.Bytes()
}

func TestBytesDoNotDependOnCores(t *testing.T) {
	for _, size := range []int{0, 1, 1 << 20, 2 << 20, 9<<20 + 12345} {
		data := mixed(size)
		for _, v := range []Variant{{}, {Level: 9}, {Compression: "zstd"}, {Compression: "zstd", Level: 19}, {Compression: "uncompressed"}} {
			if size > 1<<20 && v.Level == 19 {
				continue // slow, and the same code
			}
			one := compress(t, v, 1, data)
			for _, cores := range []int{2, 4} {
				if more := compress(t, v, cores, data); !bytes.Equal(one, more) {
					t.Errorf("%d bytes, %+v: %d bytes on one core, %d other ones on %d", size, v, len(one), len(more), cores)
				}
			}
			back := expand(t, v, one)
			if !bytes.Equal(back, data) {
				t.Errorf("%d bytes, %+v: %d other bytes come back", size, v, len(back))
			}
			if size > 4<<20 && v.compression() != uncompressedName && len(one) > size*7/10 {
				t.Errorf("%d bytes, %+v: compressed to %d", size, v, len(one))
			}
		}
	}
}

// expand uses the libraries' own readers, not ours.
func expand(t testing.TB, v Variant, data []byte) []byte {
	t.Helper()
	var r io.Reader = bytes.NewReader(data)
	switch v.compression() {
	case gzipName:
		z, err := gzip.NewReader(r)
		if err != nil {
			t.Fatal(err)
		}
		z.Multistream(false)
		r = z
	case zstdName:
		z, err := zstd.NewReader(r)
		if err != nil {
			t.Fatal(err)
		}
		defer z.Close()
		r = z
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

type brokenWriter struct{ left int }

func (b *brokenWriter) Write(p []byte) (int, error) {
	if b.left -= len(p); b.left < 0 {
		return 0, unix.ENOSPC
	}
	return len(p), nil
}

func TestFullDiskEndsCompression(t *testing.T) {
	for _, room := range []int{0, 100, 3 << 20} {
		c, err := newCodec(Variant{})
		if err != nil {
			t.Fatal(err)
		}
		z := newCompressor(context.Background(), c, make(chan struct{}, 2), &brokenWriter{room})
		data := make([]byte, 1<<20)
		_, _ = rand.NewChaCha8([32]byte{}).Read(data)
		err = nil
		for i := 0; i < 20 && err == nil; i++ {
			_, err = z.Write(data)
		}
		if _, err = z.finish(err); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("room %d: error is %v", room, err)
		}
	}
}

func TestCancelEndsCompression(t *testing.T) {
	c, err := newCodec(Variant{Compression: "zstd"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	z := newCompressor(ctx, c, make(chan struct{}, 1), io.Discard)
	cancel()
	err = nil
	for i := 0; i < 100 && err == nil; i++ {
		_, err = z.Write(make([]byte, 1<<20))
	}
	if _, err = z.finish(err); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
}
