package cachemount

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func empty(string) error { return nil }

func acquire(t *testing.T, c *Mounts, id string, sharing Sharing) (string, func()) {
	t.Helper()
	u, err := c.Acquire(t.Context(), Key{ID: id}, sharing, empty)
	if err != nil {
		t.Fatal(err)
	}
	return u.Dir, func() { giveBack(t, u, true) }
}

func giveBack(t *testing.T, u *Use, good bool) {
	t.Helper()
	if err := u.Release(good); err != nil {
		t.Error(err)
	}
}

func TestCacheMountsShare(t *testing.T) {
	c, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	a, releaseA := acquire(t, c, "go", Shared)
	b, releaseB := acquire(t, c, "go", Shared)
	other, releaseOther := acquire(t, c, "npm", Shared)
	if a != b || a == other {
		t.Errorf("shared mounts are %s and %s, another id's is %s", a, b, other)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Acquire(ctx, Key{ID: "go"}, Locked, empty); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a locked mount did not wait for the shared ones: %v", err)
	}
	private, releasePrivate := acquire(t, c, "go", Private)
	if private == a {
		t.Error("a private mount has the directory of a shared one")
	}
	releaseA()
	releaseB()
	releaseOther()
	locked, releaseLocked := acquire(t, c, "go", Locked)
	if locked != a {
		t.Errorf("the locked mount is %s, want the one that is free, %s", locked, a)
	}
	releaseLocked()
	releasePrivate()
}

func TestLockedCacheMountComesFree(t *testing.T) {
	c, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	_, release := acquire(t, c, "apt", Locked)
	got := make(chan error, 1)
	go func() {
		u, err := c.Acquire(t.Context(), Key{ID: "apt"}, Locked, empty)
		if err == nil {
			err = u.Release(true)
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
	c, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("cut off")
	_, err = c.Acquire(t.Context(), Key{ID: "seeded"}, Shared, func(dir string) error {
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
		c, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		u, err := c.Acquire(t.Context(), Key{ID: "seeded"}, Shared, fill)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(u.Dir, "whole")); err != nil {
			t.Error(err)
		}
		giveBack(t, u, true)
	}
	if fills != 1 {
		t.Errorf("filled %d times, want once", fills)
	}
}

func TestCacheMountsInUseStay(t *testing.T) {
	c, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	_, release := acquire(t, c, "pip", Shared)
	usage := func() Usage {
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
	c, err := Open(dir)
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
	idle, release := acquire(t, c, "go", Locked)
	write(idle, "old")
	release()
	used, releaseUsed := acquire(t, c, "npm", Locked)
	write(used, "old")
	other, releaseOther := acquire(t, c, "apt", Shared)
	write(other, "old")
	releaseOther()

	renew := func(ids ...string) {
		t.Helper()
		for _, id := range ids {
			if err := c.Renew(id); err != nil {
				t.Fatal(err)
			}
		}
	}
	renew("go", "npm")

	anew, release := acquire(t, c, "go", Locked)
	if holds(anew, "old") {
		t.Error("an idle cache mount keeps its files")
	}
	release()
	second, releaseSecond := acquire(t, c, "npm", Locked) // waits for nobody
	if holds(second, "old") || !holds(used, "old") {
		t.Error("a cache mount in use is not replaced by a second one")
	}
	releaseUsed()
	releaseSecond()
	if holds(used, "old") {
		t.Error("an outdated cache mount outlives its last user")
	}
	if other, release = acquire(t, c, "apt", Shared); !holds(other, "old") {
		t.Error("a cache mount that no step renews lost its files")
	}
	release()
}

func TestCacheMountsOfDifferentBases(t *testing.T) {
	c, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	plain, release := acquire(t, c, "go", Shared)
	defer release()
	based, err := c.Acquire(t.Context(), Key{"go", "layer"}, Shared, empty)
	if err != nil {
		t.Fatal(err)
	}
	defer giveBack(t, based, true)
	if plain == based.Dir {
		t.Error("a cache mount that begins empty has the files of one with a base")
	}
}

func TestCacheMountFilledOnceForAll(t *testing.T) {
	c, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var fills atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			u, err := c.Acquire(t.Context(), Key{ID: "go"}, Shared, func(dir string) error {
				fills.Add(1)
				return os.WriteFile(filepath.Join(dir, "seed"), nil, 0o600)
			})
			if err != nil {
				t.Error(err)
				return
			}
			giveBack(t, u, true)
		})
	}
	all.Wait()
	if n := fills.Load(); n != 1 {
		t.Errorf("filled %d times, want once", n)
	}
}
