package layer

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"sync"

	digest "github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/contenthash"
)

// treesKept bounds how many states have the digests of their files in memory.
const treesKept = 64

// treeCache keeps the digests of the states used last.
type treeCache struct {
	mu     sync.Mutex
	byID   map[string]*list.Element
	recent list.List // of treeEntry, the last used first
}

type treeEntry struct {
	id   string
	tree *contenthash.Tree
}

func (c *treeCache) get(id string) *contenthash.Tree {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.byID[id]; e != nil {
		c.recent.MoveToFront(e)
		return e.Value.(treeEntry).tree
	}
	t := contenthash.New()
	c.putLocked(id, t)
	return t
}

// Checksum is the digest of what sels select of r (nil selects everything).
func (s *Store) Checksum(ctx context.Context, r *Ref, sels []contenthash.Selector) (digest.Digest, error) {
	tree := s.trees.get(r.ID())
	dir, release, err := s.View(ctx, r)
	if err != nil {
		return "", fmt.Errorf("failed to calculate checksum of ref %s: %w", r.ID(), err)
	}
	d, err := tree.Checksum(ctx, dir, sels)
	if err = errors.Join(err, release()); err != nil {
		return "", fmt.Errorf("failed to calculate checksum of ref %s: %w", r.ID(), err)
	}
	return d, nil
}

func (c *treeCache) forget(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.byID[id]; e != nil {
		delete(c.byID, id)
		c.recent.Remove(e)
	}
}

// SetTree gives r the digests of its files, so that they need not be read.
func (s *Store) SetTree(r *Ref, tree *contenthash.Tree) { s.trees.put(r.ID(), tree) }

func (c *treeCache) put(id string, tree *contenthash.Tree) {
	c.forget(id)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.putLocked(id, tree)
}

func (c *treeCache) putLocked(id string, tree *contenthash.Tree) {
	if c.byID == nil {
		c.byID = map[string]*list.Element{}
	}
	c.byID[id] = c.recent.PushFront(treeEntry{id, tree})
	if c.recent.Len() > treesKept {
		last := c.recent.Back()
		delete(c.byID, last.Value.(treeEntry).id)
		c.recent.Remove(last)
	}
}

// List tells what sels select of r. It costs little after [Store.Checksum] of
// the same selectors.
func (s *Store) List(ctx context.Context, r *Ref, sels []contenthash.Selector) ([]contenthash.Listed, error) {
	tree := s.trees.get(r.ID())
	dir, release, err := s.View(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("list files: %w", err)
	}
	l, err := tree.List(ctx, dir, sels)
	if err = errors.Join(err, release()); err != nil {
		return nil, fmt.Errorf("list files: %w", err)
	}
	return l, nil
}
