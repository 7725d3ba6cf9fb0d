package policy_test

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/internal/api/policysession"
	"github.com/kiln-build/kiln/internal/api/sourcepolicy"
	"github.com/kiln-build/kiln/internal/session/policy"
	"github.com/kiln-build/kiln/internal/session/sessiontest"
	"github.com/kiln-build/kiln/llb/pb"
)

func question(id string) *policysession.CheckPolicyRequest {
	return &policysession.CheckPolicyRequest{Source: &gateway.ResolveSourceMetaResponse{Source: &pb.SourceOp{Identifier: id}}}
}

func answer(a sourcepolicy.PolicyAction) *policysession.CheckPolicyResponse {
	return &policysession.CheckPolicyResponse{Result: &policysession.CheckPolicyResponse_Decision{Decision: &policysession.DecisionResponse{Action: a}}}
}

func TestCheck(t *testing.T) {
	c := sessiontest.Connect(t, policy.NewProvider(func(_ context.Context, r *policysession.CheckPolicyRequest) (*policysession.CheckPolicyResponse, error) {
		switch id := r.GetSource().GetSource().GetIdentifier(); {
		case strings.HasPrefix(id, "docker-image://"):
			return answer(sourcepolicy.PolicyAction_ALLOW), nil
		case strings.HasPrefix(id, "https://"):
			return &policysession.CheckPolicyResponse{}, nil
		default:
			return nil, status.Error(codes.PermissionDenied, "never heard of "+id)
		}
	}))
	got, err := policy.Daemon{}.Check(t.Context(), c, question("docker-image://x"))
	if err != nil || got.GetDecision().GetAction() != sourcepolicy.PolicyAction_ALLOW || got.GetDecision() == nil {
		t.Errorf("allowed: got %v, %v", got, err)
	}
	for id, want := range map[string]string{"https://x": "no decision in policy response", "git://x": "never heard of git://x", "": "names no source"} {
		if got, err := (policy.Daemon{}).Check(t.Context(), c, question(id)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, %v, expected an error with %q", id, got, err, want)
		}
	}
}

// A client that offers nothing, or leaves, has not allowed anything.
func TestSilence(t *testing.T) {
	if got, err := (policy.Daemon{}).Check(t.Context(), sessiontest.Connect(t), question("docker-image://x")); err == nil {
		t.Errorf("no verifier: got %v", got)
	}
	asked := make(chan struct{})
	c := sessiontest.Connect(t, policy.NewProvider(func(ctx context.Context, _ *policysession.CheckPolicyRequest) (*policysession.CheckPolicyResponse, error) {
		close(asked)
		<-ctx.Done()
		return answer(sourcepolicy.PolicyAction_ALLOW), nil
	}))
	go func() {
		<-asked
		c.Close()
	}()
	if got, err := (policy.Daemon{}).Check(t.Context(), c, question("docker-image://x")); err == nil || !strings.Contains(err.Error(), "docker-image://x") {
		t.Errorf("a client that left: got %v, %v", got, err)
	}
}
