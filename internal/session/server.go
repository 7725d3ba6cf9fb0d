package session

import (
	"context"
	"errors"
	"net"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"

	"github.com/kiln-build/kiln/internal/api/control"
)

// Attachable is a service that a client offers to the daemon.
type Attachable interface{ Register(*grpc.Server) }

// Server is the client's side of a session: it serves what is attached to it on
// a connection that the client itself opened.
type Server struct {
	meta    Meta
	grpc    *grpc.Server
	carrier interface{ Context() context.Context } // the rpc of the daemon that carries the session, nil without
}

// NewServer returns the server of the session id. Health is always served.
func NewServer(id, sharedKey string, attached ...Attachable) *Server {
	s := &Server{meta: Meta{ID: id, SharedKey: sharedKey, Chunk: LargeChunk}}
	s.grpc = grpc.NewServer(append(ServerOptions(), grpc.StreamInterceptor(s.withTaker))...)
	grpc_health_v1.RegisterHealthServer(s.grpc, health.NewServer())
	for _, a := range attached {
		a.Register(s.grpc)
	}
	for name, info := range s.grpc.GetServiceInfo() {
		for _, m := range info.Methods {
			s.meta.Methods = append(s.meta.Methods, "/"+name+"/"+m.Name)
		}
	}
	return s
}

// Meta is what to tell the daemon of the session.
func (s *Server) Meta() Meta { return s.meta }

// Run opens the session with open, the rpc Control/Session, and serves it until
// ctx ends (nil) or the daemon ends it (an error).
func (s *Server) Run(ctx context.Context, open func(context.Context) (ByteStream, error)) error {
	streamCtx, cancel := context.WithCancel(metadata.NewOutgoingContext(ctx, s.meta.metadata()))
	defer cancel()
	stream, err := open(streamCtx)
	if err != nil {
		return err
	}
	s.carrier, _ = stream.(interface{ Context() context.Context })
	err = s.Serve(ctx, NewConn(stream, cancel))
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// OpenStream returns how to open the session of a daemon's client, for Run.
func OpenStream(c control.ControlClient) func(context.Context) (ByteStream, error) {
	return func(ctx context.Context) (ByteStream, error) { return c.Session(ctx) }
}

// Serve serves conn until it ends or ctx does. A server serves but once.
func (s *Server) Serve(ctx context.Context, conn net.Conn) error {
	l := &oneConn{conn: conn, closed: make(chan struct{})}
	ended := make(chan error, 1)
	l.conn = &watchedConn{Conn: conn, closed: func(err error) {
		select {
		case ended <- err:
		default:
		}
	}}
	served := make(chan error, 1)
	go func() { served <- s.grpc.Serve(l) }()
	var err error
	select {
	case <-ctx.Done():
		err = context.Cause(ctx)
	case err = <-ended:
	case err = <-served:
	}
	s.grpc.Stop()
	return err
}

// oneConn is a listener that has one connection to give.
type oneConn struct {
	mu     sync.Mutex
	conn   net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	l.mu.Lock()
	conn := l.conn
	l.conn = nil
	l.mu.Unlock()
	if conn != nil {
		return conn, nil
	}
	<-l.closed
	return nil, errors.New("the session's listener is closed")
}

func (l *oneConn) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *oneConn) Addr() net.Addr { return addr{} }
