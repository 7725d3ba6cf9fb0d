package local_test

import (
	"io"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/kiln-build/kiln/internal/session/files"
)

// share shares the directory, and counts what is read of its files.
func (r *rig) share(f files.Filter) (files.Tree, error) {
	tree, err := files.FromDir(r.dir)(f)
	if err == nil && r.changed != nil {
		tree = r.changed(tree)
	}
	return countedTree{tree, &r.sent}, err
}

type countedTree struct {
	files.Tree
	read *atomic.Int64
}

func (c countedTree) Open(name string) (io.ReadCloser, error) {
	f, err := c.Tree.Open(name)
	return countedFile{f, c.read}, err
}

type countedFile struct {
	io.ReadCloser
	read *atomic.Int64
}

func (c countedFile) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.read.Add(int64(n))
	return n, err
}

// BuildKit, too, counts the listing with what it transfers.
func TestListingIsCounted(t *testing.T) {
	r := newRig(t, 0)
	r.write(t, "file", strings.Repeat("x", 1000))
	_, first := r.fetchTold(t, op())
	_, same := r.fetchTold(t, op())
	if same == 0 || first != 1000+same {
		t.Errorf("%d bytes told, and %d when nothing had changed: want the same listing, and 1000 of content at first", first, same)
	}
}
