package daemon

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/llb/pb"
)

// mostSent is how much a frontend may have sent of its calls under way, bytes; a
// frontend here sends three times as much if nobody stops it.
const (
	mostSent = 256 << 20
	sendable = 3 * mostSent
)

// stalled is a connection on which so many bytes can be written, and then no more.
type stalled struct {
	net.Conn
	mu    sync.Mutex
	left  int
	over  chan struct{} // closed when nothing is left
	gone  chan struct{}
	close sync.Once
}

func newStalled(conn net.Conn) *stalled {
	return &stalled{Conn: conn, left: sendable, over: make(chan struct{}), gone: make(chan struct{})}
}

func (s *stalled) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left -= len(p); s.left >= 0 {
		return s.Conn.Write(p)
	}
	close(s.over)
	<-s.gone
	return 0, net.ErrClosed
}

func (s *stalled) Close() error {
	s.close.Do(func() { close(s.gone) })
	return s.Conn.Close()
}

// TestUnansweredRequests has frontends send many large messages at a time, and the end
// of none, or in calls that are not answered while they come. The connection of such a
// one ends before it has sent much more than it may; who waits for answers may send
// as much in all.
func TestUnansweredRequests(t *testing.T) {
	text := textGraph(t, "result")
	large := repeated{bytes.Repeat([]byte{0xf8, 0x07, 0x01}, 5<<20/16), 16} // 15 MiB of field 127, which nobody knows
	programs := map[string]program{
		"halves": func(_ context.Context, f *inContainer) error {
			conn := newStalled(f.raw)
			f.raw = conn
			calls, end := context.WithCancel(context.Background())
			defer end()
			failed := make(chan error, 128)
			for range cap(failed) { // their frames take turns, so none is whole before the end
				go func() {
					failed <- f.conn.Invoke(calls, gateway.LLBBridge_Ping_FullMethodName, &gateway.PingRequest{}, &gateway.PongResponse{}, grpc.ForceCodecV2(large))
				}()
			}
			select {
			case <-conn.over:
				return fmt.Errorf("%d MiB of calls that are not whole were taken", sendable>>20)
			case err := <-failed:
				return err
			}
		},
		"silent": func(ctx context.Context, _ *inContainer) error {
			<-ctx.Done()
			return ctx.Err()
		},
		"unanswered": func(ctx context.Context, f *inContainer) error {
			failed := make(chan error, 24)
			unknown := bytes.Repeat([]byte{0xf8, 0x07, 0x01}, 5<<20)
			for range cap(failed) {
				req := &gateway.SolveRequest{
					Frontend: "gateway.v0", FrontendOpt: imageOpts("silent"), AllowResultReturn: true, AllowResultArrayRef: true,
					FrontendInputs: map[string]*pb.Definition{"image": text},
				}
				req.ProtoReflect().SetUnknown(unknown)
				go func() { _, err := f.Solve(ctx, req); failed <- err }()
			}
			return <-failed
		},
		"patient": func(ctx context.Context, f *inContainer) error {
			for range sendable / (15 << 20) {
				err := f.conn.Invoke(ctx, gateway.LLBBridge_Ping_FullMethodName, &gateway.PingRequest{}, &gateway.PongResponse{}, grpc.ForceCodecV2(large))
				if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "no answer is read") {
					return fmt.Errorf("a large call after others: %w", err)
				}
			}
			return f.give(ctx, text)
		},
	}
	g := serveFrontends(t, programs)
	for mode, want := range map[string]string{"halves": "256 MiB together", "unanswered": "256 MiB together", "patient": ""} {
		t.Run(mode, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			if err := g.runFrontend(ctx, t, mode); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("got %v, want %q", err, want)
			}
		})
	}
}
