package layer

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A layer holds only what its step changed, not what the kernel copied up.
func TestUnchangedIsNoPartOfLayer(t *testing.T) {
	w := newWorld(t, "overlayfs")
	then := time.Unix(1_600_000_000, 0)
	capability := []byte(netRaw)
	a := w.step(nil, func(dir string) error {
		return errors.Join(files("etc/passwd=root", "etc/group=root", "deep/er/x=1", "touched/", "around/touched/", "gone/x=1", "mode/", "time=1")(dir),
			os.Chtimes(filepath.Join(dir, "deep/er"), then, then))
	})
	b := w.step(a, files("own=1", "more/x=1"))
	c := w.step(b, func(dir string) error {
		at := func(name string) string { return filepath.Join(dir, name) }
		touched := time.Unix(1, 0)
		return errors.Join(
			os.Chown(at("etc/passwd"), 0, 0), // copies up
			os.Chown(at("more/x"), 0, 0),
			os.WriteFile(at("deep/er/stub"), nil, 0o644), os.Remove(at("deep/er/stub")), os.Chtimes(at("deep/er"), then, then),
			os.Remove(at("gone/x")),
			os.Chmod(at("mode"), 0o700),
			os.Chtimes(at("time"), touched, touched), os.Chtimes(at("touched"), touched, touched),
			os.Chtimes(at("around/touched"), touched, touched),
			os.WriteFile(at("own"), []byte("2"), 0o644),
			os.Mkdir(at("new"), 0o755),
			unix.Setxattr(at("etc/group"), "security.capability", capability, 0),
		)
	})
	var parts []string
	for _, b := range w.blobs(c, Variant{})[2:] {
		names, _ := w.readBlob(b)
		parts = append(parts, names...)
	}
	want := []string{"etc/", "etc/group", "gone/", "gone/.wh.x", "mode/", "new/", "own", "time"}
	if len(parts) != len(want) {
		t.Fatalf("the layer has %q, want %q", parts, want)
	}
	for i := range want {
		if parts[i] != want[i] {
			t.Fatalf("the layer has %q, want %q", parts, want)
		}
	}
	// What is another time only is seen by later steps, and is no part of a diff.
	dir, release, err := w.Mount(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"touched", "around/touched"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.ModTime().Unix() != 1 {
			t.Errorf("the time of %s is lost: %v", name, err)
		}
	}
	w.released(release)
	w.want(w.diff(b, c), "etc/", "etc/group=root", "gone/", "mode/", "new/", "own=2", "time=1")
}

// What is dropped leaves no trace in the time of its folder.
func TestUnchangedKeepsFolderTimes(t *testing.T) {
	w := newWorld(t, "overlayfs")
	a := w.step(nil, files("etc/a=1", "etc/b=1"))
	then := time.Unix(1_600_000_000, 0)
	b := w.step(a, func(dir string) error {
		return errors.Join(os.Chown(filepath.Join(dir, "etc/a"), 0, 0),
			os.WriteFile(filepath.Join(dir, "etc/b"), []byte("2"), 0o644),
			os.Chtimes(filepath.Join(dir, "etc"), then, then))
	})
	dir, release, err := w.Mount(context.Background(), b)
	if err != nil {
		t.Fatal(err)
	}
	defer w.released(release)
	info, err := os.Stat(filepath.Join(dir, "etc"))
	if err != nil {
		t.Fatal(err)
	}
	if !info.ModTime().Equal(then) {
		t.Errorf("the folder's time is %v, want %v", info.ModTime(), then)
	}
}

