package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/internal/build"
	"github.com/kiln-build/kiln/internal/gc"
	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/llb"
)

// A frontend in a container is the gateway's client on a connection of its own.
// It is known by that connection and sees nothing but what it made itself.

// ServeFrontend answers a frontend until its connection or ctx ends, and returns
// what it returned; nil and no error if that was nothing. It implements
// [build.FrontendHost].
func (s *Server) ServeFrontend(ctx context.Context, br *build.Bridge, inputs map[string]*llb.Graph, conn net.Conn) (*frontend.Result, error) {
	phase, end := context.WithCancel(ctx)
	defer end()
	run := &running{
		ref: "of the frontend", gateway: make(chan struct{}), bridge: br, done: make(chan struct{}),
		answer: make(chan answer, 1), refs: map[string]*gatewayRef{}, phase: gatewayPhase{ctx: phase, inputs: inputs, hangUp: func() { _ = conn.Close() }},
	}
	close(run.gateway)
	server := grpc.NewServer(append(session.ServerOptions(),
		grpc.WaitForHandlers(true),
		grpc.ChainUnaryInterceptor(s.metrics.unary, withValuesUnary(phase), recoverUnary),
		grpc.ChainStreamInterceptor(s.metrics.stream, withValuesStream(phase), recoverStream))...)
	gateway.RegisterLLBBridgeServer(server, &gatewayService{Server: s, only: run})
	healthpb.RegisterHealthServer(server, health.NewServer())
	defer context.AfterFunc(ctx, server.Stop)()
	_ = server.Serve(newSingleListener(conn)) // ends with the connection, always by an error
	end()
	_ = conn.Close() // it may not have been accepted
	server.Stop()
	run.releaseContainers()
	select {
	case a := <-run.answer:
		return a.result, a.err
	default:
		return nil, nil
	}
}

// releaseContainers ends all containers that are left, and has none taken any more.
func (r *running) releaseContainers() {
	r.mu.Lock()
	r.phase.closed = true
	var left []*build.Container
	for _, c := range r.phase.containers {
		if c != nil {
			left = append(left, c)
		}
	}
	r.phase.containers = nil
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

// frontendWorker is a worker as frontends read it from their environment
// (WIRE.md section 15.1).
type frontendWorker struct {
	ID              string              `json:"id"`
	Labels          map[string]string   `json:"labels"`
	Platforms       []ocispecs.Platform `json:"platforms"`
	GCPolicy        []frontendPolicy    `json:"gcPolicy"`
	BuildkitVersion frontendVersion     `json:"buildkitVersion"`
	CDIDevices      []frontendDevice    `json:"cdiDevices"`
}

type frontendPolicy struct {
	All           bool          `json:"all"`
	Filter        []string      `json:"filter"`
	KeepDuration  time.Duration `json:"keepDuration"` // nanoseconds
	ReservedSpace int64         `json:"reservedSpace"`
	MaxUsedSpace  int64         `json:"maxUsedSpace"`
	MinFreeSpace  int64         `json:"minFreeSpace"`
}

func readFrontendPolicy(p gc.Policy) frontendPolicy {
	return frontendPolicy{
		All: p.All, Filter: p.Filters, KeepDuration: p.KeepFor,
		ReservedSpace: p.Reserved, MaxUsedSpace: p.MaxUsed, MinFreeSpace: p.MinFree,
	}
}

type frontendVersion struct {
	Package           string `json:"package"`
	Version           string `json:"version"`
	Revision          string `json:"revision"`
	DockerfileVersion string `json:"dockerfileVersion"`
}

type frontendDevice struct {
	Name        string            `json:"name"`
	AutoAllow   bool              `json:"autoAllow"`
	Annotations map[string]string `json:"annotations"`
	OnDemand    bool              `json:"onDemand"`
}

// FrontendWorkers lists the workers in JSON, as frontends read it from their
// environment. It implements [build.FrontendHost].
func (s *Server) FrontendWorkers() ([]byte, error) {
	v := s.version()
	w := frontendWorker{
		ID: s.config.WorkerID, Labels: s.config.Labels, Platforms: s.platforms(), GCPolicy: []frontendPolicy{}, CDIDevices: []frontendDevice{},
		BuildkitVersion: frontendVersion{v.Package, v.Version, v.Revision, v.DockerfileVersion},
	}
	for _, p := range s.config.Policies {
		w.GCPolicy = append(w.GCPolicy, readFrontendPolicy(p))
	}
	for _, d := range s.devices() {
		w.CDIDevices = append(w.CDIDevices, frontendDevice{Name: d.Name, AutoAllow: d.AutoAllow, Annotations: d.Annotations, OnDemand: d.OnDemand})
	}
	b, err := json.Marshal([]frontendWorker{w})
	if err != nil {
		return nil, fmt.Errorf("encode workers: %w", err)
	}
	return b, nil
}
