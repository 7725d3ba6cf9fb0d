package layer

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// linked makes a layer of links of the files in a folder of r, at the folder `at`.
func (w *world) linked(r *Ref, folder, at string) *Ref {
	w.t.Helper()
	ctx := context.Background()
	m, err := w.New(ctx, nil, NewOptions{Description: "step"})
	if err != nil {
		w.t.Fatal(err)
	}
	links, err := m.LinksOf(ctx, r)
	if err != nil || links == nil {
		w.t.Fatalf("no links of %s: %v", r.ID(), err)
	}
	defer links.Close()
	dirs, err := links.Folders(folder)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(m.dir, at), 0o755); err != nil {
		w.t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, d := range dirs {
		names, err := readNames(d)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, name := range names {
			st, err := lstat(fd(d), name)
			if err != nil {
				w.t.Fatal(err)
			}
			if !seen[name] && isRegular(st) {
				if err := unix.Linkat(fd(d), name, unix.AT_FDCWD, filepath.Join(m.dir, at, name), 0); err != nil {
					w.t.Fatal(err)
				}
			}
			seen[name] = true
		}
		d.Close()
	}
	out, err := m.Commit(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// doubles are the files of a state that look like hard links of others.
func (w *world) doubles(r *Ref) (names []string) {
	w.t.Helper()
	dir, release, err := w.Mount(context.Background(), r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer release() //nolint:errcheck // it was only read from
	var all []fs.FileInfo
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		if slices.ContainsFunc(all, func(o fs.FileInfo) bool { return os.SameFile(fi, o) }) {
			names = append(names, strings.TrimPrefix(p, dir+"/"))
		}
		all = append(all, fi)
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return names
}

func TestLinksOfAState(t *testing.T) {
	w := newWorld(t, "overlayfs")
	src := w.step(nil, files("d/a=1", "d/gone=1", "d/b=1", "e/x=1"))
	src = w.step(src, files("-d/gone", "d/b=2", "d/c=3"))
	src = w.step(w.step(src, files("-e")), files("e/y=1"))
	want := []string{"to/", "to/a=1", "to/b=2", "to/c=3"}
	first := w.linked(src, "d", "to")
	w.want(first, want...)
	w.want(w.linked(src, "e", "to"), "to/", "to/y=1")
	w.want(w.step(first, files("to/a=new", "-to/b")), "to/", "to/a=new", "to/c=3")
	w.want(first, want...)
	w.want(src, "d/", "d/a=1", "d/b=2", "d/c=3", "e/", "e/y=1")
	w.want(w.again(w.blobs(first, Variant{})), want...)
	w.debris()
}

func TestLinksAreRefused(t *testing.T) {
	ctx := context.Background()
	refused := func(w *world, what string, m *Mutable, r *Ref) {
		links, err := m.LinksOf(ctx, r)
		if err != nil || links != nil {
			w.t.Errorf("%s: got %v and %v, want no links", what, links, err)
		}
	}
	begin := func(w *world, parent *Ref) *Mutable {
		m, err := w.New(ctx, parent, NewOptions{})
		if err != nil {
			w.t.Fatal(err)
		}
		w.t.Cleanup(func() { _ = m.Discard() })
		return m
	}
	w := newWorld(t, "overlayfs")
	src := w.step(nil, files("d/a=1"))
	again := w.linked(src, "d", "to")
	refused(w, "of nothing", begin(w, nil), nil)
	refused(w, "over other files", begin(w, src), again)
	for _, second := range []*Ref{src, again} {
		m := begin(w, nil)
		links, err := m.LinksOf(ctx, src)
		if err != nil || links == nil {
			t.Fatal(links, err)
		}
		links.Close()
		refused(w, "of the same files again", m, second)
	}
	native := newWorld(t, "native")
	refused(native, "in copies", begin(native, nil), native.step(nil, files("d/a=1")))
}

// What is linked into two layers is no hard link where both are seen.
func TestMergeOfLinked(t *testing.T) {
	w := newWorld(t, "overlayfs")
	src := w.step(nil, files("d/a=1", "d/b=1"))
	x, y := w.linked(src, "d", "x"), w.linked(src, "d", "y")
	all := []string{"x/", "x/a=1", "x/b=1", "y/", "y/a=1", "y/b=1"}
	check := func(x, y *Ref) {
		t.Helper()
		for _, refs := range [][]*Ref{{x, y}, {y, x}, {x, y, x}, {w.step(x, files("y/a=old")), y}} {
			m := w.merge(refs...)
			w.want(m, all...)
			if names := w.doubles(m); names != nil {
				t.Errorf("%q look like hard links", names)
			}
		}
		m := w.merge(src, x)
		w.want(m, "d/", "d/a=1", "d/b=1", "x/", "x/a=1", "x/b=1")
		if names := w.doubles(m); names != nil {
			t.Errorf("%q look like hard links", names)
		}
	}
	check(x, y)
	w.reopen()
	kept := func(r *Ref) *Ref {
		again, err := w.Get(context.Background(), r.ID())
		if err != nil {
			t.Fatal(err)
		}
		return again
	}
	src = kept(src)
	check(kept(x), w.linked(src, "d", "y"))
	// What is a hard link in one of them stays one.
	own := w.step(nil, func(dir string) error {
		if err := files("h/a=1")(dir); err != nil {
			return err
		}
		return os.Link(filepath.Join(dir, "h/a"), filepath.Join(dir, "h/b"))
	})
	m := w.merge(w.linked(own, "h", "x"), w.linked(own, "h", "y"))
	if names := w.doubles(m); !slices.Equal(names, []string{"x/b", "y/b"}) {
		t.Errorf("%q look like hard links", names)
	}
	w.want(w.again(w.blobs(m, Variant{})), all...)
	w.debris()
}
