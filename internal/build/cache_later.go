package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/kiln-build/kiln/internal/cache"
)

// Notes are small values that survive the daemon.
type Notes interface {
	Value(namespace, key string) ([]byte, bool)
	PutValue(namespace, key string, value []byte) error
}

// Where [Later] keeps what it has to tell.
const (
	laterNamespace = "cache-exports"
	laterKey       = "all"
	laterKept      = 50 // exports that are remembered
)

// ExportState is how far an export has come that no build waits for.
type ExportState string

// States of exports. Interrupted are those whose daemon ended before.
const (
	ExportRunning     ExportState = "running"
	ExportDone        ExportState = "done"
	ExportFailed      ExportState = "failed"
	ExportInterrupted ExportState = "interrupted"
)

// LaterExport is the export of a cache that no build waits for.
type LaterExport struct {
	ID        int64             `json:"id"`
	Build     string            `json:"build"` // the client's name for it
	Place     string            `json:"place"`
	State     ExportState       `json:"state"`
	Error     string            `json:"error,omitempty"`
	StartedAt time.Time         `json:"startedAt"`
	EndedAt   time.Time         `json:"endedAt,omitzero"`
	Stats     cache.UploadStats `json:"stats"`

	stats func() cache.UploadStats
}

// Later carries on with exports that builds do not wait for.
type Later struct {
	notes  Notes
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu      sync.Mutex
	exports []*LaterExport // the last one first
	running int
	idle    time.Time // since when there is none
}

// NewLater remembers what an earlier daemon has left: its exports that had not
// ended are interrupted.
func NewLater(notes Notes) (*Later, error) {
	l := &Later{notes: notes, idle: time.Now()}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	data, ok := notes.Value(laterNamespace, laterKey)
	if ok && json.Unmarshal(data, &l.exports) != nil {
		l.exports = nil // what nobody can read tells nothing
	}
	for _, e := range l.exports {
		if e.State == ExportRunning {
			e.State, e.Error = ExportInterrupted, "the daemon ended before; a build with the same export goes on from here"
		}
	}
	return l, l.save()
}

// Start has export carry on in the background.
func (l *Later) Start(build, place string, stats func() cache.UploadStats, export func(context.Context) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx.Err() != nil {
		return errors.New("export cache in the background: the daemon is about to end")
	}
	e := &LaterExport{Build: build, Place: place, State: ExportRunning, StartedAt: time.Now(), stats: stats}
	if len(l.exports) > 0 {
		e.ID = l.exports[0].ID
	}
	e.ID++
	l.exports = slices.Insert(l.exports, 0, e)
	l.exports = l.exports[:min(len(l.exports), laterKept)]
	if err := l.save(); err != nil {
		return err
	}
	l.running++
	l.work.Go(func() {
		err := export(l.ctx)
		l.mu.Lock()
		defer l.mu.Unlock()
		e.Stats, e.stats, e.EndedAt, e.State = stats(), nil, time.Now(), ExportDone
		switch {
		case err != nil && l.ctx.Err() != nil:
			e.State, e.Error = ExportInterrupted, "the daemon ended before"
		case err != nil:
			e.State, e.Error = ExportFailed, err.Error()
		}
		if l.running--; l.running == 0 {
			l.idle = time.Now()
		}
		_ = l.save() // it has ended all the same; a restart tells that it was interrupted
	})
	return nil
}

func (l *Later) save() error {
	data, err := json.Marshal(l.exports)
	if err == nil {
		err = l.notes.PutValue(laterNamespace, laterKey, data)
	}
	if err != nil {
		return fmt.Errorf("note cache exports: %w", err)
	}
	return nil
}

// Exports are those under way and the last that have ended, the last one first.
func (l *Later) Exports() (all []LaterExport) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.exports {
		one := *e
		if e.stats != nil {
			one.Stats = e.stats()
		}
		all = append(all, one)
	}
	return all
}

// IdleFor is how long there has been no export.
func (l *Later) IdleFor() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running > 0 {
		return 0
	}
	return time.Since(l.idle)
}

// Close interrupts all exports.
func (l *Later) Close() error {
	l.mu.Lock()
	l.cancel()
	l.mu.Unlock()
	l.work.Wait()
	return nil
}
