package layer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/internal/contenthash"
	"github.com/kiln-build/kiln/internal/snapshot"
)

func TestStepsStack(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world) {
		a := w.step(nil, files("etc/conf=1", "usr/bin/tool=x", "old/a=1", "old/b=2"))
		b := w.step(a, files("etc/conf=2", "-old", "new=3"))
		c := w.step(b, files("old/c=4"))
		w.want(nil)
		w.want(a, "etc/", "etc/conf=1", "old/", "old/a=1", "old/b=2", "usr/", "usr/bin/", "usr/bin/tool=x")
		w.want(b, "etc/", "etc/conf=2", "new=3", "usr/", "usr/bin/", "usr/bin/tool=x")
		w.want(c, "etc/", "etc/conf=2", "new=3", "old/", "old/c=4", "usr/", "usr/bin/", "usr/bin/tool=x")
		if c.Parent() != b || c.Record().Parent != b.ID() || b.Record().Size == 0 {
			t.Errorf("record of c is %+v", c.Record())
		}
		w.reopen()
		again, err := w.Get(context.Background(), c.ID())
		if err != nil {
			t.Fatal(err)
		}
		w.want(again, "etc/", "etc/conf=2", "new=3", "old/", "old/c=4", "usr/", "usr/bin/", "usr/bin/tool=x")
		w.debris()
	})
}

func TestMutableLife(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		base := w.step(nil, files("a=1"))
		m, err := w.New(ctx, base, NewOptions{})
		if err != nil {
			t.Fatal(err)
		}
		dir, release, err := m.Mount(ctx)
		if err != nil {
			t.Fatal(err)
		}
		again, release2, err := m.Mount(ctx)
		if err != nil || again != dir {
			t.Fatalf("second mount at %s (%v), first at %s", again, err, dir)
		}
		if err := errors.Join(files("b=2")(dir), release()); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Commit(ctx); err == nil {
			t.Error("a mounted state could be committed")
		}
		if err := errors.Join(release(), release2()); err != nil { // releasing twice is harmless
			t.Fatal(err)
		}
		dir, release, err = m.Mount(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(files("c=3")(dir), release()); err != nil {
			t.Fatal(err)
		}
		r, err := m.Commit(ctx)
		if err != nil {
			t.Fatal(err)
		}
		w.want(r, "a=1", "b=2", "c=3")
		if _, _, err := m.Mount(ctx); err == nil {
			t.Error("a committed state could be mounted for writing")
		}
		if err := m.Discard(); err != nil {
			t.Error(err)
		}
		forgotten, err := w.New(ctx, r, NewOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := forgotten.Discard(); err != nil {
			t.Error(err)
		}
		w.debris()
	})
}

func TestMountIsReadOnlyAndShared(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		one := w.step(nil, files("a=1"))
		two := w.step(one, files("b=1"))
		for _, r := range []*Ref{nil, one, two} {
			dir, release, err := w.Mount(ctx, r)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o644); !errors.Is(err, unix.EROFS) {
				t.Errorf("writing gives %v", err)
			}
			if err := release(); err != nil {
				t.Error(err)
			}
		}
		d1, r1, err1 := w.Mount(ctx, two)
		d2, r2, err2 := w.Mount(ctx, two)
		if d1 != d2 || err1 != nil || err2 != nil {
			t.Errorf("mounted at %s (%v) and %s (%v)", d1, err1, d2, err2)
		}
		if err := errors.Join(r1(), r2()); err != nil {
			t.Error(err)
		}
		w.debris()
	})
}

// A view has the same files as a mount, and is one only where it has to be.
func TestView(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world) {
		one := w.step(nil, files("a=1"))
		two := w.step(one, files("b=1"))
		for _, c := range []struct {
			of     *Ref
			names  []string
			mounts bool
		}{{nil, nil, false}, {one, []string{"a"}, false}, {two, []string{"a", "b"}, !w.native}} {
			dir, release, err := w.View(context.Background(), c.of)
			if err != nil {
				t.Fatal(err)
			}
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, e := range entries {
				names = append(names, e.Name())
			}
			if !slices.Equal(names, c.names) {
				t.Errorf("view has %q, want %q", names, c.names)
			}
			if mounted := filepath.Dir(dir) == w.dir.mounts; mounted != c.mounts {
				t.Errorf("%q: mounted is %v, want %v", c.names, mounted, c.mounts)
			}
			if err := release(); err != nil {
				t.Error(err)
			}
		}
		w.debris()
	})
}

