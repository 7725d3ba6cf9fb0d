package layer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	blobs "github.com/kiln-build/kiln/internal/content"
	"github.com/kiln-build/kiln/internal/progress"
)

func TestPullIsLazyAndShared(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world) {
		base := w.lazy(archive(t, folder("etc"), file("etc/conf", "1"), file("gone", "x")))
		top := w.lazy(archive(t, file("etc/more", "2"), file(".wh.gone", "")))
		r := w.image(base, top)
		if w.image(base, top) != r || w.image(base) != r.Parent() {
			t.Error("the same layers are another state")
		}
		if w.shelf.reads != 0 {
			t.Errorf("%d blobs were pulled though nobody looked", w.shelf.reads)
		}
		var told sync.Map
		ctx := progress.WithStep(context.Background(), progress.NewStep(progress.SinkFunc(func(e progress.Event) {
			if e.Status != nil && e.Status.Completed != nil {
				told.Store(e.Status.ID, e.Status.Current)
			}
		}), "sha256:00"))
		var g sync.WaitGroup
		for range 6 {
			g.Go(func() {
				_, release, err := w.Mount(ctx, r)
				if err != nil {
					t.Error(err)
					return
				}
				if err := release(); err != nil {
					t.Error(err)
				}
			})
		}
		g.Wait()
		if w.shelf.reads != 2 {
			t.Errorf("%d pulls, want 2", w.shelf.reads)
		}
		for _, b := range []LazyBlob{base, top} {
			if n, _ := told.Load(b.Desc.Digest.String()); n != b.Desc.Size {
				t.Errorf("progress of %s says %v bytes, want %d", b.Desc.Digest, n, b.Desc.Size)
			}
		}
		w.want(r, "etc/", "etc/conf=1", "etc/more=2")
		w.reopen()
		again := w.image(base, top)
		w.want(again, "etc/", "etc/conf=1", "etc/more=2")
		if w.shelf.reads != 2 {
			t.Errorf("%d pulls after restart, want 2", w.shelf.reads)
		}
		w.debris()
	})
}

// Two images with the same files share them, though their blobs differ.
func TestSameFilesAreUnpackedOnce(t *testing.T) {
	w := newWorld(t, "overlayfs")
	a := archive(t, file("a", "1"))
	first := w.lazy(a)
	second := w.shelve(a, first.DiffID)
	r1, r2 := w.image(first), w.image(second)
	if r1 == r2 {
		t.Fatal("other blobs are the same layer")
	}
	w.want(r1, "a=1")
	w.want(r2, "a=1")
	if r1.Record().Snapshot != r2.Record().Snapshot || w.shelf.reads != 1 {
		t.Errorf("unpacked twice (%d pulls)", w.shelf.reads)
	}
	err := w.Prune(context.Background(), PruneOptions{Filter: func(r Record) bool { return r.ID == r1.ID() }}, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.want(r2, "a=1")
	w.debris()
}

func TestImpliedDirectoriesLookAsBelow(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world) {
		dir := folder("secret")
		dir.Mode, dir.Uid, dir.ModTime = 0o700, 42, time.Unix(1234, 0)
		r := w.image(w.lazy(archive(t, dir)), w.lazy(archive(t, file("secret/new", "1"), file("open/new", "2"))))
		at, release, err := w.Mount(context.Background(), r)
		if err != nil {
			t.Fatal(err)
		}
		defer w.released(release)
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(at, "secret"), &st); err != nil {
			t.Fatal(err)
		}
		if st.Mode&0o7777 != 0o700 || st.Uid != 42 || st.Mtim.Sec != 1234 {
			t.Errorf("directory is %+v", st)
		}
		if err := unix.Stat(filepath.Join(at, "open"), &st); err != nil || st.Mtim.Sec != 0 {
			t.Errorf("directory is %+v (%v)", st, err)
		}
	})
}

