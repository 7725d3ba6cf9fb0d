package layer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/internal/safepath"
)

// mountpoint is one mount shared by all who ask for it at the same time.
type mountpoint struct {
	mu    sync.Mutex
	users int
	dir   string
}

// acquire returns the directory, mounting it for the first user.
func (p *mountpoint) acquire(open func() (string, error), shut func(string) error) (string, func() error, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.users == 0 {
		dir, err := open()
		if err != nil {
			return "", nil, err
		}
		p.dir = dir
	}
	p.users++
	return p.dir, sync.OnceValue(func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.users--; p.users > 0 {
			return nil
		}
		return shut(p.dir)
	}), nil
}

func (p *mountpoint) busy() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.users > 0
}

// Mount makes the files visible, read-only, at a directory on this machine,
// until release. Nil gives an empty directory.
func (s *Store) Mount(ctx context.Context, r *Ref) (dir string, release func() error, err error) {
	if r == nil {
		dir, err := s.mountAt(s.readOnly([]string{s.dir.empty}))
		if err != nil {
			return "", nil, err
		}
		return dir, sync.OnceValue(func() error { return s.unmount(dir) }), nil
	}
	return s.visible(ctx, r, false)
}

// View is Mount for those who read files by handles and nothing else: where one
// directory has all of them it is that directory, which must not be changed or
// handed on. It costs no mount, and so no wait for the kernel to end one.
func (s *Store) View(ctx context.Context, r *Ref) (dir string, release func() error, err error) {
	if r == nil {
		return s.dir.empty, func() error { return nil }, nil
	}
	return s.visible(ctx, r, true)
}

// OpenDir opens the directory name of files that [Store.Mount] made visible at dir,
// as a container of them would: absolute links and ".." stay inside. Errors name
// paths as seen from inside dir.
func OpenDir(dir, name string) (*os.File, error) {
	root, err := safepath.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open mounted layer: %w", err)
	}
	defer root.Close()
	return root.ChrootDir(name)
}

// visible makes the files of a layer visible; plain takes a directory as it is.
func (s *Store) visible(ctx context.Context, r *Ref, plain bool) (dir string, release func() error, err error) {
	if err := s.pin(r); err != nil {
		return "", nil, fmt.Errorf("mount layer: %w", err)
	}
	done := func() error { return nil }
	lowers, err := s.lowers(ctx, r)
	switch {
	case err != nil:
	case plain && len(lowers) == 1:
		dir = lowers[0]
	default:
		dir, done, err = r.mount.acquire(
			func() (string, error) { return s.mountAt(s.readOnly(lowers)) }, s.unmount)
	}
	if err != nil {
		s.unpin(r)
		return "", nil, fmt.Errorf("mount layer %s: %w", r.id, err)
	}
	return dir, sync.OnceValue(func() error {
		defer s.unpin(r)
		return done()
	}), nil
}

// lowers returns the directories that make up r, the topmost first, getting
// what is not here. Each is there once, since overlayfs takes none twice: a
// layer that a merge has put in again adds nothing to its own topmost place.
func (s *Store) lowers(ctx context.Context, r *Ref) ([]string, error) {
	if err := s.materialize(ctx, r); err != nil {
		return nil, err
	}
	var dirs []string
	for ; r != nil; r = r.parent {
		s.mu.Lock()
		dir, flat, loose := r.dir, r.flatDir, r.rec.Loose
		s.mu.Unlock()
		if !loose && (s.native || r.depth%flatEvery != 0) {
			if !slices.Contains(dirs, dir) {
				dirs = append(dirs, dir)
			}
			if s.native {
				break // a copy of all
			}
			continue
		}
		if flat == "" {
			if err := s.flatten(ctx, r); err != nil {
				return nil, err
			}
			s.mu.Lock()
			flat = r.flatDir
			s.mu.Unlock()
		}
		return append(dirs, flat), nil
	}
	return dirs, nil
}

// readOnly tells how to mount directories over each other.
func (s *Store) readOnly(dirs []string) mount.Mount {
	if len(dirs) == 1 {
		return mount.Mount{Type: "bind", Source: dirs[0], Options: []string{"ro", "rbind"}}
	}
	return s.overlay(dirs)
}

func (s *Store) overlay(lowers []string, more ...string) mount.Mount {
	return mount.Mount{Type: "overlay", Source: "overlay", Options: slices.Concat(
		more, []string{"lowerdir=" + strings.Join(lowers, ":")}, s.c.Snapshots.Options)}
}

// mountAt mounts at a new directory.
func (s *Store) mountAt(m mount.Mount) (string, error) {
	dir := filepath.Join(s.dir.mounts, newID())
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", fmt.Errorf("make mount point: %w", err)
	}
	if err := m.Mount(dir); err != nil {
		return "", errors.Join(fmt.Errorf("mount %s: %w", m.Type, err), os.Remove(dir))
	}
	return dir, nil
}

// unmount undoes mountAt. Should somebody still have a file open there, the
// mount goes when it is closed.
func (s *Store) unmount(dir string) error {
	if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	if err := os.Remove(dir); err != nil {
		return fmt.Errorf("remove mount point: %w", err)
	}
	return nil
}
