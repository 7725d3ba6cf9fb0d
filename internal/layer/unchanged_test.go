package layer

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A layer holds only what its step changed, not what the kernel copied up.
func TestUnchangedIsNoPartOfLayer(t *testing.T) {
	w := newWorld(t, "overlayfs")
	then := time.Unix(1_600_000_000, 0)
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
			unix.Setxattr(at("etc/group"), "user.test", []byte("x"), 0),
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
