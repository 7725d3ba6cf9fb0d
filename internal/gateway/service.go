// Package gateway serves what frontends ask of a build: the LLBBridge service
// (BuildKit's frontend/gateway/pb/gateway.proto), and the images that are frontends
// (BuildKit's frontend/gateway). A client that acts as the frontend of its build, and
// a program in a container, have the same API, each bound to a [Phase] of its own: its
// results, containers and limits, of which nothing is left when it ends, and nothing
// is seen by another.
//
// It sits between package daemon, which knows the builds and what they are asked
// for, and package build, which carries them out and runs a frontend image like
// any other frontend. Wire types go no further than here.
package gateway

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/internal/build"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/llb/pb"
)

// BuildIDKey is the metadata that names the build a call belongs to.
const BuildIDKey = "buildkit-controlapi-buildid"

// Host is the daemon that the service is part of.
type Host interface {
	// Phase is the part in a build that its client takes as a frontend. It may
	// wait for the build to begin.
	Phase(ctx context.Context, build string) (*Phase, error)
	// Pong is what the daemon can do.
	Pong() *gateway.PongResponse
	// FrontendWorkers are the workers as frontends read them from their environment,
	// in JSON (BuildKit's frontend/gateway).
	FrontendWorkers() ([]byte, error)
	// Status is an error as clients are told it, with details.
	Status(err error) *rpcstatus.Status
	// Intercept returns what every call goes through: it counts calls, keeps
	// panics from spreading, and makes errors statuses.
	Intercept() (grpc.UnaryServerInterceptor, grpc.StreamServerInterceptor)
}

// Service is moby.buildkit.v1.frontend.LLBBridge, for clients that act
// as the frontend of their own build, and for frontends in containers.
type Service struct {
	gateway.UnimplementedLLBBridgeServer
	host   Host
	native ocispecs.Platform // of results that do not say theirs
	only   *Phase            // whom the connection belongs to; nil if calls name their build
}

// NewService returns the service of a daemon whose machine is native.
func NewService(host Host, native ocispecs.Platform) *Service {
	return &Service{host: host, native: native}
}

// named returns the phase that a call names, once its build has begun.
func (s *Service) named(ctx context.Context) (*Phase, error) {
	if s.only != nil {
		return s.only, nil
	}
	md, _ := metadata.FromIncomingContext(ctx)
	ids := md.Get(BuildIDKey)
	if len(ids) == 0 {
		return nil, status.Errorf(codes.InvalidArgument, "no buildid found in context: the call has no %s metadata", BuildIDKey)
	}
	return s.host.Phase(ctx, ids[0])
}

// running finds the build that a call belongs to, which waits for its frontend.
func (s *Service) running(ctx context.Context) (*Phase, *build.Bridge, error) {
	r, err := s.named(ctx)
	if err != nil {
		return nil, nil, err
	}
	if s := sendingOf(ctx); s != nil {
		s.bind(r)
	}
	br, err := r.waitBridge(ctx)
	if err == nil {
		err = r.ended()
	}
	return r, br, err
}

// Ping tells what the daemon can do. That needs no frontend's part to have come.
func (s *Service) Ping(ctx context.Context, _ *gateway.PingRequest) (*gateway.PongResponse, error) {
	r, err := s.named(ctx)
	if err != nil {
		return nil, err
	}
	select {
	case <-r.begun:
		if err := r.ended(); err != nil {
			return nil, err
		}
	default:
	}
	return s.host.Pong(), nil
}

// Solve evaluates a definition, or has a frontend make one.
func (s *Service) Solve(ctx context.Context, r *gateway.SolveRequest) (*gateway.SolveResponse, error) {
	run, br, err := s.running(ctx)
	if err != nil {
		return nil, err
	}
	if err := run.admitSolve(proto.Size(r)); err != nil {
		return nil, err
	}
	if slices.Contains(r.CacheImports, nil) {
		return nil, status.Error(codes.InvalidArgument, "invalid nil cache import")
	}
	br.ImportCaches(readCacheImports(r))
	hasDef := r.Definition != nil && len(r.Definition.Def) > 0
	if hasDef && r.Frontend != "" {
		return nil, status.Error(codes.InvalidArgument, "a solve takes a definition or a frontend, not both")
	}
	ctx = withQuota(ctx, run.quota)
	var res *frontend.Result
	if r.Frontend != "" {
		inputs, err := ReadGraphs(r.FrontendInputs)
		if err != nil {
			return nil, err
		}
		if res, err = br.Frontend(ctx, r.Frontend, r.FrontendOpt, inputs); err != nil {
			return nil, run.failed(br, err)
		}
	} else {
		g := &llb.Graph{}
		if hasDef {
			if g, err = llb.Unmarshal(r.Definition); err != nil {
				return nil, status.Errorf(codes.InvalidArgument, "decode definition: %v", err)
			}
			policies, err := ReadPolicies(r.SourcePolicies...)
			if err != nil {
				return nil, err
			}
			if g, err = br.ApplyPolicies(ctx, g, policies); err != nil {
				return nil, br.Locate(err)
			}
		}
		res = &frontend.Result{Platforms: []frontend.PlatformResult{{Platform: s.native, Graph: g}}}
	}
	out, err := run.wireResult(ctx, br, res, r)
	if err != nil {
		return nil, run.failed(br, err)
	}
	if r.Final { // frontends of before Return
		if err := run.final(out, r.ExporterAttr, s.native); err != nil {
			return nil, err
		}
	}
	if !r.AllowResultReturn { // clients of before results
		return &gateway.SolveResponse{Ref: out.GetRefDeprecated()}, nil
	}
	return &gateway.SolveResponse{Result: out}, nil
}

