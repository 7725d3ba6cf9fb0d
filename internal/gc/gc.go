package gc

import (
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

// Collector removes what policies do not keep.
type Collector struct {
	Root   string // any path on the cache's file system
	Layers Layers
	Store  *store.Store
}

// Run applies the policies in order, and tells report of each layer removed.
// Report may be nil.
func (c *Collector) Run(ctx context.Context, policies []Policy, report func(layer.Usage)) error {
	removed := 0
	for _, p := range policies {
		d, err := c.Disk(ctx)
		if err != nil {
			return fmt.Errorf("collect garbage: %w", err)
		}
		plan, err := p.Plan(d)
		if err != nil {
			return fmt.Errorf("collect garbage: %w", err)
		}
		if !plan.Act {
			continue
		}
		err = c.Layers.Prune(ctx, plan.Options, func(u layer.Usage) {
			removed++
			if report != nil {
				report(u)
			}
		})
		if err != nil {
			return fmt.Errorf("collect garbage: %w", err)
		}
	}
	if removed == 0 {
		return nil
	}
	return c.forgetResults(ctx)
}

// Disk tells the state of the cache's file system.
func (c *Collector) Disk(ctx context.Context) (Disk, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(c.Root, &fs); err != nil {
		return Disk{}, fmt.Errorf("state of the disk at %s: %w", c.Root, err)
	}
	usage, err := c.Layers.DiskUsage(ctx)
	if err != nil {
		return Disk{}, err
	}
	d := Disk{Total: int64(fs.Blocks) * fs.Bsize, Free: int64(fs.Bavail) * fs.Bsize}
	for _, u := range usage {
		d.Used += u.Size
	}
	return d, nil
}

// forgetResults drops results that have lost a layer. Loading one would be a
// miss anyway; this keeps the database small.
func (c *Collector) forgetResults(ctx context.Context) error {
	start := time.Now() // a layer made meanwhile must not count as lost
	usage, err := c.Layers.DiskUsage(ctx)
	if err != nil {
		return err
	}
	kept := map[string]bool{"": true}
	for _, u := range usage {
		kept[u.ID] = true
	}
	return c.Store.ForgetResults(func(r store.Result) bool {
		return r.SavedAt.Before(start) && slices.ContainsFunc(r.Outputs, func(o store.Output) bool { return !kept[o.Layer] })
	})
}
