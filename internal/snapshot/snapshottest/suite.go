// Package snapshottest is the suite that every kind of snapshot store passes:
// containerd's own, and what Kiln adds.
package snapshottest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	_ "github.com/containerd/containerd/v2/pkg/testutil" // defines the flag that lets tests mount
	"github.com/containerd/errdefs"

	"github.com/kiln-build/kiln/internal/snapshot"
)

// Run runs the suite on stores of a kind. It needs to be root.
func Run(t *testing.T, kind string) {
	if err := flag.Set("test.root", "true"); err != nil {
		t.Fatalf("let containerd's suite mount: %v", err)
	}
	testsuite.SnapshotterSuite(t, kind, func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		s, err := snapshot.Open(root, kind)
		if err != nil {
			return nil, nil, err
		}
		return s, s.Close, nil
	})
	t.Run("FrozenDirs", func(t *testing.T) { frozenDirs(t, kind) })
	t.Run("Usage", func(t *testing.T) { usage(t, kind) })
	t.Run("RemoveAll", func(t *testing.T) { removeAll(t, kind) })
	t.Run("SurvivesKill", func(t *testing.T) { survivesKill(t, kind) })
	t.Run("MachineWentDown", func(t *testing.T) {
		startsAfresh(t, kind, func(root string) error {
			return os.WriteFile(filepath.Join(root, kind, "open"), []byte("another boot"), 0o600)
		})
	})
	t.Run("DatabaseDamaged", func(t *testing.T) {
		startsAfresh(t, kind, func(root string) error {
			db := filepath.Join(root, kind, "metadata.db")
			data, err := os.ReadFile(db)
			if err != nil {
				return err
			}
			for i := range data[8192:] { // all but the two pages that say where the rest is
				data[8192+i] ^= 0x55
			}
			return os.WriteFile(db, data, 0o600)
		})
	})
	t.Run("DatabaseCut", func(t *testing.T) {
		startsAfresh(t, kind, func(root string) error {
			return os.Truncate(filepath.Join(root, kind, "metadata.db"), 12288)
		})
	})
}

// removeAll removes more snapshots than go into one transaction, some of which
// are not there; one that has a child stays, and is in nobody's way.
func removeAll(t *testing.T, kind string) {
	many := 503
	if kind == snapshot.Native {
		many = 3 // it has no transactions of many, and makes each with a sync
	}
	s := open(t, t.TempDir(), kind)
	defer s.Close()
	ctx := context.Background()
	names := []string{"parent", "never was"}
	freeze(t, s, "parent")
	if _, err := s.Prepare(ctx, "child", "parent"); err != nil {
		t.Fatal(err)
	}
	for i := range many {
		name := "s" + strconv.Itoa(i)
		if _, err := s.Prepare(ctx, name, ""); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	if err := s.RemoveAll(ctx, names); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("the snapshot with a child: got %v, expected a failed precondition", err)
	}
	var left []string
	if err := s.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		left = append(left, info.Name)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(left)
	if !slices.Equal(left, []string{"child", "parent"}) {
		t.Errorf("left are %v, expected the child and its parent", left)
	}
	if err := s.RemoveAll(ctx, []string{"child"}); err != nil {
		t.Error(err)
	}
	if err := s.RemoveAll(ctx, names); err != nil {
		t.Errorf("remove all but what is gone: %v", err)
	}
}

func open(t *testing.T, root, kind string) *snapshot.Store {
	t.Helper()
	s, err := snapshot.Open(root, kind)
	if err != nil {
		t.Fatal(err)
	}
	if s.Kind != kind {
		t.Fatalf("kind is %q, want %q", s.Kind, kind)
	}
	return s
}

