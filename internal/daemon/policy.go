package daemon

import (
	"context"
	"fmt"

	"github.com/kiln-build/kiln/internal/api/control"
	gatewaypb "github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/internal/api/policysession"
	"github.com/kiln-build/kiln/internal/api/sourcepolicy"
	"github.com/kiln-build/kiln/internal/build"
	"github.com/kiln-build/kiln/internal/gateway"
	"github.com/kiln-build/kiln/internal/session"
)

// PolicyClient asks a client what it thinks of a source.
type PolicyClient interface {
	Check(ctx context.Context, c *session.Caller, req *policysession.CheckPolicyRequest) (*policysession.CheckPolicyResponse, error)
}

// policies reads what a Solve says of sources.
func (s *controlService) policies(r *control.SolveRequest, req *build.Request) error {
	var err error
	if req.Policies, err = gateway.ReadPolicies(r.GetSourcePolicy()); err != nil {
		return err
	}
	if id := r.GetSourcePolicySession(); id != "" {
		req.Policy = &sessionPolicy{client: s.config.Policy, sessions: s.config.Sessions, id: id}
	}
	return nil
}

// sessionPolicy has a client decide over its session.
type sessionPolicy struct {
	client   PolicyClient
	sessions *session.Manager
	id       string
}

// Check asks the client. Without its word nothing is allowed.
func (p *sessionPolicy) Check(ctx context.Context, q build.PolicyQuestion) (build.PolicyAnswer, error) {
	wait, cancel := context.WithTimeout(ctx, waitSession)
	defer cancel()
	c, err := p.sessions.Get(wait, p.id)
	if err != nil {
		return build.PolicyAnswer{}, fmt.Errorf("find the session of the source policy: %w", err)
	}
	req := &policysession.CheckPolicyRequest{Source: &gatewaypb.ResolveSourceMetaResponse{Source: gateway.WireSourceOp(q.Op)}}
	if q.Platform != nil {
		req.Platform = gateway.WirePlatform(*q.Platform)
	}
	if q.Meta != nil {
		req.Source = gateway.WireMeta(q.Meta)
	}
	resp, err := p.client.Check(ctx, c, req)
	if err != nil {
		return build.PolicyAnswer{}, err
	}
	if r := resp.GetRequest(); r != nil {
		opt, err := gateway.ReadResolveOpt(r)
		return build.PolicyAnswer{Want: &build.PolicyWant{Op: gateway.ReadSourceOp(r.GetSource()), Opt: opt}}, err
	}
	d := resp.GetDecision()
	action, err := gateway.Known[build.PolicyAction](d.GetAction(), sourcepolicy.PolicyAction_name, "action")
	if err != nil {
		return build.PolicyAnswer{}, fmt.Errorf("source policy of the client: %w", err)
	}
	a := build.PolicyAnswer{Action: action, Update: gateway.ReadSourceOp(d.GetUpdate())}
	for _, m := range d.GetDenyMessages() {
		a.Deny = append(a.Deny, m.GetMessage())
	}
	return a, nil
}

// denial is the detail of an error that says why a policy denied a source.
func denial(e *build.DeniedError) any {
	type message struct {
		Message string `json:"message,omitempty"`
	}
	d := struct {
		Action       int       `json:"action,omitempty"`
		DenyMessages []message `json:"denyMessages,omitempty"`
	}{Action: int(build.PolicyDeny)}
	for _, m := range e.Messages {
		d.DenyMessages = append(d.DenyMessages, message{m})
	}
	return d
}
