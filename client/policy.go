package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/kiln-build/kiln/internal/api/policysession"
	"github.com/kiln-build/kiln/internal/api/sourcepolicy"
	"github.com/kiln-build/kiln/internal/session/exporter"
)

// The rules about sources that a client may give to a build (BuildKit's
// sourcepolicy).
type (
	// SourcePolicy is a list of rules.
	SourcePolicy = sourcepolicy.Policy
	// SourceRule is one of them.
	SourceRule = sourcepolicy.Rule
	// SourceSelector is the sources that a rule is for.
	SourceSelector = sourcepolicy.Selector
	// SourceUpdate is what a rule makes of them.
	SourceUpdate = sourcepolicy.Update

	// PolicyQuestion is a source, and what is known of it.
	PolicyQuestion = policysession.CheckPolicyRequest
	// PolicyDecision says what to do with the source.
	PolicyDecision = policysession.DecisionResponse
	// PolicyMessage is a reason to deny.
	PolicyMessage = policysession.DenyMessage
)

// What a rule or a decision does.
const (
	PolicyAllow   = sourcepolicy.PolicyAction_ALLOW
	PolicyDeny    = sourcepolicy.PolicyAction_DENY
	PolicyConvert = sourcepolicy.PolicyAction_CONVERT
)

// PolicyVerifier is asked about each source of a build. It decides, or says what
// must be found out first; then it is asked again.
type PolicyVerifier func(context.Context, *PolicyQuestion) (*PolicyDecision, *SourceMetaRequest, error)

// answer asks the verifier, for the daemon.
func (v PolicyVerifier) answer(ctx context.Context, req *policysession.CheckPolicyRequest) (*policysession.CheckPolicyResponse, error) {
	decision, more, err := v(ctx, req)
	switch {
	case err != nil:
		return nil, err
	case decision != nil && more != nil:
		return nil, errors.New("the policy gave both a decision and a question: want one of them")
	case more != nil:
		return &policysession.CheckPolicyResponse{Result: &policysession.CheckPolicyResponse_Request{Request: more}}, nil
	case decision != nil:
		return &policysession.CheckPolicyResponse{Result: &policysession.CheckPolicyResponse_Decision{Decision: decision}}, nil
	}
	return nil, errors.New("the policy gave neither a decision nor a question: want one of them")
}

// SessionExporter chooses the exporters of a build when its result is there.
type SessionExporter interface {
	// FindExporters returns exporters for a result with this metadata and these
	// references. Only Type and Attrs of them count.
	FindExporters(ctx context.Context, meta map[string][]byte, refs []string) ([]Export, error)
	// FinalizeExport is told what the exporters answered.
	FinalizeExport(ctx context.Context, response map[string]string) error
}

// exportChooser is a SessionExporter as package exporter asks it.
type exportChooser struct{ SessionExporter }

func (c exportChooser) Find(ctx context.Context, meta map[string][]byte, refs []string) (out []exporter.Exporter, err error) {
	list, err := c.FindExporters(ctx, meta, refs)
	for _, e := range list {
		out = append(out, exporter.Exporter{Type: e.Type, Attrs: e.Attrs})
	}
	return out, err
}

func (c exportChooser) Done(ctx context.Context, response map[string]string) error {
	return c.FinalizeExport(ctx, response)
}

// maxPolicy is the size of the largest file of a policy, bytes.
const maxPolicy = 4 << 20

// ReadSourcePolicy reads a policy from a file of JSON. Enumerations are words or
// numbers.
func ReadSourcePolicy(name string) (*SourcePolicy, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxPolicy+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if len(data) > maxPolicy {
		return nil, fmt.Errorf("source policy %s is larger than %d bytes", name, maxPolicy)
	}
	var file policyFile
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, fmt.Errorf("failed to unmarshal source-policy-file %q: %w", name, err)
	}
	return file.policy()
}
