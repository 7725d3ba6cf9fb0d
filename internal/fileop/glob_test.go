package fileop

import (
	"fmt"
	"io/fs"
	"testing"
	"time"
)

// name is an entry of a directory that is not on any disk.
type name string

func (n name) Name() string             { return string(n) }
func (name) IsDir() bool                { return false }
func (name) Type() fs.FileMode          { return 0 }
func (name) Info() (fs.FileInfo, error) { return nil, fs.ErrNotExist }

// TestGlobOfManyFiles checks that wildcards over a million files, however they are
// written, take time in proportion to the number of files.
func TestGlobOfManyFiles(t *testing.T) {
	const many = 1_000_000
	entries := make([]fs.DirEntry, many)
	for i := range entries {
		entries[i] = name(fmt.Sprintf("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa%07d.go", i))
	}
	search := func(pattern string, n int) (found int, took time.Duration) {
		g := globber{readDir: func(string) ([]fs.DirEntry, error) { return entries[:n], nil }, base: "/src", pattern: pattern}
		start := time.Now()
		if err := g.walk(""); err != nil {
			t.Fatal(err)
		}
		return len(g.found), time.Since(start)
	}
	for pattern, want := range map[string]int{
		"*1.go": many / 10, "*a*a*a*b": 0, "[a-z]*[0-9].??": many,
	} {
		quick, slow := time.Duration(0), time.Hour
		for range 5 {
			_, took := search(pattern, many/10)
			quick = max(quick, took)
			found, took := search(pattern, many)
			if slow = min(slow, took); found != want {
				t.Fatalf("%s matches %d of %d files, want %d", pattern, found, many, want)
			}
			if slow <= 20*quick+time.Second {
				break
			}
		}
		if slow > 20*quick+time.Second {
			t.Errorf("%s over %d files took %v, over %d %v", pattern, many/10, quick, many, slow)
		}
	}
}