// freeze makes a snapshot with one file.
func freeze(t *testing.T, s *snapshot.Store, name string) (dir string) {
	t.Helper()
	ctx := context.Background()
	if _, err := s.Prepare(ctx, name+"-key", ""); err != nil {
		t.Fatal(err)
	}
	dir, err := s.Dir(ctx, name+"-key")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte(name), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Freeze(ctx, name, name+"-key", dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// usage holds what Freeze counts to what the snapshotter itself counts.
func usage(t *testing.T, kind string) {
	s := open(t, t.TempDir(), kind)
	defer s.Close()
	ctx := context.Background()
	if _, err := s.Prepare(ctx, "key", ""); err != nil {
		t.Fatal(err)
	}
	dir, err := s.Dir(ctx, "key")
	if err != nil {
		t.Fatal(err)
	}
	if err := fill(dir); err != nil {
		t.Fatal(err)
	}
	want, err := s.Usage(ctx, "key")
	if err != nil {
		t.Fatal(err)
	}
	const made = 1 + 20 + 20*30 + 20 + 1 // what fill makes, and dir
	if want.Inodes != made {
		t.Errorf("the snapshotter counts %+v, where %d files were made", want, made)
	}
	got, err := s.Freeze(ctx, "name", "key", dir)
	if err != nil || got != want {
		t.Errorf("Freeze counts %+v (%v), the snapshotter counts %+v", got, err, want)
	}
	if kept, err := s.Usage(ctx, "name"); err != nil || kept != want {
		t.Errorf("kept is %+v (%v), the snapshotter counts %+v", kept, err, want)
	}
}

// fill makes folders in each other, with files, a link to each folder's first file,
// a symlink to what is much larger and, in the end, a large hole.
func fill(dir string) error {
	for i := range 20 {
		dir = filepath.Join(dir, fmt.Sprintf("d%d", i))
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		for j := range 30 {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%d", j)), make([]byte, 4096), 0o600); err != nil {
				return err
			}
		}
		if err := os.Link(filepath.Join(dir, "f0"), filepath.Join(dir, "again")); err != nil {
			return err
		}
		if err := os.Symlink("/", filepath.Join(dir, "symlink")); err != nil {
			return err
		}
	}
	f, err := os.Create(filepath.Join(dir, "hole"))
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(1<<30), f.Close())
}

func frozenDirs(t *testing.T, kind string) {
	root := t.TempDir()
	s := open(t, root, kind)
	ctx := context.Background()
	if frozen, others, err := s.FrozenDirs(ctx); err != nil || len(frozen)+len(others) > 0 {
		t.Fatalf("a new store has %v and %v (%v)", frozen, others, err)
	}
	dir := freeze(t, s, "one")
	if _, err := s.Prepare(ctx, "under way", ""); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		frozen, others, err := s.FrozenDirs(ctx)
		if err != nil || len(frozen) != 1 || frozen["one"] != dir || len(others) != 1 || others[0] != "under way" {
			t.Errorf("frozen are %v, others %v (%v)", frozen, others, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, root, kind)
		if s.Recovered() != "" {
			t.Errorf("after an orderly end: %s", s.Recovered())
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// survivesKill opens what another process, as it were, did not close.
func survivesKill(t *testing.T, kind string) {
	root := t.TempDir()
	dir := freeze(t, open(t, root, kind), "one")
	if err := copyTree(root, root+"-copy"); err != nil { // the lock of the first stays with it
		t.Fatal(err)
	}
	defer os.RemoveAll(root + "-copy")
	// Directories were made, and their numbers never committed.
	for n := range 9 {
		if err := os.MkdirAll(filepath.Join(root+"-copy", kind, "snapshots", strconv.Itoa(n+2), "fs"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, root+"-copy", kind)
	defer s.Close()
	frozen, _, err := s.FrozenDirs(context.Background())
	if err != nil || len(frozen) != 1 || s.Recovered() != "" {
		t.Fatalf("frozen are %v (%v), %q", frozen, err, s.Recovered())
	}
	rel, _ := filepath.Rel(root, dir)
	if data, err := os.ReadFile(filepath.Join(root+"-copy", rel, "file")); err != nil || string(data) != "one" {
		t.Errorf("file is %q (%v)", data, err)
	}
	freeze(t, s, "two")
	if left, err := os.ReadDir(filepath.Join(root+"-copy", kind, "snapshots")); err != nil || len(left) != 2 {
		t.Errorf("left are %v (%v), want two snapshots", left, err)
	}
}

func copyTree(from, to string) error { return os.CopyFS(to, os.DirFS(from)) }

func startsAfresh(t *testing.T, kind string, harm func(root string) error) {
	root := t.TempDir() + "-used"
	defer os.RemoveAll(root)
	copied := root + "-copy"
	defer os.RemoveAll(copied)
	first := open(t, root, kind)
	defer first.Close()
	for _, name := range []string{"one", "two", "three"} {
		freeze(t, first, name)
	}
	if err := errors.Join(copyTree(root, copied), harm(copied)); err != nil {
		t.Fatal(err)
	}
	s := open(t, copied, kind)
	defer s.Close()
	frozen, others, err := s.FrozenDirs(context.Background())
	if err != nil || len(frozen)+len(others) > 0 || s.Recovered() == "" {
		t.Errorf("frozen are %v, others %v (%v), %q", frozen, others, err, s.Recovered())
	}
	freeze(t, s, "one")
}
