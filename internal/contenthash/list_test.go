package contenthash

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func paths(l []Listed) string {
	var all []string
	for _, f := range l {
		all = append(all, f.Path)
	}
	return strings.Join(all, " ")
}

func TestList(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"main.go", "src/a.go", "src/deep/b.go", "src/deep/c.txt", "doc/x.md"} {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644))
	}
	tree := New()
	list := func(sels ...Selector) []Listed {
		t.Helper()
		_, err := tree.Checksum(t.Context(), dir, sels)
		must(t, err)
		l, err := tree.List(t.Context(), dir, sels)
		must(t, err)
		return l
	}
	for want, got := range map[string][]Listed{
		"doc/ doc/x.md main.go src/ src/a.go src/deep/ src/deep/b.go src/deep/c.txt": list(),
		"main.go": list(Selector{Path: "/main.go"}),
		"src/ src/a.go src/deep/ src/deep/b.go src/deep/c.txt": list(Selector{Path: "src"}),
		"main.go src/ src/a.go src/deep/ src/deep/b.go":        list(Selector{Path: "/", Include: []string{"**/*.go"}}),
		"doc/ doc/x.md src/ src/a.go":                          list(Selector{Path: "doc"}, Selector{Path: "/src", Exclude: []string{"deep"}}),
	} {
		if paths(got) != want {
			t.Errorf("list is %s, want %s", paths(got), want)
		}
	}
	before := list()
	must(t, os.WriteFile(filepath.Join(dir, "src/deep/b.go"), []byte("other"), 0o644))
	tree = New()
	after := list()
	for i, f := range before {
		if changed := f != after[i]; changed != (f.Path == "src/deep/b.go") {
			t.Errorf("%s: changed is %v", f.Path, changed)
		}
	}
}
