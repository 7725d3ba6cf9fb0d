package snapshot_test

import (
	"os"
	"testing"

	"github.com/kiln-build/kiln/internal/snapshot"
	"github.com/kiln-build/kiln/internal/snapshot/snapshottest"
)

func TestOverlay(t *testing.T) { snapshottest.Run(t, snapshot.Overlay) }

func TestNative(t *testing.T) { snapshottest.Run(t, snapshot.Native) }

func TestAutoTakesOverlay(t *testing.T) {
	s, err := snapshot.Open(t.TempDir(), snapshot.Auto)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Kind != snapshot.Overlay {
		t.Errorf("kind is %q: these tests run as root on a machine that has overlayfs", s.Kind)
	}
}

// overlay cannot have its upper directory on overlay, so there auto is native.
func TestAutoFallsBack(t *testing.T) {
	dir := "/proc/self" // nothing can be made there at all
	if _, err := snapshot.Open(dir, snapshot.Auto); err == nil {
		t.Error("a store was opened where nothing can be written")
	}
	s, err := snapshot.Open(t.TempDir(), snapshot.Overlay)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	on, release := overlayMount(t)
	defer release()
	if _, err := snapshot.Open(on, snapshot.Overlay); err == nil {
		t.Error("overlay on overlay is said to work")
	}
	auto, err := snapshot.Open(on, snapshot.Auto)
	if err != nil {
		t.Fatal(err)
	}
	defer auto.Close()
	if auto.Kind != snapshot.Native {
		t.Errorf("kind is %q, want native", auto.Kind)
	}
}

func TestUnknownKind(t *testing.T) {
	if _, err := snapshot.Open(t.TempDir(), "zfs"); err == nil {
		t.Error("kind zfs is taken")
	}
	if left, err := os.ReadDir(t.TempDir()); err != nil || len(left) > 0 {
		t.Errorf("left are %v (%v)", left, err)
	}
}
