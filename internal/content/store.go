package content

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
)

const (
	ingestName = "ingest" // blobs under way
	openName   = "open"   // the boot in which the store was opened and not closed

	// syncDelay is how long a new blob is left to the kernel before the disk is
	// asked to have it: it bounds what power loss loses. Linux begins to write what
	// is 30 s old by itself (vm.dirty_expire_centisecs), at its own pace, so after that
	// there is little left to do. Much sooner, the disk would be busy with a blob
	// while whoever had it made still works with it.
	syncDelay = 40 * time.Second

	writable = 0o222
)

// Store is a store of blobs in a folder, laid out as containerd's, which does
// all but write.
//
// Nobody waits for the disk. A blob has its name only when it is whole, which is
// all that the end of a process can ask for. What the end of the machine can
// take is what is not on the disk yet: such a blob has a file that can be
// written to, and loses that when the disk has it. So the next Open knows which
// ones to forget. Forgotten blobs are made again, like any that are missing.
type Store struct {
	content.Store
	root string

	mu       sync.Mutex
	unsynced map[digest.Digest]time.Time // when they came
	timer    *time.Timer                 // nil while nothing is to be synced

	syncing sync.Mutex // held by who syncs
}

// Open opens the blobs below root, and forgets those that a crash has left half
// written, be it of a process or of the machine.
func Open(_ context.Context, root string) (*Store, error) {
	s := &Store{root: root, unsynced: map[digest.Digest]time.Time{}}
	// Not by the store's own means: they fail on one that was just being begun.
	if err := os.RemoveAll(s.ingest()); err != nil {
		return nil, fmt.Errorf("remove half-written blobs: %w", err)
	}
	// The folder of the blobs is made here so that an empty store can be listed.
	if err := errors.Join(os.MkdirAll(root, 0o711), os.MkdirAll(s.ingest(), 0o755), os.MkdirAll(filepath.Dir(s.path(digest.FromBytes(nil))), 0o755)); err != nil {
		return nil, fmt.Errorf("create content root: %w", err)
	}
	if err := s.recover(); err != nil {
		return nil, fmt.Errorf("look for blobs that were lost: %w", err)
	}
	var err error
	if s.Store, err = local.NewStore(root); err != nil {
		return nil, fmt.Errorf("open content: %w", err)
	}
	return s, nil
}

func (s *Store) ingest() string { return filepath.Join(s.root, ingestName) }

func (s *Store) path(d digest.Digest) string {
	return filepath.Join(s.root, "blobs", d.Algorithm().String(), d.Encoded())
}

// recover forgets the blobs that may not have reached the disk when the machine
// went down, and has those synced that only a process left.
func (s *Store) recover() error {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		boot = nil // every time counts as another
	}
	marker := filepath.Join(s.root, openName)
	before, err := os.ReadFile(marker)
	if err == nil {
		err = s.revisit(len(boot) > 0 && bytes.Equal(before, boot))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.Create(marker)
	if err != nil {
		return err
	}
	if _, err := f.Write(boot); err != nil {
		return errors.Join(err, f.Close())
	}
	// It waits for no disk: too little can be lost until the marker is there.
	go func() {
		_ = f.Sync()
		_ = f.Close()
	}()
	return nil
}

// revisit looks at all blobs of a store that was not closed.
func (s *Store) revisit(sameBoot bool) error {
	return filepath.WalkDir(filepath.Join(s.root, "blobs"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err != nil || info.Mode()&writable == 0 {
			return err
		}
		d := digest.NewDigestFromEncoded(digest.Algorithm(filepath.Base(filepath.Dir(path))), e.Name())
		if !sameBoot || d.Validate() != nil {
			return os.Remove(path)
		}
		s.syncLater(d)
		return nil
	})
}

// Close has the disk keep all blobs. Nothing may be written any more.
func (s *Store) Close() error {
	s.sync(0)
	s.mu.Lock()
	left := len(s.unsynced)
	if s.timer != nil {
		s.timer.Stop()
	}
	s.mu.Unlock()
	if left > 0 {
		return nil // the marker stays, and the next Open sees to them
	}
	if err := os.Remove(filepath.Join(s.root, openName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("mark content as closed: %w", err)
	}
	return nil
}

// syncLater notes that the disk may not have a blob.
func (s *Store) syncLater(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unsynced[d] = time.Now()
	s.armLocked()
}

// armLocked sees to it that the next blob that is due is synced.
func (s *Store) armLocked() {
	if s.timer != nil || len(s.unsynced) == 0 {
		return
	}
	first := time.Now()
	for _, came := range s.unsynced {
		if came.Before(first) {
			first = came
		}
	}
	s.timer = time.AfterFunc(time.Until(first.Add(syncDelay)), func() { s.sync(syncDelay) })
}

// sync has the disk keep the blobs that are at least that old. Those that it does
// not take are tried again later.
func (s *Store) sync(age time.Duration) {
	s.syncing.Lock()
	defer s.syncing.Unlock()
	s.mu.Lock()
	var due []digest.Digest
	for d, came := range s.unsynced {
		if time.Since(came) >= age {
			due = append(due, d)
			delete(s.unsynced, d)
		}
	}
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	s.armLocked()
	s.mu.Unlock()
	for _, d := range due {
		if err := syncFile(s.path(d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.syncLater(d)
		}
	}
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil {
		err = f.Sync()
	}
	if err == nil { // only now, so that the mark goes after the bytes are there
		err = f.Chmod(info.Mode().Perm() &^ writable)
	}
	return errors.Join(err, f.Close())
}

// Writer begins a blob. Every writer is one of its own, whatever its ref: what
// is closed and not committed is gone.
func (s *Store) Writer(_ context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	algorithm := digest.Canonical
	if d := o.Desc.Digest; d != "" {
		if err := d.Validate(); err != nil {
			return nil, fmt.Errorf("begin blob %q: %w", d, err)
		}
		if _, err := os.Stat(s.path(d)); err == nil {
			return nil, fmt.Errorf("blob %s: %w", d, errdefs.ErrAlreadyExists)
		}
		algorithm = d.Algorithm()
	}
	w, err := s.begin(algorithm)
	if err != nil {
		return nil, fmt.Errorf("begin blob: %w", err)
	}
	w.status.Ref, w.status.Total = o.Ref, o.Desc.Size
	return w, nil
}

func (s *Store) begin(a digest.Algorithm) (*Writer, error) {
	f, err := os.CreateTemp(s.ingest(), "")
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &Writer{s: s, f: f, algorithm: a, hash: a.Hash(), status: content.Status{StartedAt: now, UpdatedAt: now}}, nil
}

// Status knows no writes under way: nobody can go on with another's.
func (s *Store) Status(_ context.Context, ref string) (content.Status, error) {
	return content.Status{}, fmt.Errorf("write %s: %w", ref, errdefs.ErrNotFound)
}

// ListStatuses finds no writes under way.
func (s *Store) ListStatuses(context.Context, ...string) ([]content.Status, error) { return nil, nil }

// Abort has nothing to do: what is closed and not committed is gone.
func (s *Store) Abort(context.Context, string) error { return nil }
