package fileop

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/llb"
)

// keptIn is a source that is kept in one folder.
type keptIn string

func (f keptIn) Folders(name string) ([]*os.File, error) {
	d, err := os.Open(filepath.Join(string(f), name))
	return []*os.File{d}, err
}

func linksOf(dir string, linked bool) Links {
	if !linked {
		return nil
	}
	return keptIn(dir)
}

// bothWays runs a test with files that are copied and with files that are linked:
// nobody is to see a difference.
func bothWays(t *testing.T, name string, test func(t *testing.T, linked bool)) {
	t.Run(name, func(t *testing.T) { test(t, false) })
	t.Run(name+" by links", func(t *testing.T) { test(t, true) })
}

// same tells whether two paths are of one file.
func same(t *testing.T, a, b string) bool {
	t.Helper()
	x, err := os.Lstat(a)
	must(t, err)
	y, err := os.Lstat(b)
	must(t, err)
	return os.SameFile(x, y)
}

func TestOnlyWhatStaysAsItIsIsLinked(t *testing.T) {
	src, dir := root(t)
	plant(t, dir, "d/f=content@640#7:8", "d/marked", "d/attr", "d/l -> f")
	must(t, unix.Setxattr(filepath.Join(dir, "d/marked"), "trusted.overlay.origin", []byte("v"), 0))
	must(t, unix.Setxattr(filepath.Join(dir, "d/attr"), "user.k", []byte("v"), 0))
	for _, c := range []struct {
		name  string
		do    llb.DoCopy
		owner *Owner
		want  []string // those that are the source's own
	}{
		{"as it is", dockerfile("d", "/"), nil, []string{"f", "attr"}},
		{"one file", dockerfile("d/f", "/"), nil, []string{"f"}},
		{"the owner it has", dockerfile("d", "/"), &Owner{7, 8}, []string{"f"}},
		{"another owner", dockerfile("d", "/"), &Owner{7, 9}, nil},
		{"the mode it has", with(dockerfile("d", "/"), func(c *llb.DoCopy) { c.Mode = 0o640 }), nil, []string{"f"}},
		{"another mode", with(dockerfile("d", "/"), func(c *llb.DoCopy) { c.ModeStr = "o+x" }), nil, nil},
		{"the time it has", with(dockerfile("d", "/"), func(c *llb.DoCopy) { c.Timestamp = epoch.UnixNano() }), nil, []string{"f", "attr"}},
		{"another time", with(dockerfile("d", "/"), func(c *llb.DoCopy) { c.Timestamp = 1 }), nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			dst, to := root(t)
			must(t, Copy(t.Context(), dst, src, &c.do, c.owner, keptIn(dir)))
			want := map[string]bool{}
			for _, name := range c.want {
				want[name] = true
			}
			for _, name := range []string{"f", "marked", "attr"} {
				if _, err := os.Lstat(filepath.Join(to, name)); err != nil {
					continue // not among what was copied
				}
				if got := same(t, filepath.Join(dir, "d", name), filepath.Join(to, name)); got != want[name] {
					t.Errorf("%s is a name of the source's file: %v, want %v", name, got, want[name])
				}
			}
		})
	}
}

// What is replaced by a later action is another file: the source keeps its own.
func TestLinkedFilesAreReplacedNotWritten(t *testing.T) {
	src, dir := root(t)
	plant(t, dir, "f=content")
	dst, to := root(t)
	do := dockerfile("f", "/f")
	must(t, Copy(t.Context(), dst, src, &do, nil, keptIn(dir)))
	if !same(t, filepath.Join(dir, "f"), filepath.Join(to, "f")) {
		t.Fatal("f was not linked")
	}
	must(t, Mkfile(dst, &llb.DoMkfile{Path: "/f", Data: []byte("new"), Mode: 0o777, Timestamp: -1}, &Owner{1, 2}))
	wantTree(t, dir, "f=content")
	wantTree(t, to, "f=new@777#1:2")
	must(t, Copy(t.Context(), dst, src, &do, nil, keptIn(dir)))
	must(t, Rm(dst, &llb.DoRm{Path: "/f"}))
	wantTree(t, dir, "f=content")
}

// Files of one pattern's sources are none of each other's links, whatever they
// are in the source.
func TestSourcesOfAPatternStayApart(t *testing.T) {
	bothWays(t, "", func(t *testing.T, linked bool) {
		src, dir := root(t)
		plant(t, dir, "1/f=x", "1/g <- 1/f", "2/h <- 1/f")
		dst, to := root(t)
		do := dockerfile("[12]", "/")
		must(t, Copy(t.Context(), dst, src, &do, nil, linksOf(dir, linked)))
		wantTree(t, to, "f=x", "g <- f", "h=x")
	})
}
