package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/api/fsutil"
	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/internal/build"
	"github.com/kiln-build/kiln/internal/safepath"
	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/llb/pb"
)

// buildIDKey is the metadata that names the build a call belongs to.
const buildIDKey = "buildkit-controlapi-buildid"

// gatewayService is moby.buildkit.v1.frontend.LLBBridge, for clients that act
// as the frontend of their own build.
type gatewayService struct {
	gateway.UnimplementedLLBBridgeServer
	*Server
}

// running finds the build that a call belongs to.
func (s *gatewayService) running(ctx context.Context) (*running, *build.Bridge, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	ids := md.Get(buildIDKey)
	if len(ids) == 0 {
		return nil, nil, status.Errorf(codes.InvalidArgument, "the call has no %s metadata", buildIDKey)
	}
	r, err := s.builds.get(ctx, ids[0], waitGateway)
	if err != nil {
		return nil, nil, err
	}
	br, err := r.waitBridge(ctx)
	return r, br, err
}

// Ping tells what the daemon can do.
func (s *gatewayService) Ping(ctx context.Context, _ *gateway.PingRequest) (*gateway.PongResponse, error) {
	if _, _, err := s.running(ctx); err != nil {
		return nil, err
	}
	return &gateway.PongResponse{FrontendAPICaps: wireCaps(frontendCaps), LLBCaps: wireCaps(Caps()), Workers: s.workers()}, nil
}

// Solve evaluates a definition, or has a frontend make one.
func (s *gatewayService) Solve(ctx context.Context, r *gateway.SolveRequest) (*gateway.SolveResponse, error) {
	run, br, err := s.running(ctx)
	if err != nil {
		return nil, err
	}
	hasDef := r.Definition != nil && len(r.Definition.Def) > 0
	if hasDef && r.Frontend != "" {
		return nil, status.Error(codes.InvalidArgument, "a solve takes a definition or a frontend, not both")
	}
	var res *frontend.Result
	if r.Frontend != "" {
		inputs, err := graphs(r.FrontendInputs)
		if err != nil {
			return nil, err
		}
		if res, err = br.Frontend(ctx, r.Frontend, r.FrontendOpt, inputs); err != nil {
			return nil, br.Locate(err)
		}
	} else {
		g := &llb.Graph{}
		if hasDef {
			if g, err = llb.Unmarshal(r.Definition); err != nil {
				return nil, status.Errorf(codes.InvalidArgument, "decode definition: %v", err)
			}
			policies, err := readPolicies(r.SourcePolicies...)
			if err != nil {
				return nil, err
			}
			if g, err = br.ApplyPolicies(ctx, g, policies); err != nil {
				return nil, br.Locate(err)
			}
		}
		res = &frontend.Result{Platforms: []frontend.PlatformResult{{Platform: s.config.Platforms[0], Graph: g}}}
	}
	out, err := run.wireResult(ctx, br, res, r)
	if err != nil {
		return nil, br.Locate(err)
	}
	if !r.AllowResultReturn { // clients of before results
		return &gateway.SolveResponse{Ref: out.GetRefDeprecated()}, nil
	}
	return &gateway.SolveResponse{Result: out}, nil
}

// wireResult keeps a frontend's result for the client and names it.
func (r *running) wireResult(ctx context.Context, br *build.Bridge, res *frontend.Result, req *gateway.SolveRequest) (*gateway.Result, error) {
	out := &gateway.Result{Metadata: maps.Clone(res.Meta)}
	if out.Metadata == nil {
		out.Metadata = map[string][]byte{}
	}
	if err := notePlatforms(out.Metadata, res.Platforms); err != nil {
		return nil, err
	}
	ids := map[string]string{}
	for _, p := range res.Platforms {
		if p.Config != nil {
			out.Metadata[configKey(p.ID)] = p.Config
		}
		ref, err := br.Solve(ctx, p.Graph)
		if err != nil {
			return nil, err
		}
		if req.Evaluate {
			if err := ref.Evaluate(ctx); err != nil {
				return nil, err
			}
		}
		if p.Graph != nil && p.Graph.Root.Vertex != nil {
			ids[p.ID] = r.keep(&gatewayRef{graph: p.Graph, ref: ref})
		} else {
			ids[p.ID] = ""
		}
	}
	single := len(ids) == 1 && slices.Contains(slices.Collect(maps.Keys(ids)), "")
	switch {
	case len(ids) == 0:
	case single && req.AllowResultArrayRef:
		out.Result = &gateway.Result_Ref{Ref: &gateway.Ref{Id: ids[""]}}
	case single:
		out.Result = &gateway.Result_RefDeprecated{RefDeprecated: ids[""]}
	case req.AllowResultArrayRef:
		m := map[string]*gateway.Ref{}
		for k, id := range ids {
			m[k] = &gateway.Ref{Id: id}
		}
		out.Result = &gateway.Result_Refs{Refs: &gateway.RefMap{Refs: m}}
	default:
		out.Result = &gateway.Result_RefsDeprecated{RefsDeprecated: &gateway.RefMapDeprecated{Refs: ids}}
	}
	return out, nil
}

