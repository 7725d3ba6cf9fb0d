// Package snapshot opens the store of file system snapshots: overlayfs where
// the machine has it, plain copies where not.
//
// Snapshots are cache. Their database is not synced at every change, which the
// death of the process cannot hurt; after the death of the machine neither it
// nor the files can be trusted, so the store then starts afresh.
//
// It sits below layer, which stacks snapshots by itself.
package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// The kinds of stores.
const (
	Auto    = "auto" // overlayfs if it works below the root, else native
	Overlay = "overlayfs"
	Native  = "native"
)

// labelDir is where a committed snapshot says which directory it has, relative
// to the store's.
const labelDir = "kiln/dir"

// Store is an opened snapshotter and what is known of it.
type Store struct {
	snapshots.Snapshotter
	Kind string // "overlayfs" or "native"
	// UserXattr says that overlay keeps its marks in user.overlay.* attributes,
	// not trusted.overlay.*, as it must inside a user namespace.
	UserXattr bool
	// Options are mount options that each overlay mount needs.
	Options []string

	root      string
	recovered string
	meta      *storage.MetaStore // of Snapshotter; nil in a native store

	remove   func(dir string) error
	mu       sync.Mutex
	removing map[string]bool // directories that somebody removes
}

// Open opens the snapshots below root. Kind is "auto", "overlayfs" or
// "native"; overlayfs fails where it cannot be mounted.
func Open(root, kind string) (*Store, error) {
	if err := os.MkdirAll(root, 0o711); err != nil {
		return nil, fmt.Errorf("create snapshot root: %w", err)
	}
	s := &Store{Kind: kind, root: root, remove: os.RemoveAll, removing: map[string]bool{}}
	switch kind {
	case Auto, Overlay:
		err := s.probe()
		switch {
		case err == nil:
			s.Kind = Overlay
		case kind == Overlay:
			return nil, fmt.Errorf("overlayfs does not work below %s: %w; use %q or %q", root, err, Auto, Native)
		default:
			s.Kind = Native
		}
	case Native:
	default:
		return nil, fmt.Errorf("snapshotter %q is unknown: want %q, %q or %q", kind, Auto, Overlay, Native)
	}
	// Each kind has a folder of its own, so that neither meets the other's files.
	s.root = filepath.Join(root, s.Kind)
	if err := s.trust(); err != nil {
		return nil, err
	}
	if err := s.open(); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Store) open() error {
	if err := os.MkdirAll(s.root, 0o711); err != nil {
		return fmt.Errorf("create snapshot root: %w", err)
	}
	if err := s.sweep(); err != nil {
		return fmt.Errorf("sweep snapshots: %w", err)
	}
	var err error
	if s.Kind == Native {
		// Its database cannot be given; a copy per snapshot costs more than a sync.
		s.Snapshotter, err = native.NewSnapshotter(s.root)
	} else {
		var ms *storage.MetaStore
		if ms, err = storage.NewMetaStore(s.database(), fastCommits); err != nil {
			return fmt.Errorf("open snapshot database: %w", err)
		}
		s.meta = ms
		s.Snapshotter, err = overlay.NewSnapshotter(s.root,
			overlay.WithMetaStore(ms), overlay.AsynchronousRemove, overlay.WithMountOptions(s.Options))
	}
	if err != nil {
		return fmt.Errorf("open %s snapshots: %w", s.Kind, err)
	}
	spread(s.directories())
	return writeMarker(s.marker())
}

// sweep removes the directories that the database does not know. A process that
// is killed leaves one where it has made the directory of a snapshot and not
// yet committed its number: that number is given out again, and no snapshot
// could be made any more.
func (s *Store) sweep() error {
	entries, err := os.ReadDir(s.directories())
	if errors.Is(err, os.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	} else if err != nil {
		return err
	}
	ms, err := storage.NewMetaStore(s.database(), fastCommits)
	if err != nil {
		return fmt.Errorf("open database: %w", err)
	}
	known := map[string]string{}
	err = ms.WithTransaction(context.Background(), false, func(ctx context.Context) error {
		ids, err := storage.IDMap(ctx)
		if err == nil {
			known = ids
		}
		if errdefs.IsNotFound(err) {
			return nil // nothing was ever committed
		}
		return err
	})
	if err = errors.Join(err, ms.Close()); err != nil {
		return fmt.Errorf("read database: %w", err)
	}
	for _, e := range entries {
		if _, ok := known[e.Name()]; !ok {
			err = errors.Join(err, os.RemoveAll(filepath.Join(s.directories(), e.Name())))
		}
	}
	return err
}

