package layer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
)

// Mutable is a file system state in the making.
type Mutable struct {
	store  *Store
	parent *Ref
	opt    NewOptions
	key    string
	dir    string   // of the snapshot: what is written gets here
	lowers []string // what shows through, the topmost first
	mount  mountpoint

	mu   sync.Mutex
	done bool
}

// NewOptions describe a layer to be made.
type NewOptions struct {
	Description string
	Type        string // Record.Type; "" is "regular"
}

// New begins a state on top of parent.
func (s *Store) New(ctx context.Context, parent *Ref, opt NewOptions) (*Mutable, error) {
	if err := s.pin(parent); err != nil {
		return nil, fmt.Errorf("begin layer: %w", err)
	}
	m, err := s.begin(ctx, parent, opt)
	if err != nil {
		s.unpin(parent)
		return nil, fmt.Errorf("begin layer: %w", err)
	}
	return m, nil
}

func (s *Store) begin(ctx context.Context, parent *Ref, opt NewOptions) (*Mutable, error) {
	lowers, err := s.lowers(ctx, parent)
	if err != nil {
		return nil, err
	}
	m := &Mutable{store: s, parent: parent, opt: opt, lowers: lowers, key: newID()}
	base := ""
	if s.native && parent != nil {
		base = s.nativeBase(parent)
	}
	if m.dir, err = s.prepare(ctx, m.key, base); err != nil {
		return nil, err
	}
	if len(lowers) > 0 {
		if err := likeRoot(lowers[0], m.dir); err != nil {
			return nil, errors.Join(err, s.c.Snapshots.Remove(ctx, m.key))
		}
	}
	return m, nil
}

// prepare begins a snapshot. Only native ones have another one below.
func (s *Store) prepare(ctx context.Context, key, base string) (dir string, err error) {
	if _, err := s.c.Snapshots.Prepare(ctx, key, base); err != nil {
		return "", fmt.Errorf("begin snapshot: %w", err)
	}
	if dir, err = s.c.Snapshots.Dir(ctx, key); err != nil {
		return "", errors.Join(err, s.c.Snapshots.Remove(ctx, key))
	}
	return dir, nil
}

// nativeBase is the snapshot that has all files of r.
func (s *Store) nativeBase(r *Ref) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.rec.Loose {
		return r.rec.Flat
	}
	return r.rec.Snapshot
}

// likeRoot makes the directory at dir look as the one below it: overlay shows
// the topmost one's owner and mode.
func likeRoot(below, dir string) error {
	from, err := openRoot(below)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := openRoot(dir)
	if err != nil {
		return err
	}
	defer to.Close()
	st, err := lstat(fd(from), ".")
	if err != nil {
		return err
	}
	return copyMeta(fd(from), st, fd(to))
}

// Mount makes the files visible at a directory on this machine, to be changed,
// until release. It may be called again after release, and more than once at a time.
func (m *Mutable) Mount(context.Context) (dir string, release func() error, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.done {
		return "", nil, errors.New("mount layer: it was committed or discarded")
	}
	if m.plain() {
		return m.mount.acquire(func() (string, error) { return m.dir, nil }, func(string) error { return nil })
	}
	return m.mount.acquire(func() (string, error) {
		// What is written is cache: without "volatile", each unmount would wait
		// for the disk. The kernel takes the work directory of such a mount
		// again only without this mark.
		if err := os.RemoveAll(filepath.Join(m.work(), "work", "incompat")); err != nil {
			return "", err
		}
		return m.store.mountAt(m.overlay("volatile"))
	}, m.store.unmount)
}

// plain says whether the snapshot's directory has all the files.
func (m *Mutable) plain() bool { return m.store.native || len(m.lowers) == 0 }

func (m *Mutable) work() string { return filepath.Join(filepath.Dir(m.dir), "work") }

func (m *Mutable) overlay(more ...string) mount.Mount {
	return m.store.overlay(m.lowers, append([]string{"workdir=" + m.work(), "upperdir=" + m.dir}, more...)...)
}

// Mounts tells how to mount the state for those who mount for themselves.
func (m *Mutable) Mounts(context.Context) ([]mount.Mount, error) {
	if m.plain() {
		return []mount.Mount{{Type: "bind", Source: m.dir, Options: []string{"rw", "rbind"}}}, nil
	}
	return []mount.Mount{m.overlay()}, nil
}