// platformList is the metadata refs.platforms (WIRE.md section 13.4).
type platformList struct {
	Platforms []platformEntry
}

type platformEntry struct {
	ID       string
	Platform ocispecs.Platform
}

// notePlatforms says in meta which platform each of several results is for.
func notePlatforms(meta map[string][]byte, ps []frontend.PlatformResult) error {
	var list platformList
	for _, p := range ps {
		if p.ID != "" {
			list.Platforms = append(list.Platforms, platformEntry{p.ID, p.Platform})
		}
	}
	if len(list.Platforms) == 0 || meta["refs.platforms"] != nil {
		return nil
	}
	b, err := json.Marshal(list)
	if err != nil {
		return fmt.Errorf("encode platforms: %w", err)
	}
	meta["refs.platforms"] = b
	return nil
}

func configKey(id string) string {
	if id == "" {
		return "containerimage.config"
	}
	return "containerimage.config/" + id
}

// Return ends the client's part: it says what the build is to export, or why
// there is nothing.
func (s *gatewayService) Return(ctx context.Context, r *gateway.ReturnRequest) (*gateway.ReturnResponse, error) {
	run, _, err := s.running(ctx)
	if err != nil {
		return nil, err
	}
	var a answer
	if r.Error != nil {
		a.err = status.ErrorProto(r.Error)
	} else if a.result, err = run.result(r.Result, s.config.Platforms[0]); err != nil {
		return nil, err
	}
	select {
	case run.answer <- a:
		return &gateway.ReturnResponse{}, nil
	default:
		return nil, status.Error(codes.FailedPrecondition, "the build has had its result")
	}
}

// result reads what a client returned.
func (r *running) result(w *gateway.Result, native ocispecs.Platform) (*frontend.Result, error) {
	res := &frontend.Result{Meta: map[string][]byte{}}
	if w == nil {
		return res, nil
	}
	for k, v := range w.Metadata {
		if !strings.HasPrefix(k, "containerimage.config") {
			res.Meta[k] = v
		}
	}
	ids := map[string]string{}
	switch v := w.Result.(type) {
	case *gateway.Result_RefDeprecated:
		ids[""] = v.RefDeprecated
	case *gateway.Result_RefsDeprecated:
		ids = v.RefsDeprecated.GetRefs()
	case *gateway.Result_Ref:
		ids[""] = v.Ref.GetId()
	case *gateway.Result_Refs:
		for k, ref := range v.Refs.GetRefs() {
			ids[k] = ref.GetId()
		}
	}
	platforms, err := resultPlatforms(w.Metadata["refs.platforms"], native)
	if err != nil {
		return nil, err
	}
	for _, id := range slices.Sorted(maps.Keys(ids)) {
		p := frontend.PlatformResult{ID: id, Platform: native, Config: w.Metadata[configKey(id)], Graph: &llb.Graph{}}
		if got, ok := platforms[id]; ok {
			p.Platform = got
		} else if id != "" {
			return nil, status.Errorf(codes.InvalidArgument, "result %q is not among refs.platforms", id)
		}
		ref, err := r.lookup(ids[id])
		if err != nil {
			return nil, status.Error(codes.NotFound, err.Error())
		}
		if ref != nil {
			p.Graph = ref.graph
		}
		res.Platforms = append(res.Platforms, p)
	}
	return res, nil
}

