package history

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
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
	for ref, b := range h.active {
		if o.Ref == "" || o.Ref == ref {
			running = append(running, Event{Started, b.snapshot()})
		}
	}
	slices.SortFunc(running, func(a, b Event) int { return a.Record.CreatedAt.Compare(b.Record.CreatedAt) })
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
	for ref := range h.ended {
		refs = append(refs, ref)
	}
	slices.SortFunc(refs, func(a, b string) int {
		return cmp.Or(h.ended[a].created.Compare(h.ended[b].created), strings.Compare(a, b))
	})
	if o.Limit > 0 {
		slices.Reverse(refs)
	}
	return refs
}

// tellEnded tells of the ended builds that match, at most so many, one after the
// other: a listener hears of the first while the others are still to be read. Of
// one that has been removed meanwhile there is nothing to tell.
func (h *History) tellEnded(refs []string, limit int, match func(*Record) bool, tell func(Event) error) error {
	told := 0
	for _, ref := range refs {
		r, err := h.Get(ref)
		if err != nil || !match(r) {
			continue
		}
		if err := tell(Event{Complete, r}); err != nil {
			return err
		}
		if told++; told == limit {
			return nil
		}
	}
	return nil
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
