package gateway

import (
	"context"
	"errors"
	"net"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/internal/build"
	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/llb"
)

// A frontend in a container is the gateway's client on a connection of its own.
// It is known by that connection and sees nothing but what it made itself.

// unreadWindow is how much a call may send before the daemon reads of it, bytes. gRPC
// lets the rest of a message in once it reads the message.
const unreadWindow = 256 << 10

// ServeFrontend answers a frontend until its connection or ctx ends, and returns
// what it returned; nil and no error if that was nothing. All that the frontend had
// is released by then.
func (s *Service) ServeFrontend(ctx context.Context, br *build.Bridge, inputs map[string]*llb.Graph, conn net.Conn) (*frontend.Result, error) {
	phase, end := context.WithCancel(ctx)
	defer end()
	run := NewPhase("of the frontend", nil)
	run.quota = quotaOf(ctx)
	run.hangUp = func() { _ = conn.Close() }
	counted := newMetered(conn, run)
	run.begin(phase, br, inputs)
	unary, stream := s.host.Intercept()
	server := grpc.NewServer(append(session.ServerOptions(),
		grpc.InitialWindowSize(unreadWindow), grpc.WaitForHandlers(true), grpc.MaxConcurrentStreams(mostCalls),
		grpc.ChainUnaryInterceptor(withValuesUnary(phase), unary),
		grpc.ChainStreamInterceptor(withValuesStream(phase), stream))...)
	gateway.RegisterLLBBridgeServer(server, &Service{host: s.host, native: s.native, only: run})
	healthpb.RegisterHealthServer(server, health.NewServer())
	defer context.AfterFunc(ctx, server.Stop)()
	_ = server.Serve(newSingleListener(counted)) // ends with the connection, always by an error
	end()
	_ = conn.Close() // it may not have been accepted
	server.Stop()
	counted.release()
	run.releaseAnswers()
	run.releaseContainers()
	select {
	case a := <-run.answer:
		return a.result, a.err
	default:
		return nil, nil
	}
}

// releaseContainers ends all containers that are left, and has none taken any more.
func (r *Phase) releaseContainers() {
	r.mu.Lock()
	r.closed = true
	var left []*build.Container
	for _, c := range r.containers {
		if c != nil {
			left = append(left, c)
		}
	}
	r.containers = nil
	r.mu.Unlock()
	var all sync.WaitGroup
	for _, c := range left {
		all.Go(func() { _ = c.Release() }) // how they ended is of no interest any more
	}
	all.Wait()
}

// withValues is a call's context with what is known of the request that the
// frontend serves: which one it is, and which others it is in.
type withValues struct {
	context.Context
	request context.Context
}

// Value looks in the call first.
func (c withValues) Value(key any) any {
	if v := c.Context.Value(key); v != nil {
		return v
	}
	return c.request.Value(key)
}

func withValuesUnary(request context.Context) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		return next(withValues{ctx, request}, req)
	}
}

func withValuesStream(request context.Context) grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		return next(srv, streamWithValues{ss, withValues{ss.Context(), request}})
	}
}

type streamWithValues struct {
	grpc.ServerStream
	ctx context.Context
}

// Context is the call's.
func (s streamWithValues) Context() context.Context { return s.ctx }

// singleListener has one connection to accept, and ends with it.
type singleListener struct {
	conns  chan net.Conn
	ended  chan struct{}
	ending sync.Once
	addr   net.Addr
}

func newSingleListener(conn net.Conn) *singleListener {
	l := &singleListener{conns: make(chan net.Conn, 1), ended: make(chan struct{}), addr: conn.LocalAddr()}
	l.conns <- &listenedConn{conn, l}
	return l
}

var errConnectionEnded = errors.New("the connection has ended")

// Accept returns the connection, and at the second call waits for its end.
func (l *singleListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.ended:
		return nil, errConnectionEnded
	}
}

// Close has Accept return.
func (l *singleListener) Close() error {
	l.ending.Do(func() { close(l.ended) })
	return nil
}

// Addr is the connection's.
func (l *singleListener) Addr() net.Addr { return l.addr }

type listenedConn struct {
	net.Conn
	l *singleListener
}

// Close ends the listener, too.
func (c *listenedConn) Close() error {
	defer c.l.Close()
	return c.Conn.Close()
}
