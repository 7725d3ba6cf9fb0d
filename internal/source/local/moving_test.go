package local_test

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kiln-build/kiln/internal/session/files"
)

// movingTree is a directory whose files change between being listed and read.
type movingTree struct {
	files.Tree
	move func()
}

func (m movingTree) Open(name string) (io.ReadCloser, error) {
	m.move()
	return m.Tree.Open(name)
}

// TestMovingFiles has logs grow, and temporary files shrink and vanish, while
// the directory is sent: what came counts, with its true size, and is told of.
func TestMovingFiles(t *testing.T) {
	r := newRig(t, 0)
	r.write(t, "calm", "as ever")
	r.write(t, "log", "first line\n")
	r.write(t, "shrunk", "much content")
	r.write(t, "tmp", "soon gone")
	var once sync.Once
	r.changed = func(tree files.Tree) files.Tree {
		return movingTree{tree, func() {
			once.Do(func() {
				r.write(t, "log", "first line\nsecond line\n")
				r.write(t, "shrunk", "little")
				if err := os.Remove(filepath.Join(r.dir, "tmp")); err != nil {
					t.Error(err)
				}
			})
		}}
	}
	ref, _ := r.fetch(t, op())
	dir, release, err := r.layers.Mount(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	got := look(t, dir)
	r.checkDigest(t, ref, dir)
	if err := release(); err != nil {
		t.Error(err)
	}
	for name, want := range map[string]string{"calm": "as ever", "log": "first line\nsecond line\n", "shrunk": "little", "tmp": ""} {
		if !strings.HasSuffix(got[name], " "+want) {
			t.Errorf("%s: got %q, want %q", name, got[name], want)
		}
	}
	for _, name := range []string{"log", "shrunk", "tmp"} {
		if !strings.Contains(r.warned(), `"`+name+`" changed while it was sent`) {
			t.Errorf("no word about %s in %q", name, r.warned())
		}
	}
	if strings.Contains(r.warned(), "calm") {
		t.Errorf("a word about a file that stayed: %q", r.warned())
	}
	// The next time all is as the client has it.
	r.changed = nil
	ref, _ = r.fetch(t, op())
	r.check(t, ref)
}
