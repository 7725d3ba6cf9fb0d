// Package daemon serves Kiln's API, which is BuildKit's: it decodes requests into
// values, hands them to package build, and makes its events and errors messages again.
// What frontends ask of a build is package gateway's. Wire types go no further than
// these two.
package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"time"

	contentpb "github.com/containerd/containerd/api/services/content/v1"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/control"
	gatewaypb "github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/internal/api/kiln"
	"github.com/kiln-build/kiln/internal/build"
	"github.com/kiln-build/kiln/internal/gateway"
	"github.com/kiln-build/kiln/internal/gc"
	"github.com/kiln-build/kiln/internal/history"
	"github.com/kiln-build/kiln/internal/session"
)

// Config is what a daemon is made of.
type Config struct {
	Builder   *build.Builder
	Sessions  *session.Manager
	Policy    PolicyClient // asks clients about sources
	Exports   ExportClient // asks clients how to bring out results
	Collector *gc.Collector
	History   *history.History
	Blobs     Blobs           // what clients may read besides the history
	Ledger    *history.Ledger // knows why steps run
	// Spans takes the spans of builds and clients on their way to a collector,
	// see [NewSpanCollector]; nil for nobody.
	Spans     sdktrace.SpanProcessor
	Policies  []gc.Policy         // by which garbage is collected; none collects none
	Platforms []ocispecs.Platform // the native one first
	// Detected tells what else runs here, by emulators that came later; nil is
	// nothing.
	Detected func() []ocispecs.Platform
	Devices  Devices // for containers; nil for none
	WorkerID string
	Labels   map[string]string // of the worker (BuildKit's worker/label)
	Version  string
	Revision string // that the program was built of
	// IdleTimeout has the daemon leave after so long without a build or a
	// client; 0 keeps it.
	IdleTimeout time.Duration
	// Trim gives memory back to the machine that is not needed now; nil keeps it.
	Trim func()
}

// Server is a daemon.
type Server struct {
	config  Config
	builds  *builds
	traces  *traces
	grpc    *grpc.Server
	metrics *metrics
	gateway *gateway.Service
	steps   *grpc.Server // for the spans of steps, and for nothing else

	mu      sync.Mutex
	clients int // open sessions

	leaving chan struct{} // takes who asked the daemon to leave
}

// callWorkers is how many goroutines wait for calls. Their stacks have grown
// before, which saves a short call some of its time; further calls at once get
// goroutines of their own.
const callWorkers = 4

// New returns a daemon that does not listen yet.
func New(c Config) *Server {
	s := &Server{config: c, builds: newBuilds(), traces: newTraces(c.History, c.Spans, c.Version), metrics: newMetrics(), leaving: make(chan struct{}, 1)}
	s.grpc = grpc.NewServer(append(session.ServerOptions(), grpc.Creds(session.Handover()),
		grpc.NumStreamWorkers(callWorkers), grpc.UnaryInterceptor(s.unary), grpc.StreamInterceptor(s.stream))...)
	control.RegisterControlServer(s.grpc, &controlService{Server: s})
	kiln.RegisterKilnServer(s.grpc, &kilnService{Server: s})
	s.gateway = gateway.NewService(gatewayHost{s}, c.Platforms[0])
	gatewaypb.RegisterLLBBridgeServer(s.grpc, s.gateway)
	kiln.RegisterCachesServer(s.grpc, &cachesService{Server: s})
	kiln.RegisterCacheMountsServer(s.grpc, &mountsService{Server: s})
	contentpb.RegisterContentServer(s.grpc, &contentService{Server: s})
	collectorpb.RegisterTraceServiceServer(s.grpc, &traceService{Server: s})
	healthpb.RegisterHealthServer(s.grpc, health.NewServer())
	reflection.Register(s.grpc)
	s.steps = newSteps(s)
	return s
}

// Gateway is what frontends ask of builds here.
func (s *Server) Gateway() *gateway.Service { return s.gateway }

// Serve answers on listeners until ctx ends or the daemon has been idle for
// long enough. It then lets what is under way end quickly.
func (s *Server) Serve(ctx context.Context, listeners ...net.Listener) error {
	errs := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { errs <- s.grpc.Serve(l) }()
	}
	idle := make(chan struct{})
	stop := make(chan struct{})
	defer close(stop)
	go s.collectGarbage(stop)
	go s.trimMemory(stop)
	go s.trimStart(stop)
	go s.holdCap(stop)
	if s.config.IdleTimeout > 0 {
		go s.watchIdle(idle, stop)
	}
	select {
	case err := <-errs:
		s.grpc.Stop()
		return fmt.Errorf("serve: %w", err)
	case <-idle:
		slog.Info("leaving after being idle", "for", s.config.IdleTimeout)
	case <-s.leaving:
		slog.Info("leaving for a daemon of another version")
		s.drain(listeners) // a build may have come since
		late := time.AfterFunc(leaveWait, s.grpc.Stop)
		s.grpc.GracefulStop() // who asked is to have the answer
		late.Stop()
	case <-ctx.Done():
		s.drain(listeners)
	}
	s.grpc.Stop()
	s.steps.Stop()
	closing, cancel := context.WithTimeout(context.Background(), closeWait)
	defer cancel()
	if err := s.traces.close(closing); err != nil {
		slog.Error("pass on spans", "error", err)
	}
	return nil
}

// closeWait bounds how long a daemon on its way out passes on spans.
const closeWait = 2 * time.Second

// leaveWait bounds how long a daemon that was asked to leave waits for those who only
// watch it.
const leaveWait = time.Second

// watchIdle closes idle once nobody has needed the daemon for long enough.
func (s *Server) watchIdle(idle, stop chan struct{}) {
	tick := time.NewTicker(max(s.config.IdleTimeout/10, 100*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
			if s.unused(s.config.IdleTimeout) {
				close(idle)
				return
			}
		}
	}
}

// unused tells whether nobody has needed the daemon for so long.
func (s *Server) unused(since time.Duration) bool {
	s.mu.Lock()
	clients := s.clients
	s.mu.Unlock()
	return clients == 0 && s.idleFor() >= since
}

// unary is what each call goes through.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	return gateway.Hold(ctx, req, info, func(ctx context.Context, req any) (any, error) {
		return s.metrics.unary(ctx, req, info, func(ctx context.Context, req any) (any, error) {
			return recoverUnary(ctx, req, info, next)
		})
	})
}

// stream is what each call of messages goes through.
func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	return s.metrics.stream(srv, ss, info, func(srv any, ss grpc.ServerStream) error {
		return recoverStream(srv, ss, info, next)
	})
}

// recoverUnary makes a panic an error of the call that it happened in.
func recoverUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	defer func() {
		if err != nil && status.Code(err) != codes.Canceled {
			logFailure(ctx, info.FullMethod+" returned error: "+err.Error())
		}
	}()
	defer recovered(&err)
	resp, err = next(ctx, req)
	return resp, wireError(err)
}

func recoverStream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	defer recovered(&err)
	return wireError(next(srv, ss))
}

func recovered(err *error) {
	if p := recover(); p != nil {
		slog.Error("panic in a call", "panic", p, "stack", string(debug.Stack()))
		*err = wireError(fmt.Errorf("internal error, please report it: %v", p))
	}
}