func fastCommits(o *bolt.Options) error {
	o.NoSync = true
	o.FreelistType = bolt.FreelistMapType
	o.Timeout = 5 * time.Second
	return nil
}

// Recovered is a sentence for the user if Open had to start afresh, or "".
func (s *Store) Recovered() string { return s.recovered }

// Close releases the store.
func (s *Store) Close() error {
	if err := s.Snapshotter.Close(); err != nil {
		return fmt.Errorf("close snapshots: %w", err)
	}
	if f, err := os.OpenFile(s.database(), os.O_RDWR, 0); err == nil {
		err = errors.Join(f.Sync(), f.Close())
		if err != nil {
			return fmt.Errorf("sync snapshot database: %w", err)
		}
	}
	if err := os.Remove(s.marker()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("mark snapshots as closed: %w", err)
	}
	return nil
}

// atOnce is how many snapshots are removed in one transaction.
const atOnce = 500

// RemoveAll removes snapshots. What of their files cannot be removed at once is
// left to Cleanup. What is not there is no error; what has a child stays, with an
// error of [errdefs.ErrFailedPrecondition] for each.
func (s *Store) RemoveAll(ctx context.Context, names []string) error {
	var errs []error
	note := func(name string, err error) {
		if err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("remove snapshot %s: %w", name, err))
		}
	}
	if s.meta == nil {
		for _, name := range names {
			note(name, s.Remove(ctx, name))
		}
		return errors.Join(errs...)
	}
	for some := range slices.Chunk(names, atOnce) {
		var ids []string // of directories
		err := s.meta.WithTransaction(ctx, true, func(ctx context.Context) error {
			for _, name := range some {
				id, _, err := storage.Remove(ctx, name)
				note(name, err)
				if err == nil && s.claim(id) {
					ids = append(ids, id)
				}
			}
			return nil
		})
		if err != nil {
			s.release(ids...)
			errs = append(errs, fmt.Errorf("remove %d snapshots: %w", len(some), err))
			continue
		}
		s.removeDirs(ids)
	}
	return errors.Join(errs...)
}

// Cleanup removes the directories of snapshots that are gone and whose removal failed
// before. It does not wait for those that somebody is removing: with many files that
// takes minutes.
func (s *Store) Cleanup(ctx context.Context) error {
	if s.meta == nil {
		return nil // Remove leaves none
	}
	var gone []string
	// Who makes a snapshot makes its directory in a transaction, too.
	err := s.meta.WithTransaction(ctx, true, func(ctx context.Context) error {
		known, err := storage.IDMap(ctx)
		if err != nil && !errdefs.IsNotFound(err) { // nothing was ever committed
			return err
		}
		entries, err := os.ReadDir(s.directories())
		for _, e := range entries {
			if _, ok := known[e.Name()]; !ok && s.claim(e.Name()) {
				gone = append(gone, e.Name())
			}
		}
		return err
	})
	s.removeDirs(gone)
	return err
}

// claim notes that the caller removes a directory, unless somebody does already.
func (s *Store) claim(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.removing[id] {
		return false
	}
	s.removing[id] = true
	return true
}

func (s *Store) release(ids ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		delete(s.removing, id)
	}
}

// removeDirs removes the directories of snapshots that nobody can find any more and
// that the caller has claimed, several at once: a disk and a kernel have time for more
// than one.
func (s *Store) removeDirs(ids []string) {
	const workers = 4
	var g sync.WaitGroup
	for part := range slices.Chunk(ids, len(ids)/workers+1) {
		g.Go(func() {
			for _, id := range part {
				_ = s.remove(filepath.Join(s.directories(), id)) // Cleanup tries again what fails
				s.release(id)
			}
		})
	}
	g.Wait()
}

// Dir is the directory of an active snapshot that has no parent or, in a
// native store, any, as its mounts tell.
func (s *Store) Dir(ctx context.Context, key string) (string, error) {
	mounts, err := s.Mounts(ctx, key)
	if err != nil {
		return "", err
	}
	if len(mounts) != 1 || mounts[0].Type != "bind" {
		return "", fmt.Errorf("snapshot %s is no plain directory", key)
	}
	return mounts[0].Source, nil
}