// The root directory of a state keeps its looks through further layers.
func TestRootDirectoryKeepsMode(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world) {
		a := w.step(nil, func(dir string) error {
			return errors.Join(os.Chown(dir, 12, 34), unix.Chmod(dir, 0o1750))
		})
		b := w.step(a, files("x=1"))
		dir, release, err := w.Mount(context.Background(), b)
		if err != nil {
			t.Fatal(err)
		}
		defer w.released(release)
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			t.Fatal(err)
		}
		if st.Mode&0o7777 != 0o1750 || st.Uid != 12 || st.Gid != 34 {
			t.Errorf("root has mode %o and owner %d:%d", st.Mode&0o7777, st.Uid, st.Gid)
		}
	})
}

func TestDeepChain(t *testing.T) {
	w := newWorld(t, "overlayfs")
	var r *Ref
	begin := time.Now()
	const layers = 2*flatEvery + 50
	for i := range layers {
		r = w.step(r, files(fmt.Sprintf("dir/f%03d=%d", i, i), "last="+fmt.Sprint(i), fmt.Sprintf("-dir/f%03d", i-7)))
	}
	per := time.Since(begin) / layers
	t.Logf("%v a step", per)
	want := []string{"dir/"}
	for i := layers - 7; i < layers; i++ {
		want = append(want, fmt.Sprintf("dir/f%03d=%d", i, i))
	}
	want = append(want, fmt.Sprintf("last=%d", layers-1))
	w.want(r, want...)
	w.reopen()
	again, err := w.Get(context.Background(), r.ID())
	if err != nil {
		t.Fatal(err)
	}
	w.want(again, want...)
	names, _ := w.readBlob(w.blobs(again, Variant{})[layers-1])
	if !slices.Equal(names, []string{"dir/", fmt.Sprintf("dir/.wh.f%03d", layers-8), fmt.Sprintf("dir/f%03d", layers-1), "last"}) {
		t.Errorf("top layer has %q", names)
	}
	w.debris()
}

func TestGetForgetsNothingHalf(t *testing.T) {
	w := newWorld(t, "overlayfs")
	ctx := context.Background()
	a := w.step(nil, files("a=1"))
	b := w.step(a, files("b=1"))
	c := w.step(nil, files("c=1"))
	w.close()
	// The snapshot of a, which b stands on, goes behind the store's back.
	if err := w.recs.DeleteLayers(a.ID()); err != nil {
		t.Fatal(err)
	}
	w.open()
	for _, r := range []*Ref{a, b} {
		if _, err := w.Get(ctx, r.ID()); !errors.Is(err, ErrNotFound) {
			t.Errorf("get gives %v", err)
		}
	}
	if _, err := w.Get(ctx, c.ID()); err != nil {
		t.Error(err)
	}
	if len(w.recs.recs) != 1 {
		t.Errorf("%d records are left", len(w.recs.recs))
	}
	w.debris()
}

func TestOpenUndoesMounts(t *testing.T) {
	w := newWorld(t, "overlayfs")
	ctx := context.Background()
	a := w.step(w.step(nil, files("a=1")), files("b=1"))
	if _, _, err := w.Mount(ctx, a); err != nil { // never released, as after a crash
		t.Fatal(err)
	}
	if _, err := w.New(ctx, a, NewOptions{}); err != nil {
		t.Fatal(err)
	}
	w.reopen()
	w.debris()
	again, err := w.Get(ctx, a.ID())
	if err != nil {
		t.Fatal(err)
	}
	w.want(again, "a=1", "b=1")
}

