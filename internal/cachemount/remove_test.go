package cachemount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func TestRemoveTree(t *testing.T) {
	for name, files := range map[string]int{"flat": 0, "few folders": 3, "many folders": 500} {
		dir := filepath.Join(t.TempDir(), "tree")
		beside := map[string]string{"f": "1", "kept/f": "2"}
		all := map[string]string{"f": "1"}
		for i := range files {
			all[fmt.Sprintf("a/b/%d/c/f", i)] = "3"
		}
		write(t, dir, all)
		write(t, filepath.Dir(dir), beside)
		if err := os.Symlink(filepath.Join(filepath.Dir(dir), "kept"), filepath.Join(dir, "link")); err != nil {
			t.Fatal(err)
		}
		if err := removeTree(dir); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the tree is still there: %v", name, err)
		}
		if _, err := os.Stat(filepath.Join(filepath.Dir(dir), "kept", "f")); err != nil {
			t.Errorf("%s: what a link leads to: %v", name, err)
		}
		if err := removeTree(dir); err != nil {
			t.Errorf("%s: removing what is not there: %v", name, err)
		}
	}
}
