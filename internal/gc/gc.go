package gc

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/store"
)

// Layers is what of [layer.Store] is needed here.
type Layers interface {
	DiskUsage(ctx context.Context) ([]layer.Usage, error)
	Prune(ctx context.Context, o layer.PruneOptions, report func(layer.Usage)) error
	Sweep(ctx context.Context) (freed int64, err error)
	Folders() (counted, linked []string)
}

// Keeper keeps something on disk that is no layer, such as cache mounts.
type Keeper interface {
	// Usage describes what is kept, as if they were layers.
	Usage() ([]layer.Usage, error)
	// Remove deletes one by its id, unless it is in use.
	Remove(id string) (removed bool, err error)
}

// Past is what is known of builds that have ended.
type Past interface {
	// Shrink forgets the oldest of them until so many bytes of the disk are free, as
	// far as it may.
	Shrink(bytes int64) (freed int64, err error)
}

// Collector removes what policies do not keep, and holds the root folder to its
// cap. Its methods may be called concurrently.
type Collector struct {
	Root   string // the folder of all state
	Layers Layers
	Store  *store.Store
	Others Keeper // what else is kept; nil is nothing
	Images Images // what names images stand for
	Past   Past   // gives way where the cap is in danger; nil is nothing
	// Cap is how many bytes all together below Root may take; 0 is no cap. See
	// [Collector.Hold].
	Cap int64

	holding  sync.Mutex // held while room is made
	measured measured
	free     func() (int64, error) // for tests: the free bytes of the disk
}

// Run applies the policies in order, and tells report of each thing removed.
// When it returns the bytes are free. Report may be nil.
func (c *Collector) Run(ctx context.Context, policies []Policy, report func(layer.Usage)) error {
	if report == nil {
		report = func(layer.Usage) {}
	}
	layers, why, all := 0, "by garbage collection", false
	for _, p := range policies {
		n, err := c.apply(ctx, p, report)
		layers += n
		why, all = cmp.Or(p.By, why), all || p.takesAll()
		if err != nil {
			return fmt.Errorf("collect garbage: %w", err)
		}
	}
	if layers > 0 || all {
		if err := c.forgetResults(ctx, why, all); err != nil {
			return err
		}
	}
	if _, err := c.Layers.Sweep(ctx); err != nil {
		return fmt.Errorf("collect garbage: %w", err)
	}
	return nil
}

// apply applies one policy and returns how many layers it removed.
func (c *Collector) apply(ctx context.Context, p Policy, report func(layer.Usage)) (layers int, err error) {
	match, err := ParseFilters(p.Filters)
	if err != nil {
		return 0, err
	}
	usage, others, err := c.usage(ctx)
	if err != nil {
		return 0, err
	}
	d, err := c.disk(usage, others)
	if err != nil {
		return 0, err
	}
	plan := p.Plan(d)
	if !plan.Act {
		return 0, nil
	}
	kept := make(map[string]bool, len(others)) // is it one of the others
	for _, u := range others {
		kept[u.ID] = true
	}
	going := map[string]bool{}
	for _, u := range choose(slices.Concat(usage, others), p, match, plan.Keep, d.Used, time.Now()) {
		if !kept[u.ID] {
			going[u.ID] = true
			continue
		}
		removed, err := c.Others.Remove(u.ID)
		if err != nil {
			return 0, err
		}
		if removed {
			report(u)
		}
	}
	if len(going) == 0 {
		return 0, nil
	}
	// What came into use meanwhile stays, and what came at all is not chosen.
	err = c.Layers.Prune(ctx, layer.PruneOptions{All: true, Filter: func(r layer.Record) bool { return going[r.ID] }}, func(u layer.Usage) {
		layers++
		report(u)
	})
	return layers, err
}

// Usage lists all that is kept, layers first.
func (c *Collector) Usage(ctx context.Context) ([]layer.Usage, error) {
	layers, others, err := c.usage(ctx)
	return append(layers, others...), err
}

func (c *Collector) usage(ctx context.Context) (layers, others []layer.Usage, err error) {
	if layers, err = c.Layers.DiskUsage(ctx); err != nil {
		return nil, nil, fmt.Errorf("measure disk usage: %w", err)
	}
	if c.Others == nil {
		return layers, nil, nil
	}
	if others, err = c.Others.Usage(); err != nil {
		return nil, nil, fmt.Errorf("measure disk usage: %w", err)
	}
	return layers, others, nil
}

func sizeOf(usage []layer.Usage) (n int64) {
	for _, u := range usage {
		n += u.Size
	}
	return n
}

// disk is the state of the cache's file system.
func (c *Collector) disk(layers, others []layer.Usage) (Disk, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(c.Root, &fs); err != nil {
		return Disk{}, fmt.Errorf("state of the disk at %s: %w", c.Root, err)
	}
	return Disk{
		Total: int64(fs.Blocks) * fs.Bsize, Free: int64(fs.Bavail) * fs.Bsize, Used: sizeOf(layers) + sizeOf(others),
	}, nil
}

// forgetResults drops results that have lost a layer. Loading one would be a
// miss anyway; this keeps the database small. With all it drops those without
// any layer, too, and the digests of contents: by these, a step is known to make
// what another has made, though all that it is built on was removed.
func (c *Collector) forgetResults(ctx context.Context, why string, all bool) error {
	start := time.Now() // a layer made meanwhile must not count as lost
	usage, err := c.Layers.DiskUsage(ctx)
	if err != nil {
		return err
	}
	kept := map[string]bool{"": true}
	for _, u := range usage {
		kept[u.ID] = true
	}
	err = c.Store.EvictResults(why, func(r store.Result) bool {
		if !r.SavedAt.Before(start) {
			return false
		}
		hasLayer := slices.ContainsFunc(r.Outputs, func(o store.Output) bool { return o.Layer != "" })
		return all && !hasLayer || slices.ContainsFunc(r.Outputs, func(o store.Output) bool { return !kept[o.Layer] })
	})
	if err != nil || !all {
		return err
	}
	return c.Store.DeleteDigests()
}
