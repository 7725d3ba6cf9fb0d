package client

import (
	"context"
	"errors"
	"fmt"
	"maps"

	digest "github.com/opencontainers/go-digest"
	"google.golang.org/grpc"

	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/llb/pb"
)

// Gateway is what the driver of a build may ask of the daemon (BuildKit's
// frontend/gateway/pb/gateway.proto). It may be used concurrently, as long as the
// build is under way.
type Gateway struct {
	api  gateway.LLBBridgeClient
	conn grpc.ClientConnInterface // of api
	opts BuildOpts
}

// BuildOpts is what the driver of a build is told.
type BuildOpts struct {
	Opts      map[string]string // attributes of the frontend
	SessionID string
	// CacheImports are those of the build that are there, for requests to solve.
	CacheImports []CacheEntry
	Workers      []Worker
	Caps         Caps // of the gateway
	LLBCaps      Caps // of the language
}

// BuildOpts returns what the build's driver is told.
func (g *Gateway) BuildOpts() BuildOpts { return g.opts }

// SolveRequest is a graph to evaluate, or a frontend of the daemon to ask.
type SolveRequest struct {
	// Definition is LLB, or Frontend makes it.
	Definition     *pb.Definition
	Frontend       string
	FrontendOpt    map[string]string
	FrontendInputs map[string]*pb.Definition
	CacheImports   []CacheEntry
	SourcePolicies []*SourcePolicy
	// Evaluate runs all steps now, not when files of the result are needed.
	Evaluate bool
}

// Solve evaluates a request.
func (g *Gateway) Solve(ctx context.Context, r SolveRequest) (*BuildResult, error) {
	for _, meta := range r.Definition.GetMetadata() {
		for id := range meta.GetCaps() {
			if !g.opts.LLBCaps[id] {
				return nil, fmt.Errorf("requested experimental feature %s has not been enabled by the daemon", id)
			}
		}
	}
	if r.Evaluate {
		if err := g.opts.Caps.need("gateway.solve.evaluate", "evaluate at once"); err != nil {
			return nil, err
		}
	}
	req := &gateway.SolveRequest{
		Definition: r.Definition, Frontend: r.Frontend, FrontendOpt: maps.Clone(r.FrontendOpt),
		FrontendInputs: r.FrontendInputs, AllowResultReturn: true, AllowResultArrayRef: true,
		Evaluate: r.Evaluate, SourcePolicies: r.SourcePolicies,
	}
	for _, e := range r.CacheImports {
		req.CacheImports = append(req.CacheImports, &gateway.CacheOptionsEntry{Type: e.Type, Attrs: e.Attrs})
	}
	// The client itself adds what caches there are to import.
	if v, ok := g.opts.Opts["cache-imports"]; ok && req.FrontendOpt["cache-imports"] == "" {
		if req.FrontendOpt == nil {
			req.FrontendOpt = map[string]string{}
		}
		req.FrontendOpt["cache-imports"] = v
	}
	resp, err := g.api.Solve(ctx, req)
	if err != nil {
		return nil, err
	}
	if resp.GetResult() == nil {
		return &BuildResult{Ref: g.reference(&gateway.Ref{Id: resp.GetRef()})}, nil
	}
	return g.readResult(resp.GetResult())
}

// Inputs are the file systems that the client sent along, by name.
func (g *Gateway) Inputs(ctx context.Context) (map[string]llb.State, error) {
	if err := g.opts.Caps.need("frontend.inputs", "hand inputs to a frontend"); err != nil {
		return nil, err
	}
	resp, err := g.api.Inputs(ctx, &gateway.InputsRequest{})
	if err != nil {
		return nil, err
	}
	out := map[string]llb.State{}
	for name, def := range resp.GetDefinitions() {
		st, err := stateOf(def)
		if err != nil {
			return nil, fmt.Errorf("input %q: %w", name, err)
		}
		out[name] = st
	}
	return out, nil
}

func stateOf(def *pb.Definition) (llb.State, error) {
	op, err := llb.NewDefinitionOp(def)
	if err != nil {
		return llb.State{}, err
	}
	return llb.NewState(op.Output()), nil
}

// WarnOpts are the details of a warning.
type WarnOpts struct {
	Level      int
	Detail     [][]byte
	URL        string
	SourceInfo *pb.SourceInfo
	Range      []*pb.Range
}

// Warn shows the user a warning about a step; the build goes on.
func (g *Gateway) Warn(ctx context.Context, vertex digest.Digest, msg string, opts WarnOpts) error {
	_, err := g.api.Warn(ctx, &gateway.WarnRequest{
		Digest: string(vertex), Level: int64(opts.Level), Short: []byte(msg), Detail: opts.Detail,
		Url: opts.URL, Info: opts.SourceInfo, Ranges: opts.Range,
	})
	return err
}

// BuildResult is what a build or a frontend made: one file system or several, by
// platform.
type BuildResult struct {
	Ref  *Reference            // nil is none
	Refs map[string]*Reference // by platform, such as "linux/arm64"; in place of Ref
	// Metadata is told to exporters, by the keys of BuildKit's
	// exporter/containerimage/exptypes.
	Metadata     map[string][]byte
	Attestations map[string][]Attestation // by platform
}

// AddMeta sets a key of the metadata.
func (r *BuildResult) AddMeta(key string, value []byte) {
	if r.Metadata == nil {
		r.Metadata = map[string][]byte{}
	}
	r.Metadata[key] = value
}

