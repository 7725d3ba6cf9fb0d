package exporter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/kiln-build/kiln/internal/layer"
)

// Mounter makes files visible; [layer.Store] does.
type Mounter interface {
	Mount(ctx context.Context, r *layer.Ref) (dir string, release func() error, err error)
}

// Mounted is the result for one platform, as a directory on this machine.
type Mounted struct {
	ID    string // of the platform
	Name  string // of the directory that it becomes; "" is the top
	Dir   string
	Extra []File     // attestations, for the top of the directory
	Epoch *time.Time // of everything; nil leaves times as they are
}

// MountAll makes the files of a result visible until release.
func MountAll(ctx context.Context, m Mounter, in Input, o FilesOptions) (all []Mounted, release func() error, err error) {
	var releases []func() error
	release = func() error {
		var errs []error
		for i := len(releases) - 1; i >= 0; i-- {
			errs = append(errs, releases[i]())
		}
		return errors.Join(errs...)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, release())
		}
	}()
	for _, p := range in.Platforms {
		one := Mounted{ID: p.ID, Epoch: o.Epoch.of(in, p)}
		if o.PlatformSplit {
			id := p.ID
			if id == "" {
				id = p.Platform.OS + "/" + p.Platform.Architecture
			}
			if one.Name, err = PlatformDir(id); err != nil {
				return nil, release, err
			}
		}
		dir, done, err := m.Mount(ctx, p.Ref)
		if err != nil {
			return nil, release, fmt.Errorf("mount result%s: %w", forPlatform(p.ID), err)
		}
		releases = append(releases, done)
		if one.Dir = dir; o.Src != "" {
			sub, err := layer.OpenDir(dir, o.Src)
			if err != nil {
				return nil, release, fmt.Errorf("export directory of the result%s: src=%s: %w", forPlatform(p.ID), o.Src, withoutPath(err))
			}
			releases = append(releases, sub.Close)
			// A name that holds as long as the handle does, whatever the files are.
			one.Dir = fmt.Sprintf("/proc/self/fd/%d", sub.Fd())
		}
		if one.Extra, err = p.attestationFiles(ctx, one.Dir, o); err != nil {
			return nil, release, err
		}
		all = append(all, one)
	}
	return all, release, nil
}

// withoutPath leaves out the path, which the message has already named.
func withoutPath(err error) error {
	var at *fs.PathError
	for errors.As(err, &at) {
		err = at.Err
	}
	return err
}

// Clash is the error for a path that two platforms' results have, where they go
// to one folder.
func Clash(path string, first, second Mounted) error {
	return fmt.Errorf("cannot overwrite %s from %s with %s when split option is disabled: export with platform-split=true",
		path, first.ID, second.ID)
}
