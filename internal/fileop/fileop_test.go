package fileop

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/internal/safepath"
	"github.com/kiln-build/kiln/llb"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// root makes a directory, beside which lies a file "secret".
func root(t testing.TB) (*safepath.Root, string) {
	t.Helper()
	old := unix.Umask(0o022)
	t.Cleanup(func() { unix.Umask(old) })
	dir := filepath.Join(t.TempDir(), "root")
	must(t, os.Mkdir(dir, 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "../secret"), []byte("outside"), 0o600))
	r, err := safepath.Open(dir)
	must(t, err)
	t.Cleanup(func() {
		r.Close()
		if got, err := os.ReadFile(filepath.Join(dir, "../secret")); string(got) != "outside" {
			t.Errorf("the file outside the root holds %q, %v", got, err)
		}
		if left, _ := os.ReadDir(filepath.Join(dir, "..")); len(left) != 2 {
			t.Errorf("outside the root there is now %v", left)
		}
	})
	return r, dir
}

var epoch = time.Unix(1_000_000_000, 123)

// plant makes a tree: "path" is a file that holds its name, "path=x" one that
// holds x, "path/" a directory, "path -> x" a symlink, "path <- x" a hard link,
// each with a mode after "@", and an owner after "#".
func plant(t testing.TB, dir string, items ...string) {
	t.Helper()
	var dirs []string
	for _, item := range items {
		item, owner, hasOwner := strings.Cut(item, "#")
		item, mode, hasMode := strings.Cut(item, "@")
		name, target, isLink := strings.Cut(item, " -> ")
		name, old, isHard := strings.Cut(name, " <- ")
		name, content, has := strings.Cut(name, "=")
		p := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Dir(p), 0o755))
		switch {
		case isLink:
			must(t, os.Symlink(target, p))
		case isHard:
			must(t, os.Link(filepath.Join(dir, old), p))
		case strings.HasSuffix(name, "/"):
			must(t, os.MkdirAll(p, 0o755))
		default:
			if !has {
				content = name
			}
			must(t, os.WriteFile(p, []byte(content), 0o644))
		}
		if hasOwner {
			var uid, gid int
			_, err := fmt.Sscanf(owner, "%d:%d", &uid, &gid)
			must(t, err)
			must(t, os.Lchown(p, uid, gid))
		}
		if hasMode {
			var bits uint32
			_, err := fmt.Sscanf(mode, "%o", &bits)
			must(t, err)
			must(t, unix.Chmod(p, bits))
		}
		dirs = append(dirs, p)
	}
	ts := []unix.Timespec{unix.NsecToTimespec(epoch.UnixNano()), unix.NsecToTimespec(epoch.UnixNano())}
	for _, p := range dirs {
		for ; strings.HasPrefix(p, dir); p = filepath.Dir(p) {
			must(t, unix.UtimesNanoAt(unix.AT_FDCWD, p, ts, unix.AT_SYMLINK_NOFOLLOW))
		}
	}
}

// list describes a tree as plant takes it, with all modes and owners that are
// not 755 for a directory, 644 for a file, and root.
func list(t testing.TB, dir string) (items []string) {
	t.Helper()
	seen := map[uint64]string{}
	must(t, filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		must(t, err)
		rel, _ := filepath.Rel(dir, p)
		var st unix.Stat_t
		must(t, unix.Lstat(p, &st))
		item, usual := rel, uint32(0o644)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			item, usual = rel+"/", 0o755
			if rel == "." {
				return nil
			}
		case unix.S_IFLNK:
			target, err := os.Readlink(p)
			must(t, err)
			item, usual = rel+" -> "+target, 0o777
		case unix.S_IFREG:
			if first := seen[st.Ino]; first != "" {
				items = append(items, rel+" <- "+first)
				return nil
			}
			seen[st.Ino] = rel
			b, err := os.ReadFile(p)
			must(t, err)
			if string(b) != rel {
				item += "=" + string(b)
			}
		default:
			item += fmt.Sprintf(" %o %d", st.Mode&unix.S_IFMT, st.Rdev)
		}
		if m := st.Mode & 0o7777; m != usual {
			item += fmt.Sprintf("@%o", m)
		}
		if st.Uid != 0 || st.Gid != 0 {
			item += fmt.Sprintf("#%d:%d", st.Uid, st.Gid)
		}
		items = append(items, item)
		return nil
	}))
	slices.Sort(items)
	return items
}

