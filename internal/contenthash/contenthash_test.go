package contenthash

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func lines(t testing.TB, file string) []string {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, err)
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

// fixture makes the tree of testdata/tree.txt: a letter for the kind; mode and
// owner where there is one; path; content, target, or xattr.
func fixture(t testing.TB) string {
	t.Helper()
	top := filepath.Join(t.TempDir(), "tree")
	must(t, os.Mkdir(top, 0o755))
	for _, line := range lines(t, "testdata/tree.txt") {
		if k := strings.SplitN(line, " ", 4); k[0] == "l" {
			must(t, os.Symlink(k[2], filepath.Join(top, k[1])))
			continue
		} else if k[0] == "x" {
			must(t, unix.Lsetxattr(filepath.Join(top, k[1]), k[2], []byte(k[3]), 0))
			continue
		}
		k := strings.SplitN(line, " ", 6)
		p := filepath.Join(top, k[4])
		mode, err := strconv.ParseUint(k[1], 8, 32)
		must(t, err)
		uid, _ := strconv.Atoi(k[2])
		gid, _ := strconv.Atoi(k[3])
		switch k[0] {
		case "d":
			must(t, os.MkdirAll(p, 0o755))
		case "f":
			content := ""
			if len(k) > 5 {
				content = k[5]
			}
			must(t, os.WriteFile(p, []byte(content), 0o644))
		case "p":
			must(t, unix.Mkfifo(p, 0o644))
		case "c":
			must(t, unix.Mknod(p, unix.S_IFCHR, int(unix.Mkdev(1, 3))))
		default:
			t.Fatalf("line %q", line)
		}
		must(t, os.Chown(p, uid, gid))
		must(t, unix.Chmod(p, uint32(mode)))
	}
	return top
}

type vector struct {
	sel  Selector
	want string
}

func vectors(t testing.TB) (all []vector) {
	t.Helper()
	for _, line := range lines(t, "testdata/buildkit.txt") {
		js, want, _ := strings.Cut(line, "\t")
		v := vector{want: want}
		must(t, json.Unmarshal([]byte(js), &v.sel))
		all = append(all, v)
	}
	return all
}

func check(t *testing.T, tree *Tree, dir string, v vector) {
	t.Helper()
	d, err := tree.Digest(t.Context(), dir, v.sel)
	if msg, bad := strings.CutPrefix(v.want, "error: "); bad {
		switch {
		case err == nil:
			t.Errorf("%+v: %s, want the error %s", v.sel, d, msg)
		case strings.HasSuffix(msg, "not found") && (!errors.Is(err, fs.ErrNotExist) || err.Error() != msg):
			t.Errorf("%+v: error %q, want %q", v.sel, err, msg)
		case msg == "too many links" && !errors.Is(err, unix.ELOOP):
			t.Errorf("%+v: error %q, want %q", v.sel, err, msg)
		}
		return
	}
	if err != nil || string(d) != v.want {
		t.Errorf("%+v: %s, %v; BuildKit says %s", v.sel, d, err, v.want)
	}
}

// The vectors were taken from BuildKit's own code over the same tree.
func TestDigestsAreBuildKits(t *testing.T) {
	dir := fixture(t)
	all := vectors(t)
	if len(all) < 300 {
		t.Fatalf("only %d vectors", len(all))
	}
	t.Run("each alone", func(t *testing.T) {
		for _, v := range all {
			check(t, New(), dir, v)
		}
	})
	t.Run("one tree", func(t *testing.T) {
		tree := New()
		for _, v := range all {
			check(t, tree, dir, v)
		}
	})
	t.Run("at once", func(t *testing.T) {
		tree := New()
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for j := range all {
					check(t, tree, dir, all[(j*7+i*31)%len(all)])
				}
			})
		}
		wg.Wait()
	})
}

