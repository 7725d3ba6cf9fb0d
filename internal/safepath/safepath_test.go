package safepath

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// both runs a test with openat2 and without.
func both(t *testing.T, test func(t *testing.T, dir string, r *Root)) {
	t.Helper()
	for name, walk := range map[string]bool{"openat2": false, "walking": true} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "root")
			must(t, os.Mkdir(dir, 0o755))
			r, err := Open(dir)
			must(t, err)
			t.Cleanup(func() { r.Close() })
			r.walk.Store(walk)
			test(t, dir, r)
			if !walk && r.walk.Load() {
				t.Error("openat2 is not to be had on this machine: only the other way was tested")
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, file, content string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(file), 0o755))
	must(t, os.WriteFile(file, []byte(content), 0o644))
}

func read(r *Root, name string) (string, error) {
	f, err := r.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	return string(b), err
}

// hostile fills dir with ways out; the file "secret" lies beside it.
func hostile(t *testing.T, dir string) {
	t.Helper()
	write(t, filepath.Join(dir, "../secret"), "outside")
	write(t, filepath.Join(dir, "in/file"), "inside")
	for name, target := range map[string]string{
		"abs":       "/",
		"up":        "..",
		"upup":      "../../../../../..",
		"out":       "../secret",
		"in/out":    "../../secret",
		"host":      filepath.Dir(dir),
		"loop":      "loop",
		"ping":      "pong",
		"pong":      "ping",
		"toin":      "/in",
		"chain":     "toin/../toin/file",
		"dangling":  "in/new",
		"procroot":  "/proc/self/root",
		"in/self":   "/in/../in/file",
		"deep/x":    "/up/up/in",
		"trailing":  "in/",
		"in/dotdot": "..",
	} {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		must(t, os.Symlink(target, filepath.Join(dir, name)))
	}
}

func TestReadStaysInside(t *testing.T) {
	both(t, func(t *testing.T, dir string, r *Root) {
		hostile(t, dir)
		for name, want := range map[string]string{
			"in/file": "inside", "/in/file": "inside", "../../in/file": "inside", "x/../in/file": "inside",
			"toin/file": "inside", "chain": "inside", "in/self": "inside", "deep/x/file": "inside",
			"abs/in/file": "inside", "upup/in/file": "inside", "up/abs/up/in/file": "inside", "trailing/file": "inside",
		} {
			got, err := read(r, name)
			if err != nil || got != want {
				t.Errorf("read %q: %q, %v; want %q", name, got, err, want)
			}
		}
		for name, want := range map[string]error{
			"out": fs.ErrNotExist, "in/out": fs.ErrNotExist, "secret": fs.ErrNotExist, "../secret": fs.ErrNotExist,
			"up/secret": fs.ErrNotExist, "host/secret": fs.ErrNotExist, "dangling": fs.ErrNotExist,
			"loop": unix.ELOOP, "ping/x": unix.ELOOP, "in/file/x": unix.ENOTDIR, "procroot/etc": fs.ErrNotExist,
			"a\x00b": unix.EINVAL,
		} {
			if got, err := read(r, name); !errors.Is(err, want) {
				t.Errorf("read %q: %q, %v; want %v", name, got, err, want)
			}
		}
	})
}

func TestErrorsHideTheMachine(t *testing.T) {
	both(t, func(t *testing.T, dir string, r *Root) {
		_, err := read(r, "/no/such")
		var pe *fs.PathError
		if !errors.As(err, &pe) || pe.Path != "/no/such" || strings.Contains(err.Error(), dir) {
			t.Fatalf("error %v, want a PathError of the name given", err)
		}
	})
}

func TestResolve(t *testing.T) {
	both(t, func(t *testing.T, dir string, r *Root) {
		hostile(t, dir)
		for name, want := range map[string]string{
			"": "/", "/": "/", "..": "/", "chain": "/in/file", "toin/none/below": "/in/none/below",
			"out": "/secret", "host": filepath.Dir(dir), "dangling": "/in/new", "upup/in": "/in",
			"deep/x/self": "/in/file", "in/dotdot/toin": "/in",
		} {
			if got, err := r.Resolve(name); err != nil || got != want {
				t.Errorf("resolve %q = %q, %v; want %q", name, got, err, want)
			}
		}
		if got, err := r.Resolve("ping"); !errors.Is(err, unix.ELOOP) {
			t.Errorf("resolve of a loop = %q, %v", got, err)
		}
	})
}

