// Package history keeps a record of every build, its whole log and what else
// belongs to it, and tells listeners of builds as they begin and end.
//
// A record is written when its build begins and again when it ends, so a build
// that a crash cut short is a failed one after the next start, with its log as
// far as it came. Records are in the database; blobs, and the logs of builds
// under way, are files in a folder of the history's own, which nobody else
// sweeps. A blob lives as long as a record names it, and can be read by the
// time listeners hear of that record. Nothing here is held in memory whole: of
// an ended build only its age stays; listeners are told of one after the other.
//
// Retention removes records that are both too old and too many; pinned ones
// stay. Package daemon feeds the history and passes on what it tells: a record as
// the message that clients are sent, which the history makes once and keeps, and
// the frames of a log, which are bytes to it.
package history

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// ErrNotFound says that no build with a ref is recorded.
var ErrNotFound = fmt.Errorf("not in the history: %w", os.ErrNotExist)

// Database keeps records by ref. It is part of [store.Store].
type Database interface {
	Record(ref string) ([]byte, bool)
	PutRecord(ref string, data []byte) error
	DeleteRecord(ref string) error
	Records(f func(data []byte) error) error
	Flush() error
}

// Retention says how long records are kept.
type Retention struct {
	// Off has nothing recorded.
	Off bool
	// MaxEntries unpinned records are kept whatever their age.
	MaxEntries int
	// MaxAge is how long the others are kept.
	MaxAge time.Duration
}

// DefaultRetention is that of a daemon that is told nothing.
func DefaultRetention() Retention { return Retention{MaxEntries: 50, MaxAge: 48 * time.Hour} }

// History is the builds that were and are. Its methods may be called concurrently.
type History struct {
	db        Database
	retention Retention
	files     *files
	stop      chan struct{}
	work      sync.WaitGroup

	mu        sync.Mutex
	closed    bool
	active    map[string]*Build
	ended     map[string]ended
	listeners map[*listener]struct{}
}

// ended is what is kept in memory of a record.
type ended struct {
	created, completed time.Time
	pinned             bool
}

func endedAs(r *Record) ended { return ended{r.CreatedAt, r.CompletedAt, r.Pinned} }

// Open opens the history whose files are below dir, makes records of builds
// that a crash cut short, and removes files that no record names.
func Open(dir string, db Database, r Retention) (*History, error) {
	fs, err := openFiles(dir)
	if err != nil {
		return nil, err
	}
	h := &History{
		db: db, retention: r, files: fs, stop: make(chan struct{}),
		active: map[string]*Build{}, ended: map[string]ended{}, listeners: map[*listener]struct{}{},
	}
	if err := h.recover(); err != nil {
		return nil, errors.Join(fmt.Errorf("open history: %w", err), fs.close())
	}
	h.work.Add(1)
	go h.retain()
	return h, nil
}

// Close lets go of everything. Builds under way should have ended.
func (h *History) Close() error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil
	}
	h.closed = true
	for l := range h.listeners {
		l.end()
	}
	h.mu.Unlock()
	close(h.stop)
	h.work.Wait()
	return h.files.close()
}

// Get returns the record of a build that has ended.
func (h *History) Get(ref string) (*Record, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.load(ref)
}

// Pin keeps a record whatever its age, or no longer so.
func (h *History) Pin(ref string, pinned bool) error {
	return h.update(ref, func(r *Record) { r.Pinned = pinned })
}

// Delete removes the record of a build that has ended, and its blobs.
func (h *History) Delete(ref string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	blobs, err := h.remove(ref)
	if err != nil {
		return err
	}
	if err := h.db.Flush(); err != nil {
		return err
	}
	h.files.drop(blobs)
	return nil
}

// afterFlush calls f, soon, once what has been stored is in the database: a
// crash must not leave a record whose blobs are gone. The caller holds h.mu.
func (h *History) afterFlush(f func()) {
	if h.closed {
		return // the next start does it
	}
	h.work.Go(func() {
		if h.db.Flush() == nil {
			f()
		}
	})
}

// load reads a record of an ended build. The caller holds h.mu.
func (h *History) load(ref string) (*Record, error) {
	data, err := h.data(ref)
	if err != nil {
		return nil, err
	}
	r, err := decodeRecord(data)
	if err != nil {
		return nil, fmt.Errorf("decode record of build %s: %w", ref, err)
	}
	return r, nil
}

// data is the record of an ended build as the database has it. The caller holds h.mu.
func (h *History) data(ref string) ([]byte, error) {
	if _, ok := h.ended[ref]; ok {
		if data, ok := h.db.Record(ref); ok {
			return data, nil
		}
	}
	return nil, fmt.Errorf("failed to retrieve ref %s: %w", ref, ErrNotFound)
}

// replace stores the record of an ended build in place of one that named the
// blobs before, and tells listeners. The caller holds h.mu.
func (h *History) replace(r *Record, before blobs) error {
	if err := h.put(r); err != nil {
		return err
	}
	h.files.hold(r.blobs())
	if len(before) > 0 {
		h.afterFlush(func() { h.files.drop(before) })
	}
	h.ended[r.Ref] = endedAs(r)
	h.tell(Event{Complete, r.Ref, r.message()})
	return nil
}

func (h *History) put(r *Record) error {
	if err := h.db.PutRecord(r.Ref, r.encode()); err != nil {
		return fmt.Errorf("store record of build %s: %w", r.Ref, err)
	}
	return nil
}

// remove forgets the record of an ended build, and returns the blobs to drop
// when the database has forgotten it, too. The caller holds h.mu.
func (h *History) remove(ref string) (blobs, error) {
	r, err := h.load(ref)
	if err != nil {
		return nil, err
	}
	if b := h.active[ref]; b != nil {
		err = h.put(&b.record)
	} else if err = h.db.DeleteRecord(ref); err != nil {
		err = fmt.Errorf("delete record of build %s: %w", ref, err)
	}
	if err != nil {
		return nil, err
	}
	delete(h.ended, ref)
	h.tell(Event{Deleted, ref, (&Record{Ref: ref}).message()})
	return r.blobs(), nil
}
