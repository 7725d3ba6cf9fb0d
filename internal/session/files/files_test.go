package files_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/internal/api/fsutil"
	"github.com/kiln-build/kiln/internal/session/export"
	"github.com/kiln-build/kiln/internal/session/files"
	"github.com/kiln-build/kiln/internal/session/sessiontest"
)

// collect is a destination that keeps what it gets.
type collect struct {
	mu       sync.Mutex
	stats    []*fsutil.Stat
	contents map[string]string
	skip     func(*fsutil.Stat) bool
}

func (c *collect) Stat(st *fsutil.Stat) (bool, error) {
	c.stats = append(c.stats, st)
	return c.skip == nil || !c.skip(st), nil
}

func (c *collect) Create(st *fsutil.Stat) (files.Content, error) {
	return &collected{c: c, name: st.GetPath()}, nil
}

type collected struct {
	strings.Builder
	c    *collect
	name string
}

func (c *collected) Commit() error {
	c.c.mu.Lock()
	defer c.c.mu.Unlock()
	if c.c.contents == nil {
		c.c.contents = map[string]string{}
	}
	c.c.contents[c.name] = c.String()
	return nil
}

func (c *collected) Abort() {}

// list is one line for each entry.
func (c *collect) list() string {
	var b strings.Builder
	for _, st := range c.stats {
		fmt.Fprintf(&b, "%s %v", st.GetPath(), fs.FileMode(st.GetMode()))
		if st.GetLinkname() != "" {
			fmt.Fprintf(&b, " -> %s", st.GetLinkname())
		}
		fmt.Fprintln(&b)
	}
	return b.String()
}