// AddRef sets the result for a platform.
func (r *BuildResult) AddRef(platform string, ref *Reference) {
	if r.Refs == nil {
		r.Refs = map[string]*Reference{}
	}
	r.Refs[platform] = ref
}

// SingleRef is the only reference; it is nil if there is none.
func (r *BuildResult) SingleRef() (*Reference, error) {
	if r.Refs != nil && r.Ref == nil {
		return nil, errors.New("the result is one of several platforms: want a single one")
	}
	return r.Ref, nil
}

// Attestation is a statement about a result.
type Attestation struct {
	Bundle        bool // Path is a directory of statements, else one predicate
	Metadata      map[string][]byte
	Ref           *Reference // whose files hold it, or nil
	Path          string
	PredicateType string // a URI
	Subjects      []Subject
}

// Subject is what a statement is about.
type Subject struct {
	Self    bool // the result itself; else what Name and Digests say
	Name    string
	Digests []digest.Digest
}

// readResult reads what the daemon answers.
func (g *Gateway) readResult(w *gateway.Result) (*BuildResult, error) {
	out := &BuildResult{Metadata: w.GetMetadata()}
	switch r := w.GetResult().(type) {
	case *gateway.Result_RefDeprecated:
		out.Ref = g.reference(&gateway.Ref{Id: r.RefDeprecated})
	case *gateway.Result_RefsDeprecated:
		for k, id := range r.RefsDeprecated.GetRefs() {
			out.AddRef(k, g.reference(&gateway.Ref{Id: id}))
		}
	case *gateway.Result_Ref:
		out.Ref = g.reference(r.Ref)
	case *gateway.Result_Refs:
		for k, ref := range r.Refs.GetRefs() {
			out.AddRef(k, g.reference(ref))
		}
	}
	for platform, list := range w.GetAttestations() {
		for _, a := range list.GetAttestation() {
			read, err := g.readAttestation(a)
			if err != nil {
				return nil, err
			}
			if out.Attestations == nil {
				out.Attestations = map[string][]Attestation{}
			}
			out.Attestations[platform] = append(out.Attestations[platform], read)
		}
	}
	return out, nil
}

func (g *Gateway) readAttestation(w *gateway.Attestation) (Attestation, error) {
	out := Attestation{
		Metadata: w.GetMetadata(), Ref: g.reference(w.GetRef()), Path: w.GetPath(), PredicateType: w.GetInTotoPredicateType(),
	}
	switch w.GetKind() {
	case gateway.AttestationKind_InToto:
	case gateway.AttestationKind_Bundle:
		out.Bundle = true
	default:
		return out, fmt.Errorf("unknown kind %d of attestation", w.GetKind())
	}
	for _, s := range w.GetInTotoSubjects() {
		subject := Subject{Name: s.GetName()}
		switch s.GetKind() {
		case gateway.InTotoSubjectKind_Self:
			subject.Self = true
		case gateway.InTotoSubjectKind_Raw:
		default:
			return out, fmt.Errorf("unknown kind %d of an attestation's subject", s.GetKind())
		}
		for _, d := range s.GetDigest() {
			subject.Digests = append(subject.Digests, digest.Digest(d))
		}
		out.Subjects = append(out.Subjects, subject)
	}
	return out, nil
}

// wire is the result for the daemon. Old ones take references by id only.
func (r *BuildResult) wire(withRefs bool) (*gateway.Result, error) {
	if r == nil {
		r = &BuildResult{}
	}
	if r.Ref != nil && len(r.Refs) > 0 {
		return nil, errors.New("a result has either Ref or Refs, not both")
	}
	out := &gateway.Result{Metadata: r.Metadata}
	switch {
	case r.Refs != nil && withRefs:
		refs := map[string]*gateway.Ref{}
		for k, ref := range r.Refs {
			refs[k] = ref.wire()
		}
		out.Result = &gateway.Result_Refs{Refs: &gateway.RefMap{Refs: refs}}
	case r.Refs != nil:
		refs := map[string]string{}
		for k, ref := range r.Refs {
			refs[k] = ref.wire().GetId()
		}
		out.Result = &gateway.Result_RefsDeprecated{RefsDeprecated: &gateway.RefMapDeprecated{Refs: refs}}
	case withRefs:
		out.Result = &gateway.Result_Ref{Ref: r.Ref.wire()}
	default:
		out.Result = &gateway.Result_RefDeprecated{RefDeprecated: r.Ref.wire().GetId()}
	}
	for platform, list := range r.Attestations {
		if out.Attestations == nil {
			out.Attestations = map[string]*gateway.Attestations{}
		}
		wired := &gateway.Attestations{}
		for _, a := range list {
			wired.Attestation = append(wired.Attestation, a.wire())
		}
		out.Attestations[platform] = wired
	}
	return out, nil
}

// wire is the attestation for the daemon; its reference is never nil.
func (a Attestation) wire() *gateway.Attestation {
	out := &gateway.Attestation{Metadata: a.Metadata, Ref: a.Ref.wire(), Path: a.Path, InTotoPredicateType: a.PredicateType}
	if a.Bundle {
		out.Kind = gateway.AttestationKind_Bundle
	}
	for _, s := range a.Subjects {
		subject := &gateway.InTotoSubject{Name: s.Name, Kind: gateway.InTotoSubjectKind_Raw}
		if s.Self {
			subject.Kind = gateway.InTotoSubjectKind_Self
		}
		for _, d := range s.Digests {
			subject.Digest = append(subject.Digest, string(d))
		}
		out.InTotoSubjects = append(out.InTotoSubjects, subject)
	}
	return out
}