// TestChrootDir has names mean what they would to a process in a chroot.
func TestChrootDir(t *testing.T) {
	both(t, func(t *testing.T, dir string, r *Root) {
		hostile(t, dir)
		must(t, os.MkdirAll(filepath.Join(dir, "one/two"), 0o755))
		must(t, os.Symlink("/one/two", filepath.Join(dir, "short")))
		for name, want := range map[string]string{
			"": "/", "/": "/", "..": "/", "/../..": "/", "in/": "/in", "//in//.": "/in", "toin": "/in", "abs/in": "/in",
			"upup/in": "/in", "deep/x": "/in", "trailing": "/in", "in/dotdot": "/",
			"short/..": "/one", "one/two/../..": "/", "short/../two": "/one/two",
		} {
			got, err := r.ChrootDir(name)
			if err != nil {
				t.Errorf("open %q: %v", name, err)
				continue
			}
			defer got.Close()
			path, err := os.Readlink(procPath(int(got.Fd())))
			must(t, err)
			if path = strings.TrimPrefix(path, dir); path != strings.TrimSuffix(want, "/") {
				t.Errorf("open %q: got the directory %q, want %q", name, path, want)
			}
		}
		for name, want := range map[string]error{
			"out": unix.ENOENT, "host": unix.ENOENT, "procroot": unix.ENOENT, "missing": unix.ENOENT, "missing/..": unix.ENOENT,
			"in/file": unix.ENOTDIR, "in/file/..": unix.ENOTDIR, "loop": unix.ELOOP, "ping/..": unix.ELOOP, "in\x00": unix.EINVAL,
		} {
			if got, err := r.ChrootDir(name); !errors.Is(err, want) {
				t.Errorf("open %q: got %v, %v, want %v", name, got, err, want)
			}
		}
	})
}

func TestSpecialFilesAreNotOpened(t *testing.T) {
	both(t, func(t *testing.T, dir string, r *Root) {
		must(t, r.Mknod("fifo", unix.S_IFIFO|0o644, 0))
		must(t, r.Mknod("zero", unix.S_IFCHR|0o644, unix.Mkdev(1, 5)))
		must(t, os.Symlink("zero", filepath.Join(dir, "link")))
		for _, name := range []string{"fifo", "zero", "link"} {
			for _, flags := range []int{os.O_RDONLY, os.O_RDWR | os.O_CREATE | os.O_TRUNC} {
				if f, err := r.OpenFile(name, flags, 0o644); !errors.Is(err, ErrSpecial) {
					t.Errorf("open %s: %v, %v; want ErrSpecial", name, f, err)
				}
			}
		}
	})
}

func TestWriteStaysInside(t *testing.T) {
	both(t, func(t *testing.T, dir string, r *Root) {
		hostile(t, dir)
		for _, name := range []string{"out", "dangling", "in/out", "up/fresh", "in/file"} {
			f, err := r.Create(name)
			if err != nil {
				t.Fatalf("create %s: %v", name, err)
			}
			_, err = f.WriteString("mine")
			must(t, errors.Join(err, f.Close()))
		}
		for _, name := range []string{"secret", "in/new", "fresh", "in/file"} {
			if got, _ := os.ReadFile(filepath.Join(dir, name)); string(got) != "mine" {
				t.Errorf("%s holds %q", name, got)
			}
		}
		if got, _ := os.ReadFile(filepath.Join(dir, "../secret")); string(got) != "outside" {
			t.Fatalf("the file outside now holds %q", got)
		}
		if _, err := r.OpenFile("out", os.O_RDONLY|unix.O_NOFOLLOW, 0); !errors.Is(err, unix.ELOOP) {
			t.Errorf("open of a symlink with O_NOFOLLOW: %v", err)
		}
		if _, err := r.OpenFile("out", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); !errors.Is(err, fs.ErrExist) {
			t.Errorf("exclusive create over a symlink: %v", err)
		}
	})
}

func TestMkdirAll(t *testing.T) {
	both(t, func(t *testing.T, dir string, r *Root) {
		hostile(t, dir)
		for _, c := range []struct {
			name string
			made []string
		}{
			{"a/b/c", []string{"/a", "/a/b", "/a/b/c"}},
			{"a/b/c", nil},
			{"a/b/d", []string{"/a/b/d"}},
			{"toin/sub", []string{"/in/sub"}},
			{"/", nil},
			{"dangling/x", []string{"/in/new", "/in/new/x"}},
			{"out/x", []string{"/secret", "/secret/x"}},
		} {
			made, err := r.MkdirAll(c.name, 0o755)
			if err != nil || !slices.Equal(made, c.made) {
				t.Errorf("MkdirAll %q = %q, %v; want %q", c.name, made, err, c.made)
			}
			if fi, err := os.Stat(filepath.Join(dir, "..", "secret")); err != nil || fi.IsDir() {
				t.Fatal("touched what is outside")
			}
		}
		for _, name := range []string{"in/file", "in/file/x"} {
			if _, err := r.MkdirAll(name, 0o755); !errors.Is(err, unix.ENOTDIR) {
				t.Errorf("MkdirAll %q over a file: %v", name, err)
			}
		}
	})
}