// write makes a tree: a name that ends in "/" is a directory, content that
// begins with "->" a symlink and with "=" a hard link.
func write(t testing.TB, dir string, entries ...[2]string) {
	t.Helper()
	for _, e := range entries {
		p := filepath.Join(dir, e[0])
		var err error
		switch {
		case strings.HasSuffix(e[0], "/"):
			err = os.MkdirAll(p, 0o755)
		case strings.HasPrefix(e[1], "->"):
			err = os.Symlink(e[1][2:], p)
		case strings.HasPrefix(e[1], "="):
			err = os.Link(filepath.Join(dir, e[1][1:]), p)
		default:
			if err = os.MkdirAll(filepath.Dir(p), 0o755); err == nil {
				err = os.WriteFile(p, []byte(e[1]), 0o644)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// golden is the tree of golden/fsutil-diffcopy-trace.txt.
func golden(t testing.TB) string {
	dir := t.TempDir()
	write(t, dir,
		[2]string{"Dockerfile", "FROM scratch\n"}, [2]string{"big", strings.Repeat("b", 70000)},
		[2]string{"empty/"}, [2]string{"link", "->sub/a"}, [2]string{"sub/a", "hello\n"},
		[2]string{"sub/deep/"}, [2]string{"sub/hard", "=sub/a"}, [2]string{"sub/x1", "x\n"},
		[2]string{"sub-z", "z\n"}, [2]string{"sub.txt", "t\n"}, [2]string{"zero", ""})
	return dir
}

func receive(t testing.TB, dir string, opt files.ReceiveOptions, dst files.Destination) error {
	t.Helper()
	caller := sessiontest.Connect(t, files.NewProvider(map[string]files.Source{"context": files.FromDir(dir)}))
	opt.Name = "context"
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return files.Receive(ctx, caller, opt, dst)
}

// The listings are those that BuildKit's client gave for the same tree.
func TestReceiveAsBuildKit(t *testing.T) {
	for _, tt := range []struct {
		name string
		opt  files.ReceiveOptions
		want string
	}{
		{"all", files.ReceiveOptions{}, `Dockerfile -rw-r--r--
big -rw-r--r--
empty drwxr-xr-x
link Lrwxrwxrwx -> sub/a
sub drwxr-xr-x
sub/a -rw-r--r--
sub/deep drwxr-xr-x
sub/hard -rw-r--r-- -> sub/a
sub/x1 -rw-r--r--
sub-z -rw-r--r--
sub.txt -rw-r--r--
zero -rw-r--r--
`},
		{"follow", files.ReceiveOptions{FollowPaths: []string{"Dockerfile", "link"}}, `Dockerfile -rw-r--r--
link Lrwxrwxrwx -> sub/a
sub drwxr-xr-x
sub/a -rw-r--r--
`},
		{"patterns", files.ReceiveOptions{Include: []string{"sub/**"}, Exclude: []string{"**/x*"}}, `sub drwxr-xr-x
sub/a -rw-r--r--
sub/deep drwxr-xr-x
sub/hard -rw-r--r-- -> sub/a
`},
		{"negation below an excluded directory", files.ReceiveOptions{Exclude: []string{"*", "!sub/x*"}}, `sub drwxr-xr-x
sub/x1 -rw-r--r--
`},
		{"wildcards", files.ReceiveOptions{FollowPaths: []string{"s*/a", "zer?"}}, `sub drwxr-xr-x
sub/a -rw-r--r--
zero -rw-r--r--
`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var c collect
			if err := receive(t, golden(t), tt.opt, &c); err != nil {
				t.Fatal(err)
			}
			if got := c.list(); got != tt.want {
				t.Errorf("listing:\n%s\nwant:\n%s", got, tt.want)
			}
			for _, st := range c.stats {
				if st.GetUid() != 0 || st.GetGid() != 0 {
					t.Errorf("%s belongs to %d:%d, want 0:0", st.GetPath(), st.GetUid(), st.GetGid())
				}
			}
			if want := map[string]int{"all": 7, "follow": 2, "patterns": 1}[tt.name]; want > 0 && len(c.contents) != want {
				t.Errorf("%d contents, want %d", len(c.contents), want)
			}
			if got, ok := c.contents["big"]; tt.name == "all" && (!ok || got != strings.Repeat("b", 70000)) {
				t.Errorf("content of big is of %d bytes, want 70000 times b", len(got))
			}
		})
	}
}

func TestUnknownDirectory(t *testing.T) {
	caller := sessiontest.Connect(t, files.NewProvider(map[string]files.Source{"context": files.FromDir(t.TempDir())}))
	err := files.Receive(context.Background(), caller, files.ReceiveOptions{Name: "ünbekannt"}, &collect{})
	if err == nil || !strings.Contains(err.Error(), `"ünbekannt"`) {
		t.Errorf("error %v, want one that names the directory", err)
	}
}

func TestMemory(t *testing.T) {
	caller := sessiontest.Connect(t, files.NewProvider(map[string]files.Source{
		"dockerfile": files.FromMemory(map[string][]byte{"Dockerfile": []byte("FROM scratch\n"), "other": nil}),
	}))
	var c collect
	opt := files.ReceiveOptions{Name: "dockerfile", FollowPaths: []string{"Dockerfile", "Dockerfile.dockerignore"}}
	if err := files.Receive(context.Background(), caller, opt, &c); err != nil {
		t.Fatal(err)
	}
	if c.list() != "Dockerfile -rw-r--r--\n" || c.contents["Dockerfile"] != "FROM scratch\n" {
		t.Errorf("got %s with %q", c.list(), c.contents)
	}
}

// The time of files in memory is made of them: who has them already keeps them.
func TestMemoryTime(t *testing.T) {
	at := func(name, content string) (at int64) {
		t.Helper()
		m, err := files.NewMemory(map[string][]byte{name: []byte(content), "other": []byte("same")}, files.Filter{})
		if err != nil {
			t.Fatal(err)
		}
		err = m.Walk(t.Context(), func(st *fsutil.Stat) error { at = st.GetModTime(); return nil })
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	first := at("Dockerfile", "FROM a")
	if again := at("Dockerfile", "FROM a"); again != first {
		t.Errorf("the same files are of %d and of %d", first, again)
	}
	for _, other := range []int64{at("Dockerfile", "FROM b"), at("dockerfile", "FROM a")} {
		if other == first {
			t.Errorf("other files are of %d, too", other)
		}
	}
	if when := time.Unix(0, first); when.Year() < 2001 || when.Year() > 2009 {
		t.Errorf("they are of %s", when)
	}
}

// Many requests must not make the two sides wait for each other.
func TestManyFiles(t *testing.T) {
	dir := t.TempDir()
	const count = 20000
	for i := range count {
		name := fmt.Sprintf("d%03d/f%d", i%100, i)
		write(t, dir, [2]string{name, name})
	}
	var c collect
	if err := receive(t, dir, files.ReceiveOptions{}, &c); err != nil {
		t.Fatal(err)
	}
	if len(c.contents) != count {
		t.Fatalf("%d files, want %d", len(c.contents), count)
	}
	for name, content := range c.contents {
		if name != content {
			t.Fatalf("%s holds %q", name, content)
		}
	}
}

// refuse is a destination that fails at one entry.
type refuse struct {
	collect
	at, create string
}

func (r *refuse) Stat(st *fsutil.Stat) (bool, error) {
	if st.GetPath() == r.at {
		return false, fmt.Errorf("refused %s", r.at)
	}
	return r.collect.Stat(st)
}

func (r *refuse) Create(st *fsutil.Stat) (files.Content, error) {
	if st.GetPath() == r.create {
		return nil, fmt.Errorf("refused %s", r.create)
	}
	return r.collect.Create(st)
}

func TestDestinationFails(t *testing.T) {
	for _, r := range []*refuse{{at: "sub/a"}, {create: "big"}, {create: "zero"}} {
		err := receive(t, golden(t), files.ReceiveOptions{}, r)
		if want := "refused " + r.at + r.create; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

func sendTo(t testing.TB, tree files.Tree, target files.DirTarget) error {
	t.Helper()
	caller := sessiontest.Connect(t, export.NewTargets(map[int]export.Target{3: target}))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return files.Send(ctx, caller, tree, files.SendOptions{ExporterID: 3, Meta: map[string]string{"k": "ä"}})
}

// digestOf is a digest of a whole tree: names, modes, times, links, contents.
func digestOf(t testing.TB, dir string) string {
	t.Helper()
	d, err := files.OpenDir(dir, files.Filter{}, files.OwnerRoot)
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	err = d.Walk(context.Background(), func(st *fsutil.Stat) error {
		fmt.Fprintf(h, "%s %o %d %d %q\n", st.GetPath(), st.GetMode(), st.GetSize(), st.GetModTime(), st.GetLinkname())
		if fs.FileMode(st.GetMode()).IsRegular() {
			b, err := os.ReadFile(filepath.Join(dir, st.GetPath()))
			if err != nil {
				return err
			}
			h.Write(b)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func openDir(t testing.TB, dir string) *files.Dir {
	t.Helper()
	d, err := files.OpenDir(dir, files.Filter{}, files.OwnerKept)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func TestSendDirectory(t *testing.T) {
	src, out := golden(t), filepath.Join(t.TempDir(), "new", "out")
	if err := os.Chmod(filepath.Join(src, "empty"), 0o500); err != nil {
		t.Fatal(err)
	}
	old := time.Date(2001, 2, 3, 4, 5, 6, 7, time.UTC)
	if err := os.Chtimes(filepath.Join(src, "sub"), old, old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(src, "pipe"), 0o640); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name   string
		before [][2]string
		target files.DirTarget
		same   bool
	}{
		{"new", nil, files.DirTarget{Name: out}, true},
		{"again", nil, files.DirTarget{Name: out}, true},
		{"beside others", [][2]string{{"mine", "keep"}}, files.DirTarget{Name: out}, false},
		{"delete others", [][2]string{{"theirs/x", "go"}}, files.DirTarget{Name: out, Delete: true}, true},
	} {
		write(t, out, step.before...)
		if err := sendTo(t, openDir(t, src), step.target); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if same := digestOf(t, src) == digestOf(t, out); same != step.same {
			t.Errorf("%s: the trees are equal: %v, want %v", step.name, same, step.same)
		}
	}
	if err := sendTo(t, openDir(t, src), files.DirTarget{Name: filepath.Join(out, "big")}); err == nil {
		t.Error("a file was taken for an output directory")
	}
}

// What is in the way is replaced, and never followed.
func TestSendOverSymlinks(t *testing.T) {
	src, out, outside := golden(t), t.TempDir(), t.TempDir()
	write(t, out, [2]string{"sub", "->" + outside}, [2]string{"big", "->" + outside + "/big"},
		[2]string{"link/"}, [2]string{"zero/x", "in the way"})
	if err := sendTo(t, openDir(t, src), files.DirTarget{Name: out}); err != nil {
		t.Fatal(err)
	}
	if digestOf(t, src) != digestOf(t, out) {
		t.Error("the trees differ")
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("outside there are %v, %v", left, err)
	}
}

func TestJoin(t *testing.T) {
	src, out := golden(t), t.TempDir()
	tree, err := files.Join(files.Sub{Name: "linux_arm64", Tree: openDir(t, src)}, files.Sub{Name: "linux_amd64", Tree: openDir(t, src)})
	if err != nil {
		t.Fatal(err)
	}
	if err := sendTo(t, tree, files.DirTarget{Name: out}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"linux_amd64", "linux_arm64"} {
		if digestOf(t, src) != digestOf(t, filepath.Join(out, name)) {
			t.Errorf("%s differs", name)
		}
	}
	for _, name := range []string{"", "..", "a/b", `/x`} {
		if _, err := files.Join(files.Sub{Name: name}); err == nil {
			t.Errorf("Join took the name %q", name)
		}
	}
}

// hostile is a tree whose listing is whatever a test likes.
type hostile struct{ stats []*fsutil.Stat }

func (h hostile) Open(string) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader("content")), nil
}

func (h hostile) Walk(_ context.Context, f func(*fsutil.Stat) error) error {
	for _, st := range h.stats {
		if err := f(st); err != nil {
			return err
		}
	}
	return nil
}

func TestHostileListing(t *testing.T) {
	file := func(p string) *fsutil.Stat { return &fsutil.Stat{Path: p, Mode: 0o644} }
	dir := func(p string) *fsutil.Stat { return &fsutil.Stat{Path: p, Mode: uint32(fs.ModeDir | 0o755)} }
	link := func(p, to string) *fsutil.Stat {
		return &fsutil.Stat{Path: p, Mode: uint32(fs.ModeSymlink | 0o777), Linkname: to}
	}
	hard := func(p, to string) *fsutil.Stat { return &fsutil.Stat{Path: p, Mode: 0o644, Linkname: to} }
	for name, stats := range map[string][]*fsutil.Stat{
		"parent":             {file("..")},
		"below parent":       {file("../x")},
		"dots within":        {dir("a"), file("a/../../x")},
		"absolute":           {file("/etc/x")},
		"empty":              {file("")},
		"root":               {dir(".")},
		"not clean":          {dir("a"), file("a//b")},
		"trailing slash":     {dir("a/")},
		"zero byte":          {file("a\x00b")},
		"repeated":           {file("a"), file("a")},
		"descending":         {file("b"), file("a")},
		"separator order":    {file("a-b"), dir("a"), file("a/b")},
		"missing parent":     {file("a/b")},
		"parent is a file":   {file("a"), file("a/b")},
		"parent is a link":   {link("a", "/etc"), file("a/b")},
		"link outside":       {hard("a", "../x")},
		"link absolute":      {hard("a", "/etc/passwd")},
		"link ahead":         {hard("a", "b"), file("b")},
		"link to itself":     {hard("a", "a")},
		"unknown type":       {{Path: "a", Mode: uint32(fs.ModeIrregular)}},
		"two types":          {{Path: "a", Mode: uint32(fs.ModeDir | fs.ModeSymlink), Linkname: "x"}},
		"negative size":      {{Path: "a", Mode: 0o644, Size: -1}},
		"symlink to nowhere": {link("a", "")},
		"long":               {file(strings.Repeat("a/", 3000) + "a")},
	} {
		t.Run(name, func(t *testing.T) {
			out, outside := t.TempDir(), t.TempDir()
			err := sendTo(t, hostile{stats: stats}, files.DirTarget{Name: out})
			if err == nil {
				t.Error("the listing was taken")
			}
			if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
				t.Errorf("outside there are %v, %v", left, err)
			}
		})
	}
}

func TestComparePaths(t *testing.T) {
	want := []string{"a", "sub", "sub/a", "sub/deep", "sub/deep/x", "sub-z", "sub.txt", "sub0", "t"}
	got := slices.Clone(want)
	rand.Shuffle(len(got), func(i, j int) { got[i], got[j] = got[j], got[i] })
	slices.SortFunc(got, files.ComparePaths)
	if !slices.Equal(got, want) {
		t.Errorf("order %q, want %q", got, want)
	}
}