func wantTree(t testing.TB, dir string, want ...string) {
	t.Helper()
	slices.Sort(want)
	if got := list(t, dir); !slices.Equal(got, want) {
		t.Errorf("there is\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

func wantErr(t testing.TB, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want one with %q", err, want)
	}
}

func mtime(t testing.TB, p string) time.Time {
	t.Helper()
	fi, err := os.Lstat(p)
	must(t, err)
	return fi.ModTime()
}

func TestMkdir(t *testing.T) {
	at := epoch.UnixNano()
	for _, c := range []struct {
		name  string
		has   []string
		do    llb.DoMkdir
		owner *Owner
		want  []string
		err   string
	}{
		{"one", nil, llb.DoMkdir{Path: "/a", Mode: 0o700, Timestamp: at}, nil, []string{"a/@700"}, ""},
		{"whatever the umask", nil, llb.DoMkdir{Path: "a", Mode: 0o777, Timestamp: -1}, nil, []string{"a/@777"}, ""},
		{"parents", nil, llb.DoMkdir{Path: "/a/b", Mode: 0o711, Parents: true, Timestamp: at}, &Owner{1, 2}, []string{"a/@711#1:2", "a/b/@711#1:2"}, ""},
		{"no parent", nil, llb.DoMkdir{Path: "/a/b", Mode: 0o755}, nil, nil, "mkdir /a/b: no such file"},
		{"exists", []string{"a/@700"}, llb.DoMkdir{Path: "/a", Mode: 0o755}, &Owner{1, 2}, []string{"a/@700"}, ""},
		{"is a file", []string{"a"}, llb.DoMkdir{Path: "/a", Mode: 0o755}, nil, []string{"a"}, "file exists"},
		{"is a file, parents", []string{"a"}, llb.DoMkdir{Path: "/a/b", Parents: true}, nil, []string{"a"}, "not a directory"},
		{"through a link", []string{"l -> /d", "d/"}, llb.DoMkdir{Path: "/l/x", Mode: 0o755}, nil, []string{"l -> /d", "d/", "d/x/"}, ""},
		{"out", []string{"l -> ../.."}, llb.DoMkdir{Path: "/l/../../x", Mode: 0o755}, nil, []string{"l -> ../..", "x/"}, ""},
		{"link out", []string{"l -> ../secret"}, llb.DoMkdir{Path: "/l/x", Mode: 0o755, Parents: true}, nil, []string{"l -> ../secret", "secret/", "secret/x/"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, dir := root(t)
			plant(t, dir, c.has...)
			err := Do(t.Context(), r, nil, &c.do, c.owner)
			if c.err != "" {
				wantErr(t, err, c.err)
			} else {
				must(t, err)
			}
			wantTree(t, dir, c.want...)
			if c.do.Timestamp == at && c.err == "" {
				for _, w := range []string{"a", "a/b"}[:strings.Count(c.do.Path, "/")] {
					if got := mtime(t, filepath.Join(dir, w)); !got.Equal(epoch) {
						t.Errorf("time of %s is %v", w, got)
					}
				}
			}
		})
	}
}

func TestMkfile(t *testing.T) {
	for _, c := range []struct {
		name  string
		has   []string
		do    llb.DoMkfile
		owner *Owner
		want  []string
		err   string
	}{
		{"new", nil, llb.DoMkfile{Path: "/a", Mode: 0o640, Data: []byte("x"), Timestamp: -1}, &Owner{3, 4}, []string{"a=x@640#3:4"}, ""},
		{"replace", []string{"a=long content@777#1:1"}, llb.DoMkfile{Path: "a", Mode: 0o644, Data: []byte("x")}, nil, []string{"a=x"}, ""},
		{"replace one name", []string{"a=old", "b <- a"}, llb.DoMkfile{Path: "a", Mode: 0o644, Data: []byte("x")}, nil, []string{"a=x", "b=old"}, ""},
		{"through a link", []string{"l -> b"}, llb.DoMkfile{Path: "l", Mode: 0o644, Data: []byte("x")}, nil, []string{"l -> b", "b=x"}, ""},
		{"link out", []string{"l -> ../secret"}, llb.DoMkfile{Path: "l", Mode: 0o644, Data: []byte("x")}, nil, []string{"l -> ../secret", "secret=x"}, ""},
		{"no parent", nil, llb.DoMkfile{Path: "/a/b"}, nil, nil, "make file /a/b: no such file"},
		{"directory", []string{"a/"}, llb.DoMkfile{Path: "/a"}, nil, []string{"a/"}, "is a directory"},
		{"root", nil, llb.DoMkfile{Path: "/"}, nil, nil, "is a directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, dir := root(t)
			plant(t, dir, c.has...)
			err := Do(t.Context(), r, nil, &c.do, c.owner)
			if c.err != "" {
				wantErr(t, err, c.err)
			} else {
				must(t, err)
			}
			wantTree(t, dir, c.want...)
		})
	}
}

func TestMkfileNeverOpensADevice(t *testing.T) {
	r, dir := root(t)
	must(t, unix.Mknod(filepath.Join(dir, "d"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 7)))) // full
	must(t, Mkfile(r, &llb.DoMkfile{Path: "d", Mode: 0o644, Data: []byte("d"), Timestamp: epoch.UnixNano()}, nil))
	wantTree(t, dir, "d")
	if !mtime(t, filepath.Join(dir, "d")).Equal(epoch) {
		t.Error("the time is not as asked for")
	}
}

