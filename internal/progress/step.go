package progress

import (
	"context"
	"io"
	"sync"
	"time"

	digest "github.com/opencontainers/go-digest"
)

// Step tells of one vertex. It is carried in a context to whoever does the
// work. The nil *Step is valid and tells nobody.
type Step struct {
	sink   Sink
	vertex digest.Digest
}

// NewStep returns a Step that tells sink of vertex.
func NewStep(sink Sink, vertex digest.Digest) *Step { return &Step{sink, vertex} }

type stepKey struct{}

// WithStep returns a context in which work is done on behalf of s.
func WithStep(ctx context.Context, s *Step) context.Context {
	return context.WithValue(ctx, stepKey{}, s)
}

// StepFrom returns the step that ctx works for, or nil.
func StepFrom(ctx context.Context) *Step {
	s, _ := ctx.Value(stepKey{}).(*Step)
	return s
}

// Vertex is the digest of the vertex that the step tells of.
func (s *Step) Vertex() digest.Digest {
	if s == nil {
		return ""
	}
	return s.vertex
}

func (s *Step) emit(e Event) {
	if s != nil {
		s.sink.Emit(e)
	}
}

// Log returns a writer whose bytes become the step's output; stream is 1 for
// standard output and 2 for standard error.
func (s *Step) Log(stream int) io.Writer { return logWriter{s, stream} }

type logWriter struct {
	step   *Step
	stream int
}

func (w logWriter) Write(p []byte) (int, error) {
	const most = 1 << 20 // bytes in one message, as BuildKit's
	for rest := p; len(rest) > 0 && w.step != nil; {
		n := min(len(rest), most)
		w.step.emit(Event{Log: &Log{
			Vertex: w.step.vertex, Stream: w.stream, Timestamp: time.Now(),
			Data: append([]byte(nil), rest[:n]...),
		}})
		rest = rest[n:]
	}
	return len(p), nil
}

// Warn tells of something that stops nothing.
func (s *Step) Warn(w Warning) {
	if s != nil {
		w.Vertex = s.vertex
		s.emit(Event{Warning: &w})
	}
}

// Note tells of something about the step in a line of its own.
func (s *Step) Note(text string) {
	now := time.Now()
	s.emit(Event{Status: &Status{ID: text, Vertex: s.Vertex(), Timestamp: now, Started: &now, Completed: &now}})
}

// Moment tells that something happens now. exitCode is nil, unless a process ended.
func (s *Step) Moment(name string, exitCode *int) {
	s.emit(Event{Moment: &Moment{Vertex: s.Vertex(), Name: name, Time: time.Now(), ExitCode: exitCode}})
}

// Task begins a part of the step, shown by name id. total may be 0 for
// unknown. The caller must call Done.
func (s *Step) Task(id string, total int64) *Task {
	now := time.Now()
	t := &Task{step: s, status: Status{ID: id, Vertex: s.Vertex(), Total: total, Started: &now}}
	t.tell(now)
	return t
}

// Task is a part of a step under way. It may be used concurrently.
type Task struct {
	step   *Step
	mu     sync.Mutex
	status Status
	told   time.Time
}

// Add counts n more bytes (or items) as done.
func (t *Task) Add(n int64) {
	t.mu.Lock()
	t.status.Current += n
	now := time.Now()
	if due := now.Sub(t.told) >= 100*time.Millisecond; due {
		t.tellLocked(now)
	}
	t.mu.Unlock()
}

// SetTotal corrects the total.
func (t *Task) SetTotal(n int64) {
	t.mu.Lock()
	t.status.Total = n
	t.mu.Unlock()
}

// Done ends the task.
func (t *Task) Done() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.status.Completed == nil {
		now := time.Now()
		t.status.Completed = &now
		t.tellLocked(now)
	}
}

// Reader counts what is read from r.
func (t *Task) Reader(r io.Reader) io.Reader { return taskReader{t, r} }

type taskReader struct {
	t *Task
	r io.Reader
}

func (r taskReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.t.Add(int64(n))
	return n, err
}

func (t *Task) tell(now time.Time) {
	t.mu.Lock()
	t.tellLocked(now)
	t.mu.Unlock()
}

func (t *Task) tellLocked(now time.Time) {
	t.told = now
	s := t.status
	s.Timestamp = now
	t.step.emit(Event{Status: &s})
}

// Run does work as a vertex of its own, one that is no part of a graph, such
// as "exporting to image": it tells sink that the vertex starts, calls f with
// a context that carries its step, and tells how it ended.
func Run(ctx context.Context, sink Sink, name string, f func(context.Context) error) error {
	return RunAs(ctx, sink, NewVertex(name), name, f)
}

// NewVertex returns a digest for a vertex that is no part of a graph.
func NewVertex(name string) digest.Digest {
	return digest.FromString(name + "\x00" + time.Now().Format(time.RFC3339Nano))
}

// RunAs is [Run] for a vertex that may run more than once.
func RunAs(ctx context.Context, sink Sink, vertex digest.Digest, name string, f func(context.Context) error) error {
	start := time.Now()
	v := Vertex{Digest: vertex, Name: name, Started: &start}
	first := v
	sink.Emit(Event{Vertex: &first})
	err := f(WithStep(ctx, NewStep(sink, v.Digest)))
	end := time.Now()
	v.Completed = &end
	if err != nil {
		v.Error = err.Error()
	}
	sink.Emit(Event{Vertex: &v})
	return err
}
