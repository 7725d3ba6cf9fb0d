package daemon

import (
	"context"
	"sync"
	"time"

	digest "github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/llb/pb"
)

// eventLog keeps what a build told, so that those who ask late are told it all.
type eventLog struct {
	mu     sync.Mutex
	events []progress.Event
	closed bool
	more   chan struct{} // closed and replaced whenever there is more to tell
}

func newEventLog() *eventLog { return &eventLog{more: make(chan struct{})} }

// Emit adds an event.
func (l *eventLog) Emit(e progress.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.events = append(l.events, e)
	l.wake()
}

func (l *eventLog) wake() {
	close(l.more)
	l.more = make(chan struct{})
}

// close says that no more will come.
func (l *eventLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.closed = true
		l.wake()
	}
}

// follow calls f with all events, in batches, until the log is closed.
func (l *eventLog) follow(ctx context.Context, f func([]progress.Event) error) error {
	for next := 0; ; {
		l.mu.Lock()
		batch, closed, more := l.events[next:], l.closed, l.more
		l.mu.Unlock()
		if len(batch) > 0 {
			if err := f(batch); err != nil {
				return err
			}
			next += len(batch)
			continue
		}
		if closed {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// statusResponses makes messages of events, in their order, none of them with
// more logs than fit a message (WIRE.md section 0: 16 MiB).
func statusResponses(es []progress.Event) (all []*control.StatusResponse) {
	const most = 1 << 20
	cur, size := &control.StatusResponse{}, 0
	for _, e := range es {
		if size > 0 && outOfOrder(cur, e) || size > most {
			all, cur, size = append(all, cur), &control.StatusResponse{}, 0
		}
		switch {
		case e.Vertex != nil:
			cur.Vertexes = append(cur.Vertexes, wireVertex(e.Vertex))
		case e.Status != nil:
			cur.Statuses = append(cur.Statuses, wireStatus(e.Status))
		case e.Log != nil:
			cur.Logs = append(cur.Logs, &control.VertexLog{
				Vertex: string(e.Log.Vertex), Timestamp: timestamppb.New(e.Log.Timestamp), Stream: int64(e.Log.Stream), Msg: e.Log.Data,
			})
			size += len(e.Log.Data)
		case e.Warning != nil:
			cur.Warnings = append(cur.Warnings, wireWarning(e.Warning))
		}
		size += 200
	}
	if size > 0 {
		all = append(all, cur)
	}
	return all
}

// outOfOrder tells whether a message, which is read kind by kind, would tell of
// e before what came before it.
func outOfOrder(cur *control.StatusResponse, e progress.Event) bool {
	switch {
	case e.Vertex != nil:
		return len(cur.Statuses)+len(cur.Logs)+len(cur.Warnings) > 0
	case e.Status != nil:
		return len(cur.Logs)+len(cur.Warnings) > 0
	case e.Log != nil:
		return len(cur.Warnings) > 0
	}
	return false
}

func wireVertex(v *progress.Vertex) *control.Vertex {
	w := &control.Vertex{
		Digest: string(v.Digest), Inputs: digestStrings(v.Inputs), Name: v.Name, Cached: v.Cached,
		Started: wireTime(v.Started), Completed: wireTime(v.Completed), Error: v.Error,
	}
	if v.Group != nil {
		w.ProgressGroup = &pb.ProgressGroup{Id: v.Group.ID, Name: v.Group.Name, Weak: v.Group.Weak}
	}
	return w
}

func wireStatus(s *progress.Status) *control.VertexStatus {
	return &control.VertexStatus{
		ID: s.ID, Vertex: string(s.Vertex), Name: s.Name, Current: s.Current, Total: s.Total,
		Timestamp: timestamppb.New(s.Timestamp), Started: wireTime(s.Started), Completed: wireTime(s.Completed),
	}
}

func wireWarning(w *progress.Warning) *control.VertexWarning {
	out := &control.VertexWarning{Vertex: string(w.Vertex), Level: int64(w.Level), Short: w.Short, Detail: w.Detail, Url: w.URL}
	if s := w.Source; s != nil {
		out.Info = &pb.SourceInfo{Filename: s.Filename, Data: s.Data, Language: s.Language}
		for _, r := range s.Ranges {
			out.Ranges = append(out.Ranges, wireRange(r.StartLine, r.StartChar, r.EndLine, r.EndChar))
		}
	}
	return out
}

func wireRange(startLine, startChar, endLine, endChar int) *pb.Range {
	return &pb.Range{
		Start: &pb.Position{Line: int32(startLine), Character: int32(startChar)},
		End:   &pb.Position{Line: int32(endLine), Character: int32(endChar)},
	}
}

func wireTime(t *time.Time) *timestamppb.Timestamp {
	if t == nil {
		return nil
	}
	return timestamppb.New(*t)
}

func digestStrings(ds []digest.Digest) (ss []string) {
	for _, d := range ds {
		ss = append(ss, string(d))
	}
	return ss
}
