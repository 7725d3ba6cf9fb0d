package client

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/llb/pb"
)

// SolveOpt says what to build, from what, and what to make of it.
type SolveOpt struct {
	// Definition is LLB to build. Else Frontend, such as "dockerfile.v0", makes it;
	// [Client.Build] needs neither.
	Definition    *pb.Definition
	Frontend      string
	FrontendAttrs map[string]string
	// FrontendInputs are file systems that the frontend gets by name.
	FrontendInputs map[string]llb.State
	Exports        []Export
	CacheExports   []CacheEntry
	CacheImports   []CacheEntry
	Entitlements   []string
	Attach         Attach
	// Ref is the id of the build; "" is a new one.
	Ref string
	// Internal builds are not recorded.
	Internal bool
	// SourcePolicy allows, denies or rewrites sources.
	SourcePolicy *SourcePolicy
	// SourcePolicyVerifier, if not nil, is asked about each source.
	SourcePolicyVerifier PolicyVerifier
	// SessionExporter, if not nil, chooses exporters when the result is there.
	SessionExporter SessionExporter
	// CompatibilityVersion asks for the defaults of old daemons: 10, 20 or 30; 0 is
	// the present.
	CompatibilityVersion int
	// ProxyNetwork lets steps reach the network through the daemon's proxy only.
	ProxyNetwork bool
}

// CacheEntry is a place of caches, such as {"registry", {"ref": "host/name"}}. The
// type "local" is a directory of this machine, "dest" to export and "src" to import.
type CacheEntry struct {
	Type  string
	Attrs map[string]string
}

// Result is what a build returns.
type Result struct {
	// Ref is the build's id.
	Ref string
	// Response is what the exporters tell, by the keys of BuildKit's
	// exporter/containerimage/exptypes.
	Response map[string]string
}

// lastWords is how long the status of a build that has ended may take to arrive.
const lastWords = 5 * time.Second

// Solve builds. News of the build goes to sink. Canceling ctx cancels the build.
func (c *Client) Solve(ctx context.Context, opt SolveOpt, sink Sink) (*Result, error) {
	if opt.Definition != nil && opt.Frontend != "" {
		return nil, fmt.Errorf("invalid definition for frontend %s: a build has either a definition or a frontend", opt.Frontend)
	}
	if opt.Definition == nil && opt.Frontend == "" {
		return nil, errors.New("invalid empty definition: a build needs a definition or a frontend")
	}
	if err := opt.Attach.checkLocals(opt.Definition); err != nil {
		return nil, err
	}
	return c.run(ctx, opt, sink, nil)
}

// driver drives a build from this side; it ends with an answer to the daemon. req is
// what the daemon was asked for.
type driver func(ctx context.Context, req *control.SolveRequest) error

// run carries a build through: it serves the session, watches, and asks for the
// build, which drive, if not nil, makes.
func (c *Client) run(ctx context.Context, opt SolveOpt, sink Sink, drive driver) (*Result, error) {
	attached, err := opt.services()
	if err != nil {
		return nil, err
	}
	defer attached.close()
	ref, id := opt.Ref, randomID()
	if ref == "" {
		ref = randomID()
	}
	req, err := opt.request(ctx, ref, id, attached)
	if err != nil {
		return nil, err
	}
	solveCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	// The session outlives the build by a moment: the daemon may still read from
	// it while it cancels.
	sessionCtx, endSession := context.WithCancel(context.WithoutCancel(ctx))
	sessionDone := make(chan struct{})
	go func() {
		defer close(sessionDone)
		s := session.NewServer(id, opt.Attach.SharedKey, attached.list...)
		if err := s.Run(sessionCtx, c.openSession); err != nil {
			cancel(fmt.Errorf("session with the daemon: %w", c.wrap(err)))
		}
	}()
	statusCtx, endStatus := context.WithCancel(context.WithoutCancel(ctx))
	statusDone := make(chan struct{})
	news := make(chan struct{}, 1)
	go func() {
		defer close(statusDone)
		c.watch(statusCtx, ref, sink, news)
	}()

	drive = drive.orNothing()
	resp, err := c.solveAndDrive(solveCtx, cancel, req, drive)
	if err != nil && solveCtx.Err() != nil && ctx.Err() == nil {
		// The session broke, most likely since the daemon did: the rpc's own error
		// would only say that it was canceled.
		err = context.Cause(solveCtx)
	}
	waitStatus(statusDone, news)
	endStatus()
	endSession()
	<-statusDone
	<-sessionDone
	if err != nil {
		return nil, err
	}
	if err := attached.finish(ctx, resp.GetExporterResponse()); err != nil {
		return nil, err
	}
	return &Result{Ref: ref, Response: resp.GetExporterResponse()}, nil
}

// orNothing is the driver, or one that has nothing to do.
func (d driver) orNothing() driver {
	if d == nil {
		return func(context.Context, *control.SolveRequest) error { return nil }
	}
	return d
}

// driverPatience is how long the daemon may take to end a build whose driver could
// not tell it that it failed.
const driverPatience = 5 * time.Second

// solveAndDrive asks for a build and drives it meanwhile.
func (c *Client) solveAndDrive(ctx context.Context, cancel context.CancelCauseFunc, req *control.SolveRequest, drive driver) (*control.SolveResponse, error) {
	driveCtx, endDrive := context.WithCancel(ctx)
	defer endDrive()
	driven := make(chan error, 1)
	go func() {
		err := drive(driveCtx, req)
		driven <- err
		if err != nil {
			select {
			case <-driveCtx.Done():
			case <-time.After(driverPatience):
				cancel(err)
			}
		}
	}()
	resp, err := c.control.Solve(ctx, req)
	if err != nil {
		endDrive()
	}
	driveErr := <-driven
	if err == nil {
		return resp, nil
	}
	err = c.wrap(err)
	if driveErr != nil && !errors.Is(driveErr, context.Canceled) {
		return nil, &buildError{daemon: err, driver: driveErr}
	}
	return nil, err
}

