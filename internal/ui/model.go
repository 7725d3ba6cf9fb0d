package ui

import (
	"bytes"
	"strings"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/progress"
)

// tailLines is how many lines of a step's log are kept to be shown when it fails.
const tailLines = 50

// maxLine is the longest line of a log that is shown, bytes.
const maxLine = 8 << 10

// model is what is known of a build.
type model struct {
	steps map[digest.Digest]*step
	order []*step // those that have begun, by their number
	known int     // all, begun or not
	tail  int     // the most lines kept of a step's log

	warnings []*progress.Warning // as they came
}

// step is one vertex.
type step struct {
	digest    digest.Digest
	name      string
	number    int // from 1, by the time of its begin; 0 before
	started   *time.Time
	completed *time.Time
	spent     time.Duration // in earlier runs of the same step
	cached    bool
	failure   string
	tasks     []*task
	partial   [3][]byte // the last line so far, by stream
	partialAt [3]time.Time
	tail      []line
	keep      int // the most lines of tail
}

// line is a line of a log.
type line struct {
	at   time.Duration // since the step's begin
	text string
}

// task is a part of a step.
type task struct{ progress.Status }

func newModel() *model { return &model{steps: map[digest.Digest]*step{}, tail: tailLines} }

// step returns a step, which may be news.
func (m *model) step(d digest.Digest) *step {
	s := m.steps[d]
	if s == nil {
		s = &step{digest: d, keep: m.tail}
		m.steps[d] = s
		m.known++
	}
	return s
}

// begin numbers a step the first time that there is something to show of it.
func (m *model) begin(s *step) {
	if s.number == 0 {
		m.order = append(m.order, s)
		s.number = len(m.order)
	}
}

// apply takes an event, and returns the step that it is about and the lines of
// log that are whole now.
func (m *model) apply(e progress.Event) (*step, []line) {
	switch {
	case e.Vertex != nil:
		s := m.step(e.Vertex.Digest)
		s.update(e.Vertex)
		if s.started != nil || s.completed != nil {
			m.begin(s)
		}
		if s.done() {
			return s, s.flush()
		}
		return s, nil
	case e.Status != nil:
		s := m.step(e.Status.Vertex)
		s.task(e.Status)
		return s, nil
	case e.Log != nil:
		s := m.step(e.Log.Vertex)
		return s, s.log(e.Log)
	case e.Warning != nil:
		m.warnings = append(m.warnings, e.Warning)
		return m.steps[e.Warning.Vertex], nil // nil for one of no step that there is
	}
	return nil, nil
}

func (s *step) update(v *progress.Vertex) {
	if v.Name != "" {
		s.name = clean(v.Name)
	}
	if v.Started != nil && s.done() && s.started != nil && v.Started.After(*s.completed) {
		s.spent += s.completed.Sub(*s.started) // it runs again
	}
	s.started, s.completed = v.Started, v.Completed
	s.cached, s.failure = v.Cached, clean(v.Error)
}

func (s *step) task(st *progress.Status) {
	for _, t := range s.tasks {
		if t.ID == st.ID {
			t.Status = *st
			return
		}
	}
	s.tasks = append(s.tasks, &task{*st})
}

func (s *step) log(l *progress.Log) []line {
	stream := l.Stream
	if stream < 0 || stream >= len(s.partial) {
		stream = 0
	}
	data := append(s.partial[stream], l.Data...)
	var lines []line
	for {
		i := bytes.IndexByte(data, '\n')
		if i < 0 && len(data) < maxLine {
			break
		}
		if i < 0 || i > maxLine {
			lines = append(lines, s.line(l.Timestamp, data[:maxLine]))
			data = data[maxLine:]
			continue
		}
		lines = append(lines, s.line(l.Timestamp, data[:i]))
		data = data[i+1:]
	}
	s.partial[stream], s.partialAt[stream] = bytes.Clone(data), l.Timestamp
	return lines
}

// flush ends the last lines of a log.
func (s *step) flush() []line {
	var lines []line
	for i, rest := range s.partial {
		if len(rest) > 0 {
			lines = append(lines, s.line(s.partialAt[i], rest))
			s.partial[i] = nil
		}
	}
	return lines
}

// line makes a line of what a program wrote: of a line that was written over and
// over (with carriage returns) only the last state.
func (s *step) line(at time.Time, raw []byte) line {
	text := strings.TrimRight(string(raw), "\r")
	if i := strings.LastIndexByte(text, '\r'); i >= 0 {
		text = text[i+1:]
	}
	l := line{text: clean(strings.ReplaceAll(text, "\t", "    "))}
	if s.started != nil {
		l.at = max(0, at.Sub(*s.started))
	}
	if s.tail = append(s.tail, l); len(s.tail) > s.keep {
		s.tail = s.tail[1:]
	}
	return l
}

func (s *step) done() bool { return s.completed != nil }

func (s *step) canceled() bool { return strings.HasSuffix(s.failure, "context canceled") }

// duration is how long the step has taken.
func (s *step) duration(now time.Time) time.Duration {
	if s.started == nil {
		return s.spent
	}
	if s.completed != nil {
		now = *s.completed
	}
	return s.spent + max(0, now.Sub(*s.started))
}

// duration is how long the task has taken.
func (t *task) duration(now time.Time) time.Duration {
	if t.Started == nil {
		return 0
	}
	if t.Completed != nil {
		now = *t.Completed
	}
	return max(0, now.Sub(*t.Started))
}

// text is the task's name and how far it is.
func (t *task) text() string {
	name := clean(t.ID)
	switch {
	case t.Total > 0:
		return name + " " + Bytes(t.Current) + " / " + Bytes(t.Total)
	case t.Current > 0:
		return name + " " + Bytes(t.Current)
	}
	return name
}
