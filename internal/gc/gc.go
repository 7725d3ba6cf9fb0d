package gc

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/store"
)

// Layers is what of [layer.Store] is needed here.
type Layers interface {
	DiskUsage(ctx context.Context) ([]layer.Usage, error)
	Prune(ctx context.Context, o layer.PruneOptions, report func(layer.Usage)) error
}

// Keeper keeps something on disk that is no layer, such as cache mounts.
type Keeper interface {
	// Usage describes what is kept, as if they were layers.
	Usage() ([]layer.Usage, error)
	// Remove deletes one by its id, unless it is in use.
	Remove(id string) (removed bool, err error)
}

// Collector removes what policies do not keep.
type Collector struct {
	Root   string // any path on the cache's file system
	Layers Layers
	Store  *store.Store
	Others Keeper // what else is kept; nil is nothing
}

// Run applies the policies in order, and tells report of each thing removed.
// Report may be nil.
func (c *Collector) Run(ctx context.Context, policies []Policy, report func(layer.Usage)) error {
	if report == nil {
		report = func(layer.Usage) {}
	}
	layers, why := 0, "by garbage collection"
	for _, p := range policies {
		n, err := c.apply(ctx, p, report)
		layers += n
		why = cmp.Or(p.By, why)
		if err != nil {
			return fmt.Errorf("collect garbage: %w", err)
		}
	}
	if layers == 0 {
		return nil
	}
	return c.forgetResults(ctx, why)
}

// apply applies one policy and returns how many layers it removed.
func (c *Collector) apply(ctx context.Context, p Policy, report func(layer.Usage)) (layers int, err error) {
	usage, others, err := c.usage(ctx)
	if err != nil {
		return 0, err
	}
	d, err := c.disk(usage, others)
	if err != nil {
		return 0, err
	}
	plan, err := p.Plan(d)
	if err != nil || !plan.Act {
		return 0, err
	}
	match, err := ParseFilters(p.Filters)
	if err != nil {
		return 0, err
	}
	freed := int64(0)
	for _, u := range choose(usage, others, p, plan, d, match) {
		removed, err := c.Others.Remove(u.ID)
		if err != nil {
			return 0, err
		}
		if removed {
			freed += u.Size
			report(u)
		}
	}
	byID := map[string]layer.Usage{}
	for _, u := range usage {
		byID[u.ID] = u
	}
	plan.Options.Filter = func(r layer.Record) bool {
		u, ok := byID[r.ID]
		return ok && match(u) // what came meanwhile is new
	}
	if plan.Options.KeepBytes > 0 { // which counts layers only
		plan.Options.KeepBytes -= sizeOf(others) - freed
		if plan.Options.KeepBytes <= 0 {
			plan.Options.KeepBytes = 1 // nothing of them: 0 would be no limit
		}
		if sizeOf(usage) <= plan.Options.KeepBytes {
			return 0, nil
		}
	}
	err = c.Layers.Prune(ctx, plan.Options, func(u layer.Usage) {
		layers++
		report(u)
	})
	return layers, err
}

// choose picks what is no layer and goes: what would go if all were sorted by
// the time of their last use.
func choose(usage, others []layer.Usage, p Policy, plan Plan, d Disk, match func(layer.Usage) bool) (out []layer.Usage) {
	type candidate struct {
		layer.Usage
		other bool
	}
	var all []candidate
	add := func(list []layer.Usage, other bool) {
		for _, u := range list {
			young := p.KeepFor > 0 && time.Since(u.LastUsed) < p.KeepFor
			own := !p.All && (u.Type == "internal" || u.Type == "frontend")
			if !u.InUse && !young && !own && match(u) {
				all = append(all, candidate{u, other})
			}
		}
	}
	add(usage, false)
	add(others, true)
	slices.SortStableFunc(all, func(a, b candidate) int { return a.LastUsed.Compare(b.LastUsed) })
	left := d.Used
	for _, u := range all {
		if plan.Options.KeepBytes > 0 && left <= plan.Options.KeepBytes {
			break
		}
		left -= u.Size
		if u.other {
			out = append(out, u.Usage)
		}
	}
	return out
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
// miss anyway; this keeps the database small.
func (c *Collector) forgetResults(ctx context.Context, why string) error {
	start := time.Now() // a layer made meanwhile must not count as lost
	usage, err := c.Layers.DiskUsage(ctx)
	if err != nil {
		return err
	}
	kept := map[string]bool{"": true}
	for _, u := range usage {
		kept[u.ID] = true
	}
	return c.Store.EvictResults(why, func(r store.Result) bool {
		return r.SavedAt.Before(start) && slices.ContainsFunc(r.Outputs, func(o store.Output) bool { return !kept[o.Layer] })
	})
}