// Freeze commits the active snapshot key, which has directory dir and is not
// changed any more, as name, and tells what it takes on the disk.
func (s *Store) Freeze(ctx context.Context, name, key, dir string) (snapshots.Usage, error) {
	rel, err := filepath.Rel(s.root, dir)
	if err != nil {
		return snapshots.Usage{}, err
	}
	labels := snapshots.WithLabels(map[string]string{labelDir: rel})
	if s.meta == nil {
		if err := s.Commit(ctx, name, key, labels); err != nil {
			return snapshots.Usage{}, err
		}
		return s.Usage(ctx, name)
	}
	// Commit would count one file after the other, while all others wait for the
	// database.
	usage, err := diskUsage(ctx, dir)
	if err != nil {
		return snapshots.Usage{}, err
	}
	err = s.meta.WithTransaction(ctx, true, func(ctx context.Context) error {
		_, err := storage.CommitActive(ctx, key, name, usage, labels)
		return err
	})
	if err != nil {
		return snapshots.Usage{}, fmt.Errorf("commit snapshot %s: %w", key, err)
	}
	return usage, nil
}

// FrozenDirs returns the directories of all snapshots made by Freeze, by name.
// Every other snapshot is in the second result.
func (s *Store) FrozenDirs(ctx context.Context) (frozen map[string]string, others []string, err error) {
	frozen = map[string]string{}
	err = s.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		rel := info.Labels[labelDir]
		if rel == "" || info.Kind != snapshots.KindCommitted || !filepath.IsLocal(rel) {
			others = append(others, info.Name)
			return nil
		}
		frozen[info.Name] = filepath.Join(s.root, rel)
		return nil
	})
	if errdefs.IsNotFound(err) {
		err = nil // the database of a new store has nothing to walk
	}
	return frozen, others, err
}

func (s *Store) directories() string { return filepath.Join(s.root, "snapshots") }

func (s *Store) database() string { return filepath.Join(s.root, "metadata.db") }

func (s *Store) marker() string { return filepath.Join(s.root, "open") }

// trust sees to it that what is there can be trusted, or is gone.
func (s *Store) trust() error {
	marked, err := os.ReadFile(s.marker())
	if errors.Is(err, os.ErrNotExist) {
		return nil // closed in order, or new
	}
	reason := ""
	switch boot, bootErr := bootID(); {
	case err != nil || bootErr != nil:
		reason = fmt.Sprintf("cannot tell whether the machine went down: %v", errors.Join(err, bootErr))
	case string(marked) != boot:
		reason = "the machine went down while they were in use"
	default:
		if err := checkDatabase(s.database()); err != nil {
			reason = "their database is damaged: " + err.Error()
		}
	}
	if reason == "" {
		return nil
	}
	s.recovered = "the snapshots below " + s.root + " were given up, so cached steps run once more: " + reason
	if err := os.RemoveAll(s.root); err != nil {
		return fmt.Errorf("remove snapshots that cannot be trusted: %w", err)
	}
	return nil
}

// writeMarker notes in which boot the store was open. It waits for no disk:
// the moment until it is there is too short for much to be lost.
func writeMarker(path string) error {
	boot, err := bootID()
	if err != nil {
		boot = "unknown"
	}
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("mark snapshots as open: %w", err)
	}
	if _, err = f.WriteString(boot); err != nil {
		return errors.Join(fmt.Errorf("mark snapshots as open: %w", err), f.Close())
	}
	go func() {
		_ = f.Sync()
		_ = f.Close()
	}()
	return nil
}

func bootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id)), err
}

// checkDatabase reads all of a database and says what is wrong with it.
func checkDatabase(path string) (err error) {
	fi, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	db, err := bolt.Open(path, 0o600, &bolt.Options{NoSync: true, Timeout: 5 * time.Second})
	if err != nil {
		return err
	}
	err = db.View(func(tx *bolt.Tx) error {
		if tx.Size() > fi.Size() {
			return fmt.Errorf("file has %d bytes, should have %d", fi.Size(), tx.Size())
		}
		var first error
		for err := range tx.Check() {
			if first == nil {
				first = err
			}
		}
		return first
	})
	return errors.Join(err, db.Close())
}
