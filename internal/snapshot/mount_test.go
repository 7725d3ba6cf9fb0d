package snapshot_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
)

// overlayMount mounts an empty overlay.
func overlayMount(t *testing.T) (dir string, release func()) {
	t.Helper()
	root := t.TempDir()
	path := func(name string) string { return filepath.Join(root, name) }
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(path(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m := mount.Mount{Type: "overlay", Source: "overlay", Options: []string{
		"lowerdir=" + path("lower"), "upperdir=" + path("upper"), "workdir=" + path("work"),
	}}
	if err := m.Mount(path("merged")); err != nil {
		t.Fatal(err)
	}
	return path("merged"), func() {
		if err := mount.UnmountAll(path("merged"), 0); err != nil {
			t.Error(err)
		}
	}
}