func TestRemove(t *testing.T) {
	both(t, func(t *testing.T, dir string, r *Root) {
		hostile(t, dir)
		for _, name := range []string{"abs", "up", "host", "out", "toin"} {
			must(t, r.RemoveAll(name))
			if _, err := r.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s is still there: %v", name, err)
			}
		}
		must(t, r.RemoveAll("none/such"))
		must(t, r.RemoveAll("in/file/x"))
		for _, name := range []string{"..", "../..", "/", "", "a/../.."} {
			if err := r.RemoveAll(name); !errors.Is(err, unix.EBUSY) {
				t.Errorf("RemoveAll(%q) = %v, want an error", name, err)
			}
		}
		if got, err := read(r, "in/file"); err != nil || got != "inside" {
			t.Errorf("in/file: %q, %v", got, err)
		}
		if err := r.Remove("in"); !errors.Is(err, unix.ENOTEMPTY) {
			t.Errorf("Remove of a full directory: %v", err)
		}
		must(t, r.RemoveAll("upup/in"))
		must(t, r.Mkdir("empty", 0o755))
		must(t, r.Remove("empty"))
		if _, err := os.Stat(filepath.Join(dir, "../secret")); err != nil {
			t.Error(err)
		}
		left, err := r.ReadDir("/")
		must(t, err)
		for _, e := range left {
			if e.Name() == "in" || e.Name() == "empty" {
				t.Errorf("%s is left", e.Name())
			}
		}
	})
}

func TestAttributes(t *testing.T) {
	both(t, func(t *testing.T, dir string, r *Root) {
		hostile(t, dir)
		write(t, filepath.Join(dir, "f"), "x")
		must(t, os.Symlink("f", filepath.Join(dir, "l")))
		must(t, r.Chmod("l", 0o741|fs.ModeSetuid|fs.ModeSticky))
		must(t, r.Chown("l", 5, 6))
		must(t, r.Chmod("f", 0o741|fs.ModeSetuid|fs.ModeSticky)) // chown drops setuid
		must(t, r.Lchown("l", 7, 8))
		at := time.Unix(123, 456)
		must(t, r.Utimes("l", at, at))
		must(t, r.LSetXattr("f", "user.k", []byte("v")))
		fi, err := r.Stat("l")
		must(t, err)
		if uid, gid, _ := Owner(fi); uid != 5 || gid != 6 || fi.Mode() != 0o741|fs.ModeSetuid|fs.ModeSticky {
			t.Errorf("file: %v %d:%d", fi.Mode(), uid, gid)
		}
		if fi.ModTime().Equal(at) {
			t.Error("Utimes followed the link")
		}
		fi, err = r.Lstat("l")
		must(t, err)
		if uid, gid, _ := Owner(fi); uid != 7 || gid != 8 || !fi.ModTime().Equal(at) || fi.Mode().Type() != fs.ModeSymlink {
			t.Errorf("link: %v %d:%d %v", fi.Mode(), uid, gid, fi.ModTime())
		}
		if err := r.Lchmod("l", 0o777); !errors.Is(err, unix.ELOOP) {
			t.Errorf("Lchmod of a link: %v", err)
		}
		got, err := r.LXattrs("f")
		must(t, err)
		if string(got["user.k"]) != "v" {
			t.Errorf("xattrs %v", got)
		}
		if got, err := r.LXattrs("l"); err != nil || got["user.k"] != nil {
			t.Errorf("xattrs of the link: %v, %v", got, err)
		}
		must(t, r.LSetXattr("/", "user.top", []byte("t")))
		if got, err := r.LXattrs(""); err != nil || string(got["user.top"]) != "t" {
			t.Errorf("xattrs of the root: %v, %v", got, err)
		}
		if err := r.Chmod("out", 0); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("chmod through a link out: %v", err)
		}
	})
}

func TestLinksAndRename(t *testing.T) {
	both(t, func(t *testing.T, dir string, r *Root) {
		hostile(t, dir)
		must(t, r.Link("out", "hard"))
		if target, err := r.Readlink("hard"); err != nil || target != "../secret" {
			t.Errorf("hard link of a symlink: %q, %v", target, err)
		}
		must(t, r.Link("/toin/file", "up/../copy"))
		must(t, r.Rename("copy", "upup/toin/moved"))
		if got, err := read(r, "in/moved"); err != nil || got != "inside" {
			t.Errorf("%q, %v", got, err)
		}
		must(t, r.Symlink("/anything", "abs/in/s"))
		if target, err := r.Readlink("in/s"); err != nil || target != "/anything" {
			t.Errorf("%q, %v", target, err)
		}
		sub, err := r.Sub("toin")
		must(t, err)
		defer sub.Close()
		if got, err := read(sub, "../../file"); err != nil || got != "inside" {
			t.Errorf("through a sub-root: %q, %v", got, err)
		}
		if _, err := r.LSub("toin"); err == nil {
			t.Error("LSub followed a symlink")
		}
	})
}

