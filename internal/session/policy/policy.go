// Package policy lets a client decide on each source of its build: the daemon asks
// it over its session and does nothing with a source before it has answered
// (BuildKit's sourcepolicy/policysession). Both sides are here. A client that is
// gone or does not answer has not allowed anything.
package policy

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/policysession"
	"github.com/kiln-build/kiln/internal/session"
)

// Daemon is the daemon's side.
type Daemon struct{}

// Check asks a client about a source. It returns exactly one of a decision and
// a wish to know more.
func (Daemon) Check(ctx context.Context, c *session.Caller, req *policysession.CheckPolicyRequest) (*policysession.CheckPolicyResponse, error) {
	if !c.Supports(policysession.PolicyVerifier_CheckPolicy_FullMethodName) {
		return nil, fmt.Errorf("check source policy: session %s offers no policy verifier, and without its word no source may be used", c.ID())
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(c.Context(), func() { cancel(errors.New("the session of the policy has ended")) })()
	resp, err := policysession.NewPolicyVerifierClient(c.Conn()).CheckPolicy(ctx, req)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, fmt.Errorf("check source policy of %q: %w", req.GetSource().GetSource().GetIdentifier(), context.Cause(ctx))
	case status.Code(err) == codes.Unavailable: // the connection broke, and the session's end is told a moment later
		return nil, fmt.Errorf("check source policy of %q: %w", req.GetSource().GetSource().GetIdentifier(), err)
	case err != nil:
		return nil, err // the policy's own words
	case resp.GetDecision() == nil && resp.GetRequest() == nil:
		return nil, errors.New("no decision in policy response")
	}
	return resp, nil
}

// Callback decides on a source: it returns a decision or a request for more.
type Callback func(context.Context, *policysession.CheckPolicyRequest) (*policysession.CheckPolicyResponse, error)

// Provider serves a client's decisions. It is a [session.Attachable].
type Provider struct {
	policysession.UnimplementedPolicyVerifierServer
	decide Callback
}

// NewProvider returns the provider of what decide says.
func NewProvider(decide Callback) *Provider { return &Provider{decide: decide} }

// Register attaches the provider to a session.
func (p *Provider) Register(s *grpc.Server) { policysession.RegisterPolicyVerifierServer(s, p) }

// CheckPolicy decides on a source.
func (p *Provider) CheckPolicy(ctx context.Context, req *policysession.CheckPolicyRequest) (*policysession.CheckPolicyResponse, error) {
	if req.GetSource().GetSource().GetIdentifier() == "" {
		return nil, status.Error(codes.InvalidArgument, "the request names no source")
	}
	return p.decide(ctx, req)
}
