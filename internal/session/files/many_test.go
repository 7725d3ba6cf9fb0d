package files

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/kiln-build/kiln/internal/api/fsutil"
	"github.com/kiln-build/kiln/internal/safepath"
)

// wantedIn are the paths of a folder that a filter wants.
func wantedIn(t *testing.T, dir string, f Filter) map[string]bool {
	t.Helper()
	d, err := OpenDir(dir, f, OwnerRoot)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	got := map[string]bool{}
	if err := d.Walk(context.Background(), func(st *fsutil.Stat) error {
		got[st.GetPath()] = true
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return got
}

// A wildcard stays one pattern, however many files it matches: were each of them
// named, a million files would be compared with a million names.
func TestWildcardOverManyFiles(t *testing.T) {
	const many = 20_000
	dir := t.TempDir()
	first := filepath.Join(dir, "0.txt")
	err := errors.Join(os.WriteFile(first, nil, 0o644), os.Mkdir(filepath.Join(dir, "real"), 0o755),
		os.WriteFile(filepath.Join(dir, "real/far"), nil, 0o644), os.Symlink("real/far", filepath.Join(dir, "link.txt")))
	for i := 1; i < many && err == nil; i++ {
		err = os.Link(first, filepath.Join(dir, fmt.Sprintf("%d.txt", i)))
	}
	if err != nil {
		t.Fatal(err)
	}
	root, err := safepath.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for pattern, want := range map[string]struct{ names, files int }{
		"/*.txt": {3, many + 3}, // the link, what it leads to, and the folder of that
		"/*.go":  {0, 0},
		"/1*":    {0, 1 + 10 + 100 + 1000 + 10_000},
	} {
		found, err := follow(root, []string{pattern})
		if err != nil || len(found.patterns) != 1 || len(found.paths) != want.names {
			t.Errorf("%s leads to %d names and %d patterns (%v), want %d and 1", pattern, len(found.paths), len(found.patterns), err, want.names)
		}
		if got := wantedIn(t, dir, Filter{FollowPaths: []string{pattern}}); len(got) != want.files {
			t.Errorf("%s wants %d files, want %d", pattern, len(got), want.files)
		}
	}
}

// A million names are compared with what is wanted, each by itself.
func TestMatchOfAMillion(t *testing.T) {
	m, err := newMatcher(Filter{Exclude: []string{"*9.txt"}}, &followed{patterns: map[string]bool{"*.txt": true}, paths: map[string]bool{"x": true}})
	if err != nil {
		t.Fatal(err)
	}
	wanted := 0
	for i := range 1_000_000 {
		v, err := m.match(fmt.Sprintf("aaaaaaaaaaaaaaaa%07d.txt", i), verdict{})
		if err != nil {
			t.Fatal(err)
		}
		if v.send {
			wanted++
		}
	}
	if wanted != 900_000 {
		t.Errorf("%d are wanted", wanted)
	}
}

// What a wildcard leads to through folders and links is wanted, and nothing else.
func TestWildcardsAndLinks(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	err := errors.Join(os.MkdirAll(at("a1/sub"), 0o755), os.MkdirAll(at("a2"), 0o755), os.MkdirAll(at("else"), 0o755), os.MkdirAll(at("deep/er"), 0o755))
	for _, name := range []string{"a1/x.go", "a1/sub/y.go", "a2/x.go", "else/x.go", "else/other", "!odd", "plain", "deep/er/z.go"} {
		err = errors.Join(err, os.WriteFile(at(name), nil, 0o644))
	}
	err = errors.Join(err, os.Symlink("else", at("a3")), os.Symlink("../else/other", at("a2/out.go")), os.Symlink("loop", at("loop")))
	if err != nil {
		t.Fatal(err)
	}
	for pattern, want := range map[string][]string{
		"/a*/x.go":      {"a1", "a1/x.go", "a2", "a2/x.go", "a3", "else", "else/x.go"},
		"/a2/*":         {"a2", "a2/x.go", "a2/out.go", "else", "else/other"},
		"/!o*":          {"!odd"},
		"/d*":           {"deep", "deep/er", "deep/er/z.go"},
		"/deep/**/z.go": {"deep", "deep/er", "deep/er/z.go"},
		"/a3/*.go":      {"a3", "else", "else/x.go"},
		"/nothing*":     {},
	} {
		got := wantedIn(t, dir, Filter{FollowPaths: []string{pattern}})
		if len(got) != len(want) {
			t.Errorf("%s wants %v, want %q", pattern, got, want)
		}
		for _, name := range want {
			if !got[name] {
				t.Errorf("%s does not want %s: %v", pattern, name, got)
			}
		}
	}
	if _, err := OpenDir(dir, Filter{FollowPaths: []string{"/lo*"}}, OwnerRoot); err == nil {
		t.Error("a loop of links is no error")
	}
}
