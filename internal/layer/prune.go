package layer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
)

// Usage tells of one layer and the room it takes.
type Usage struct {
	Record
	Parents []string // ids; of one layer, the one below
	InUse   bool     // a build has it, or one on top of it, in its hands
	Shared  bool     // others are on top of it, or have the same files
	Size    int64    // bytes of files and blobs; what is shared counts once
	Blobs   int64    // bytes of blobs among them
}

// PruneOptions say what to remove.
type PruneOptions struct {
	All bool // also types "internal" and "frontend"
	// Filter spares what it is false for. Nil takes everything.
	Filter func(Record) bool
}

// DiskUsage lists all layers, the last used first.
func (s *Store) DiskUsage(ctx context.Context) ([]Usage, error) {
	sizes, err := s.blobSizes(ctx)
	if err != nil {
		return nil, fmt.Errorf("disk usage: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	items := s.itemsLocked(sizes)
	out := make([]Usage, len(items))
	for i, it := range items {
		out[i] = it.usage
	}
	slices.SortFunc(out, func(a, b Usage) int {
		return cmp.Or(b.LastUsed.Compare(a.LastUsed), cmp.Compare(a.ID, b.ID))
	})
	return out, nil
}

// blockSize is what files are rounded up to by most file systems, in bytes.
const blockSize = 4096

// blobSizes lists the blobs that are here, by the room that they take.
func (s *Store) blobSizes(ctx context.Context) (map[digest.Digest]int64, error) {
	sizes := map[digest.Digest]int64{}
	err := s.c.Content.Walk(ctx, func(i content.Info) error {
		sizes[i.Digest] = (i.Size + blockSize - 1) / blockSize * blockSize
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list blobs: %w", err)
	}
	return sizes, nil
}

// item is a layer as a candidate for removal.
type item struct {
	ref      *Ref
	usage    Usage
	lastUsed time.Time // of it or what is on top
	children int
}

// itemsLocked lists all layers, those on top before those below.
func (s *Store) itemsLocked(sizes map[digest.Digest]int64) []*item {
	byRef := map[*Ref]*item{}
	var items []*item
	counted := map[string]bool{}
	owners := map[string]int{}
	for _, r := range s.refs {
		owners[r.rec.Snapshot]++
	}
	protected := s.oldestUseLocked()
	// What several layers have is counted for the first: the same one each time.
	for _, id := range slices.Sorted(maps.Keys(s.refs)) {
		r := s.refs[id]
		u := Usage{Record: r.rec, InUse: r.pins > 0 || r.touched > protected}
		if r.parent != nil {
			u.Parents = []string{r.parent.id}
		}
		u.Shared = r.rec.Snapshot != "" && owners[r.rec.Snapshot] > 1
		if name := r.rec.Snapshot; name != "" && !counted[name] {
			counted[name] = true
			u.Size += r.rec.Size
		}
		for _, d := range r.rec.Blobs {
			if name := d.Digest.String(); !counted[name] {
				counted[name] = true
				u.Size += sizes[d.Digest]
				u.Blobs += sizes[d.Digest]
			}
		}
		it := &item{ref: r, usage: u, lastUsed: r.rec.LastUsed}
		byRef[r] = it
		items = append(items, it)
	}
	slices.SortFunc(items, func(a, b *item) int { return cmp.Compare(b.ref.depth, a.ref.depth) })
	for _, it := range items { // children come first
		p := byRef[it.ref.parent]
		if p == nil {
			continue
		}
		p.children++
		p.usage.Shared = true
		p.usage.InUse = p.usage.InUse || it.usage.InUse
		if it.lastUsed.After(p.lastUsed) {
			p.lastUsed = it.lastUsed
		}
	}
	return items
}

// oldestUseLocked is the touch after which everything is protected.
func (s *Store) oldestUseLocked() uint64 {
	oldest := s.seq
	for begin := range s.uses {
		oldest = min(oldest, *begin)
	}
	return oldest
}

// choose picks what to remove, in an order in which nothing is removed before
// what is on top of it.
func choose(items []*item, o PruneOptions) []*item {
	byRef := map[*Ref]*item{}
	for _, it := range items {
		byRef[it.ref] = it
	}
	order := slices.Clone(items)
	slices.SortStableFunc(order, func(a, b *item) int { return a.lastUsed.Compare(b.lastUsed) })
	var out []*item
	for _, it := range order { // of one time, those on top come first
		if it.children > 0 || it.usage.InUse || !o.takes(it) {
			continue
		}
		out = append(out, it)
		if p := byRef[it.ref.parent]; p != nil {
			p.children--
		}
	}
	return out
}

func (o PruneOptions) takes(it *item) bool {
	if !o.All && (it.usage.Type == "internal" || it.usage.Type == "frontend") {
		return false
	}
	return o.Filter == nil || o.Filter(it.usage.Record)
}

// Prune removes layers, those not used for the longest time first, and tells
// report of each. It never removes what was touched since the oldest active
// Use began, nor what is mounted, nor anything below what stays.
func (s *Store) Prune(ctx context.Context, o PruneOptions, report func(Usage)) error {
	sizes, err := s.blobSizes(ctx)
	if err != nil {
		return fmt.Errorf("prune: %w", err)
	}
	others, err := s.references(ctx)
	if err != nil {
		return fmt.Errorf("prune: %w", err)
	}
	gone, snapshots, err := s.forget(ctx, o, sizes, others)
	err = errors.Join(err, s.removeSnapshots(ctx, snapshots))
	for _, it := range gone {
		s.trees.forget(it.ref.id)
		if report != nil {
			report(it.usage)
		}
	}
	if err != nil {
		return fmt.Errorf("prune: %w", err)
	}
	return nil
}

// forget removes records, and the blobs that only they have. It returns the
// snapshots that have no owner now; nobody can find them any more.
func (s *Store) forget(ctx context.Context, o PruneOptions, sizes map[digest.Digest]int64, others map[digest.Digest]bool) (gone []*item, snapshots []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	gone = choose(s.itemsLocked(sizes), o)
	ids := make([]string, len(gone))
	for i, it := range gone {
		ids[i] = it.ref.id
		delete(s.refs, it.ref.id)
	}
	if len(ids) == 0 {
		return nil, nil, nil
	}
	if err := s.c.Records.DeleteLayers(ids...); err != nil {
		return gone, nil, fmt.Errorf("remove records: %w", err)
	}
	named, blobs, freed := s.namedSnapshots(), s.namedBlobs(), map[string]bool{}
	for _, it := range gone {
		for _, name := range []string{it.ref.rec.Snapshot, it.ref.rec.Flat} {
			if name != "" && !named[name] {
				named[name] = true // once
				freed[name], snapshots = true, append(snapshots, name)
			}
		}
		if chain, known := it.ref.chainLocked(); known && s.chains[chain] == it.ref.rec.Snapshot && freed[s.chains[chain]] {
			delete(s.chains, chain)
		}
		for _, d := range it.ref.rec.Blobs {
			if _, here := sizes[d.Digest]; here && !blobs[d.Digest] && !others[d.Digest] {
				err = errors.Join(err, s.removeBlob(ctx, d.Digest))
			}
		}
	}
	return gone, snapshots, err
}

func (s *Store) removeBlob(ctx context.Context, d digest.Digest) error {
	if err := s.c.Content.Delete(ctx, d); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove blob %s: %w", d, err)
	}
	return nil
}

// namedSnapshots are those that a layer has. The caller holds s.mu, or is alone.
func (s *Store) namedSnapshots() map[string]bool {
	named := map[string]bool{}
	for _, r := range s.refs {
		named[r.rec.Snapshot] = true
		named[r.rec.Flat] = true
	}
	return named
}

func (s *Store) namedBlobs() map[digest.Digest]bool {
	named := map[digest.Digest]bool{}
	for _, r := range s.refs {
		for _, d := range r.rec.Blobs {
			named[d.Digest] = true
		}
	}
	return named
}

func (s *Store) references(ctx context.Context) (map[digest.Digest]bool, error) {
	if s.c.References == nil {
		return nil, nil
	}
	others, err := s.c.References(ctx)
	if err != nil {
		return nil, fmt.Errorf("list blobs in use: %w", err)
	}
	return others, nil
}

// Folders lists the folders on disk that [Store.DiskUsage] counts, and those
// whose files are hard links to what it counts.
func (s *Store) Folders() (counted, linked []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.refs {
		if r.dir != "" {
			counted = append(counted, r.dir)
		}
		if r.flatDir != "" {
			linked = append(linked, r.flatDir)
		}
	}
	return counted, linked
}

// Sweep removes the blobs that nobody needs, such as the manifest of an image
// without a name, and returns how many bytes that freed. While there is any
// [Store.Use] it does nothing: what is being made is not named yet.
func (s *Store) Sweep(ctx context.Context) (freed int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.uses) > 0 {
		return 0, nil
	}
	others, err := s.references(ctx)
	if err != nil || others == nil {
		return 0, err
	}
	sizes, err := s.blobSizes(ctx)
	if err != nil {
		return 0, err
	}
	named := s.namedBlobs()
	for d, size := range sizes {
		if named[d] || others[d] {
			continue
		}
		if err := s.removeBlob(ctx, d); err != nil {
			return freed, err
		}
		freed += size
	}
	return freed, nil
}

// sweepBlobs removes, at the start, the blobs that nobody needs.
func (s *Store) sweepBlobs(ctx context.Context) error {
	if s.c.References == nil {
		return nil
	}
	others, err := s.references(ctx)
	if err != nil {
		return err
	}
	sizes, err := s.blobSizes(ctx)
	if err != nil {
		return err
	}
	named := s.namedBlobs()
	for d := range sizes {
		if !named[d] && !others[d] {
			if err := s.removeBlob(ctx, d); err != nil {
				return err
			}
		}
	}
	return nil
}
