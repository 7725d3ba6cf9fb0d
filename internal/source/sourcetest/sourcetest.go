// Package sourcetest is what every source must pass.
//
// A test of an implementation is one call of [Run] with something that the
// source can bring in and, if it can, a way to change it.
package sourcetest

import (
	"context"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/source"
	"github.com/kiln-build/kiln/llb"
)

// Layers makes files of a state visible; [layer.Store] does.
type Layers interface {
	Mount(ctx context.Context, r *layer.Ref) (dir string, release func() error, err error)
}

// Subject is a source under test.
type Subject struct {
	Source  source.Source
	Layers  Layers
	Context context.Context // what the source finds its sessions in
	Op      *llb.SourceOp
	Options source.Options
	Files   map[string]string // the regular files that there are, by path
	// Change changes what there is and returns the files that there are then.
	// Nil if the identifier pins it.
	Change func(t *testing.T) map[string]string
}

// Run tests a source. fresh returns a subject without history.
func Run(t *testing.T, fresh func(t *testing.T) Subject) {
	t.Run("schemes", func(t *testing.T) {
		s := fresh(t)
		scheme, _, _ := strings.Cut(s.Op.Identifier, "://")
		if !slices.Contains(s.Source.Schemes(), scheme) {
			t.Errorf("schemes %v lack %q", s.Source.Schemes(), scheme)
		}
	})
	t.Run("brings files", func(t *testing.T) {
		s := fresh(t)
		pin := s.resolve(t)
		s.compare(t, s.fetch(t, pin), s.Files)
		s.compare(t, s.fetch(t, pin), s.Files)
	})
	t.Run("pins", func(t *testing.T) {
		s := fresh(t)
		first, second := s.resolve(t), s.resolve(t)
		if first.Key == "" || first.Key != second.Key {
			t.Errorf("keys %q and %q of the same thing", first.Key, second.Key)
		}
		a, b := s.fetch(t, first), s.fetch(t, second)
		if a.ID() != b.ID() {
			t.Errorf("two layers, %q and %q, of the same thing", a.ID(), b.ID())
		}
	})
	t.Run("sees changes", func(t *testing.T) {
		s := fresh(t)
		if s.Change == nil {
			return // what has a digest for its name does not change
		}
		before := s.resolve(t)
		old := s.fetch(t, before)
		files := s.Change(t)
		after := s.resolve(t)
		if before.Key == after.Key && !strings.HasPrefix(after.Key, "session:") {
			t.Errorf("key %q stays the same after a change", after.Key)
		}
		s.compare(t, s.fetch(t, after), files)
		s.compare(t, old, s.Files)
	})
	t.Run("refuses", func(t *testing.T) { refuses(t, fresh(t)) })
	t.Run("canceled", func(t *testing.T) {
		s := fresh(t)
		pin := s.resolve(t)
		ctx, cancel := context.WithCancel(s.Context)
		cancel()
		// Either it is here already, or it says that it was canceled.
		if ref, err := s.Source.Fetch(ctx, pin); err == nil {
			s.compare(t, ref, s.Files)
		}
		s.compare(t, s.fetch(t, pin), s.Files)
	})
}

func refuses(t *testing.T, s Subject) {
	op := *s.Op
	op.Attrs = maps.Clone(s.Op.Attrs)
	if op.Attrs == nil {
		op.Attrs = map[string]string{}
	}
	op.Attrs["no.such.attribute"] = "x"
	if _, err := s.Source.Resolve(s.Context, &op, s.Options); err == nil || !strings.Contains(err.Error(), "no.such.attribute") {
		t.Errorf("unknown attribute: got %v", err)
	}
	scheme, _, _ := strings.Cut(s.Op.Identifier, "://")
	for _, id := range []string{scheme + "://", scheme, "", "\x00"} {
		if _, err := s.Source.Resolve(s.Context, &llb.SourceOp{Identifier: id}, s.Options); err == nil {
			t.Errorf("identifier %q was taken", id)
		}
	}
	if _, err := s.Source.Fetch(s.Context, &source.Pin{Op: s.Op}); err == nil {
		t.Error("a pin of nobody was fetched")
	}
}

func (s Subject) resolve(t *testing.T) *source.Pin {
	t.Helper()
	pin, err := s.Source.Resolve(s.Context, s.Op, s.Options)
	if err != nil {
		t.Fatal(err)
	}
	return pin
}

func (s Subject) fetch(t *testing.T, pin *source.Pin) *layer.Ref {
	t.Helper()
	ref, err := s.Source.Fetch(s.Context, pin)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func (s Subject) compare(t *testing.T, ref *layer.Ref, want map[string]string) {
	t.Helper()
	if got := Files(t, s.Layers, ref); !maps.Equal(got, want) {
		t.Errorf("got files %v, want %v", got, want)
	}
}

// Files returns the regular files of a state, by path.
func Files(t *testing.T, layers Layers, ref *layer.Ref) map[string]string {
	t.Helper()
	dir, release, err := layers.Mount(context.WithoutCancel(t.Context()), ref)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	top := os.DirFS(dir)
	err = fs.WalkDir(top, ".", func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			var b []byte
			b, err = fs.ReadFile(top, p)
			got[p] = string(b)
		}
		return err
	})
	if rerr := release(); err == nil {
		err = rerr
	}
	if err != nil {
		t.Fatal(err)
	}
	return got
}