// received fills a tree as a receiver of the files in dir would.
func received(t testing.TB, tree *Tree, dir string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		must(t, err)
		fi, err := e.Info()
		must(t, err)
		rel, _ := filepath.Rel(dir, p)
		link := ""
		if fi.Mode()&fs.ModeSymlink != 0 {
			link, err = os.Readlink(p)
			must(t, err)
		}
		st := statOf(fi, link, nil)
		for _, k := range []string{"user.colour", "user.dir", "trusted.t"} {
			var b [64]byte
			if n, err := unix.Lgetxattr(p, k, b[:]); err == nil {
				if st.Xattrs == nil {
					st.Xattrs = map[string][]byte{}
				}
				st.Xattrs[k] = b[:n]
			}
		}
		var d digest.Digest
		if fi.Mode().IsRegular() {
			b, err := os.ReadFile(p)
			must(t, err)
			h := NewHash(st)
			h.Write(b)
			d = Sum(h)
		}
		return tree.Put(filepath.ToSlash(rel), st, d)
	}))
	tree.SetComplete()
}

func TestReceivedTreeNeedsNoDisk(t *testing.T) {
	dir := fixture(t)
	tree := New()
	received(t, tree, dir)
	for _, v := range vectors(t) {
		check(t, tree, "/does/not/exist", v)
	}
}

