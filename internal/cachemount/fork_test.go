package cachemount

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func open(t *testing.T, dir string, limits ...Limit) *Mounts {
	t.Helper()
	m, err := Open(dir, limits...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func use(t *testing.T, m *Mounts, id string, sharing Sharing) *Use {
	t.Helper()
	u, err := m.Acquire(t.Context(), Key{ID: id}, sharing, empty)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// files returns what is in a folder, by path; folders end in "/".
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		name, _ := filepath.Rel(dir, p)
		switch {
		case err != nil || name == ".":
			return err
		case d.IsDir():
			all[name+"/"] = ""
		case d.Type()&os.ModeSymlink != 0:
			to, err := os.Readlink(p)
			all[name] = "-> " + to
			return err
		default:
			b, err := os.ReadFile(p)
			all[name] = string(b)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func expect(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	if got := files(t, dir); !maps.Equal(got, want) {
		t.Errorf("the folder has %q, want %q", got, want)
	}
}

// forkable fails where the machine cannot do what these tests are about.
func forkable(t *testing.T, m *Mounts) {
	t.Helper()
	if m.overlay() == nil {
		t.Fatal("overlays cannot be mounted in the temporary folder; these tests need root, or a user namespace")
	}
}

func TestForks(t *testing.T) {
	dir := t.TempDir()
	m := open(t, dir)
	forkable(t, m)
	first := use(t, m, "npm", Private)
	write(t, first.Dir, map[string]string{"kept": "1", "changed": "1", "gone": "1", "dir/old": "1", "tree/a/b": "1"})
	giveBack(t, first, true)

	a, b, failing := use(t, m, "npm", Private), use(t, m, "npm", Private), use(t, m, "npm", Private)
	for _, u := range []*Use{a, b, failing} {
		expect(t, u.Dir, map[string]string{"kept": "1", "changed": "1", "gone": "1", "dir/": "", "dir/old": "1", "tree/": "", "tree/a/": "", "tree/a/b": "1"})
	}
	write(t, a.Dir, map[string]string{"of-a": "1", "changed": "a"})
	write(t, b.Dir, map[string]string{"of-b": "1", "changed": "b", "tree/new": "b"})
	write(t, failing.Dir, map[string]string{"changed": "failing"})
	for _, name := range []string{"gone", "dir"} {
		if err := os.RemoveAll(filepath.Join(b.Dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	write(t, b.Dir, map[string]string{"dir/new": "b"}) // hides what was there
	giveBack(t, a, true)
	late := use(t, m, "npm", Private)
	if got := files(t, late.Dir)["changed"]; got != "a" {
		t.Errorf("a fork after one that ended well begins with %q, want its files", got)
	}
	giveBack(t, b, true)
	giveBack(t, failing, false)
	giveBack(t, late, false)

	want := map[string]string{"kept": "1", "changed": "b", "of-b": "1", "dir/": "", "dir/new": "b", "tree/": "", "tree/a/": "", "tree/a/b": "1", "tree/new": "b"}
	after := use(t, m, "npm", Shared)
	expect(t, after.Dir, want)
	giveBack(t, after, true)
	entries, err := os.ReadDir(filepath.Dir(after.Dir))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() == forksName || e.Name() == foldName {
			t.Errorf("%s is left", e.Name())
		}
	}
	mounted, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounted), dir) {
		t.Errorf("forks are still mounted: %v", err)
	}
}

// Who works in the files themselves waits for the forks, and a fork begins
// elsewhere as long as somebody does.
func TestForksAndWriters(t *testing.T) {
	m := open(t, t.TempDir())
	forkable(t, m)
	fork := use(t, m, "go", Private)
	got := make(chan *Use)
	go func() {
		u, err := m.Acquire(t.Context(), Key{ID: "go"}, Shared, empty)
		if err != nil {
			t.Error(err)
		}
		got <- u
	}()
	write(t, fork.Dir, map[string]string{"a": "1"})
	giveBack(t, fork, true)
	shared := <-got
	expect(t, shared.Dir, map[string]string{"a": "1"})
	other := use(t, m, "go", Private)
	expect(t, other.Dir, map[string]string{})
	giveBack(t, other, true)
	giveBack(t, shared, true)
}

// Forks that overlap all the time never stack more than an overlay can take, and
// none begins with less than was kept before.
func TestForksOverlap(t *testing.T) {
	m := open(t, t.TempDir())
	forkable(t, m)
	first := use(t, m, "go", Private)
	write(t, first.Dir, map[string]string{"first": "1"})
	giveBack(t, first, true)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 2 * maxLayers {
				u := use(t, m, "go", Private)
				if got := files(t, u.Dir)["first"]; got != "1" {
					t.Error("a fork begins without what was kept")
				}
				giveBack(t, u, true)
			}
		})
	}
	all.Wait()
	if names, err := m.named("go"); err != nil || len(names) != 1 {
		t.Errorf("the mount has become %d folders: %v", len(names), err)
	}
}

// A crash in the middle of a fold, at each of its steps, leaves a mount that is
// whole when it is opened again.
func TestFoldSurvivesCrashes(t *testing.T) {
	build := func(t *testing.T) (dir, name string, m *Mounts) {
		dir = t.TempDir()
		m = open(t, dir)
		forkable(t, m)
		u := use(t, m, "npm", Private)
		write(t, u.Dir, map[string]string{"a": "1", "b/c": "1", "d/e": "1"})
		giveBack(t, u, true)
		name, err := m.latest("npm")
		if err != nil {
			t.Fatal(err)
		}
		// What a fork leaves, as the overlay made it.
		o := m.overlay()
		fork := filepath.Join(dir, name, forksName, "7")
		if err := os.MkdirAll(fork, 0o700); err != nil {
			t.Fatal(err)
		}
		target, err := o.mount(fork, filepath.Join(dir, mountPoints), []string{filepath.Join(dir, name, filesName)})
		if err != nil {
			t.Fatal(err)
		}
		write(t, target, map[string]string{"a": "2", "new/x": "2"})
		for _, gone := range []string{"b", "d"} {
			if err := os.RemoveAll(filepath.Join(target, gone)); err != nil {
				t.Fatal(err)
			}
		}
		write(t, target, map[string]string{"d/f": "2"})
		if err := unix.Unmount(target, 0); err != nil {
			t.Fatal(err)
		}
		if err := writeJSON(filepath.Join(dir, name, foldName), []string{"7"}); err != nil {
			t.Fatal(err)
		}
		return dir, name, m
	}
	want := map[string]string{"a": "2", "new/": "", "new/x": "2", "d/": "", "d/f": "2"}
	for _, moved := range [][]string{nil, {"a"}, {"a", "new"}, {"d-removed"}} {
		t.Run(strings.Join(moved, "+"), func(t *testing.T) {
			dir, name, _ := build(t)
			upper, to := filepath.Join(dir, name, forksName, "7", "upper"), filepath.Join(dir, name, filesName)
			for _, e := range moved {
				var err error
				if e == "d-removed" {
					err = os.RemoveAll(filepath.Join(to, "d"))
				} else {
					err = os.Rename(filepath.Join(upper, e), filepath.Join(to, e))
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			m := open(t, dir)
			u := use(t, m, "npm", Shared)
			expect(t, u.Dir, want)
			giveBack(t, u, true)
		})
	}
}

func TestLimits(t *testing.T) {
	m := open(t, t.TempDir(), Limit{Name: "small-*", MaxSize: 64 << 10}, Limit{Name: "*", MaxAge: 1})
	for _, id := range []string{"small-a", "large"} {
		u := use(t, m, id, Shared)
		write(t, u.Dir, map[string]string{"file": strings.Repeat("x", 100<<10)})
		giveBack(t, u, true)
	}
	names := func() (all []string) {
		known, err := m.list()
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range known {
			all = append(all, i.ID)
		}
		return all
	}
	if got := names(); !slices.Equal(got, []string{"large"}) {
		t.Errorf("kept are %v, want the one that has no limit of its size", got)
	}
	u := use(t, m, "large", Shared)
	if err := m.Expire(u.usedAt(t, m).Add(10)); err != nil || len(names()) != 1 {
		t.Errorf("a mount in use has expired: %v", err)
	}
	at := u.usedAt(t, m)
	giveBack(t, u, true)
	if err := m.Expire(at.Add(10)); err != nil || len(names()) != 0 {
		t.Errorf("an old mount is still there: %v", err)
	}
	if _, err := Open(t.TempDir(), Limit{Name: "[x"}); err == nil {
		t.Error("a limit with a broken pattern is taken")
	}
}