// resultPlatforms reads the metadata refs.platforms.
func resultPlatforms(b []byte, native ocispecs.Platform) (map[string]ocispecs.Platform, error) {
	out := map[string]ocispecs.Platform{}
	if len(b) == 0 {
		return out, nil
	}
	var list platformList
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "decode refs.platforms: %v", err)
	}
	for _, p := range list.Platforms {
		if p.Platform.OS == "" || p.Platform.Architecture == "" {
			return nil, status.Errorf(codes.InvalidArgument, "refs.platforms: %q has no os or no architecture", p.ID)
		}
		out[p.ID] = p.Platform
		if len(list.Platforms) == 1 {
			out[""] = p.Platform
		}
	}
	return out, nil
}

// ResolveImageConfig tells an image's digest and config.
func (s *gatewayService) ResolveImageConfig(ctx context.Context, r *gateway.ResolveImageConfigRequest) (*gateway.ResolveImageConfigResponse, error) {
	_, br, err := s.running(ctx)
	if err != nil {
		return nil, err
	}
	op := &llb.SourceOp{Identifier: "docker-image://" + strings.TrimPrefix(r.Ref, "docker-image://")}
	if r.ResolverType == 1 {
		op = &llb.SourceOp{
			Identifier: "oci-layout://" + strings.TrimPrefix(r.Ref, "oci-layout://"),
			Attrs:      map[string]string{"oci.session": r.SessionID, "oci.store": r.StoreID},
		}
	}
	policies, err := readPolicies(r.SourcePolicies...)
	if err != nil {
		return nil, err
	}
	m, err := br.ResolveSourceUnder(ctx, op, frontend.ResolveOpt{Platform: readPlatform(r.Platform), Mode: r.ResolveMode, LogName: r.LogName}, policies)
	if err != nil {
		return nil, err
	}
	_, ref, _ := strings.Cut(m.Op.Identifier, "://")
	return &gateway.ResolveImageConfigResponse{Digest: string(m.Digest), Config: m.Config, Ref: ref}, nil
}

// ResolveSourceMeta tells what is known of a source without fetching it whole.
func (s *gatewayService) ResolveSourceMeta(ctx context.Context, r *gateway.ResolveSourceMetaRequest) (*gateway.ResolveSourceMetaResponse, error) {
	_, br, err := s.running(ctx)
	if err != nil {
		return nil, err
	}
	if r.Source == nil {
		return nil, status.Error(codes.InvalidArgument, "the request has no source")
	}
	policies, err := readPolicies(r.SourcePolicies...)
	if err != nil {
		return nil, err
	}
	m, err := br.ResolveSourceUnder(ctx, readSourceOp(r.Source), readResolveOpt(r), policies)
	if err != nil {
		return nil, err
	}
	return wireMeta(m), nil
}

// withRoot calls f with the files of the ref that a request names.
func (s *gatewayService) withRoot(ctx context.Context, id string, f func(*safepath.Root) error) error {
	run, br, err := s.running(ctx)
	if err != nil {
		return err
	}
	g, err := run.lookup(id)
	if err != nil {
		return status.Error(codes.NotFound, err.Error())
	}
	if g == nil {
		return status.Error(codes.NotFound, "the empty file system has no files")
	}
	ref, ok := g.ref.(*build.Ref)
	if !ok {
		return errors.New("the ref has no files")
	}
	return br.Locate(ref.WithRoot(ctx, f))
}

// ReadFile returns a file's content, or a range of it.
func (s *gatewayService) ReadFile(ctx context.Context, r *gateway.ReadFileRequest) (*gateway.ReadFileResponse, error) {
	resp := &gateway.ReadFileResponse{}
	err := s.withRoot(ctx, r.Ref, func(root *safepath.Root) error {
		f, err := root.Open(r.FilePath)
		if err != nil {
			return err
		}
		defer f.Close()
		fi, err := f.Stat()
		if err != nil {
			return err
		}
		if !fi.Mode().IsRegular() {
			return fmt.Errorf("read %s: not a regular file", r.FilePath)
		}
		var in io.Reader = f
		if r.Range != nil {
			in = io.NewSectionReader(f, r.Range.Offset, r.Range.Length)
		}
		const most = session.MaxMessage - 1024
		resp.Data, err = io.ReadAll(io.LimitReader(in, most+1))
		if err == nil && len(resp.Data) > most {
			return fmt.Errorf("read %s: more than %d bytes, ask for a range", r.FilePath, most)
		}
		return err
	})
	return resp, err
}