func TestRootThatIsNotSent(t *testing.T) {
	tree := New()
	tree.SetComplete()
	got, err := tree.Digest(t.Context(), "", Selector{})
	must(t, err)
	if want := digest.FromString("\x00" + string(digest.FromBytes(nil))); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func digestOf(t testing.TB, tree *Tree, dir, p string) digest.Digest {
	t.Helper()
	d, err := tree.Digest(t.Context(), dir, Selector{Path: p, FollowLinks: true})
	must(t, err)
	return d
}

func TestDerive(t *testing.T) {
	dir := fixture(t)
	old := New()
	before := digestOf(t, old, dir, "/")
	aBefore := digestOf(t, old, dir, "/a")

	must(t, os.WriteFile(filepath.Join(dir, "foo1/z"), []byte("changed"), 0o644))
	must(t, os.RemoveAll(filepath.Join(dir, "a/b")))
	must(t, os.MkdirAll(filepath.Join(dir, "new/dir"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "new/dir/f"), []byte("f"), 0o644))
	must(t, os.Remove(filepath.Join(dir, "foo3")))
	must(t, os.Mkdir(filepath.Join(dir, "foo3"), 0o755))
	must(t, os.RemoveAll(filepath.Join(dir, "foo2")))
	must(t, os.WriteFile(filepath.Join(dir, "foo2"), nil, 0o644))

	tree := old.Derive()
	put := func(name string) {
		fi, err := os.Lstat(filepath.Join(dir, name))
		must(t, err)
		must(t, tree.Put(name, statOf(fi, "", nil), ""))
	}
	for _, name := range []string{"foo1/z", "new", "new/dir", "new/dir/f", "foo3", "foo2"} {
		put(name)
	}
	tree.Remove("a/b")
	tree.Remove("not/there")
	for _, p := range []string{"/", "/a", "/new", "/foo1/z", "/foo2", "/foo3"} {
		if got, want := digestOf(t, tree, dir, p), digestOf(t, New(), dir, p); got != want {
			t.Errorf("%s: derived %s, scanned %s", p, got, want)
		}
	}
	if _, err := tree.Digest(t.Context(), dir, Selector{Path: "/a/b/two.go"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removed file: %v", err)
	}
	if digestOf(t, old, "/does/not/exist", "/") != before || digestOf(t, old, "/does/not/exist", "/a") != aBefore {
		t.Error("the tree derived from changed")
	}
	if err := tree.Put("foo2/x", Stat{}, ""); err == nil {
		t.Error("put below a file")
	}
	if err := tree.Put("x", Stat{}, "md5:d41d8cd98f00b204e9800998ecf8427e"); err == nil {
		t.Error("put a strange digest")
	}
}

func TestHardlinksWaitForTheirFile(t *testing.T) {
	d := Sum(NewHash(Stat{Mode: 0o644}))
	for _, linkFirst := range []bool{true, false} {
		tree := New()
		must(t, tree.Put("d", Stat{Mode: fs.ModeDir | 0o755}, ""))
		if !linkFirst {
			must(t, tree.Put("d/file", Stat{Mode: 0o644}, d))
		}
		must(t, tree.Put("link", Stat{Mode: 0o600, Linkname: "d/file"}, ""))
		if linkFirst {
			must(t, tree.Put("d/file", Stat{Mode: 0o644}, d))
		}
		tree.SetComplete()
		if got := digestOf(t, tree, "/does/not/exist", "/link"); got != d {
			t.Errorf("link first %v: %s, want %s", linkFirst, got, d)
		}
	}
}

func TestChecksumJoinsSelectors(t *testing.T) {
	dir := fixture(t)
	tree := New()
	one, two := digestOf(t, tree, dir, "/foo1"), digestOf(t, tree, dir, "/foo3")
	got, err := tree.Checksum(t.Context(), dir, []Selector{{Path: "foo1"}, {Path: "/foo3/"}})
	must(t, err)
	if want := digest.FromString(string(one) + "\x00" + string(two)); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	all, err := tree.Checksum(t.Context(), dir, nil)
	must(t, err)
	if want := digest.FromString(string(digestOf(t, tree, dir, "/"))); all != want {
		t.Errorf("nothing selected: %s, want %s", all, want)
	}
	_, err = tree.Checksum(t.Context(), dir, []Selector{{Path: "foo1"}, {Path: "/nope"}})
	if !errors.Is(err, fs.ErrNotExist) || err.Error() != `"/nope": not found` {
		t.Errorf("missing path: %v", err)
	}
}

func TestOnlyWhatIsSelectedIsRead(t *testing.T) {
	dir := fixture(t)
	tree := New()
	digestOf(t, tree, dir, "/a/b/two.go")
	must(t, os.RemoveAll(filepath.Join(dir, "foo1")))
	digestOf(t, tree, "/does/not/exist", "/a/b/two.go")
	for _, e := range tree.root.entries {
		if e.node.kind == kindDir && e.node.scanned != (e.name == "a") || e.node.header != "" {
			t.Errorf("%s was read", e.name)
		}
	}
}

func TestLinksCannotLeaveTheTree(t *testing.T) {
	dir := fixture(t)
	must(t, os.WriteFile(filepath.Join(dir, "../secret"), nil, 0o644))
	must(t, os.Symlink("../secret", filepath.Join(dir, "s1")))
	must(t, os.Symlink(filepath.Join(dir, "../secret"), filepath.Join(dir, "s2")))
	for _, p := range []string{"/s1", "/s2", "/../secret", "/s1/../../secret"} {
		if d, err := New().Digest(t.Context(), dir, Selector{Path: p, FollowLinks: true}); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %s, %v", p, d, err)
		}
	}
}

func TestCancel(t *testing.T) {
	dir := fixture(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	tree := New()
	if _, err := tree.Digest(ctx, dir, Selector{}); !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
	digestOf(t, tree, dir, "/") // and it can be asked again
}

func manyFiles(tb testing.TB, n int) string {
	tb.Helper()
	dir := tb.TempDir()
	content := make([]byte, 4096)
	for i := range n {
		sub := filepath.Join(dir, fmt.Sprintf("d%02d", i%100))
		if i < 100 {
			must(tb, os.Mkdir(sub, 0o755))
		}
		content[0], content[1] = byte(i), byte(i>>8)
		must(tb, os.WriteFile(filepath.Join(sub, fmt.Sprint(i)), content, 0o644))
	}
	return dir
}

// One change in a big tree costs next to nothing, whatever the machine.
func TestOneChangeIsCheap(t *testing.T) {
	dir := manyFiles(t, 10_000)
	tree := New()
	start := time.Now()
	digestOf(t, tree, dir, "/")
	full := time.Since(start)
	derived := tree.Derive()
	start = time.Now()
	must(t, derived.Put("d07/7", Stat{Mode: 0o600}, digest.FromString("x")))
	derived.SetComplete()
	digestOf(t, derived, "/does/not/exist", "/")
	if one := time.Since(start); one > full/10 {
		t.Errorf("one change took %v, all of it %v", one, full)
	}
	t.Logf("10,000 files: %v", full)
}

func BenchmarkScan(b *testing.B) {
	dir := manyFiles(b, 10_000)
	b.ResetTimer()
	for range b.N {
		digestOf(b, New(), dir, "/")
	}
}
