package cachemount

import (
	"os"
	"path/filepath"
	"sync"
)

// removers is how many folders of a tree are removed at once: a disk that is
// told of each file that goes has time for more than one.
const removers = 8

// removeTree is os.RemoveAll for trees with a great many files, which nobody
// uses meanwhile.
func removeTree(dir string) error {
	folders := make(chan string)
	var g sync.WaitGroup
	for range removers {
		g.Go(func() {
			for f := range folders {
				_ = os.RemoveAll(f) // what cannot be removed is met again below
			}
		})
	}
	for _, f := range branches(dir) {
		folders <- f
	}
	close(folders)
	g.Wait()
	return os.RemoveAll(dir)
}

// branches are folders below dir, of the first depth that has many of them or
// else the last that has any.
func branches(dir string) []string {
	const many = 8 * removers
	level := []string{dir}
	for len(level) < many {
		var next []string
		for _, parent := range level {
			entries, err := os.ReadDir(parent)
			if err != nil {
				continue
			}
			for _, e := range entries {
				if e.IsDir() {
					next = append(next, filepath.Join(parent, e.Name()))
				}
			}
		}
		if len(next) == 0 {
			break
		}
		level = next
	}
	return level
}
