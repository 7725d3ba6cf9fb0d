// Package clienttest is a daemon for tests of what talks to daemons: it has the
// services of a real one and does in a build what a test says.
package clienttest

import (
	"context"
	"net"
	"slices"
	"sync"
	"testing"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/internal/api/worker"
	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/llb/pb"
)

// Build is one build, as the daemon sees it.
type Build struct {
	Request *control.SolveRequest
	Client  *session.Caller // nil if the request names no session
	// Tell sends news to those who watch the build.
	Tell     func(*control.StatusResponse)
	returned chan *gateway.ReturnRequest
}

// Daemon is a daemon that listens.
type Daemon struct {
	control.UnimplementedControlServer
	// Address is where it listens.
	Address string
	server  *grpc.Server
	session *session.Manager
	solve   func(context.Context, *Build) (map[string]string, error)

	mu       sync.Mutex
	builds   map[string]*news
	Usage    []*control.UsageRecord
	PruneReq *control.PruneRequest // the last one
	// Bridge is the gateway to builds that a client drives.
	Bridge *Bridge
	// Events are what the history tells of, Blobs what it has stored, by digest, and
	// HistoryUpdates what it was asked to change.
	Events         []*control.BuildHistoryEvent
	Blobs          map[string][]byte
	HistoryUpdates []*control.UpdateBuildHistoryRequest
}

// news is what a build has told so far.
type news struct {
	mu    sync.Mutex
	cond  *sync.Cond
	list  []*control.StatusResponse
	ended bool
	begun bool // once it is, request is set
	// request is that of the build, and returned what its driver made.
	request  *control.SolveRequest
	returned chan *gateway.ReturnRequest
}

// Start starts a daemon whose builds are solve, on a socket of its own. It stops
// with the test.
func Start(t testing.TB, solve func(context.Context, *Build) (map[string]string, error)) *Daemon {
	t.Helper()
	l, err := net.Listen("unix", t.TempDir()+"/d")
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{
		Address: "unix://" + l.Addr().String(), server: grpc.NewServer(session.ServerOptions()...),
		session: session.NewManager(), solve: solve, builds: map[string]*news{},
	}
	d.Bridge = &Bridge{daemon: d}
	control.RegisterControlServer(d.server, d)
	gateway.RegisterLLBBridgeServer(d.server, d.Bridge)
	contentapi.RegisterContentServer(d.server, blobs{daemon: d})
	served := make(chan error, 1)
	go func() { served <- d.server.Serve(l) }()
	t.Cleanup(func() {
		d.server.Stop()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return d
}

// Kill ends the daemon as a crash would.
func (d *Daemon) Kill() { go d.server.Stop() }

// Session carries a session.
func (d *Daemon) Session(s grpc.BidiStreamingServer[control.BytesMessage, control.BytesMessage]) error {
	return d.session.ServeStream(s)
}

// ServeSession serves a session whose connection the client dialed itself, until it ends.
func (d *Daemon) ServeSession(meta map[string][]string, conn net.Conn) error {
	m, err := session.ParseMeta(meta)
	if err != nil {
		return err
	}
	return d.session.Serve(context.Background(), m, conn)
}

func (d *Daemon) news(ref string) *news {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.builds[ref]
	if n == nil {
		n = &news{returned: make(chan *gateway.ReturnRequest, 1)}
		n.cond = sync.NewCond(&n.mu)
		d.builds[ref] = n
	}
	return n
}

// Solve runs the test's build.
func (d *Daemon) Solve(ctx context.Context, req *control.SolveRequest) (*control.SolveResponse, error) {
	n := d.news(req.GetRef())
	defer func() {
		n.mu.Lock()
		n.ended = true
		n.cond.Broadcast()
		n.mu.Unlock()
	}()
	n.mu.Lock()
	n.request, n.begun = req, true
	n.mu.Unlock()
	b := &Build{Request: req, returned: n.returned, Tell: func(r *control.StatusResponse) {
		n.mu.Lock()
		n.list = append(n.list, r)
		n.cond.Broadcast()
		n.mu.Unlock()
	}}
	if id := req.GetSession(); id != "" {
		var err error
		if b.Client, err = d.session.Get(ctx, id); err != nil {
			return nil, err
		}
	}
	resp, err := d.solve(ctx, b)
	if err != nil {
		return nil, err
	}
	return &control.SolveResponse{ExporterResponse: resp}, nil
}

// Status tells a build's news, from the first on.
func (d *Daemon) Status(req *control.StatusRequest, s grpc.ServerStreamingServer[control.StatusResponse]) error {
	n := d.news(req.GetRef())
	stop := context.AfterFunc(s.Context(), func() {
		n.mu.Lock()
		n.cond.Broadcast()
		n.mu.Unlock()
	})
	defer stop()
	for i := 0; ; i++ {
		n.mu.Lock()
		for len(n.list) == i && !n.ended && s.Context().Err() == nil {
			n.cond.Wait()
		}
		if len(n.list) == i {
			n.mu.Unlock()
			return nil
		}
		r := n.list[i]
		n.mu.Unlock()
		if err := s.Send(r); err != nil {
			return err
		}
	}
}

// Info tells a version.
func (d *Daemon) Info(context.Context, *control.InfoRequest) (*control.InfoResponse, error) {
	return &control.InfoResponse{BuildkitVersion: &worker.BuildkitVersion{Package: "clienttest", Version: "1.2.3"}}, nil
}

// ListWorkers tells of one worker.
func (d *Daemon) ListWorkers(context.Context, *control.ListWorkersRequest) (*control.ListWorkersResponse, error) {
	return &control.ListWorkersResponse{Record: []*worker.WorkerRecord{{
		ID: "w1", Labels: map[string]string{"a": "b"},
		Platforms: []*pb.Platform{{OS: "linux", Architecture: "arm64", Variant: "v8"}},
		GCPolicy:  []*worker.GCPolicy{{MaxUsedSpace: 1e9}},
	}}}, nil
}

// DiskUsage lists d.Usage. The filter "bad" is an error.
func (d *Daemon) DiskUsage(_ context.Context, req *control.DiskUsageRequest) (*control.DiskUsageResponse, error) {
	if slices.Contains(req.GetFilter(), "bad") {
		return nil, status.Error(codes.InvalidArgument, "bad filter")
	}
	return &control.DiskUsageResponse{Record: d.Usage}, nil
}

// Prune says that d.Usage is gone.
func (d *Daemon) Prune(req *control.PruneRequest, s grpc.ServerStreamingServer[control.UsageRecord]) error {
	d.mu.Lock()
	d.PruneReq = req
	d.mu.Unlock()
	for _, u := range d.Usage {
		if err := s.Send(u); err != nil {
			return err
		}
	}
	return nil
}
