package daemon

import (
	"log/slog"
	"net"
	"sync"
	"sync/atomic"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"

	"github.com/kiln-build/kiln/internal/session"
)

// Limits of how steps send spans, which they do as strangers: what is sent at a time
// must not fill the memory.
const (
	mostStepConns = 128     // more are hung up on
	mostStepCalls = 2       // at a time, on one of them
	mostStepSpans = 4 << 20 // bytes of one call
)

// newSteps returns the server of the spans of steps.
func newSteps(s *Server) *grpc.Server {
	steps := grpc.NewServer(grpc.UnaryInterceptor(recoverUnary), grpc.ForceServerCodecV2(session.Codec()),
		grpc.MaxConcurrentStreams(mostStepCalls), grpc.MaxRecvMsgSize(mostStepSpans))
	collectorpb.RegisterTraceServiceServer(steps, &traceService{Server: s})
	return steps
}

// ServeSteps takes the spans of steps on a listener, until the daemon ends. It
// is a step's way to the daemon: whoever runs there may do nothing else.
func (s *Server) ServeSteps(l net.Listener) {
	if err := s.steps.Serve(&stepListener{Listener: l}); err != nil {
		slog.Warn("take the spans of steps", "error", err)
	}
}

// stepListener hangs up on those who come when there are too many.
type stepListener struct {
	net.Listener
	open atomic.Int32
}

func (l *stepListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) <= mostStepConns {
			return &stepConn{conn, sync.OnceFunc(func() { l.open.Add(-1) })}, nil
		}
		l.open.Add(-1)
		_ = conn.Close() // nothing was said
	}
}

type stepConn struct {
	net.Conn
	left func()
}

func (c *stepConn) Close() error {
	c.left()
	return c.Conn.Close()
}
