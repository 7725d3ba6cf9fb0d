package solver

import (
	"sync"
	"time"

	"github.com/kiln-build/kiln/internal/progress"
)

// report tells a job's sink what becomes of one node.
type report struct {
	sink   progress.Sink
	inputs []input

	mu      sync.Mutex
	vertex  progress.Vertex
	running bool             // its operation is being executed
	held    []progress.Event // what was told too early, see ahead
	paused  bool             // it was ended because nobody wanted it, and may be wanted again
}

func (r *report) init(sink progress.Sink, v Vertex, inputs []input) {
	r.sink, r.inputs = sink, inputs
	r.vertex = progress.Vertex{Digest: v.Digest(), Name: v.Name(), Group: v.Group()}
	for _, e := range v.Inputs() {
		r.vertex.Inputs = append(r.vertex.Inputs, e.Vertex.Digest())
	}
}

// step is for those who have more to tell than that the node began or ended.
func (r *report) step() *progress.Step { return progress.NewStep(r.sink, r.vertex.Digest) }

// ahead is for those who may have something to tell before the node begins: it
// is held back until then, and dropped if the node begins and ends at once.
func (r *report) ahead() *progress.Step {
	return progress.NewStep(progress.SinkFunc(func(e progress.Event) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.vertex.Started == nil {
			r.held = append(r.held, e)
			return
		}
		r.sink.Emit(e)
	}), r.vertex.Digest)
}

// update changes the vertex and tells it, unless the node has ended for good.
func (r *report) update(change func(v *progress.Vertex, now time.Time)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.paused {
		r.paused = false
		r.vertex.Started, r.vertex.Completed, r.vertex.Error = nil, nil, ""
	}
	if r.vertex.Completed != nil {
		return
	}
	change(&r.vertex, time.Now())
	v := r.vertex
	r.sink.Emit(progress.Event{Vertex: &v})
	if v.Started == nil {
		return
	}
	for _, e := range r.held {
		if v.Completed == nil {
			r.sink.Emit(e)
		}
	}
	r.held = nil
}

func (r *report) announce() { r.update(func(*progress.Vertex, time.Time) {}) }

func (r *report) started() {
	r.update(func(v *progress.Vertex, now time.Time) {
		if v.Started == nil {
			v.Started = &now
		}
	})
}

// executing says that the operation runs, though it may have counted as cached
// for another node's sake.
func (r *report) executing() {
	r.mu.Lock()
	r.running = true
	if r.vertex.Cached {
		r.vertex.Cached, r.vertex.Started, r.vertex.Completed = false, nil, nil
	}
	r.mu.Unlock()
	r.started()
}

func (r *report) completed() {
	r.update(func(v *progress.Vertex, now time.Time) { v.Completed = &now })
}

func (r *report) failed(err error) {
	r.update(func(v *progress.Vertex, now time.Time) {
		if v.Started == nil {
			v.Started = &now
		}
		v.Completed, v.Error = &now, err.Error()
	})
}

// cached says that the result was remembered. What lies beneath and does not
// run was then not needed, and counts as cached with it.
func (r *report) cached() {
	r.mu.Lock()
	settled := r.running || r.vertex.Completed != nil && !r.paused
	r.mu.Unlock()
	if settled {
		return
	}
	for _, in := range r.inputs {
		in.node.report.cached()
	}
	r.update(func(v *progress.Vertex, now time.Time) {
		if v.Started == nil {
			v.Started = &now
		}
		v.Completed, v.Cached = &now, true
	})
}

// givenUp ends a node that began and was not finished, until it is wanted again.
func (r *report) givenUp() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.vertex.Started == nil || r.vertex.Completed != nil {
		return
	}
	now := time.Now()
	r.vertex.Completed, r.vertex.Error = &now, "context canceled"
	r.paused, r.running = true, false
	v := r.vertex
	r.sink.Emit(progress.Event{Vertex: &v})
}

// close ends a node that began and will not be finished.
func (r *report) close() {
	r.givenUp()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.paused = false
}