// buildError is the failure of a build that this side drove. What the daemon says
// of it is what counts; it is the driver's own error, too.
type buildError struct{ daemon, driver error }

func (e *buildError) Error() string   { return e.daemon.Error() }
func (e *buildError) Unwrap() []error { return []error{e.daemon, e.driver} }

// openSession opens the connection of a session, whose metadata ctx carries.
func (c *Client) openSession(ctx context.Context) (session.ByteStream, error) {
	if c.dialSession == nil {
		return c.control.Session(ctx)
	}
	md, _ := metadata.FromOutgoingContext(ctx)
	conn, err := c.dialSession(ctx, "h2c", md)
	if err != nil {
		return nil, fmt.Errorf("dial session: %w", err)
	}
	context.AfterFunc(ctx, func() { _ = conn.Close() }) // makes its reads return
	return connStream{conn}, nil
}

// connStream is a connection as the messages of a session.
type connStream struct{ net.Conn }

func (s connStream) Send(m *control.BytesMessage) error {
	_, err := s.Write(m.GetData())
	return err
}

func (s connStream) Recv() (*control.BytesMessage, error) {
	buf := make([]byte, session.Buffer)
	n, err := s.Read(buf)
	if n > 0 {
		return &control.BytesMessage{Data: buf[:n]}, nil
	}
	return nil, err
}

// waitStatus waits for the end of the news, or for a silence.
func waitStatus(done <-chan struct{}, news <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case <-news:
		case <-time.After(lastWords):
			return
		}
	}
}

// watch hands the news of a build over until there are no more.
func (c *Client) watch(ctx context.Context, ref string, sink Sink, news chan<- struct{}) {
	for {
		err := c.follow(ctx, ref, sink, news)
		// The daemon waits a while only for a build to begin.
		if status.Code(err) != codes.NotFound || ctx.Err() != nil {
			return // what went wrong is told by the build itself
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (c *Client) follow(ctx context.Context, ref string, sink Sink, news chan<- struct{}) error {
	stream, err := c.control.Status(ctx, &control.StatusRequest{Ref: ref})
	if err != nil {
		return err
	}
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		emit(sink, r)
		select {
		case news <- struct{}{}:
		default:
		}
	}
}

// request makes the request of a build.
func (o *SolveOpt) request(ctx context.Context, ref, sessionID string, attached *services) (*control.SolveRequest, error) {
	req := &control.SolveRequest{
		Ref: ref, Session: sessionID,
		Definition: o.Definition, Frontend: o.Frontend, FrontendAttrs: maps.Clone(o.FrontendAttrs),
		Entitlements: o.Entitlements, Internal: o.Internal, SourcePolicy: o.SourcePolicy,
		EnableSessionExporter: o.SessionExporter != nil, ProxyNetwork: o.ProxyNetwork,
		CompatibilityVersion: int64(o.CompatibilityVersion), Cache: &control.CacheOptions{},
	}
	for _, s := range o.Attach.Secrets {
		if s.CacheKey {
			if req.FrontendAttrs == nil {
				req.FrontendAttrs = map[string]string{}
			}
			req.FrontendAttrs["secret-cache-key:"+s.ID] = "true"
		}
	}
	if o.SourcePolicyVerifier != nil {
		req.SourcePolicySession = sessionID
	}
	for name, st := range o.FrontendInputs {
		def, err := st.Marshal(ctx)
		if err != nil {
			return nil, fmt.Errorf("marshal input %q of the frontend: %w", name, err)
		}
		if req.FrontendInputs == nil {
			req.FrontendInputs = map[string]*pb.Definition{}
		}
		req.FrontendInputs[name] = def.ToPB()
	}
	for _, e := range o.Exports {
		req.Exporters = append(req.Exporters, &control.Exporter{Type: e.Type, Attrs: e.Attrs})
	}
	if len(req.Exporters) > 0 {
		// Daemons of old know of one exporter only.
		req.ExporterDeprecated, req.ExporterAttrsDeprecated = req.Exporters[0].Type, req.Exporters[0].Attrs
	}
	for _, e := range o.CacheExports {
		req.Cache.Exports = append(req.Cache.Exports, &control.CacheOptionsEntry{Type: e.Type, Attrs: e.Attrs})
	}
	for _, e := range attached.imports {
		req.Cache.Imports = append(req.Cache.Imports, &control.CacheOptionsEntry{Type: e.Type, Attrs: e.Attrs})
	}
	return req, o.tellImports(req, attached.imports)
}

// tellImports lets a frontend know of the caches to import, too: that of the
// daemon, or the driver of the build.
func (o *SolveOpt) tellImports(req *control.SolveRequest, imports []CacheEntry) error {
	if len(imports) == 0 || o.Definition != nil || req.FrontendAttrs["cache-imports"] != "" {
		return nil
	}
	list, err := json.Marshal(imports)
	if err != nil {
		return fmt.Errorf("encode cache imports: %w", err)
	}
	if req.FrontendAttrs == nil {
		req.FrontendAttrs = map[string]string{}
	}
	req.FrontendAttrs["cache-imports"] = string(list)
	return nil
}

// randomID is 25 random letters and digits, as ids are in BuildKit.
func randomID() string { return strings.ToLower(rand.Text())[:25] }