// Of names of one inode, a layer has those that were not so before, as BuildKit's
// have: the one that is told first is a file, the others are links to it.
func TestLinksMadeAnew(t *testing.T) {
	twins := func(dir string) error {
		return errors.Join(files("d/a=1", "d/c=1", "other=1", "later=1")(dir), os.Link(filepath.Join(dir, "d/a"), filepath.Join(dir, "d/b")))
	}
	for name, c := range map[string]struct {
		step func(at func(string) string) error
		want []string
	}{
		"again": {func(at func(string) string) error {
			return errors.Join(os.Remove(at("d/b")), os.Link(at("d/a"), at("d/b")))
		}, nil},
		"one more": {func(at func(string) string) error { return os.Link(at("d/a"), at("d/z")) }, []string{"d/", "d/z"}},
		"two more": {func(at func(string) string) error {
			return errors.Join(os.Link(at("d/a"), at("d/y")), os.Link(at("d/b"), at("z")))
		}, []string{"d/", "d/y", "z"}},
		"two names": {func(at func(string) string) error {
			return errors.Join(os.Link(at("d/a"), at("d/y")), os.Link(at("d/a"), at("z")))
		}, []string{"d/", "d/y", "z->d/y"}},
		"changed": {func(at func(string) string) error {
			return errors.Join(os.Link(at("d/a"), at("d/z")), os.Chmod(at("d/z"), 0o600))
		}, []string{"d/", "d/a", "d/z->d/a"}},
		"in another's place": {func(at func(string) string) error {
			return errors.Join(os.Remove(at("other")), os.Link(at("d/a"), at("other")))
		}, []string{"other"}},
		"copied up": {func(at func(string) string) error { return os.Chown(at("d/b"), 0, 0) }, nil},
		"symbolic": {func(at func(string) string) error {
			return errors.Join(os.Symlink("x", at("s")), os.Link(at("s"), at("t")))
		}, []string{"s->x", "t->s"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "overlayfs")
			base := w.step(nil, twins)
			then := time.Unix(1_500_000_000, 0)
			top := w.step(w.step(base, func(dir string) error { return os.Chtimes(filepath.Join(dir, "later"), then, then) }), func(dir string) error {
				return c.step(func(name string) string { return filepath.Join(dir, name) })
			})
			b := w.blobs(top, Variant{})
			if got := w.told(b[len(b)-1]); !slices.Equal(got, c.want) {
				t.Errorf("the layer has %q, want %q", got, c.want)
			}
			// A diff is what the layer is.
			var names []string
			for _, k := range c.want {
				name, _, _ := strings.Cut(k, "->")
				names = append(names, name)
			}
			w.wantNames(w.diff(base, top), append(names, "later"))
			// Later steps see what the step left.
			dir, release, err := w.Mount(context.Background(), top)
			if err != nil {
				t.Fatal(err)
			}
			defer w.released(release)
			var a, z unix.Stat_t
			if name == "one more" {
				if err := errors.Join(unix.Stat(filepath.Join(dir, "d/a"), &a), unix.Stat(filepath.Join(dir, "d/z"), &z)); err != nil || a.Ino != z.Ino {
					t.Errorf("the names are of two files: %v", err)
				}
			}
		})
	}
}

// told are the entries of a blob.
func (w *world) told(b Blob) []string {
	w.t.Helper()
	names, _ := w.readBlob(b)
	return names
}

// wantNames checks what there is in r, but for contents.
func (w *world) wantNames(r *Ref, want []string) {
	w.t.Helper()
	var got []string
	for _, l := range w.list(r) {
		got = append(got, l[:strings.IndexAny(l+"=", "=!")])
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		w.t.Errorf("files are %q, want %q", got, want)
	}
}

// A link made anew is new, be it to the same.
func TestSymlinkMadeAnew(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world) {
		a := w.step(nil, func(dir string) error {
			l := filepath.Join(dir, "l")
			return errors.Join(os.Symlink("x", l), unix.UtimesNanoAt(unix.AT_FDCWD, l, []unix.Timespec{{}, {}}, unix.AT_SYMLINK_NOFOLLOW))
		})
		b := w.step(a, func(dir string) error {
			l := filepath.Join(dir, "l")
			return errors.Join(os.Remove(l), os.Symlink("x", l))
		})
		made := w.blobs(b, Variant{})
		if got := w.told(made[1]); !slices.Equal(got, []string{"l->x"}) {
			t.Errorf("the layer has %q", got)
		}
	})
}

// Attributes that layers have not are seen by later steps and make no entry.
func TestUserAttributesAreNoPartOfLayer(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world) {
		a := w.step(nil, files("d/x=1", "e/x=1", "f=1"))
		b := w.step(a, func(dir string) error {
			at := func(name string) string { return filepath.Join(dir, name) }
			return errors.Join(unix.Setxattr(at("d"), "user.note", []byte("hi"), 0), unix.Setxattr(at("e/x"), "user.note", []byte("hi"), 0),
				os.WriteFile(at("f"), []byte("2"), 0o644), unix.Setxattr(at("f"), "user.note", []byte("hi"), 0))
		})
		made := w.blobs(b, Variant{})
		if got := w.told(made[1]); !slices.Equal(got, []string{"f"}) {
			t.Errorf("the layer has %q", got)
		}
		w.wantNames(w.diff(a, b), []string{"f"})
		dir, release, err := w.Mount(context.Background(), b)
		if err != nil {
			t.Fatal(err)
		}
		defer w.released(release)
		for _, name := range []string{"d", "e/x", "f"} {
			value := make([]byte, 10)
			if n, err := unix.Getxattr(filepath.Join(dir, name), "user.note", value); err != nil || string(value[:n]) != "hi" {
				t.Errorf("the attribute of %s is lost: %v", name, err)
			}
		}
	})
}
