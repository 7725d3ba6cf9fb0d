package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/llb/pb"
)

// SolveOpt says what to build, of what, and what for.
type SolveOpt struct {
	// Definition is LLB to build. Else Frontend, such as "dockerfile.v0", makes it.
	Definition    *pb.Definition
	Frontend      string
	FrontendAttrs map[string]string
	Exports       []Export
	CacheExports  []CacheEntry
	CacheImports  []CacheEntry
	Entitlements  []string
	Attach        Attach
	// Internal builds are not recorded.
	Internal bool
}

// CacheEntry is a place of caches, such as {"registry", {"ref": "host/name"}}.
type CacheEntry struct {
	Type  string
	Attrs map[string]string
}

// Result is what a build has to tell in the end.
type Result struct {
	// Ref is the build's id.
	Ref string
	// Response is what the exporters tell, by the keys of WIRE.md section 13.3.
	Response map[string]string
}

// lastWords is how long the status of a build that has ended may take to arrive.
const lastWords = 5 * time.Second

// Solve builds. News of the build goes to sink. Canceling ctx cancels the build.
func (c *Client) Solve(ctx context.Context, opt SolveOpt, sink Sink) (*Result, error) {
	attached, err := opt.Attach.services(opt.Exports)
	if err != nil {
		return nil, err
	}
	defer attached.close()
	ref, id := randomID(), randomID()
	req, err := opt.request(ref, id)
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
		if err := s.Run(sessionCtx, session.OpenStream(c.control)); err != nil {
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

	resp, err := c.control.Solve(solveCtx, req)
	if err != nil && solveCtx.Err() != nil && ctx.Err() == nil {
		// The session broke, most likely since the daemon did: the rpc's own error
		// would only say that it was canceled.
		err = context.Cause(solveCtx)
	} else {
		err = c.wrap(err)
	}
	waitStatus(statusDone, news)
	endStatus()
	endSession()
	<-statusDone
	<-sessionDone
	if err != nil {
		return nil, err
	}
	if err := attached.finish(resp.GetExporterResponse()); err != nil {
		return nil, err
	}
	return &Result{Ref: ref, Response: resp.GetExporterResponse()}, nil
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
func (o *SolveOpt) request(ref, sessionID string) (*control.SolveRequest, error) {
	if o.Definition != nil && o.Frontend != "" {
		return nil, errors.New("a build has either a definition or a frontend, not both")
	}
	req := &control.SolveRequest{
		Ref: ref, Session: sessionID,
		Definition: o.Definition, Frontend: o.Frontend, FrontendAttrs: o.FrontendAttrs,
		Entitlements: o.Entitlements, Internal: o.Internal, Cache: &control.CacheOptions{},
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
	for _, e := range o.CacheImports {
		req.Cache.Imports = append(req.Cache.Imports, &control.CacheOptionsEntry{Type: e.Type, Attrs: e.Attrs})
	}
	return req, nil
}

// randomID is 25 random characters of base 36, as ids are in BuildKit.
func randomID() string {
	const digits = "0123456789abcdefghijklmnopqrstuvwxyz"
	b := make([]byte, 25)
	_, _ = rand.Read(b) // it never fails
	for i := range b {
		b[i] = digits[int(b[i])%len(digits)]
	}
	return string(b)
}
