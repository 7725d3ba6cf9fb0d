package gateway

import (
	"context"
	"runtime"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/internal/session"
)

// A call's handler returns before its answer is sent: the answer stays in memory
// until the frontend has read it. So a large answer takes room of its frontend's
// before it is made, and gives it back when its bytes have gone. Who reads nothing
// waits for its own room, and for nobody else's.

// sending is the room that the answer of one call takes.
type sending struct {
	mu    sync.Mutex
	phase *Phase // whose call it is; nil until that is known
	taken int64  // bytes
}

type sendingKey struct{}

// sendingOf is the room of the call in ctx; nil if nobody would give it back.
func sendingOf(ctx context.Context) *sending {
	s, _ := ctx.Value(sendingKey{}).(*sending)
	return s
}

// Hold has calls of the gateway wait for room for their answers, and give it back
// when these are sent. It must be what a server's calls go through first.
func Hold(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	s := &sending{}
	resp, err := next(context.WithValue(ctx, sendingKey{}, s), req)
	m, ok := resp.(proto.Message)
	if err != nil || !ok || !s.bound() {
		s.release()
		return resp, err
	}
	size := proto.Size(m)
	if size <= smallAnswer {
		s.release()
		return resp, nil
	}
	if err := s.fit(ctx, size); err != nil {
		return nil, err
	}
	if err := grpc.SetSendCompressor(ctx, "identity"); err != nil { // a compressed copy would not be counted
		s.release()
		return nil, err
	}
	return &session.Held{Message: m, Sent: s.release}, nil
}

// bind says whose call it is.
func (s *sending) bind(r *Phase) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.phase = r
}

func (s *sending) bound() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.phase != nil
}

// reserve waits for room for an answer of some bytes that is about to be made, in
// place of what the call has. The caller holds nothing that others wait for.
func reserve(ctx context.Context, bytes int) error {
	s := sendingOf(ctx)
	if s == nil || !s.bound() {
		return nil
	}
	s.release()
	if bytes <= smallAnswer {
		return nil
	}
	return s.take(ctx, int64(bytes))
}

// fit makes the room what the answer takes. A call that has reserved some does not
// wait again: what it has made would wait with it.
func (s *sending) fit(ctx context.Context, bytes int) error {
	s.mu.Lock()
	reserved, over := s.taken > 0, s.taken-int64(bytes)
	if reserved && over > 0 {
		s.taken -= over
		s.phase.quota.room.Release(over)
	}
	s.mu.Unlock()
	if reserved {
		return nil
	}
	return s.take(ctx, int64(bytes))
}

// collectAfter is how long a call waits for room before it has garbage collected, and
// the least time between two such collections for one frontend.
const collectAfter = 2 * time.Second

// take waits for room. What gRPC has dropped with a call that was cancelled gives
// its room back with the next collection of garbage, so who waits for long collects:
// one of all calls that wait.
func (s *sending) take(ctx context.Context, bytes int64) error {
	bytes = min(bytes, mostAnswers)
	room := s.phase.quota.room
	for {
		patient, done := context.WithTimeout(ctx, collectAfter)
		err := room.Acquire(patient, bytes)
		done()
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if s.phase.quota.collects() {
			runtime.GC()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken = bytes
	s.phase.sends(s, true)
	return nil
}

// collects tells one of the calls that wait, once in a while, to collect garbage.
func (q *quota) collects() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if time.Since(q.collected) < collectAfter {
		return false
	}
	q.collected = time.Now()
	return true
}

// release gives back what is taken. It may be called again.
func (s *sending) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken == 0 {
		return
	}
	s.phase.quota.room.Release(s.taken)
	s.taken = 0
	s.phase.sends(s, false)
}

// sends notes which answers are under way.
func (r *Phase) sends(s *sending, begins bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !begins {
		delete(r.underWay, s)
		return
	}
	if r.underWay == nil {
		r.underWay = map[*sending]struct{}{}
	}
	r.underWay[s] = struct{}{}
}

// releaseAnswers gives back the room of all answers, when none is sent any more.
func (r *Phase) releaseAnswers() {
	r.mu.Lock()
	left := r.underWay
	r.underWay = nil
	r.mu.Unlock()
	for s := range left {
		s.release()
	}
}
