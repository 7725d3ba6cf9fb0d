package history

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// Kind says what has become of a build.
type Kind int

// Kinds of events, by their numbers on the wire (BuildKit's
// api/services/control/control.proto).
const (
	Started Kind = iota
	Complete
	Deleted
)

// Event tells of a build.
type Event struct {
	Kind Kind
	Ref  string
	// Message is the build's record as clients are sent it, a BuildHistoryRecord
	// (BuildKit's api/services/control/control.proto) that must not be changed; of a
	// deleted one it has the ref alone.
	Message []byte
}

// ListenOptions say what a listener wants to hear.
type ListenOptions struct {
	Ref        string   // of this build only, if not ""
	ActiveOnly bool     // not of those that had ended before
	EarlyExit  bool     // only what is known now
	Filters    []string // of the ended ones only what fits, see [ParseFilters]
	Limit      int      // of the ended ones only so many, the newest; 0 is no limit
}

// mostPending bounds what is kept for a listener that does not listen.
const mostPending = 10_000

// errSlow says that a listener has not kept up.
var errSlow = errors.New("the listener does not read what it is told: listen again")

type listener struct {
	ref string

	mu      sync.Mutex
	pending []Event
	ended   bool
	slow    bool
	more    chan struct{} // has room for one
}

// Listen tells of builds under way and of those that have ended, and then, until
// ctx ends or the history is closed, of what happens.
func (h *History) Listen(ctx context.Context, o ListenOptions, tell func(Event) error) error {
	match, err := ParseFilters(o.Filters)
	if err != nil {
		return err
	}
	if len(o.Filters) == 0 {
		match = nil // no record need be decoded
	}
	if o.Limit < 0 {
		return fmt.Errorf("invalid limit %d", o.Limit)
	}
	l := &listener{ref: o.Ref, more: make(chan struct{}, 1)}
	running, ended := h.subscribe(l, o)
	defer h.unsubscribe(l)
	for _, e := range running {
		if err := tell(e); err != nil {
			return err
		}
	}
	if err := h.tellEnded(ended, o.Limit, match, tell); err != nil {
		return err
	}
	if o.EarlyExit {
		return nil
	}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-l.more:
		}
		events, more := l.take()
		for _, e := range events {
			if err := tell(e); err != nil {
				return err
			}
		}
		if !more {
			return l.reason()
		}
	}
}

// subscribe returns the builds under way and the refs of those that have ended
// and are to be told of, and has l hear all that comes after.
func (h *History) subscribe(l *listener, o ListenOptions) (running []Event, ended []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var active []*Build
	for ref, b := range h.active {
		if o.Ref == "" || o.Ref == ref {
			active = append(active, b)
		}
	}
	slices.SortFunc(active, func(a, b *Build) int { return a.record.CreatedAt.Compare(b.record.CreatedAt) })
	for _, b := range active {
		running = append(running, Event{Started, b.record.Ref, b.record.message()})
	}
	if !o.ActiveOnly {
		ended = h.endedRefs(o)
	}
	if !o.EarlyExit {
		h.listeners[l] = struct{}{}
		if h.closed {
			l.end()
		}
	}
	return running, ended
}

// endedRefs are those of the ended builds that a listener may want to hear of:
// the oldest first, or, with a limit, the newest. The caller holds h.mu.
func (h *History) endedRefs(o ListenOptions) (refs []string) {
	if o.Ref != "" {
		return []string{o.Ref} // an unknown one is no error
	}
	type entry struct {
		ref     string
		created time.Time
	}
	all := make([]entry, 0, len(h.ended))
	for ref, e := range h.ended {
		all = append(all, entry{ref, e.created})
	}
	slices.SortFunc(all, func(a, b entry) int { return cmp.Or(a.created.Compare(b.created), strings.Compare(a.ref, b.ref)) })
	if o.Limit > 0 {
		slices.Reverse(all)
	}
	for _, e := range all {
		refs = append(refs, e.ref)
	}
	return refs
}

// tellEnded tells of the ended builds that match, or, if match is nil, of all, at
// most so many, one after the other: a listener hears of the first while the others are still to be read. Of
// one that has been removed meanwhile there is nothing to tell.
func (h *History) tellEnded(refs []string, limit int, match func(*Record) bool, tell func(Event) error) error {
	told := 0
	for _, ref := range refs {
		data, err := h.read(ref)
		if err != nil || match != nil && !matches(data, match) {
			continue
		}
		message, _, err := splitRecord(data)
		if err != nil {
			continue
		}
		if err := tell(Event{Complete, ref, message}); err != nil {
			return err
		}
		if told++; told == limit {
			return nil
		}
	}
	return nil
}

func matches(data []byte, match func(*Record) bool) bool {
	r, err := decodeRecord(data)
	return err == nil && match(r)
}

// read returns the record of an ended build as the database has it.
func (h *History) read(ref string) ([]byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.data(ref)
}

func (h *History) unsubscribe(l *listener) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.listeners, l)
}

// tell passes an event on. The caller holds h.mu.
func (h *History) tell(e Event) {
	for l := range h.listeners {
		if l.ref == "" || l.ref == e.Ref {
			l.add(e)
		}
	}
}

func (l *listener) add(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return
	}
	if len(l.pending) == mostPending {
		l.ended, l.slow, l.pending = true, true, nil
	} else {
		l.pending = append(l.pending, e)
	}
	l.wake()
}

func (l *listener) wake() {
	select {
	case l.more <- struct{}{}:
	default:
	}
}

// end says that no more will come.
func (l *listener) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	l.wake()
}

func (l *listener) take() (events []Event, more bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	events, l.pending = l.pending, nil
	return events, !l.ended
}

func (l *listener) reason() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.slow {
		return errSlow
	}
	return nil
}
