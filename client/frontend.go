package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/api/errdefs"
	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/llb/pb"
)

// ServeFrontend has f drive the build that the daemon at the other end of conn has
// asked this program to be the frontend of (BuildKit's frontend/gateway). The
// daemon is told what f fails with; the error returned is that it could not be
// told. opts are what the program's environment says, without the capabilities.
func ServeFrontend(ctx context.Context, conn net.Conn, opts BuildOpts, f BuildFunc) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	once := make(chan net.Conn, 1)
	once <- conn
	cc, err := grpc.NewClient("passthrough:///daemon", append(session.DialOptions(),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithIdleTimeout(0), grpc.WithDisableServiceConfig(),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			select {
			case c := <-once:
				return c, nil
			default: // there is but one connection
				cancel(errDaemonGone)
				return nil, errDaemonGone
			}
		}))...)
	if err != nil {
		return fmt.Errorf("connect to the daemon: %w", err)
	}
	defer cc.Close()
	g := &Gateway{api: gateway.NewLLBBridgeClient(decodedConn{cc}), conn: cc, opts: opts}
	pong, err := g.api.Ping(ctx, &gateway.PingRequest{})
	if err != nil {
		return fmt.Errorf("greet the daemon: %w", err)
	}
	g.opts.Caps, g.opts.LLBCaps = capsOf(pong.GetFrontendAPICaps()), capsOf(pong.GetLLBCaps())
	_, err = g.serve(ctx, f)
	return err
}

var errDaemonGone = errors.New("the daemon has closed the connection")

// decodedConn is a connection whose errors are those of this package.
type decodedConn struct{ grpc.ClientConnInterface }

// Invoke is a call.
func (c decodedConn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	err := c.ClientConnInterface.Invoke(ctx, method, args, reply, opts...)
	if st, ok := status.FromError(err); ok && err != nil {
		return decodeError(st)
	}
	return err
}

// What details of errors are called on the wire (BuildKit's solver/errdefs).
const detailPrefix, detailSuffix = "github.com/moby/buildkit/", "+json"

// noteFrontend adds what a frontend's error tells: places in the build file, and
// what the frontend does not have.
func noteFrontend(st *spb.Status, err error) {
	add := func(name string, v any) {
		if b, err := json.Marshal(v); err == nil { // the message says it too
			st.Details = append(st.Details, &anypb.Any{TypeUrl: detailPrefix + name + detailSuffix, Value: b})
		}
	}
	type named struct {
		Name string `json:"name"`
	}
	var lack *frontend.UnsupportedError
	if errors.As(err, &lack) {
		st.Code = int32(codes.Unimplemented)
		switch lack.Kind {
		case "capability":
			add("errdefs.FrontendCap", named{lack.Name})
		case "subrequest":
			add("errdefs.Subrequest", named{lack.Name})
		}
	}
	for _, e := range frontend.SourceErrorsIn(err) {
		w := &errdefs.Source{Info: &pb.SourceInfo{Filename: e.File.Name, Data: e.File.Data, Language: e.File.Language}}
		if e.File.From != nil {
			w.Info.Definition, _ = e.File.From.Marshal() // without it the place is told all the same
		}
		for _, r := range e.Ranges {
			w.Ranges = append(w.Ranges, &pb.Range{
				Start: &pb.Position{Line: int32(r.Start.Line), Character: int32(r.Start.Character)},
				End:   &pb.Position{Line: int32(r.End.Line), Character: int32(r.End.Character)},
			})
		}
		add("errdefs.Source", w)
	}
}
