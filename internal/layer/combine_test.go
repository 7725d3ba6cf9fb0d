package layer

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func (w *world) merge(refs ...*Ref) *Ref {
	w.t.Helper()
	r, err := w.Merge(context.Background(), refs)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func (w *world) diff(lower, upper *Ref) *Ref {
	w.t.Helper()
	r, err := w.Diff(context.Background(), lower, upper)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func TestMerge(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world) {
		a := w.step(nil, files("a=1", "both=a", "dir/a=1"))
		b := w.step(w.step(nil, files("b=1", "both=b", "dir/b=1")), files("b2=1"))
		m := w.merge(a, nil, b)
		w.want(m, "a=1", "b=1", "b2=1", "both=b", "dir/", "dir/a=1", "dir/b=1")
		if w.merge(a, b) != m {
			t.Error("merging again gives another state")
		}
		if w.merge() != nil || w.merge(nil, nil) != nil || w.merge(nil, a) != a {
			t.Error("merging with nothing is not nothing")
		}
		w.want(w.merge(b, a), "a=1", "b=1", "b2=1", "both=a", "dir/", "dir/a=1", "dir/b=1")
		if got := w.blobs(m, Variant{}); len(got) != 3 {
			t.Errorf("%d blobs", len(got))
		} else {
			w.want(w.again(got), "a=1", "b=1", "b2=1", "both=b", "dir/", "dir/a=1", "dir/b=1")
		}
		w.debris()
	})
}

// What is laid over something else is the same blob, which is made once: whoever has
// the blobs of a merge has those of what was merged.
func TestMergeSharesBlobs(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world) {
		a := w.step(nil, files("a=1", "same=1"))
		b := w.step(nil, files("b=1", "same=1"))
		blobs := w.blobs(w.merge(a, w.merge(a, b)), Variant{})
		top := blobs[len(blobs)-1]
		if got := b.Record(); got.DiffID != top.DiffID || got.Blobs[Variant{}.key()].Digest != top.Desc.Digest {
			t.Errorf("the merge has blob %s (%s), and what was merged has %v (%s)", top.Desc.Digest, top.DiffID, got.Blobs, got.DiffID)
		}
		w.want(w.again(blobs), "a=1", "b=1", "same=1")
		w.debris()
	})
}

// A layer may come several times; its last place counts.
func TestMergeOfRepeated(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world) {
		a := w.step(w.step(nil, files("a=1", "both=a", "dir/a=1")), files("-a", "a2=1"))
		b := w.step(nil, files("a=b", "both=b", "dir=b"))
		want := []string{"a2=1", "both=a", "dir/", "dir/a=1"}
		m := w.merge(a, b, a)
		w.want(m, want...)
		w.want(w.step(w.merge(b, a, b, a), files("c=1")), "a2=1", "both=a", "c=1", "dir/", "dir/a=1")
		w.want(w.again(w.blobs(m, Variant{})), want...)
		w.debris()
	})
}

// What one input deletes of its own base is deleted in a merge, too.
func TestMergeDeletes(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world) {
		a := w.step(nil, files("x=1", "d/x=1", "keep=1"))
		b := w.step(w.step(nil, files("x=2", "d/y=2", "only=2")), files("-x", "-only", "-d", "d/z=3"))
		want := []string{"d/", "d/x=1", "d/z=3", "keep=1"} // d/x was not in the base of b
		m := w.merge(a, b)
		w.want(m, want...)
		w.want(w.again(w.blobs(m, Variant{})), want...)
		w.debris()
	})
}

func TestMergeStaysLazy(t *testing.T) {
	w := newWorld(t, "overlayfs")
	a := w.image(w.lazy(archive(t, file("a", "1"))))
	b := w.image(w.lazy(archive(t, file("b", "1"), file(".wh.a", ""), file(".wh.none", ""))))
	m := w.merge(a, b)
	if len(w.blobs(m, Variant{})) != 2 || w.shelf.reads != 0 {
		t.Errorf("%d pulls though nobody looked", w.shelf.reads)
	}
	w.want(m, "b=1")
	w.want(b, "b=1")
}

