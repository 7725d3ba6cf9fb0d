package ui

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/kiln-build/kiln/internal/progress"
)

const (
	// patience is how long plain stays with a step while others have news.
	patience = 2 * time.Second
	// taskPause is the least time between two lines about a task under way.
	taskPause = 5 * time.Second
	// shortName is how many characters remain of a long name, if names are to be short.
	shortName = 72
)

// plain writes lines, in blocks: one step's news, then the next one's (BuildKit's
// util/progress/progressui).
type plain struct {
	mu       sync.Mutex
	out      io.Writer
	now      func() time.Time
	model    *model
	names    int // the most characters of a step's name; 0 for all
	blocks   map[*step]*block
	waiting  []*block // with something to write, in order
	current  *block
	since    time.Time // when current became it
	writeErr error
}

// block is what there is to write of a step.
type block struct {
	step   *step
	lines  []string
	end    string // the line that ends it, while the step is done
	ended  string // the end that was written last
	queued bool
	open   bool // its header was written since it became current
	told   map[string]taskTold
}

// taskTold is what was written last of a task.
type taskTold struct {
	at   time.Time
	done bool
}

func newPlain(out io.Writer, now func() time.Time) *plain {
	return &plain{out: out, now: now, model: newModel(), blocks: map[*step]*block{}}
}

// Emit takes an event. It is written with the next tick, so that what belongs
// together but arrives out of order is written together.
func (p *plain) Emit(e progress.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, lines := p.model.apply(e)
	if s == nil {
		return
	}
	b := p.blocks[s]
	if b == nil {
		b = &block{step: s, told: map[string]taskTold{}}
		p.blocks[s] = b
	}
	for _, l := range lines {
		b.add("%.3f %s", l.at.Seconds(), l.text)
	}
	if e.Status != nil {
		b.task(e.Status.ID, p.now())
	}
	if e.Warning != nil {
		b.add("WARN: %s", clean(string(e.Warning.Short)))
	}
	if e.Vertex != nil {
		b.vertex()
	}
	if s.number > 0 && b.news() && !b.queued {
		b.queued = true
		p.waiting = append(p.waiting, b)
	}
}

// news tells whether there is something to write: lines, an end, or a begin.
func (b *block) news() bool {
	return len(b.lines) > 0 || b.end != b.ended || b.end == "" && !b.open
}

func (b *block) add(format string, args ...any) {
	b.lines = append(b.lines, fmt.Sprintf(format, args...))
}

// vertex notes a step's end.
func (b *block) vertex() {
	s := b.step
	switch {
	case !s.done():
		b.end, b.ended = "", "" // it runs, maybe again
	case s.canceled():
		b.end = "CANCELED"
	case s.failure != "":
		b.end = "ERROR: " + s.failure
	case s.cached:
		b.end = "CACHED"
	default:
		b.end = fmt.Sprintf("DONE %.1fs", s.duration(*s.completed).Seconds())
	}
}

// task adds what is new of a task: its end, or how far it is now and then.
func (b *block) task(id string, now time.Time) {
	for _, t := range b.step.tasks {
		if t.ID != id {
			continue
		}
		last, done := b.told[id], t.Completed != nil
		if last.done || !done && now.Sub(last.at) < taskPause && !last.at.IsZero() {
			return
		}
		b.told[id] = taskTold{now, done}
		switch {
		case done:
			b.add("%s %.1fs done", t.text(), t.duration(now).Seconds())
		case !last.at.IsZero():
			b.add("%s %.1fs", t.text(), t.duration(now).Seconds())
		}
	}
}

func (p *plain) tick() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flush()
}

// flush writes what may be written now.
func (p *plain) flush() {
	for len(p.waiting) > 0 {
		b := p.waiting[0]
		if p.current != nil && p.current != b {
			// The current one comes first, but not for ever.
			if p.current.queued {
				p.promote(p.current)
				continue
			}
			if p.now().Sub(p.since) < patience {
				return
			}
			p.write("#%d ...\n\n", p.current.step.number)
			p.current.open = false
		}
		p.waiting = p.waiting[1:]
		p.block(b)
	}
}

// promote moves a block to the head of the queue.
func (p *plain) promote(b *block) {
	for i, w := range p.waiting {
		if w == b {
			copy(p.waiting[1:i+1], p.waiting[:i])
			p.waiting[0] = b
		}
	}
}

// block writes a step's news.
func (p *plain) block(b *block) {
	b.queued = false
	if p.current != b {
		p.current, p.since = b, p.now()
	}
	if !b.open {
		name := b.step.name
		if p.names > 0 {
			name = cut(name, p.names)
		}
		p.write("#%d %s\n", b.step.number, name)
		b.open = true
	}
	for _, l := range b.lines {
		p.write("#%d %s\n", b.step.number, l)
	}
	b.lines = nil
	if b.end != "" {
		p.write("#%d %s\n\n", b.step.number, b.end)
		b.ended, b.open, p.current = b.end, false, nil
	}
}

func (p *plain) write(format string, args ...any) {
	var buf bytes.Buffer
	fmt.Fprintf(&buf, format, args...)
	if _, err := p.out.Write(buf.Bytes()); err != nil && p.writeErr == nil {
		p.writeErr = err
	}
}

// Finish writes what is left.
func (p *plain) Finish(failure *Failure) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.since = time.Time{}
	p.flush()
	if p.current != nil {
		p.write("\n")
	}
	for _, w := range p.model.warnings {
		if s := p.model.steps[w.Vertex]; s == nil || s.number == 0 { // nothing was shown of it
			p.write("WARN: %s\n", clean(string(w.Short)))
		}
	}
	if p.writeErr != nil {
		return p.writeErr
	}
	return failure.show(p.out, p.model, palette{})
}
