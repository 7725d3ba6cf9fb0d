package daemon

import (
	"context"
	"log/slog"
	"sync/atomic"

	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"

	gatewaypb "github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/internal/gateway"
)

// gatewayHost is the daemon as package gateway sees it; it implements
// [gateway.Host].
type gatewayHost struct{ *Server }

// Phase waits for a build to begin.
func (s gatewayHost) Phase(ctx context.Context, build string) (*gateway.Phase, error) {
	r, err := s.builds.get(ctx, build, waitGateway)
	if err != nil {
		return nil, err
	}
	return r.phase, nil
}

// Pong tells what the daemon can do.
func (s gatewayHost) Pong() *gatewaypb.PongResponse {
	return &gatewaypb.PongResponse{FrontendAPICaps: wireCaps(frontendCaps), LLBCaps: wireCaps(Caps()), Workers: s.workers()}
}

// Status gives an error its details.
func (s gatewayHost) Status(err error) *rpcstatus.Status { return errorStatus(err) }

// mostLogged is how many failed calls of one frontend the log names.
const mostLogged = 100

type failuresKey struct{}

// logFailure logs that a call failed, unless its frontend has had enough of that.
func logFailure(ctx context.Context, text string) {
	if failures, ok := ctx.Value(failuresKey{}).(*atomic.Int64); ok {
		switch n := failures.Add(1); {
		case n == mostLogged:
			text += " (further failures of the same frontend are not logged)"
		case n > mostLogged:
			return
		}
	}
	slog.Error(text)
}

// Intercept is what the calls of the daemon's own listeners go through, too.
func (s gatewayHost) Intercept() (grpc.UnaryServerInterceptor, grpc.StreamServerInterceptor) {
	var failures atomic.Int64
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		return s.unary(context.WithValue(ctx, failuresKey{}, &failures), req, info, next)
	}, s.stream
}