// Return ends the client's part: it says what the build is to export, or why
// there is nothing.
func (s *Service) Return(ctx context.Context, r *gateway.ReturnRequest) (*gateway.ReturnResponse, error) {
	run, _, err := s.running(ctx)
	if err != nil {
		return nil, err
	}
	switch {
	case (r.Error == nil) == (r.Result == nil):
		return nil, status.Error(codes.InvalidArgument, "gateway return must be either result or err")
	case r.Error != nil && r.Error.Code == int32(codes.OK):
		return nil, status.Error(codes.InvalidArgument, "the returned error has the code of success")
	case r.Error != nil:
		return &gateway.ReturnResponse{}, run.give(answer{err: &remoteError{r.Error}})
	}
	res, err := run.result(r.Result, s.native)
	if err != nil {
		return nil, err
	}
	return &gateway.ReturnResponse{}, run.give(answer{result: res})
}

// ResolveImageConfig tells an image's digest and config.
func (s *Service) ResolveImageConfig(ctx context.Context, r *gateway.ResolveImageConfigRequest) (*gateway.ResolveImageConfigResponse, error) {
	run, br, err := s.running(ctx)
	if err != nil {
		return nil, err
	}
	if err := run.admitQuestion(proto.Size(r)); err != nil {
		return nil, err
	}
	op := &llb.SourceOp{Identifier: "docker-image://" + strings.TrimPrefix(r.Ref, "docker-image://")}
	if r.ResolverType == 1 {
		op = &llb.SourceOp{
			Identifier: "oci-layout://" + strings.TrimPrefix(r.Ref, "oci-layout://"),
			Attrs:      map[string]string{"oci.session": r.SessionID, "oci.store": r.StoreID},
		}
	}
	policies, err := ReadPolicies(r.SourcePolicies...)
	if err != nil {
		return nil, err
	}
	m, err := br.ResolveSourceUnder(ctx, op, frontend.ResolveOpt{Platform: ReadPlatform(r.Platform), Mode: r.ResolveMode, LogName: r.LogName}, policies)
	if err != nil {
		return nil, err
	}
	_, ref, _ := strings.Cut(m.Op.Identifier, "://")
	return &gateway.ResolveImageConfigResponse{Digest: string(m.Digest), Config: m.Config, Ref: ref}, nil
}

// ResolveSourceMeta tells what is known of a source without fetching it whole.
func (s *Service) ResolveSourceMeta(ctx context.Context, r *gateway.ResolveSourceMetaRequest) (*gateway.ResolveSourceMetaResponse, error) {
	run, br, err := s.running(ctx)
	if err != nil {
		return nil, err
	}
	if err := run.admitQuestion(proto.Size(r)); err != nil {
		return nil, err
	}
	if r.Source == nil {
		return nil, status.Error(codes.InvalidArgument, "the request has no source")
	}
	policies, err := ReadPolicies(r.SourcePolicies...)
	if err != nil {
		return nil, err
	}
	opt, err := ReadResolveOpt(r)
	if err != nil {
		return nil, err
	}
	m, err := br.ResolveSourceUnder(ctx, ReadSourceOp(r.Source), opt, policies)
	if err != nil {
		return nil, err
	}
	return WireMeta(m), nil
}

// Evaluate makes a ref's files.
func (s *Service) Evaluate(ctx context.Context, r *gateway.EvaluateRequest) (*gateway.EvaluateResponse, error) {
	run, br, err := s.running(ctx)
	if err != nil {
		return nil, err
	}
	g, err := run.lookup(r.Ref)
	if err != nil {
		return nil, status.Error(codes.NotFound, err.Error())
	}
	if g != nil {
		err = run.failed(br, g.ref.Evaluate(ctx))
	}
	return &gateway.EvaluateResponse{}, err
}

// Inputs returns the graphs that were given to the frontend.
func (s *Service) Inputs(ctx context.Context, _ *gateway.InputsRequest) (*gateway.InputsResponse, error) {
	run, _, err := s.running(ctx)
	if err != nil {
		return nil, err
	}
	if err := reserve(ctx, mostRead); err != nil {
		return nil, err
	}
	resp := &gateway.InputsResponse{Definitions: map[string]*pb.Definition{}}
	for name, g := range run.inputs {
		if resp.Definitions[name], err = g.Marshal(); err != nil {
			return nil, fmt.Errorf("encode input %q: %w", name, err)
		}
	}
	return resp, nil
}

// defaultLevel is that of a warning whose frontend says none.
const defaultLevel = 1

// Warn tells the user of something that stops nothing.
func (s *Service) Warn(ctx context.Context, r *gateway.WarnRequest) (*gateway.WarnResponse, error) {
	run, br, err := s.running(ctx)
	if err != nil {
		return nil, err
	}
	if err := run.admitWarning(proto.Size(r)); err != nil {
		return nil, err
	}
	w := frontend.Warning{Level: int(cmp.Or(r.Level, defaultLevel)), Short: string(r.Short), URL: r.Url}
	for _, d := range r.Detail {
		w.Detail = append(w.Detail, string(d))
	}
	if r.Info != nil {
		w.File = &llb.SourceFile{Name: r.Info.Filename, Data: r.Info.Data, Language: r.Info.Language}
	}
	for _, rg := range r.Ranges {
		if rg == nil {
			return nil, status.Error(codes.InvalidArgument, "invalid source range")
		}
		w.Ranges = append(w.Ranges, llb.Range{
			Start: llb.Position{Line: int(rg.GetStart().GetLine()), Character: int(rg.GetStart().GetCharacter())},
			End:   llb.Position{Line: int(rg.GetEnd().GetLine()), Character: int(rg.GetEnd().GetCharacter())},
		})
	}
	br.Warn(ctx, digest.Digest(r.Digest), w)
	return &gateway.WarnResponse{}, nil
}
