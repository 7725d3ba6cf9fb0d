package snapshot_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/internal/snapshot"
)

// The folder of the snapshots has ext4's flag of a top directory, a snapshot
// has it not. File systems without the flag are none the worse.
func TestSpread(t *testing.T) {
	const topDir = 0x20000
	for _, kind := range []string{snapshot.Overlay, snapshot.Native} {
		root := t.TempDir()
		s, err := snapshot.Open(root, kind)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := s.Prepare(context.Background(), "one", ""); err != nil {
			t.Fatal(err)
		}
		one, err := s.Dir(context.Background(), "one")
		if err != nil {
			t.Fatal(err)
		}
		var fs unix.Statfs_t
		if err := unix.Statfs(root, &fs); err != nil {
			t.Fatal(err)
		}
		for dir, want := range map[string]bool{filepath.Join(root, kind, "snapshots"): fs.Type == unix.EXT4_SUPER_MAGIC, one: false} {
			f, err := os.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
			if got := err == nil && flags&topDir != 0; got != want {
				t.Errorf("%s: the flag is set: %v, want %v (%v)", dir, got, want, err)
			}
		}
	}
}
