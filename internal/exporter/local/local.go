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
	"time"

	"github.com/kiln-build/kiln/internal/exporter"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/session/files"
)

// Exporter exports files.
type Exporter struct{ layers exporter.Mounter }

// New returns an exporter of files that layers has.
func New(layers exporter.Mounter) *Exporter { return &Exporter{layers} }

// Check tells bad attributes.
func (e *Exporter) Check(attrs map[string]string) error {
	_, err := exporter.CheckFiles(attrs)
	return err
}

// Export sends the files.
func (e *Exporter) Export(ctx context.Context, in exporter.Input, to exporter.Target) (_ map[string]string, err error) {
	o, err := exporter.DecodeFiles(to.Attrs, in)
	if err != nil {
		return nil, err
	}
	if to.Session == nil {
		return nil, errors.New("export files: there is no client to send them to")
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
		tree, err := withExtra(dir, m)
		if err != nil {
			return nil, err
		}
		subs = append(subs, files.Sub{Name: m.Name, Tree: tree})
	}
	tree, err := join(mounted, subs, o)
	if err != nil {
		return nil, err
	}
	task := progress.StepFrom(ctx).Task("copying files", 0)
	defer task.Done()
	response := map[string]string{}
	return response, files.Send(ctx, to.Session, tree, files.SendOptions{
		ExporterID: to.ID, MultiPlatform: o.Delete || o.PlatformSplit, Sent: func(n int64) { task.Add(n) },
	})
}

// withExtra is the files of a result with what comes with it.
func withExtra(tree files.Tree, m exporter.Mounted) (files.Tree, error) {
	if len(m.Extra) > 0 {
		contents := map[string][]byte{}
		for _, f := range m.Extra {
			contents[f.Name] = f.Data
		}
		extra, err := files.Static(contents, time.Now().Truncate(time.Second).UnixNano())
		if err != nil {
			return nil, fmt.Errorf("add attestations: %w", err)
		}
		tree = files.Merge(func(string, int, int) error { return nil }, tree, extra)
	}
	if m.Epoch != nil {
		tree = files.Timed(tree, m.Epoch.UnixNano())
	}
	return tree, nil
}

// join puts the platforms into folders, or all into one.
func join(mounted []exporter.Mounted, subs []files.Sub, o exporter.FilesOptions) (files.Tree, error) {
	if o.PlatformSplit {
		tree, err := files.Join(subs...)
		if err == nil && mounted[0].Epoch != nil {
			tree = files.Timed(tree, mounted[0].Epoch.UnixNano())
		}
		return tree, err
	}
	var trees []files.Tree
	for _, s := range subs {
		trees = append(trees, s.Tree)
	}
	return files.Merge(func(path string, a, b int) error { return exporter.Clash(path, mounted[a], mounted[b]) }, trees...), nil
}
