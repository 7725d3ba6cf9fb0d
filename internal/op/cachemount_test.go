package op

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kiln-build/kiln/llb"
)

func empty(string) error { return nil }

func acquire(t *testing.T, c *CacheMounts, id string, sharing llb.CacheSharing) (string, func()) {
	t.Helper()
	dir, release, err := c.acquire(t.Context(), cacheKey{id: id}, sharing, empty)
	if err != nil {
		t.Fatal(err)
	}
	return dir, release
}

func TestCacheMountsShare(t *testing.T) {
	c, err := NewCacheMounts(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	a, releaseA := acquire(t, c, "go", llb.CacheShared)
	b, releaseB := acquire(t, c, "go", llb.CacheShared)
	other, releaseOther := acquire(t, c, "npm", llb.CacheShared)
	if a != b || a == other {
		t.Errorf("shared mounts are %s and %s, another id's is %s", a, b, other)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, _, err := c.acquire(ctx, cacheKey{id: "go"}, llb.CacheLocked, empty); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a locked mount did not wait for the shared ones: %v", err)
	}
	private, releasePrivate := acquire(t, c, "go", llb.CachePrivate)
	if private == a {
		t.Error("a private mount has the directory of a shared one")
	}
	releaseA()
	releaseB()
	releaseOther()
	locked, releaseLocked := acquire(t, c, "go", llb.CacheLocked)
	if locked != a {
		t.Errorf("the locked mount is %s, want the one that is free, %s", locked, a)
	}
	releaseLocked()
	releasePrivate()
}

func TestLockedCacheMountComesFree(t *testing.T) {
	c, err := NewCacheMounts(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	_, release := acquire(t, c, "apt", llb.CacheLocked)
	got := make(chan error, 1)
	go func() {
		_, release, err := c.acquire(t.Context(), cacheKey{id: "apt"}, llb.CacheLocked, empty)
		if err == nil {
			release()
		}
		got <- err
	}()
	release()
	release() // once is enough
	if err := <-got; err != nil {
		t.Error(err)
	}
}

// What a seed was cut off at is not taken for a seeded mount.
func TestCacheMountSeedIsWhole(t *testing.T) {
	dir := t.TempDir()
	c, err := NewCacheMounts(dir)
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("cut off")
	_, _, err = c.acquire(t.Context(), cacheKey{id: "seeded"}, llb.CacheShared, func(dir string) error {
		return errors.Join(os.WriteFile(filepath.Join(dir, "half"), nil, 0o600), broken)
	})
	if !errors.Is(err, broken) {
		t.Fatalf("got %v", err)
	}
	fills := 0
	fill := func(dir string) error {
		fills++
		if _, err := os.Stat(filepath.Join(dir, "half")); err == nil {
			t.Error("the half seed is still there")
		}
		return os.WriteFile(filepath.Join(dir, "whole"), []byte("x"), 0o600)
	}
	for range 2 { // also after a restart
		c, err := NewCacheMounts(dir)
		if err != nil {
			t.Fatal(err)
		}
		got, release, err := c.acquire(t.Context(), cacheKey{id: "seeded"}, llb.CacheShared, fill)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(got, "whole")); err != nil {
			t.Error(err)
		}
		release()
	}
	if fills != 1 {
		t.Errorf("filled %d times, want once", fills)
	}
}

func TestCacheMountsInUseStay(t *testing.T) {
	c, err := NewCacheMounts(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	_, release := acquire(t, c, "pip", llb.CacheShared)
	usage := func() CacheMountUsage {
		t.Helper()
		all, err := c.Usage()
		if err != nil || len(all) != 1 {
			t.Fatalf("usage: %v, %v", all, err)
		}
		return all[0]
	}
	u := usage()
	if u.ID != "pip" || !u.InUse || u.Uses != 1 {
		t.Errorf("usage: %+v", u)
	}
	if removed, err := c.Remove(u.Name); removed || err != nil {
		t.Errorf("removed one in use: %v, %v", removed, err)
	}
	release()
	if removed, err := c.Remove(usage().Name); !removed || err != nil {
		t.Errorf("not removed: %v, %v", removed, err)
	}
	if all, err := c.Usage(); err != nil || len(all) != 0 {
		t.Errorf("usage after removal: %v, %v", all, err)
	}
}

func TestCacheMountsRenew(t *testing.T) {
	dir := t.TempDir()
	c, err := NewCacheMounts(dir)
	if err != nil {
		t.Fatal(err)
	}
	write := func(dir, name string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	holds := func(dir, name string) bool {
		_, err := os.Stat(filepath.Join(dir, name))
		return err == nil
	}
	idle, release := acquire(t, c, "go", llb.CacheLocked)
	write(idle, "old")
	release()
	used, releaseUsed := acquire(t, c, "npm", llb.CacheLocked)
	write(used, "old")
	other, releaseOther := acquire(t, c, "apt", llb.CacheShared)
	write(other, "old")
	releaseOther()

	renew := func(ids ...string) {
		t.Helper()
		w := &Worker{CacheMounts: c}
		op := &llb.ExecOp{}
		for _, id := range ids {
			op.Mounts = append(op.Mounts, llb.Mount{Dest: "/" + id, Kind: llb.MountCache, CacheID: id, Input: llb.None, Output: llb.None})
		}
		g := &llb.Graph{Root: llb.Edge{Vertex: &llb.Vertex{Op: op, Meta: llb.Metadata{IgnoreCache: true}}}}
		if err := w.RenewCacheMounts(g); err != nil {
			t.Fatal(err)
		}
	}
	renew("go", "npm")

	anew, release := acquire(t, c, "go", llb.CacheLocked)
	if holds(anew, "old") {
		t.Error("an idle cache mount keeps its files")
	}
	release()
	second, releaseSecond := acquire(t, c, "npm", llb.CacheLocked) // waits for nobody
	if holds(second, "old") || !holds(used, "old") {
		t.Error("a cache mount in use is not replaced by a second one")
	}
	releaseUsed()
	releaseSecond()
	if holds(used, "old") {
		t.Error("an outdated cache mount outlives its last user")
	}
	if other, release = acquire(t, c, "apt", llb.CacheShared); !holds(other, "old") {
		t.Error("a cache mount that no step renews lost its files")
	}
	release()
}

func TestCacheMountsOfDifferentBases(t *testing.T) {
	c, err := NewCacheMounts(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	plain, release := acquire(t, c, "go", llb.CacheShared)
	defer release()
	based, releaseBased, err := c.acquire(t.Context(), cacheKey{"go", "layer"}, llb.CacheShared, empty)
	if err != nil {
		t.Fatal(err)
	}
	defer releaseBased()
	if plain == based {
		t.Error("a cache mount that begins empty has the files of one with a base")
	}
}

func TestCacheMountFilledOnceForAll(t *testing.T) {
	c, err := NewCacheMounts(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var fills atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			_, release, err := c.acquire(t.Context(), cacheKey{id: "go"}, llb.CacheShared, func(dir string) error {
				fills.Add(1)
				return os.WriteFile(filepath.Join(dir, "seed"), nil, 0o600)
			})
			if err != nil {
				t.Error(err)
				return
			}
			release()
		})
	}
	all.Wait()
	if n := fills.Load(); n != 1 {
		t.Errorf("filled %d times, want once", n)
	}
}