// What a whiteout means does not depend on where it stands in the archive, and
// it never means what the same archive brings.
func TestWhiteoutsMeanBelow(t *testing.T) {
	base := []entry{folder("d"), file("d/a", "1"), file("d/b", "1"), folder("e"), file("e/a", "1"), file("f", "1")}
	for name, tc := range map[string]struct {
		top  []entry
		want []string
	}{
		"file": {[]entry{file("d/.wh.a", "")}, []string{"d/", "d/b=1", "e/", "e/a=1", "f=1"}},
		"file and again": {[]entry{file("d/a", "2"), file("d/.wh.a", "")},
			[]string{"d/", "d/a=2", "d/b=1", "e/", "e/a=1", "f=1"}},
		"directory":     {[]entry{file(".wh.d", "")}, []string{"e/", "e/a=1", "f=1"}},
		"directory new": {[]entry{file(".wh.d", ""), folder("d"), file("d/c", "2")}, []string{"d/", "d/c=2", "e/", "e/a=1", "f=1"}},
		"opaque last":   {[]entry{file("d/c", "2"), file("d/.wh..wh..opq", "")}, []string{"d/", "d/c=2", "e/", "e/a=1", "f=1"}},
		"opaque first":  {[]entry{file("d/.wh..wh..opq", ""), file("d/c", "2")}, []string{"d/", "d/c=2", "e/", "e/a=1", "f=1"}},
		"of nothing":    {[]entry{file("x/.wh.y", ""), file(".wh.z", ""), file("x/.wh..wh..opq", "")}, []string{"d/", "d/a=1", "d/b=1", "e/", "e/a=1", "f=1"}},
		"file over dir": {[]entry{file("d", "2")}, []string{"d=2", "e/", "e/a=1", "f=1"}},
		"dir over file": {[]entry{folder("f"), file("f/x", "2")}, []string{"d/", "d/a=1", "d/b=1", "e/", "e/a=1", "f/", "f/x=2"}},
		"aufs":          {[]entry{file(".wh..wh.plnk", "")}, []string{"d/", "d/a=1", "d/b=1", "e/", "e/a=1", "f=1"}},
		"twice":         {[]entry{file("n", "1"), folder("n"), file("n/x", "1")}, []string{"d/", "d/a=1", "d/b=1", "e/", "e/a=1", "f=1", "n/", "n/x=1"}},
	} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, w *world) {
				r := w.image(w.lazy(archive(t, base...)), w.lazy(archive(t, tc.top...)))
				w.want(r, tc.want...)
				w.debris()
			})
		})
	}
}

func TestBrokenBlobs(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world) {
		good := archive(t, file("a", strings.Repeat("hello", 1000)))
		zip := func(data []byte) []byte {
			var b bytes.Buffer
			z := gzip.NewWriter(&b)
			_, _ = z.Write(data)
			_ = z.Close()
			return b.Bytes()
		}
		ok := digest.FromBytes(good)
		zipped := zip(good)
		lie := func(l LazyBlob, d digest.Digest, size int64) LazyBlob {
			w.shelf.blobs[d] = w.shelf.blobs[l.Desc.Digest]
			l.Desc.Digest, l.Desc.Size = d, size
			return l
		}
		other := digest.FromString("other")
		for name, tc := range map[string]struct {
			blob LazyBlob
			err  string
		}{
			"wrong digest":       {lie(w.shelve(zipped, ok), other, int64(len(zipped))), "wrong content: its digest is " + digest.FromBytes(zipped).String()},
			"too long":           {lie(w.shelve(zipped, ok), digest.FromString("a"), int64(len(zipped))-1), "more than"},
			"too short":          {lie(w.shelve(zipped, ok), digest.FromString("b"), int64(len(zipped))+1), "fewer than"},
			"other files":        {w.shelve(zip(archive(t, file("b", "x"))), ok), "its files have digest"},
			"cut archive":        {w.shelve(zip(good[:700]), digest.FromBytes(good[:700])), "bad layer archive"},
			"cut gzip":           {w.shelve(zipped[:len(zipped)-9], ok), "unexpected EOF"},
			"junk":               {w.shelve([]byte("this is no archive at all, is it?"), digest.FromString("c")), "bad layer archive"},
			"xz":                 {w.shelve([]byte("\xfd7zXZ\x00\x00"), digest.FromString("d")), "bzip2 or xz"},
			"missing everywhere": {lie(w.shelve(nil, ok), digest.FromString("e"), 5), "fewer than"},
		} {
			t.Run(name, func(t *testing.T) {
				// A good layer above and one below must not be hurt.
				r := w.image(w.lazy(archive(t, file("base", "1"))), tc.blob, w.lazy(archive(t, file("top", "1"))))
				_, _, err := w.Mount(context.Background(), r)
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("error is %v, want one with %q", err, tc.err)
				}
				if strings.Contains(tc.err, "wrong content") && !errors.Is(err, blobs.ErrWrongContent) {
					t.Errorf("error %v is no ErrWrongContent", err)
				}
				w.want(r.Parent().Parent(), "base=1")
				w.debris()
			})
		}
	})
}