func TestUseProtectsFromPrune(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		base := w.step(nil, files("base=1"))
		old := w.step(base, files("old=1"))
		release := w.Use()
		kept := w.step(base, files("kept=1"))
		var gone []string
		report := func(u Usage) { gone = append(gone, u.ID) }
		if err := w.Prune(ctx, PruneOptions{All: true}, report); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(gone, []string{old.ID()}) {
			t.Errorf("pruned %v, want only %s", gone, old.ID())
		}
		w.want(kept, "base=1", "kept=1")
		if _, err := w.New(ctx, old, NewOptions{}); !errors.Is(err, ErrNotFound) {
			t.Errorf("building on a pruned layer gives %v", err)
		}
		release()
		dir, unmount, err := w.Mount(ctx, kept)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Prune(ctx, PruneOptions{All: true}, report); err != nil || len(gone) != 1 {
			t.Errorf("with %s mounted, pruned %v (%v)", dir, gone, err)
		}
		if err := unmount(); err != nil {
			t.Fatal(err)
		}
		if err := w.Prune(ctx, PruneOptions{All: true}, report); err != nil || len(gone) != 3 {
			t.Errorf("pruned %v (%v)", gone, err)
		}
		usage, err := w.DiskUsage(ctx)
		if err != nil || len(usage) != 0 {
			t.Errorf("left are %v (%v)", usage, err)
		}
		w.debris()
		w.reopen()
		if len(w.refs) != 0 {
			t.Errorf("%d layers came back", len(w.refs))
		}
	})
}

// What is below something that stays is never removed.
func TestPruneBelow(t *testing.T) {
	w := newWorld(t, "overlayfs")
	top := w.step(w.step(nil, files("f=1")), files("top=1"))
	var gone []string
	err := w.Prune(t.Context(), PruneOptions{Filter: func(r Record) bool { return r.ID != top.ID() }}, func(u Usage) { gone = append(gone, u.ID) })
	if err != nil || len(gone) != 0 {
		t.Errorf("pruned %v (%v) from below what stays", gone, err)
	}
}

// Builds and prunes at the same time: what a build holds is never gone.
func TestPruneBesideBuilds(t *testing.T) {
	w := newWorld(t, "overlayfs")
	ctx, stop := context.WithCancel(context.Background())
	var pruner, builders sync.WaitGroup
	pruner.Go(func() {
		for ctx.Err() == nil {
			if err := w.Prune(context.Background(), PruneOptions{All: true}, nil); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for b := range 3 {
		builders.Go(func() {
			for i := range 15 {
				release := w.Use()
				var r *Ref
				for j := range 4 {
					r = w.step(r, files(fmt.Sprintf("f%d=%d", j, b*100+i)))
				}
				v := fmt.Sprint(b*100 + i)
				w.want(r, "f0="+v, "f1="+v, "f2="+v, "f3="+v)
				release()
			}
		})
	}
	builders.Wait()
	stop()
	pruner.Wait()
	w.debris()
}

func TestChecksum(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		sum := func(r *Ref, sels ...contenthash.Selector) string {
			t.Helper()
			d, err := w.Checksum(ctx, r, sels)
			if err != nil {
				t.Fatal(err)
			}
			return d.String()
		}
		a := w.step(nil, files("src/a=1", "other=1"))
		b := w.step(w.step(nil, files("src/a=1")), files("other=2"))
		if sum(a, contenthash.Selector{Path: "/src"}) != sum(b, contenthash.Selector{Path: "/src"}) {
			t.Error("the same files have different digests")
		}
		if sum(a) == sum(b) {
			t.Error("different files have the same digest")
		}
		sum(nil)
		w.debris()
	})
}

// slowRemoval is a snapshotter that waits with the first removal.
type slowRemoval struct {
	snapshots.Snapshotter
	once        sync.Once
	begun, goOn chan struct{}
}

func (s *slowRemoval) Remove(ctx context.Context, key string) error {
	first := false
	s.once.Do(func() { first = true; close(s.begun) })
	if first {
		<-s.goOn
	}
	return s.Snapshotter.Remove(ctx, key)
}

// Who discards a layer does not wait for the removal of another one.
func TestDiscardWaitsForNobody(t *testing.T) {
	w := newWorld(t, snapshot.Native)
	slow := &slowRemoval{Snapshotter: w.snaps.Snapshotter, begun: make(chan struct{}), goOn: make(chan struct{})}
	w.snaps.Snapshotter = slow
	var ms []*Mutable
	for range 2 {
		m, err := w.New(t.Context(), nil, NewOptions{})
		if err != nil {
			t.Fatal(err)
		}
		ms = append(ms, m)
	}
	done := make(chan error, 1)
	go func() { done <- ms[0].Discard() }()
	<-slow.begun
	if err := ms[1].Discard(); err != nil {
		t.Error(err)
	}
	close(slow.goOn)
	if err := <-done; err != nil {
		t.Error(err)
	}
	w.debris()
}
