package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// made returns a directory's tree: contents by path, nil for a directory.
func made(t *testing.T, contents map[string]string) Tree {
	t.Helper()
	dir := t.TempDir()
	for name, text := range contents {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d, err := OpenDir(dir, Filter{}, OwnerKept)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// listed is what a tree holds, in order, as "path" or "path=content".
func listed(t *testing.T, tree Tree) (out []string, err error) {
	t.Helper()
	last := ""
	err = tree.Walk(t.Context(), func(st *Stat) error {
		if last != "" && ComparePaths(last, st.GetPath()) >= 0 {
			t.Errorf("%s after %s", st.GetPath(), last)
		}
		last = st.GetPath()
		if isDir(st) {
			out = append(out, last)
			return nil
		}
		r, err := tree.Open(last)
		if err != nil {
			return err
		}
		defer r.Close()
		b, err := io.ReadAll(r)
		out = append(out, last+"="+string(b))
		return err
	})
	return out, err
}

func TestMerge(t *testing.T) {
	clash := func(path string, a, b int) error { return fmt.Errorf("%s is in %d and %d", path, a, b) }
	later := func(string, int, int) error { return nil }
	a := made(t, map[string]string{"a/1": "a1", "a-b": "x", "x/y/z": "z"})
	b := made(t, map[string]string{"a/2": "b2", "zz": "b"})
	extra, err := Static(map[string][]byte{"zz": []byte("new"), "x": []byte("file"), "m.json": []byte("m")}, 5)
	if err != nil {
		t.Fatal(err)
	}
	got, err := listed(t, Merge(clash, a, b))
	if want := []string{"a", "a/1=a1", "a/2=b2", "a-b=x", "x", "x/y", "x/y/z=z", "zz=b"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	got, err = listed(t, Merge(later, a, b, extra))
	if want := []string{"a", "a/1=a1", "a/2=b2", "a-b=x", "m.json=m", "x=file", "zz=new"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	if _, err := listed(t, Merge(clash, a, b, extra)); err == nil || err.Error() != "x is in 0 and 2" {
		t.Errorf("clash: %v", err)
	}
	stopped := errors.New("enough")
	if err := Merge(clash, a, b).Walk(t.Context(), func(*Stat) error { return stopped }); !errors.Is(err, stopped) {
		t.Errorf("stopped: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Merge(clash, a, b).Walk(ctx, func(*Stat) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	if _, err := Merge(clash, a, b).Open("missing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	for _, bad := range []string{"", "..", "a/b", "."} {
		if _, err := Static(map[string][]byte{bad: nil}, 0); err == nil {
			t.Errorf("a file is called %q", bad)
		}
	}
}

func TestTimed(t *testing.T) {
	var at []int64
	err := Timed(made(t, map[string]string{"a/b": "x"}), 7).Walk(t.Context(), func(st *Stat) error {
		at = append(at, st.GetModTime())
		return nil
	})
	if err != nil || !slices.Equal(at, []int64{7, 7}) {
		t.Errorf("%v, %v", at, err)
	}
}
