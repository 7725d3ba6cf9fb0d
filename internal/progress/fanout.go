package progress

import (
	"slices"
	"sync"
)

// Fanout passes what one piece of work tells on to every step that waits for
// it, each under its own vertex. A step that joins late is told everything
// from the start, as far as replayMost reaches.
type Fanout struct {
	mu    sync.Mutex
	steps []*Step
	past  []Event
	size  int // bytes of logs in past
}

const replayMost = 1 << 20 // bytes of logs kept for late joiners

// Step returns the step that the shared work is to tell.
func (f *Fanout) Step() *Step { return NewStep(f, "") }

// Join adds a step, until leave.
func (f *Fanout) Join(s *Step) (leave func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.past {
		s.emit(e.as(s))
	}
	f.steps = append(f.steps, s)
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if i := slices.Index(f.steps, s); i >= 0 {
			f.steps = slices.Delete(f.steps, i, i+1)
		}
	}
}

// Emit passes an event on to all steps.
func (f *Fanout) Emit(e Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.remember(e)
	for _, s := range f.steps {
		s.emit(e.as(s))
	}
}

func (f *Fanout) remember(e Event) {
	switch {
	case e.Log != nil:
		if f.size += len(e.Log.Data); f.size > replayMost {
			return
		}
	case e.Status != nil: // only the latest of a task counts
		if i := slices.IndexFunc(f.past, func(o Event) bool { return o.Status != nil && o.Status.ID == e.Status.ID }); i >= 0 {
			f.past[i] = e
			return
		}
	}
	f.past = append(f.past, e)
}

// as returns the event as told by step s.
func (e Event) as(s *Step) Event {
	switch {
	case e.Log != nil:
		l := *e.Log
		l.Vertex = s.Vertex()
		return Event{Log: &l}
	case e.Status != nil:
		st := *e.Status
		st.Vertex = s.Vertex()
		return Event{Status: &st}
	case e.Warning != nil:
		w := *e.Warning
		w.Vertex = s.Vertex()
		return Event{Warning: &w}
	case e.Moment != nil:
		m := *e.Moment
		m.Vertex = s.Vertex()
		return Event{Moment: &m}
	}
	return e
}
