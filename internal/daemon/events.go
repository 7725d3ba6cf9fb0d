package daemon

import (
	"context"
	"slices"
	"sync"
	"time"

	digest "github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/history"
	"github.com/kiln-build/kiln/internal/progress"
)

// Limits of messages: one must stay below 16 MiB.
const (
	mostLog     = 1 << 20 // bytes of output in one message
	mostMessage = 1 << 20 // bytes, unless one event alone is larger
	mostText    = 1 << 16 // bytes of a text in an event that is too large
)

// eventLog is a build's sink: it writes what the build tells to the build's
// log, as the messages that clients are sent, so that those who ask late are
// told it all and nothing of it is held in memory.
type eventLog struct {
	log   *history.Log
	trace *buildTrace // nil if none is kept

	mu       sync.Mutex
	closed   bool
	vertices map[digest.Digest]vertexState
	open     []*progress.Vertex // begun and not ended, in that order
	warnings int
}

type vertexState struct{ cached, completed bool }

func newEventLog(log *history.Log) *eventLog {
	return &eventLog{log: log, vertices: map[digest.Digest]vertexState{}}
}

// Emit adds an event.
func (l *eventLog) Emit(e progress.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	switch {
	case e.Moment != nil:
		l.trace.moment(e.Moment)
		return
	case e.Vertex != nil:
		l.note(e.Vertex)
	case e.Warning != nil:
		l.warnings++
	case e.Log != nil && len(e.Log.Data) > mostLog:
		for part := range slices.Chunk(e.Log.Data, mostLog) {
			cut := *e.Log
			cut.Data = part
			l.append(progress.Event{Log: &cut})
		}
		return
	}
	l.append(e)
}

func (l *eventLog) append(e progress.Event) {
	frame, err := encode(statusResponse(e))
	if err == nil && len(frame) > history.MaxFrame {
		frame, err = encode(statusResponse(shorten(e)))
	}
	if err == nil {
		l.log.Append(frame)
	}
}

// encode also takes texts that are no UTF-8, which the wire does not.
func encode(m *control.StatusResponse) ([]byte, error) {
	frame, err := proto.Marshal(m)
	if err != nil {
		return proto.Marshal(validText(m))
	}
	return frame, nil
}

// note keeps count of what becomes of vertices.
func (l *eventLog) note(v *progress.Vertex) {
	l.vertices[v.Digest] = vertexState{cached: v.Cached, completed: v.Completed != nil}
	i := slices.IndexFunc(l.open, func(o *progress.Vertex) bool { return o.Digest == v.Digest })
	switch {
	case v.Completed != nil || v.Started == nil:
		if i >= 0 {
			l.open = slices.Delete(l.open, i, i+1)
		}
		if v.Completed != nil {
			l.trace.vertex(v)
		}
	case i >= 0:
		l.open[i] = v
	default:
		l.open = append(l.open, v)
	}
}

// close says that no more will come. What has begun and not ended, ends now.
func (l *eventLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.closed = true
	for _, v := range slices.Clone(l.open) {
		now, last := time.Now(), *v
		last.Completed, last.Error = &now, context.Canceled.Error()
		l.note(&last)
		l.append(progress.Event{Vertex: &last})
	}
}

// steps counts what the build has told of.
func (l *eventLog) steps() history.Steps {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := history.Steps{Total: len(l.vertices), Warnings: l.warnings}
	for _, v := range l.vertices {
		if v.cached {
			s.Cached++
		}
		if v.completed {
			s.Completed++
		}
	}
	return s
}

// sendFrames passes the frames of a log on, as few messages as keep the order.
func sendFrames(frames [][]byte, send func(*control.StatusResponse) error) error {
	var data []byte
	flush := func() error {
		if len(data) == 0 {
			return nil
		}
		m := &control.StatusResponse{}
		if err := proto.Unmarshal(data, m); err != nil {
			return err
		}
		data = nil
		return send(m)
	}
	last := byte(0)
	for _, f := range frames {
		// A frame is a message with one field. Messages one after the other are
		// one message with the fields of all, but they are read kind by kind:
		// the kinds, by number, must not tell of later things first.
		kind := f[0]
		if kind < last || len(data)+len(f) > mostMessage {
			if err := flush(); err != nil {
				return err
			}
		}
		data, last = append(data, f...), kind
	}
	return flush()
}
