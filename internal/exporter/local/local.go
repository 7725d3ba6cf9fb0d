// Package local exports files into a directory of the client.
//
// The files are sent straight from where they are mounted; nothing is copied
// first. A result for several platforms becomes a directory for each. Where
// the files go, and that they stay there, is up to the client.
package local

import (
	"context"
	"errors"
	"fmt"

	"github.com/kiln-build/kiln/internal/exporter"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/session/files"
)

// Exporter exports files.
type Exporter struct{ layers exporter.Mounter }

// New returns an exporter of files that layers has.
func New(layers exporter.Mounter) *Exporter { return &Exporter{layers} }

// Export sends the files.
func (e *Exporter) Export(ctx context.Context, in exporter.Input, to exporter.Target) (_ map[string]string, err error) {
	o, err := exporter.DecodeFiles(to.Attrs, in)
	if err != nil {
		return nil, err
	}
	if to.Session == nil {
		return nil, fmt.Errorf("export files: there is no client to send them to")
	}
	mounted, release, err := exporter.MountAll(ctx, e.layers, in, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, release()) }()
	var subs []files.Sub
	for _, m := range mounted {
		dir, err := files.OpenDir(m.Dir, files.Filter{}, files.OwnerKept)
		if err != nil {
			return nil, fmt.Errorf("open result: %w", err)
		}
		defer dir.Close() //nolint:errcheck // it is only read from
		subs = append(subs, files.Sub{Name: m.Name, Tree: dir})
	}
	tree := subs[0].Tree
	if o.PlatformSplit {
		if tree, err = files.Join(subs...); err != nil {
			return nil, err
		}
	}
	if o.Epoch != nil {
		tree = clamped{tree, o.Epoch.UnixNano()}
	}
	task := progress.StepFrom(ctx).Task("copying files", 0)
	defer task.Done()
	response := map[string]string{}
	return response, files.Send(ctx, to.Session, tree, files.SendOptions{
		ExporterID: to.ID, MultiPlatform: o.PlatformSplit, Sent: func(n int64) { task.Add(n) },
	})
}

// clamped is a tree with no time after epoch. Directories that a join makes
// have no time at all.
type clamped struct {
	files.Tree
	epoch int64
}

// Walk lists the tree.
func (c clamped) Walk(ctx context.Context, f func(*files.Stat) error) error {
	return c.Tree.Walk(ctx, func(st *files.Stat) error {
		if st.GetModTime() > c.epoch {
			st.ModTime = c.epoch
		}
		return f(st)
	})
}
