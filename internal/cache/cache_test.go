package cache_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	blobs "github.com/kiln-build/kiln/internal/content"

	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/cache/cachetest"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/snapshot"
	"github.com/kiln-build/kiln/internal/solver"
	"github.com/kiln-build/kiln/internal/store"
)

// stack is a cache with all that it stands on.
type stack struct {
	db     *store.Store
	snaps  *snapshot.Store
	layers *layer.Store
	cache  *cache.Cache
}

func openStack(root, kind string) (*stack, error) {
	ctx := context.Background()
	db, err := store.Open(root)
	if err != nil {
		return nil, err
	}
	snaps, err := snapshot.Open(filepath.Join(root, "snapshots"), kind)
	if err != nil {
		return nil, err
	}
	cs, err := blobs.Open(ctx, filepath.Join(root, "content"))
	if err != nil {
		return nil, err
	}
	layers, err := layer.NewStore(ctx, layer.Config{
		Dir: filepath.Join(root, "layers"), Snapshots: snaps, Content: cs, Records: db,
	})
	if err != nil {
		return nil, err
	}
	return &stack{db, snaps, layers, cache.New(db, layers)}, nil
}

func (s *stack) close() error {
	return errors.Join(s.layers.Close(), s.db.Close(), s.snaps.Close())
}

// step makes a layer with one file.
func (s *stack) step(parent *layer.Ref, name, text string) (*layer.Ref, error) {
	ctx := context.Background()
	m, err := s.layers.New(ctx, parent, layer.NewOptions{})
	if err != nil {
		return nil, err
	}
	dir, release, err := m.Mount(ctx)
	if err != nil {
		return nil, err
	}
	err = os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644)
	if err = errors.Join(err, release()); err != nil {
		return nil, err
	}
	return m.Commit(ctx)
}

// read returns the files of a state by name.
func (s *stack) read(r *layer.Ref) (map[string]string, error) {
	dir, release, err := s.layers.Mount(context.Background(), r)
	if err != nil {
		return nil, err
	}
	files := map[string]string{}
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		var data []byte
		if data, err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			break
		}
		files[e.Name()] = string(data)
	}
	return files, errors.Join(err, release())
}

func TestCache(t *testing.T) {
	for _, kind := range []string{snapshot.Overlay, snapshot.Native} {
		t.Run(kind, func(t *testing.T) {
			cachetest.Run(t, func(t *testing.T) *cachetest.Fixture { return fixture(t, kind) })
		})
	}
}

func fixture(t *testing.T, kind string) *cachetest.Fixture {
	root := t.TempDir()
	s, err := openStack(root, kind)
	if err != nil {
		t.Fatalf("these tests run as root on a machine that has overlayfs: %v", err)
	}
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	made := 0
	return &cachetest.Fixture{
		Cache: s.cache,
		Empty: (*layer.Ref)(nil),
		Make: func(t *testing.T) solver.Result {
			made++
			base, err := s.step(nil, "base", "base")
			if err != nil {
				t.Fatal(err)
			}
			r, err := s.step(base, "file", fmt.Sprint(made))
			if err != nil {
				t.Fatal(err)
			}
			return r
		},
		Content: func(t *testing.T, r solver.Result) string {
			files, err := s.read(r.(*layer.Ref))
			if err != nil {
				t.Fatal(err)
			}
			return fmt.Sprint(files)
		},
		Evict: func(t *testing.T, r solver.Result) {
			id := r.(*layer.Ref).ID()
			err := s.layers.Prune(context.Background(), layer.PruneOptions{
				Filter: func(r layer.Record) bool { return r.ID == id },
			}, nil)
			if err != nil {
				t.Fatal(err)
			}
		},
		Reopen: func(t *testing.T) solver.Cache {
			if err := s.close(); err != nil {
				t.Fatal(err)
			}
			again, err := openStack(root, kind)
			if err != nil {
				t.Fatal(err)
			}
			*s = *again
			return s.cache
		},
	}
}

func TestValuesAreKept(t *testing.T) {
	f := fixture(t, snapshot.Overlay)
	ctx := context.Background()
	if err := f.Cache.Save(ctx, "key", []solver.Result{[]byte("value"), nil}); err != nil {
		t.Fatal(err)
	}
	f.Cache = f.Reopen(t)
	out, err := f.Cache.Load(ctx, "key")
	if err != nil || len(out) != 2 || string(out[0].([]byte)) != "value" || out[1].(*layer.Ref) != nil {
		t.Errorf("load gives %v (%v)", out, err)
	}
	if err := f.Cache.Save(ctx, "big", []solver.Result{make([]byte, 2<<20)}); err == nil {
		t.Error("a value of 2 MiB is kept")
	}
}