// Commit freezes the state and keeps it. The Mutable cannot be used afterwards.
func (m *Mutable) Commit(ctx context.Context) (*Ref, error) {
	kind := m.opt.Type
	if kind == "" {
		kind = "regular"
	}
	return m.commit(ctx, newID(), Record{Description: m.opt.Description, Type: kind})
}

// commit keeps the state under id with what rec says.
func (m *Mutable) commit(ctx context.Context, id string, rec Record) (*Ref, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.done {
		return nil, errors.New("commit layer: it was committed or discarded before")
	}
	if m.mount.busy() {
		return nil, errors.New("commit layer: it is still mounted; release the mount first")
	}
	s := m.store
	if !m.plain() {
		if err := s.dropUnchanged(ctx, m.dir, m.lowers); err != nil {
			return nil, fmt.Errorf("commit layer: %w", err)
		}
	}
	name, size, err := s.freeze(ctx, m.key, m.dir)
	if err != nil {
		return nil, fmt.Errorf("commit layer: %w", err)
	}
	m.done = true
	defer s.unpin(m.parent)
	rec.ID, rec.Parent, rec.Snapshot, rec.Size, rec.CreatedAt = id, m.parent.ID(), name, size, time.Now()
	rec.Windows = slices.ContainsFunc(m.parent.chain(), func(l *Ref) bool { return l.Record().Windows })
	r := &Ref{store: s, id: id, parent: m.parent, depth: depthOf(m.parent) + 1, dir: m.dir, rec: rec}
	if err := s.add(r); err != nil {
		return nil, errors.Join(err, s.removeSnapshots(context.WithoutCancel(ctx), []string{name}))
	}
	return r, nil
}

// freeze commits the snapshot begun as key.
func (s *Store) freeze(ctx context.Context, key, dir string) (name string, size int64, err error) {
	name = newID()
	usage, err := s.c.Snapshots.Freeze(ctx, name, key, dir)
	return name, usage.Size, err
}

// Discard forgets the state. It does nothing after Commit.
func (m *Mutable) Discard() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.done {
		return nil
	}
	m.done = true
	defer m.store.unpin(m.parent)
	if m.mount.busy() && !m.plain() {
		// Whoever mounted it has failed to let go; the files go all the same.
		if err := m.store.unmount(m.mount.dir); err != nil {
			return fmt.Errorf("discard layer: %w", err)
		}
	}
	return m.store.removeSnapshots(context.Background(), []string{m.key})
}

// removeSnapshots removes snapshots that nothing refers to. It waits for the removal of
// no others: with many files that takes minutes.
func (s *Store) removeSnapshots(ctx context.Context, names []string) error {
	if len(names) == 0 {
		return nil
	}
	if s.native {
		return s.removeCopies(ctx, names)
	}
	err := s.c.Snapshots.RemoveAll(ctx, names)
	if cerr := s.c.Snapshots.Cleanup(ctx); cerr != nil {
		err = errors.Join(err, fmt.Errorf("remove snapshot files: %w", cerr))
	}
	return err
}

// removeCopies removes snapshots of the native store. That calls each the child of the
// one that it was copied from, and removes none that has one: what an image has taken
// over keeps those below, which wait until it goes, too.
func (s *Store) removeCopies(ctx context.Context, names []string) error {
	var errs []error
	for progress := true; progress; {
		s.waiting.Lock()
		names = append(slices.Clone(names), s.waiting.names...)
		s.waiting.names = nil
		s.waiting.Unlock()
		var below []string
		for _, name := range names {
			switch err := s.c.Snapshots.Remove(ctx, name); {
			case err == nil || errdefs.IsNotFound(err):
			case errdefs.IsFailedPrecondition(err):
				below = append(below, name)
			default:
				errs = append(errs, fmt.Errorf("remove snapshot %s: %w", name, err))
			}
		}
		progress = len(below) < len(names)
		s.waiting.Lock()
		s.waiting.names = append(s.waiting.names, below...)
		s.waiting.Unlock()
		names = nil
	}
	return errors.Join(errs...)
}