// ReadDir lists a directory.
func (s *gatewayService) ReadDir(ctx context.Context, r *gateway.ReadDirRequest) (*gateway.ReadDirResponse, error) {
	resp := &gateway.ReadDirResponse{}
	err := s.withRoot(ctx, r.Ref, func(root *safepath.Root) error {
		entries, err := root.ReadDir(r.DirPath)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if r.IncludePattern != "" {
				if ok, err := path.Match(r.IncludePattern, e.Name()); err != nil {
					return fmt.Errorf("pattern %q: %w", r.IncludePattern, err)
				} else if !ok {
					continue
				}
			}
			st, err := stat(root, path.Join(r.DirPath, e.Name()))
			if err != nil {
				return err
			}
			resp.Entries = append(resp.Entries, st)
		}
		return nil
	})
	return resp, err
}

// StatFile tells of a file; a symlink at its end is not followed.
func (s *gatewayService) StatFile(ctx context.Context, r *gateway.StatFileRequest) (*gateway.StatFileResponse, error) {
	resp := &gateway.StatFileResponse{}
	err := s.withRoot(ctx, r.Ref, func(root *safepath.Root) (err error) {
		resp.Stat, err = stat(root, r.Path)
		return err
	})
	return resp, err
}

func stat(root *safepath.Root, name string) (*fsutil.Stat, error) {
	fi, err := root.Lstat(name)
	if err != nil {
		return nil, err
	}
	st := &fsutil.Stat{Path: path.Base(path.Join("/", name)), Mode: uint32(fi.Mode()), Size: fi.Size(), ModTime: fi.ModTime().UnixNano()}
	if fi.IsDir() {
		st.Size = 0
	}
	if uid, gid, ok := safepath.Owner(fi); ok {
		st.Uid, st.Gid = uid, gid
	}
	if fi.Mode()&fs.ModeSymlink != 0 {
		if st.Linkname, err = root.Readlink(name); err != nil {
			return nil, err
		}
	}
	return st, nil
}

// Evaluate makes a ref's files.
func (s *gatewayService) Evaluate(ctx context.Context, r *gateway.EvaluateRequest) (*gateway.EvaluateResponse, error) {
	run, br, err := s.running(ctx)
	if err != nil {
		return nil, err
	}
	g, err := run.lookup(r.Ref)
	if err != nil {
		return nil, status.Error(codes.NotFound, err.Error())
	}
	if g != nil {
		err = br.Locate(g.ref.Evaluate(ctx))
	}
	return &gateway.EvaluateResponse{}, err
}

// Inputs returns the graphs that were given to the frontend.
func (s *gatewayService) Inputs(ctx context.Context, _ *gateway.InputsRequest) (*gateway.InputsResponse, error) {
	_, br, err := s.running(ctx)
	if err != nil {
		return nil, err
	}
	resp := &gateway.InputsResponse{Definitions: map[string]*pb.Definition{}}
	for name, g := range br.Inputs() {
		if resp.Definitions[name], err = g.Marshal(); err != nil {
			return nil, fmt.Errorf("encode input %q: %w", name, err)
		}
	}
	return resp, nil
}

// Warn tells the user of something that stops nothing.
func (s *gatewayService) Warn(ctx context.Context, r *gateway.WarnRequest) (*gateway.WarnResponse, error) {
	_, br, err := s.running(ctx)
	if err != nil {
		return nil, err
	}
	w := frontend.Warning{Level: int(r.Level), Short: string(r.Short), URL: r.Url}
	for _, d := range r.Detail {
		w.Detail = append(w.Detail, string(d))
	}
	if r.Info != nil {
		w.File = &llb.SourceFile{Name: r.Info.Filename, Data: r.Info.Data, Language: r.Info.Language}
	}
	for _, rg := range r.Ranges {
		w.Ranges = append(w.Ranges, llb.Range{
			Start: llb.Position{Line: int(rg.GetStart().GetLine()), Character: int(rg.GetStart().GetCharacter())},
			End:   llb.Position{Line: int(rg.GetEnd().GetLine()), Character: int(rg.GetEnd().GetCharacter())},
		})
	}
	br.Warn(ctx, digest.Digest(r.Digest), w)
	return &gateway.WarnResponse{}, nil
}
