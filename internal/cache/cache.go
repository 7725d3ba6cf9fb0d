// Package cache is the solver's memory: the metadata database for what is
// remembered, layers for the files.
//
// A hit is whole: every layer of a result and all below it can be mounted. A
// result that has lost one is a miss and is forgotten. It sits between solver
// and store.
package cache

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/solver"
	"github.com/kiln-build/kiln/internal/store"
)

// Cache remembers results. It implements [solver.Cache]. Results are
// *layer.Ref, nil for the empty file system, or small []byte values.
type Cache struct {
	store  *store.Store
	layers *layer.Store
}

var _ solver.Cache = (*Cache)(nil)

// New returns a cache over what is kept in st and layers.
func New(st *store.Store, layers *layer.Store) *Cache { return &Cache{st, layers} }

// largestValue bounds what a result may hold inline, in bytes.
const largestValue = 1 << 20

// Load returns the results kept under key, or [solver.ErrNotFound].
func (c *Cache) Load(ctx context.Context, key solver.Key) ([]solver.Result, error) {
	kept, ok := c.store.Result(key)
	if !ok {
		return nil, solver.ErrNotFound
	}
	out := make([]solver.Result, len(kept.Outputs))
	for i, o := range kept.Outputs {
		switch {
		case o.Absent:
			out[i] = solver.Absent{}
		case o.Layer != "":
			r, err := c.layers.Get(ctx, o.Layer)
			if errors.Is(err, layer.ErrNotFound) {
				// Not worth an error: the step runs and its result replaces this.
				_ = c.store.DeleteResults(key)
				return nil, solver.ErrNotFound
			} else if err != nil {
				return nil, fmt.Errorf("load result: %w", err)
			}
			out[i] = r
		case o.Value != nil:
			out[i] = o.Value
		default:
			out[i] = (*layer.Ref)(nil)
		}
	}
	return out, nil
}

// Save keeps results under key.
func (c *Cache) Save(_ context.Context, key solver.Key, out []solver.Result) error {
	kept := store.Result{Outputs: make([]store.Output, len(out)), SavedAt: time.Now()}
	for i, r := range out {
		switch r := r.(type) {
		case nil:
		case solver.Absent:
			kept.Outputs[i].Absent = true
		case *layer.Ref:
			kept.Outputs[i].Layer = r.ID()
		case []byte:
			if len(r) > largestValue {
				return fmt.Errorf("save result: value has %d bytes, at most %d can be kept", len(r), largestValue)
			}
			kept.Outputs[i].Value = append([]byte{}, r...)
		default:
			return fmt.Errorf("save result: cannot keep a %T", r)
		}
	}
	return c.store.PutResult(key, kept)
}

// Digest returns the content digest kept for a part of a key, or
// [solver.ErrNotFound].
func (c *Cache) Digest(_ context.Context, part string) (solver.Content, error) {
	if d, ok := c.store.Digest(part); ok {
		text, of, _ := strings.Cut(d, " ")
		return solver.Content{Digest: text, Of: of}, nil
	}
	return solver.Content{}, solver.ErrNotFound
}

// PutDigest keeps a content digest.
func (c *Cache) PutDigest(_ context.Context, part string, d solver.Content) error {
	return c.store.PutDigest(part, strings.TrimSuffix(d.Digest+" "+d.Of, " "))
}