// A component is swapped between a directory and a link out all the time:
// nothing may ever be read or written outside.
func TestRace(t *testing.T) {
	both(t, func(t *testing.T, dir string, r *Root) {
		outside := filepath.Join(dir, "../target")
		write(t, filepath.Join(outside, "f"), "outside")
		write(t, filepath.Join(dir, "real/f"), "inside")
		must(t, os.Symlink(outside, filepath.Join(dir, "evil")))
		must(t, os.Symlink("../target", filepath.Join(dir, "evil2")))
		must(t, os.Mkdir(filepath.Join(dir, "a"), 0o755))
		must(t, os.Rename(filepath.Join(dir, "real"), filepath.Join(dir, "a/x")))
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				for _, l := range []string{"evil", "evil2"} {
					_ = unix.Renameat2(unix.AT_FDCWD, filepath.Join(dir, "a/x"), unix.AT_FDCWD, filepath.Join(dir, l), unix.RENAME_EXCHANGE)
					_ = unix.Renameat2(unix.AT_FDCWD, filepath.Join(dir, "a/x"), unix.AT_FDCWD, filepath.Join(dir, l), unix.RENAME_EXCHANGE)
				}
			}
		})
		read1 := 0
		for range 3000 {
			got, err := read(r, "a/x/f")
			if got == "outside" {
				t.Fatal("read what is outside")
			}
			if err == nil && got == "inside" {
				read1++
			}
			if f, err := r.Create("a/x/g"); err == nil {
				f.Close()
			}
			_, _ = r.MkdirAll("a/x/sub/sub", 0o755)
			_ = r.RemoveAll("a/x/sub")
		}
		close(stop)
		wg.Wait()
		if read1 == 0 {
			t.Error("the file was never read: nothing was tested")
		}
		left, err := os.ReadDir(outside)
		must(t, err)
		if len(left) != 1 || left[0].Name() != "f" {
			t.Errorf("outside there is now %v", left)
		}
	})
}

func TestLongNames(t *testing.T) {
	both(t, func(t *testing.T, dir string, r *Root) {
		at := r
		name := strings.Repeat("n", 200)
		for range 30 {
			must(t, at.Mkdir(name, 0o755))
			next, err := at.Sub(name)
			must(t, err)
			defer next.Close()
			at = next
		}
		f, err := at.Create("leaf")
		must(t, err)
		f.Close()
		long := strings.Repeat(name+"/", 30) + "leaf"
		if _, err := r.Lstat(long); err != nil {
			t.Errorf("a path of %d bytes: %v", len(long), errors.Unwrap(err))
		}
		must(t, r.RemoveAll(name))
	})
}

// FuzzStaysInside makes two links with any targets and goes through them.
func FuzzStaysInside(f *testing.F) {
	f.Add("../..", "/", "l1/l2/secret")
	f.Add("l2/../..", "../l1", "l1")
	f.Add("/proc/self/root", ".", "l1/etc/passwd")
	f.Fuzz(func(t *testing.T, t1, t2, name string) {
		both(t, func(t *testing.T, dir string, r *Root) {
			write(t, filepath.Join(dir, "../secret"), "outside")
			write(t, filepath.Join(dir, "d/file"), "inside")
			_ = r.Symlink(t1, "l1")
			_ = r.Symlink(t2, "d/l2")
			if got, _ := read(r, name); got == "outside" {
				t.Fatalf("%q led out", name)
			}
			if p, err := r.Resolve(name); err == nil && (p == "" || p[0] != '/' || filepath.Clean(p) != p) {
				t.Fatalf("resolved %q to %q", name, p)
			}
			if h, err := r.OpenPath(name); err == nil {
				defer h.Close()
				at, err := os.Readlink(procPath(int(h.Fd())))
				must(t, err)
				if at != dir && !strings.HasPrefix(at, dir+"/") {
					t.Fatalf("%q led to %s", name, at)
				}
			}
			_ = r.RemoveAll(name)
			if got, err := os.ReadFile(filepath.Join(dir, "../secret")); err != nil || string(got) != "outside" {
				t.Fatalf("removing %q reached out", name)
			}
		})
	})
}
