package daemon

import (
	"context"

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

// Intercept is what the calls of the daemon's own listeners go through, too.
func (s gatewayHost) Intercept() (grpc.UnaryServerInterceptor, grpc.StreamServerInterceptor) {
	return s.unary, s.stream
}
