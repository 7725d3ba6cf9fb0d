package daemon

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/filters"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/api/worker"
	"github.com/kiln-build/kiln/internal/build"
	"github.com/kiln-build/kiln/internal/gateway"
	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/llb"
)

// Times that the daemon waits for what clients send out of order (BuildKit's
// client/solve.go).
const (
	waitStatus  = 6 * time.Second
	waitGateway = 3 * time.Second
	waitSession = 15 * time.Second
)

// controlService is moby.buildkit.v1.Control.
type controlService struct {
	control.UnimplementedControlServer
	*Server
}

// Solve runs a build. It answers when all exports are done and the build is
// recorded.
func (s *controlService) Solve(ctx context.Context, r *control.SolveRequest) (*control.SolveResponse, error) {
	run, err := s.begin(ctx, r)
	if err != nil {
		return nil, err
	}
	out, err := s.solve(ctx, r, run)
	s.finish(run, out, err)
	if err != nil {
		return nil, err
	}
	return &control.SolveResponse{ExporterResponse: out}, nil
}

func (s *controlService) solve(ctx context.Context, r *control.SolveRequest, run *running) (_ map[string]string, err error) {
	defer recovered(&err)
	req, err := s.request(ctx, r, run)
	if err != nil {
		return nil, err
	}
	req.Trace = run.events.trace.parent
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.builds.stoppable(ctx, run, cancel)
	if req.Session != nil { // a client that is gone wants nothing any more
		defer req.Session.Settle(ctx)
		defer context.AfterFunc(req.Session.Context(), func() { cancel(gone(req.Session)) })()
	}
	out, err := s.config.Builder.Build(ctx, req)
	switch code := errorCode(err); {
	case req.Session != nil && gone(req.Session) != nil && (code == codes.Canceled || code == codes.Unavailable):
		err = gone(req.Session) // and whatever it was asked for says less
	case context.Cause(ctx) != nil && code == codes.Canceled: // a client's answer may say so, too
		err = context.Cause(ctx)
	}
	return out, err
}

// gone tells why a client's session has ended, or nil if it has not.
func gone(c *session.Caller) error {
	if cause := context.Cause(c.Context()); cause != nil {
		return fmt.Errorf("the client's session has ended (%w): %w", cause, context.Canceled)
	}
	return nil
}

func (s *controlService) request(ctx context.Context, r *control.SolveRequest, run *running) (build.Request, error) {
	req := build.Request{
		Ref: r.Ref, Frontend: r.Frontend, Opts: r.FrontendAttrs, Entitlements: r.Entitlements, Sink: run.events, ProxyNetwork: r.ProxyNetwork,
		Exported: func(exporter int, response map[string]string) { s.noteImage(run, exporter, response) },
		Keep:     func(d ocispecs.Descriptor, document []byte) { s.keepDocument(run, d, document) },
		Stepped:  func(steps []build.Step) { s.noteSteps(run, steps) },
		Resulted: func(meta map[string][]byte) { run.meta = meta },
		Missed:   s.explainer(run, r.FrontendAttrs),
	}
	switch {
	case r.Definition != nil && len(r.Definition.Def) > 0 && r.Frontend != "":
		return req, status.Error(codes.InvalidArgument, "a build takes a definition or a frontend, not both")
	case r.Definition != nil:
		g, err := llb.Unmarshal(r.Definition)
		if err != nil {
			return req, status.Errorf(codes.InvalidArgument, "decode definition: %v", err)
		}
		req.Graph = g
	case r.Frontend == "":
		req.FrontendFunc = run.phase.Serve
	}
	var err error
	if req.Inputs, err = gateway.ReadGraphs(r.FrontendInputs); err != nil {
		return req, err
	}
	if err := s.policies(r, &req); err != nil {
		return req, err
	}
	if err := s.attesting(run, r, &req); err != nil {
		return req, err
	}
	caches(r, &req)
	for _, e := range exporters(r) {
		req.Exports = append(req.Exports, build.Export{Type: e.Type, Attrs: e.Attrs})
	}
	if r.Session != "" {
		wait, cancel := context.WithTimeout(ctx, waitSession)
		defer cancel()
		if req.Session, err = s.config.Sessions.Get(wait, r.Session); err != nil {
			return req, status.Errorf(codes.NotFound, "session %s of the build did not arrive: %v", r.Session, err)
		}
	}
	if r.EnableSessionExporter && req.Session != nil {
		req.Chooser = &sessionChooser{s.config.Exports, req.Session, run}
	}
	return req, nil
}

// exporters are what to make of the result, in the old or the new way to say it.
func exporters(r *control.SolveRequest) []*control.Exporter {
	if len(r.Exporters) == 0 && r.ExporterDeprecated != "" {
		return []*control.Exporter{{Type: r.ExporterDeprecated, Attrs: r.ExporterAttrsDeprecated}}
	}
	return r.Exporters
}

// Session takes a client's back-channel and keeps it until it ends.
func (s *controlService) Session(stream grpc.BidiStreamingServer[control.BytesMessage, control.BytesMessage]) error {
	s.mu.Lock()
	s.clients++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.clients--
		s.mu.Unlock()
	}()
	return s.config.Sessions.ServeStream(stream)
}

// ListWorkers tells of the one worker that the daemon has, if one of the
// filters holds for it or none is given. They are containerd's, of the fields
// id and labels.
func (s *controlService) ListWorkers(_ context.Context, r *control.ListWorkersRequest) (*control.ListWorkersResponse, error) {
	wanted, err := filters.ParseAll(r.Filter...)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "filter %q: %v", r.Filter, err)
	}
	if !wanted.Match(filters.AdapterFunc(s.workerField)) {
		return &control.ListWorkersResponse{}, nil
	}
	return &control.ListWorkersResponse{Record: s.workers()}, nil
}

// workerField is the value of a field by which workers are filtered.
func (s *Server) workerField(path []string) (string, bool) {
	switch {
	case len(path) == 1 && path[0] == "id":
		return s.config.WorkerID, s.config.WorkerID != ""
	case len(path) > 1 && path[0] == "labels":
		value, ok := s.config.Labels[strings.Join(path[1:], ".")]
		return value, ok
	}
	return "", false
}

func (s *Server) workers() []*worker.WorkerRecord {
	w := &worker.WorkerRecord{ID: s.config.WorkerID, Labels: s.config.Labels, BuildkitVersion: s.version(), CDIDevices: s.devices()}
	for _, p := range s.platforms() {
		w.Platforms = append(w.Platforms, gateway.WirePlatform(p))
	}
	for _, p := range s.config.Policies {
		w.GCPolicy = append(w.GCPolicy, wirePolicy(p))
	}
	return []*worker.WorkerRecord{w}
}

// Info tells the daemon's version.
func (s *controlService) Info(context.Context, *control.InfoRequest) (*control.InfoResponse, error) {
	return &control.InfoResponse{BuildkitVersion: s.version()}, nil
}

func (s *Server) version() *worker.BuildkitVersion {
	return &worker.BuildkitVersion{Package: "github.com/kiln-build/kiln", Version: s.config.Version, Revision: s.config.Revision, DockerfileVersion: s.config.Builder.DockerfileVersion}
}
