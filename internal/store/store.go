// Package store is the metadata database: one bbolt file under the root that
// is the source of truth for what is kept.
//
// It holds layers, results of steps, content digests, names of images, small
// values of sources and the history's records. All but the last is cache: what
// is lost is a miss, never an error, so a damaged file is moved aside and a new
// one begun.
//
// Writes go to memory, can be read at once and reach the file about two
// milliseconds later, everything that came meanwhile in one transaction.
// Killing the process loses at most those; losing power loses what came after
// the last background sync, and a file damaged by it is noticed at Open.
//
// It sits below cache, layer (whose Records it is) and sources.
package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/gofrs/flock"
	bolt "go.etcd.io/bbolt"
)

// ErrLocked says that another daemon works on the same root.
var ErrLocked = errors.New("root is in use")

const (
	databaseName = "kiln.db"
	lockName     = "kiln.lock"
	openName     = "kiln.open" // there while the database is open: after a crash, too

	schemaVersion = "1"

	flushDelay = 2 * time.Millisecond // bounds the transactions, and what kill -9 loses
	retryDelay = time.Second          // after a failed write, such as on a full disk
	syncDelay  = 5 * time.Second      // bounds what power loss loses
)

const (
	bucketMeta    = "meta"
	bucketLayers  = "layers"
	bucketResults = "results"
	bucketDigests = "digests"
	bucketImages  = "images"
	bucketValues  = "values"
	bucketHistory = "history"
	bucketSteps   = "steps"
	bucketFiles   = "files"
)

var buckets = [...]string{bucketMeta, bucketLayers, bucketResults, bucketDigests, bucketImages, bucketValues, bucketHistory, bucketSteps, bucketFiles}

// Store is an opened database. Its methods may be called concurrently.
type Store struct {
	dir       string
	lock      *flock.Flock
	db        *bolt.DB
	recovered string

	mu       sync.Mutex
	pending  table // newest
	flushing table // being written
	failed   error // of the last flush
	damaged  bool
	unsynced bool
	closed   bool

	flush sync.Mutex // held by whoever writes to the file
	wake  chan struct{}
	stop  chan struct{}
	done  chan struct{}

	files fileLists
}

// lockWait is how long a daemon waits for the root of one that is on its way out.
const lockWait = 5 * time.Second

// Open opens the database below root and takes the root's lock, which
// says [ErrLocked] if another process keeps it.
func Open(root string) (*Store, error) {
	if err := os.MkdirAll(root, 0o711); err != nil {
		return nil, fmt.Errorf("create root: %w", err)
	}
	lock := flock.New(filepath.Join(root, lockName))
	ctx, cancel := context.WithTimeout(context.Background(), lockWait)
	defer cancel()
	switch ok, err := lock.TryLockContext(ctx, 20*time.Millisecond); {
	case err != nil && ctx.Err() == nil:
		return nil, fmt.Errorf("lock %s: %w", lock.Path(), err)
	case !ok:
		return nil, fmt.Errorf("%w: another daemon has locked %s; stop it, or choose another root", ErrLocked, lock.Path())
	}
	s := &Store{
		dir: root, lock: lock,
		wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
	}
	if err := s.open(); err != nil {
		return nil, errors.Join(err, lock.Unlock())
	}
	go s.run()
	return s, nil
}

func (s *Store) open() error {
	path := filepath.Join(s.dir, databaseName)
	marker := filepath.Join(s.dir, openName)
	_, err := os.Lstat(marker)
	crashed := err == nil
	s.db, err = openDatabase(path, crashed)
	if err != nil {
		aside := path + ".damaged"
		if e := os.Rename(path, aside); e != nil && !errors.Is(e, os.ErrNotExist) {
			return fmt.Errorf("move damaged database aside: %w", e)
		}
		s.recovered = fmt.Sprintf("the metadata database cannot be used (%v): it was moved to %s and a new one begun, so cached steps run once more", err, aside)
		if s.db, err = openDatabase(path, false); err != nil {
			return fmt.Errorf("begin new database: %w", err)
		}
	}
	if err := writeMarker(marker); err != nil {
		return errors.Join(fmt.Errorf("mark database as open: %w", err), s.db.Close())
	}
	return nil
}

// writeMarker makes the marker last through a power loss without waiting for
// the disk: the little time until it is there is as good as not open.
func writeMarker(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	go func() {
		_ = f.Sync()
		_ = f.Close()
	}()
	return nil
}

// Recovered is a sentence for the user if Open had to begin a new database, or "".
func (s *Store) Recovered() string { return s.recovered }

// Close writes what is pending and releases the root.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	close(s.stop)
	<-s.done

	err := s.Flush()
	if e := s.db.Sync(); err == nil {
		err = e
	}
	if e := s.db.Close(); err == nil {
		err = e
	}
	if err == nil && !s.damaged {
		err = os.Remove(filepath.Join(s.dir, openName))
	}
	if e := s.lock.Unlock(); err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("close database: %w", err)
	}
	return nil
}

// run writes behind, and syncs now and then.
func (s *Store) run() {
	defer close(s.done)
	syncs := time.NewTicker(syncDelay)
	defer syncs.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-syncs.C:
			s.sync()
		case <-s.wake:
			delay := flushDelay
			if s.Flush() != nil {
				delay = retryDelay
				s.wakeUp()
			}
			select {
			case <-s.stop:
				return
			case <-time.After(delay):
			}
		}
	}
}

func (s *Store) sync() {
	s.mu.Lock()
	due := s.unsynced
	s.unsynced = false
	s.mu.Unlock()
	if due {
		_ = s.db.Sync() // the next one tries again; Close tells
	}
}

func (s *Store) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
