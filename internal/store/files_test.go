package store_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/kiln-build/kiln/internal/store"
)

// TestFilesGiveWay: lists of files are bounded all together, over restarts too,
// and the oldest give way.
func TestFilesGiveWay(t *testing.T) {
	const (
		size  = 1 << 20
		bound = 32 // lists of that size
		lists = 2*bound + 3
	)
	root := t.TempDir()
	db, err := store.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	for i := range lists {
		if i == bound+1 {
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			if db, err = store.Open(root); err != nil {
				t.Fatal(err)
			}
		}
		if err := db.PutFiles(fmt.Sprint("list ", i), bytes.Repeat([]byte{byte(i)}, size)); err != nil {
			t.Fatal(err)
		}
	}
	defer db.Close()
	kept, oldest := 0, lists
	for i := range lists {
		data, ok := db.Files(fmt.Sprint("list ", i))
		switch {
		case !ok && i > oldest:
			t.Errorf("list %d is gone, though list %d, which is older, is there", i, oldest)
		case ok && !bytes.Equal(data, bytes.Repeat([]byte{byte(i)}, size)):
			t.Errorf("list %d is not what was put", i)
		case ok:
			kept, oldest = kept+1, min(oldest, i)
		}
	}
	if _, ok := db.Files(fmt.Sprint("list ", lists-1)); !ok {
		t.Error("the newest list is gone")
	}
	if kept >= bound || kept < bound/2 {
		t.Errorf("%d lists of %d bytes are kept, expected fewer than %d and more than half of that", kept, size, bound)
	}
}