func TestPullFailsThenWorks(t *testing.T) {
	w := newWorld(t, "overlayfs")
	r := w.image(w.lazy(archive(t, file("a", "1"))))
	w.shelf.fail = errors.New("401 Unauthorized")
	if _, _, err := w.Mount(context.Background(), r); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("error is %v", err)
	}
	w.shelf.fail = nil
	w.want(r, "a=1")
}

// losing is a Fetcher of which one origin loses what it is asked for, when it is let.
type losing struct {
	origin string
	asked  chan struct{}
	let    chan struct{}
	then   Fetcher
}

func (l *losing) Fetch(ctx context.Context, origin string, d ocispecs.Descriptor) (io.ReadCloser, error) {
	if origin == l.origin {
		l.asked <- struct{}{}
		<-l.let
		return nil, errors.New("it is lost")
	}
	return l.then.Fetch(ctx, origin, d)
}

// A build that says from where a layer can be had does not share the failure of one
// that began to pull it from where it was lost.
func TestPullFromElsewhere(t *testing.T) {
	for name, read := range map[string]func(w *world, r *Ref, b LazyBlob) error{
		"mount": func(w *world, r *Ref, _ LazyBlob) error {
			_, release, err := w.Mount(context.Background(), r)
			if err == nil {
				err = release()
			}
			return err
		},
		"blob": func(w *world, r *Ref, b LazyBlob) error {
			ra, err := w.ReaderAt(context.Background(), Blob{Desc: b.Desc, Ref: r})
			if err == nil {
				err = ra.Close()
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "overlayfs")
			l := &losing{origin: "old", asked: make(chan struct{}), let: make(chan struct{}), then: w.shelf}
			w.c.Fetcher = l
			below, top := w.lazy(archive(t, file("a", "1"))), w.lazy(archive(t, file("b", "2")))
			below.Origin, top.Origin = "old", "new"
			r := w.image(below, top)
			if name == "blob" {
				r = r.Parent()
			}
			done := make(chan error)
			go func() { done <- read(w, r, below) }()
			<-l.asked
			below.Origin = "new"
			w.image(below, top)
			go func() { done <- read(w, r, below) }()
			close(l.let)
			for range 2 {
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// hanging is a Fetcher whose first body never comes.
type hanging struct {
	asked chan struct{}
	once  sync.Once
	then  Fetcher
}

type neverBody struct {
	closed chan struct{}
	once   sync.Once
}

func (b *neverBody) Read([]byte) (int, error) {
	<-b.closed
	return 0, errors.New("closed")
}

func (b *neverBody) Close() error {
	b.once.Do(func() { close(b.closed) })
	return nil
}

func (h *hanging) Fetch(ctx context.Context, origin string, d ocispecs.Descriptor) (body io.ReadCloser, err error) {
	body, err = h.then.Fetch(ctx, origin, d)
	h.once.Do(func() {
		body = &neverBody{closed: make(chan struct{})}
		close(h.asked)
	})
	return body, err
}

func TestCancelEndsPull(t *testing.T) {
	w := newWorld(t, "overlayfs")
	h := &hanging{asked: make(chan struct{}), then: w.shelf}
	w.c.Fetcher = h
	r := w.image(w.lazy(archive(t, file("a", "1"))))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		_, _, err := w.Mount(ctx, r)
		done <- err
	}()
	<-h.asked
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	// Nothing of it stays, and the next one is not the one that was cancelled.
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(time.Millisecond) {
		// Listing fails if what it lists goes meanwhile.
		left, err := w.c.Content.ListStatuses(context.Background())
		w.pulls.mu.Lock()
		flying := len(w.pulls.calls)
		w.pulls.mu.Unlock()
		if err == nil && len(left) == 0 && flying == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d pulls go on, half-written blobs are left: %v (%v)", flying, left, err)
		}
	}
	w.want(r, "a=1")
	w.debris()
}

func TestLayersAreRestoredFromBlobs(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world) {
		a := w.step(nil, files("a=1", "x=1"))
		b := w.step(a, files("b=1", "-x"))
		w.blobs(b, Variant{})
		w.close()
		// As after a power loss: the blobs are there, the snapshots are not.
		if err := os.RemoveAll(filepath.Join(w.root, "snapshots")); err != nil {
			t.Fatal(err)
		}
		w.open()
		again, err := w.Get(context.Background(), b.ID())
		if err != nil {
			t.Fatal(err)
		}
		w.want(again, "a=1", "b=1")
		w.debris()
	})
}

