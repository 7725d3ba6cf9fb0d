package client

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/caps"
	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/api/gateway"
)

// BuildFunc drives a build: it solves what it needs through the gateway, and returns
// what the exporters get. The result may be nil.
type BuildFunc func(context.Context, *Gateway) (*BuildResult, error)

// Build builds what f returns: this program is the frontend of the build, and opt's
// Frontend and Definition are ignored. See [Client.Solve] for the rest.
func (c *Client) Build(ctx context.Context, opt SolveOpt, f BuildFunc, sink Sink) (*Result, error) {
	opt.Definition, opt.Frontend = nil, ""
	workers, err := c.ListWorkers(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("listing workers for Build: failed to list workers: %w", err)
	}
	return c.run(ctx, opt, sink, func(ctx context.Context, req *control.SolveRequest) error {
		opts := BuildOpts{Opts: maps.Clone(req.GetFrontendAttrs()), SessionID: req.GetSession(), Workers: workers}
		for _, e := range req.GetCache().GetImports() {
			opts.CacheImports = append(opts.CacheImports, CacheEntry{Type: e.GetType(), Attrs: e.GetAttrs()})
		}
		g, err := c.openGateway(ctx, req.GetRef(), opts)
		if err != nil {
			return err
		}
		return g.run(ctx, f)
	})
}

// pingTimeout is how long a build may take to be ready for its driver.
const pingTimeout = 15 * time.Second

// openGateway waits for the build ref, and asks what can be done with it.
func (c *Client) openGateway(ctx context.Context, ref string, opts BuildOpts) (*Gateway, error) {
	conn := buildConn{c, ref}
	g := &Gateway{api: gateway.NewLLBBridgeClient(conn), conn: conn, opts: opts}
	ctx, cancel := context.WithTimeoutCause(ctx, pingTimeout, errors.New("the build was not ready for its driver in time"))
	defer cancel()
	for {
		pong, err := g.api.Ping(ctx, &gateway.PingRequest{})
		if err == nil {
			g.opts.Caps, g.opts.LLBCaps = capsOf(pong.GetFrontendAPICaps()), capsOf(pong.GetLLBCaps())
			return g, nil
		}
		// The daemon itself waits a while for the build to begin.
		if status.Code(err) != codes.NotFound {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// buildConn is the connection to the daemon for calls about one build; errors are
// those of package client.
type buildConn struct {
	client *Client
	ref    string
}

// keyBuild is the metadata that names the build (BuildKit's
// frontend/gateway/pb/gateway.proto).
const keyBuild = "buildkit-controlapi-buildid"

func (b buildConn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	return b.client.wrap(b.client.conn.Invoke(metadata.AppendToOutgoingContext(ctx, keyBuild, b.ref), method, args, reply, opts...))
}

func (b buildConn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return b.client.conn.NewStream(metadata.AppendToOutgoingContext(ctx, keyBuild, b.ref), desc, method, opts...)
}

// run lets f work, and hands what it made, or why it could not, to the daemon.
func (g *Gateway) run(ctx context.Context, f BuildFunc) error {
	failed, err := g.serve(ctx, f)
	if failed != nil {
		return failed
	}
	return err
}

// serve lets f work and tells the daemon. failed is why f, or the result that it
// made, is none; err that the daemon could not be told.
func (g *Gateway) serve(ctx context.Context, f BuildFunc) (failed, err error) {
	result, failed := f(ctx, g)
	req := &gateway.ReturnRequest{}
	if failed == nil {
		if req.Result, failed = result.wire(g.opts.Caps["proto.refarray"]); failed != nil {
			failed = fmt.Errorf("hand over the result: %w", failed)
		}
	}
	if failed != nil {
		req.Result, req.Error = nil, statusOf(failed)
	}
	_, err = g.api.Return(ctx, req)
	return failed, err
}

// statusOf is the status of an error, with the details of the daemon's own error if
// there is one in it.
func statusOf(err error) *spb.Status {
	var own *Error
	st := &spb.Status{Code: int32(codes.Unknown)}
	switch {
	case errors.As(err, &own):
		st = status.Convert(own).Proto()
	case errors.Is(err, context.Canceled):
		st.Code = int32(codes.Canceled)
	case errors.Is(err, context.DeadlineExceeded):
		st.Code = int32(codes.DeadlineExceeded)
	default:
		if s, ok := status.FromError(err); ok {
			st = s.Proto()
		}
	}
	st.Message = err.Error()
	noteFrontend(st, err)
	return st
}

// Caps are the capabilities of a daemon, by id.
type Caps map[string]bool

func capsOf(list []*caps.APICap) Caps {
	out := Caps{}
	for _, c := range list {
		if c.GetEnabled() {
			out[c.GetID()] = true
		}
	}
	return out
}

// need returns an error if the daemon lacks a capability.
func (c Caps) need(id, what string) error {
	if c[id] {
		return nil
	}
	return fmt.Errorf("the daemon cannot %s: it lacks the capability %s", what, id)
}
