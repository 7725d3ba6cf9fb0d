package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"google.golang.org/grpc"

	"github.com/kiln-build/kiln/internal/api/policysession"
	"github.com/kiln-build/kiln/internal/api/sessionexporter"
	"github.com/kiln-build/kiln/internal/api/sourcepolicy"
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

// policyService lets the daemon ask a verifier.
type policyService struct {
	policysession.UnimplementedPolicyVerifierServer
	verify PolicyVerifier
}

// Register attaches the service to a session.
func (s policyService) Register(to *grpc.Server) { policysession.RegisterPolicyVerifierServer(to, s) }

// CheckPolicy asks the verifier.
func (s policyService) CheckPolicy(ctx context.Context, req *policysession.CheckPolicyRequest) (*policysession.CheckPolicyResponse, error) {
	decision, more, err := s.verify(ctx, req)
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

// exporterService lets the daemon ask for exporters.
type exporterService struct {
	sessionexporter.UnimplementedExporterServer
	chooser SessionExporter
}

// Register attaches the service to a session.
func (s exporterService) Register(to *grpc.Server) { sessionexporter.RegisterExporterServer(to, s) }

// FindExporters asks the chooser.
func (s exporterService) FindExporters(ctx context.Context, req *sessionexporter.FindExportersRequest) (*sessionexporter.FindExportersResponse, error) {
	list, err := s.chooser.FindExporters(ctx, req.GetMetadata(), req.GetRefs())
	if err != nil {
		return nil, err
	}
	resp := &sessionexporter.FindExportersResponse{}
	for _, e := range list {
		resp.Exporters = append(resp.Exporters, &sessionexporter.ExporterRequest{Type: e.Type, Attrs: e.Attrs})
	}
	return resp, nil
}

// FinalizeExport tells the chooser.
func (s exporterService) FinalizeExport(ctx context.Context, req *sessionexporter.FinalizeExportRequest) (*sessionexporter.FinalizeExportResponse, error) {
	if err := s.chooser.FinalizeExport(ctx, req.GetExporterResponse()); err != nil {
		return nil, err
	}
	return &sessionexporter.FinalizeExportResponse{}, nil
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