// An image that was made of steps has their snapshots when it is built on.
func TestImagesMadeHereAreNotUnpacked(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world) {
		below := w.step(nil, files("a=1", "b=2"))
		r := w.step(below, files("c=3"))
		epoch := int64(1)
		for _, b := range w.blobs(r, Variant{Epoch: &epoch}) {
			if b.DiffID == "" {
				t.Errorf("blob %+v has no diff id", b)
			}
		}
		image := func() *Ref {
			var lazy []LazyBlob
			for _, b := range w.blobs(r, Variant{}) {
				lazy = append(lazy, LazyBlob{Desc: b.Desc, DiffID: b.DiffID, Origin: "elsewhere"})
			}
			return w.image(lazy...)
		}
		w.want(image(), "a=1", "b=2", "c=3")
		if got, want := image().Record().Snapshot, r.Record().Snapshot; got != want {
			t.Errorf("the image has snapshot %q, the step %q", got, want)
		}
		w.reopen()
		var err error
		if r, err = w.Get(context.Background(), r.ID()); err != nil {
			t.Fatal(err)
		}
		top := w.step(image(), files("d=4"))
		w.want(top, "a=1", "b=2", "c=3", "d=4")
		if w.shelf.reads != 0 {
			t.Errorf("%d blobs were pulled", w.shelf.reads)
		}
		steps := map[string]bool{r.ID(): true, r.Parent().ID(): true}
		if err := w.Prune(context.Background(), PruneOptions{Filter: func(rec Record) bool { return steps[rec.ID] }}, nil); err != nil {
			t.Fatal(err)
		}
		w.want(top, "a=1", "b=2", "c=3", "d=4")
		w.debris()
	})
}

// A blob whose times were bounded has other files than the snapshot.
func TestImagesWithOtherTimesAreUnpacked(t *testing.T) {
	w := newWorld(t, "overlayfs")
	r := w.step(nil, files("a=1"))
	epoch := int64(1)
	b := w.blobs(r, Variant{Epoch: &epoch})[0]
	image := w.image(LazyBlob{Desc: b.Desc, DiffID: b.DiffID})
	w.want(image, "a=1")
	if image.Record().Snapshot == r.Record().Snapshot {
		t.Error("the image has the step's files, and their times")
	}
}