func TestDiffOfAncestor(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world) {
		a := w.step(nil, files("gone=1", "d/x=1", "d/y=1", "same=1"))
		b := w.step(w.step(a, files("new=1", "-gone")), files("-d/x", "d/z=1"))
		d := w.diff(a, b)
		w.want(d, "d/", "d/z=1", "new=1") // deletions cannot be seen
		if w.diff(a, a) != nil || w.diff(nil, b) != b || w.diff(a, b) != d {
			t.Error("diffs with nothing, or made again, are others")
		}
		// but they are there.
		other := w.step(nil, files("gone=2", "d/x=2", "d/w=2", "other=2"))
		w.want(w.merge(other, d), "d/", "d/w=2", "d/z=1", "new=1", "other=2")
		w.want(w.merge(d, other), "d/", "d/w=2", "d/x=2", "d/z=1", "gone=2", "new=1", "other=2")
		w.want(w.step(d, files("more=1")), "d/", "d/z=1", "more=1", "new=1")
		names := [][]string{}
		for _, blob := range w.blobs(d, Variant{}) {
			n, _ := w.readBlob(blob)
			names = append(names, n)
		}
		if len(names) != 2 || !slices.Equal(names[0], []string{".wh.gone", "new"}) || !slices.Equal(names[1], []string{"d/", "d/.wh.x", "d/z"}) {
			t.Errorf("blobs have %q", names)
		}
		w.reopen()
		again, err := w.Get(context.Background(), d.ID())
		if err != nil {
			t.Fatal(err)
		}
		w.want(again, "d/", "d/z=1", "new=1")
		w.debris()
	})
}

func TestDiffOfStrangers(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world) {
		a := w.step(w.step(nil, files("gone/x=1", "same=1", "d/x=1", "kind=1")), files("d/y=1"))
		b := w.step(w.step(nil, files("same=1", "d/x=2", "d/y=1", "kind/f=1")), files("new=1"))
		// The same file has the same time, too.
		for _, r := range []*Ref{a, b} {
			for l := r; l != nil; l = l.parent {
				for _, name := range []string{"same", "d/y"} {
					p := filepath.Join(l.dir, name)
					if err := os.Chtimes(p, epochZero, epochZero); err != nil && !errors.Is(err, os.ErrNotExist) {
						t.Fatal(err)
					}
				}
			}
		}
		d := w.diff(a, b)
		w.want(d, "d/", "d/x=2", "kind/", "kind/f=1", "new=1")
		names, _ := w.readBlob(w.blobs(d, Variant{})[0])
		if want := []string{"d/", "d/x", ".wh.gone", "kind/", "kind/f", "new"}; !slices.Equal(names, want) {
			t.Errorf("blob has %q, want %q", names, want)
		}
		w.want(w.merge(a, d), "d/", "d/x=2", "d/y=1", "kind/", "kind/f=1", "new=1", "same=1")
		w.debris()
	})
}

func TestPruneKeepsWhatIsShared(t *testing.T) {
	w := newWorld(t, "overlayfs")
	a, b := w.step(nil, files("a=1")), w.step(nil, files("b=1"))
	m := w.merge(a, b)
	if m.Record().Snapshot != b.Record().Snapshot {
		t.Error("the merge has files of its own, though it has no deletions")
	}
	err := w.Prune(context.Background(), PruneOptions{Filter: func(r Record) bool { return r.ID == b.ID() }}, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.want(m, "a=1", "b=1")
	w.debris()
}

// A folder that a step put in place of another deletes in a merge what was in
// that, and nothing of other inputs.
func TestMergeReplacedFolder(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world) {
		base := w.step(nil, files("bar/A=1", "bar/B=1", "bar/sub/x=1", "keep=1"))
		run := w.step(base, files("-bar", "bar/D=1", "bar/B=2"))
		other := w.step(nil, files("bar/A=other", "bar/E=1", "bar/sub/y=1"))
		want := []string{"bar/", "bar/B=2", "bar/D=1", "bar/E=1", "keep=1"}
		m := w.merge(other, run)
		w.want(m, want...)
		w.want(w.merge(other, w.diff(base, run)), "bar/", "bar/B=2", "bar/D=1", "bar/E=1")
		w.want(w.again(w.blobs(m, Variant{})), want...)
		w.debris()
	})
}
