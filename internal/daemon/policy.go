package daemon

import (
	"context"
	"fmt"
	"maps"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/internal/api/policysession"
	"github.com/kiln-build/kiln/internal/api/sourcepolicy"
	"github.com/kiln-build/kiln/internal/build"
	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/llb/pb"
)

// PolicyClient asks a client what it thinks of a source.
type PolicyClient interface {
	Check(ctx context.Context, c *session.Caller, req *policysession.CheckPolicyRequest) (*policysession.CheckPolicyResponse, error)
}

// policies reads what a Solve says of sources.
func (s *controlService) policies(r *control.SolveRequest, req *build.Request) error {
	var err error
	if req.Policies, err = readPolicies(r.GetSourcePolicy()); err != nil {
		return err
	}
	if id := r.GetSourcePolicySession(); id != "" {
		req.Policy = &sessionPolicy{client: s.config.Policy, sessions: s.config.Sessions, id: id}
	}
	return nil
}

// readPolicies decodes policies; numbers that are unknown are refused.
func readPolicies(wire ...*sourcepolicy.Policy) ([]build.Policy, error) {
	var out []build.Policy
	for _, w := range wire {
		if w == nil {
			if len(wire) > 1 {
				return nil, status.Error(codes.InvalidArgument, "invalid nil source policy")
			}
			continue
		}
		var p build.Policy
		for i, r := range w.GetRules() {
			rule, err := readRule(r)
			if err != nil {
				return nil, status.Errorf(codes.InvalidArgument, "source policy: rule %d: %v", i, err)
			}
			p.Rules = append(p.Rules, rule)
		}
		out = append(out, p)
	}
	return out, nil
}

func readRule(r *sourcepolicy.Rule) (rule build.PolicyRule, err error) {
	if r == nil {
		return rule, fmt.Errorf("invalid nil rule in policy")
	}
	s := r.GetSelector()
	if s == nil {
		return rule, fmt.Errorf("invalid nil selector in policy")
	}
	if rule.Action, err = known[build.PolicyAction](r.GetAction(), sourcepolicy.PolicyAction_name, "action"); err != nil {
		return rule, err
	}
	rule.Selector.Identifier = s.GetIdentifier()
	if rule.Selector.Match, err = known[build.PolicyMatch](s.GetMatchType(), sourcepolicy.MatchType_name, "match type"); err != nil {
		return rule, err
	}
	for _, c := range s.GetConstraints() {
		if c == nil {
			return rule, fmt.Errorf("invalid nil constraint in policy")
		}
		condition, err := known[build.PolicyCondition](c.GetCondition(), sourcepolicy.AttrMatch_name, "condition")
		if err != nil {
			return rule, err
		}
		rule.Selector.Constraints = append(rule.Selector.Constraints, build.PolicyConstraint{Key: c.GetKey(), Value: c.GetValue(), Condition: condition})
	}
	if u := r.GetUpdates(); u != nil {
		rule.Update = &build.PolicyUpdate{Identifier: u.GetIdentifier(), Attrs: maps.Clone(u.GetAttrs())}
	}
	return rule, nil
}

// known turns a number of the protocol into ours, which are the same.
func known[To, From ~int | ~int32](n From, names map[int32]string, what string) (To, error) {
	if _, ok := names[int32(n)]; !ok {
		return 0, fmt.Errorf("unknown type %d of %s", n, what)
	}
	return To(n), nil
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
	req := &policysession.CheckPolicyRequest{Source: &gateway.ResolveSourceMetaResponse{Source: wireSourceOp(q.Op)}}
	if q.Platform != nil {
		req.Platform = wirePlatform(*q.Platform)
	}
	if q.Meta != nil {
		req.Source = wireMeta(q.Meta)
	}
	resp, err := p.client.Check(ctx, c, req)
	if err != nil {
		return build.PolicyAnswer{}, err
	}
	if r := resp.GetRequest(); r != nil {
		opt, err := readResolveOpt(r)
		return build.PolicyAnswer{Want: &build.PolicyWant{Op: readSourceOp(r.GetSource()), Opt: opt}}, err
	}
	d := resp.GetDecision()
	action, err := known[build.PolicyAction](d.GetAction(), sourcepolicy.PolicyAction_name, "action")
	if err != nil {
		return build.PolicyAnswer{}, fmt.Errorf("source policy of the client: %w", err)
	}
	a := build.PolicyAnswer{Action: action, Update: readSourceOp(d.GetUpdate())}
	for _, m := range d.GetDenyMessages() {
		a.Deny = append(a.Deny, m.GetMessage())
	}
	return a, nil
}

func wireSourceOp(op *llb.SourceOp) *pb.SourceOp {
	return &pb.SourceOp{Identifier: op.Identifier, Attrs: op.Attrs}
}

func readSourceOp(op *pb.SourceOp) *llb.SourceOp {
	if op == nil {
		return nil
	}
	return &llb.SourceOp{Identifier: op.GetIdentifier(), Attrs: op.GetAttrs()}
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
