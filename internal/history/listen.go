package history

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// Kind says what has become of a build.
type Kind int

// Kinds of events, by their numbers on the wire (WIRE.md section 19.2).
const (
	Started Kind = iota
	Complete
	Deleted
)

// Event tells of a build. The record must not be changed.
type Event struct {
	Kind   Kind
	Record *Record // of a deleted one the ref alone
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
	if o.Limit < 0 {
		return fmt.Errorf("invalid limit %d", o.Limit)
	}
	l := &listener{ref: o.Ref, more: make(chan struct{}, 1)}
	known, err := h.subscribe(l, o, match)
	if err != nil {
		return err
	}
	defer h.unsubscribe(l)
	for _, e := range known {
		if err := tell(e); err != nil {
			return err
		}
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

// subscribe returns what is known, and has l hear all that comes after.
func (h *History) subscribe(l *listener, o ListenOptions, match func(*Record) bool) (known []Event, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for ref, b := range h.active {
		if o.Ref == "" || o.Ref == ref {
			known = append(known, Event{Started, b.snapshot()})
		}
	}
	slices.SortFunc(known, oldestFirst)
	if !o.ActiveOnly {
		ended, err := h.known(o, match)
		if err != nil {
			return nil, err
		}
		known = append(known, ended...)
	}
	if o.EarlyExit {
		return known, nil
	}
	h.listeners[l] = struct{}{}
	if h.closed {
		l.end()
	}
	return known, nil
}

// known are the ended builds that a listener wants to hear of: the oldest
// first, or, with a limit, the newest.
func (h *History) known(o ListenOptions, match func(*Record) bool) (known []Event, err error) {
	add := func(r *Record) {
		if match(r) {
			known = append(known, Event{Complete, r})
		}
	}
	if o.Ref == "" {
		err = h.eachEnded(add)
	} else if r, errLoad := h.load(o.Ref); errLoad == nil { // an unknown one is no error
		add(r)
	}
	if err != nil {
		return nil, err
	}
	slices.SortFunc(known, oldestFirst)
	if o.Limit > 0 {
		slices.Reverse(known)
		known = known[:min(len(known), o.Limit)]
	}
	return known, nil
}

func oldestFirst(a, b Event) int { return a.Record.CreatedAt.Compare(b.Record.CreatedAt) }

// eachEnded calls f with every record of an ended build. The caller holds h.mu.
func (h *History) eachEnded(f func(*Record)) error {
	return h.db.Records(func(data []byte) error {
		r := &Record{}
		if json.Unmarshal(data, r) != nil {
			return nil
		}
		if _, ok := h.ended[r.Ref]; ok {
			f(r)
		}
		return nil
	})
}

func (h *History) unsubscribe(l *listener) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.listeners, l)
}

// tell passes an event on. The caller holds h.mu.
func (h *History) tell(e Event) {
	for l := range h.listeners {
		if l.ref == "" || l.ref == e.Record.Ref {
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