func TestSymlink(t *testing.T) {
	r, dir := root(t)
	plant(t, dir, "d/", "l -> d", "f")
	must(t, Do(t.Context(), r, nil, &llb.DoSymlink{Old: "../any where", New: "/l/new", Timestamp: epoch.UnixNano()}, &Owner{5, 6}))
	wantErr(t, Symlink(r, &llb.DoSymlink{Old: "x", New: "/f"}, nil), "make symlink /f: file exists")
	wantErr(t, Symlink(r, &llb.DoSymlink{Old: "x", New: "/n/o"}, nil), "no such file")
	wantTree(t, dir, "d/", "l -> d", "f", "d/new -> ../any where#5:6")
	if !mtime(t, filepath.Join(dir, "d/new")).Equal(epoch) {
		t.Error("the time is not as asked for")
	}
}

func TestRm(t *testing.T) {
	tree := []string{"a/b/c", "a/d.go", "a/e.go", "f", "out -> ../secret", "up -> ..", "la -> a"}
	all := []string{"a/", "a/b/", "a/b/c", "a/d.go", "a/e.go", "f", "out -> ../secret", "up -> ..", "la -> a"}
	without := func(names ...string) (left []string) {
		for _, item := range all {
			name, _, _ := strings.Cut(item, " ")
			if !slices.Contains(names, strings.TrimSuffix(name, "/")) {
				left = append(left, item)
			}
		}
		return left
	}
	for _, c := range []struct {
		do   llb.DoRm
		want []string
		err  string
	}{
		{llb.DoRm{Path: "/f"}, without("f"), ""},
		{llb.DoRm{Path: "a"}, without("a", "a/b", "a/b/c", "a/d.go", "a/e.go"), ""},
		{llb.DoRm{Path: "la"}, without("la"), ""},
		{llb.DoRm{Path: "la/d.go"}, without("a/d.go"), ""},
		{llb.DoRm{Path: "out"}, without("out"), ""},
		{llb.DoRm{Path: "up/"}, without("up"), ""},
		{llb.DoRm{Path: "/a/*.go", Wildcard: true}, without("a/d.go", "a/e.go"), ""},
		{llb.DoRm{Path: "/la/*.go", Wildcard: true}, all, ""},
		{llb.DoRm{Path: "/la/b/*", Wildcard: true}, without("a/b/c"), ""},
		{llb.DoRm{Path: "*/b", Wildcard: true}, without("a/b", "a/b/c"), ""},
		{llb.DoRm{Path: "/none*", Wildcard: true}, all, ""},
		{llb.DoRm{Path: "/none"}, all, `"/none": not found`},
		{llb.DoRm{Path: "/none", Wildcard: true}, all, `"/none": not found`},
		{llb.DoRm{Path: "/none/*", Wildcard: true}, all, `"/none": not found`},
		{llb.DoRm{Path: "/none/*", Wildcard: true, AllowNotFound: true}, all, ""},
		{llb.DoRm{Path: "/none/x", AllowNotFound: true}, all, ""},
		{llb.DoRm{Path: ".."}, all, "cannot be removed"},
		{llb.DoRm{Path: "../.."}, all, "cannot be removed"},
		{llb.DoRm{Path: "a/../.."}, all, "cannot be removed"},
		{llb.DoRm{Path: "../secret"}, all, `"/secret": not found`},
		{llb.DoRm{Path: "up/secret"}, all, `"/up/secret": not found`},
		{llb.DoRm{Path: `..\..`}, all, "not found"},
		{llb.DoRm{Path: "/", AllowNotFound: true}, all, "cannot be removed"},
		{llb.DoRm{Path: "", Wildcard: true}, all, "cannot be removed"},
		{llb.DoRm{Path: "/[", Wildcard: true}, all, "syntax error"},
	} {
		t.Run(fmt.Sprintf("%s %v", strings.ReplaceAll(c.do.Path, "/", ":"), c.do.Wildcard), func(t *testing.T) {
			r, dir := root(t)
			plant(t, dir, tree...)
			err := Do(t.Context(), r, nil, &c.do, nil)
			if c.err != "" {
				wantErr(t, err, c.err)
			} else {
				must(t, err)
			}
			wantTree(t, dir, c.want...)
		})
	}
}

func TestUnknownActionFails(t *testing.T) {
	r, _ := root(t)
	wantErr(t, Do(t.Context(), r, nil, nil, nil), "unknown file action")
}

func TestCancelledCopy(t *testing.T) {
	src, dir := root(t)
	plant(t, dir, "a", "b")
	dst, _ := root(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := Copy(ctx, dst, src, &llb.DoCopy{Src: "/", Dest: "/", Mode: -1, Timestamp: -1, DirContents: true}, nil)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func nlink(t *testing.T, p string) uint64 {
	t.Helper()
	fi, err := os.Lstat(p)
	must(t, err)
	return fi.Sys().(*syscall.Stat_t).Nlink
}
