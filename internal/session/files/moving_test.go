package files_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/internal/api/fsutil"
	"github.com/kiln-build/kiln/internal/session/files"
	"github.com/kiln-build/kiln/internal/session/sessiontest"
)

func TestUnreadable(t *testing.T) {
	dir := golden(t)
	caller := sessiontest.Connect(t, files.NewProvider(map[string]files.Source{
		"context": func(f files.Filter) (files.Tree, error) {
			d, err := files.OpenDir(dir, f, files.OwnerRoot)
			return unreadableTree{d, "zero"}, err
		},
	}))
	err := files.Receive(context.Background(), caller, files.ReceiveOptions{Name: "context"}, &collect{})
	if err == nil || !strings.Contains(err.Error(), "zero") || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("error %v, want one that names the file and the cause", err)
	}
}

// unreadableTree has a file that nobody may read.
type unreadableTree struct {
	*files.Dir
	name string
}

func (u unreadableTree) Open(name string) (io.ReadCloser, error) {
	if name == u.name {
		return nil, fmt.Errorf("open %q: %w", name, fs.ErrPermission)
	}
	return u.Dir.Open(name)
}

// TestListedInMotion lists a context again and again while things in it come
// and go: no listing fails, and what stays is in each.
func TestListedInMotion(t *testing.T) {
	dir := golden(t)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		p := filepath.Join(dir, "moving")
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			var err error
			switch i % 3 {
			case 0:
				err = os.MkdirAll(filepath.Join(p, "below", "it"), 0o755)
			case 1:
				err = os.Symlink("zero", p)
			case 2:
				err = os.WriteFile(p, []byte("x"), 0o600)
			}
			if err = errors.Join(err, os.RemoveAll(p)); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	for range 300 {
		d, err := files.OpenDir(dir, files.Filter{}, files.OwnerRoot)
		if err != nil {
			t.Fatal(err)
		}
		found := false
		err = d.Walk(t.Context(), func(st *fsutil.Stat) error {
			found = found || st.GetPath() == "zero"
			return nil
		})
		if err := errors.Join(err, d.Close()); err != nil || !found {
			t.Errorf("zero listed: %v, error %v", found, err)
			break
		}
	}
	close(stop)
	<-stopped
}

// TestVanished has a file vanish after it was listed: of a context it arrives
// empty, as from BuildKit's clients; of a result, which nobody changes, it is an
// error.
func TestVanished(t *testing.T) {
	for _, owner := range []files.Owner{files.OwnerRoot, files.OwnerKept} {
		dir := golden(t)
		d, err := files.OpenDir(dir, files.Filter{}, owner)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(dir, "zero")); err != nil {
			t.Fatal(err)
		}
		r, err := d.Open("zero")
		switch {
		case owner == files.OwnerKept && !errors.Is(err, fs.ErrNotExist):
			t.Errorf("of a result: error %v, want one that says that it is gone", err)
		case owner == files.OwnerRoot && err != nil:
			t.Errorf("of a context: %v", err)
		case owner == files.OwnerRoot:
			if b, err := io.ReadAll(r); len(b) > 0 || err != nil {
				t.Errorf("of a context: %q, error %v, want nothing", b, err)
			}
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}
