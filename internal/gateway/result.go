package gateway

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/internal/build"
	"github.com/kiln-build/kiln/llb"
)

// wireResult keeps a frontend's result for the client and names it.
func (r *Phase) wireResult(ctx context.Context, br *build.Bridge, res *frontend.Result, req *gateway.SolveRequest) (*gateway.Result, error) {
	meta, err := build.Metadata(res)
	if err != nil {
		return nil, err
	}
	out := &gateway.Result{Metadata: meta}
	refs := map[string]*gateway.Ref{}
	for _, p := range res.Platforms {
		ref, err := r.keepGraph(ctx, br, p.Graph, req.Evaluate)
		if err != nil {
			return nil, err
		}
		refs[p.ID] = ref
		if err := r.wireAttestations(ctx, br, p, out); err != nil {
			return nil, err
		}
	}
	single := len(refs) == 1 && refs[""] != nil
	switch {
	case len(refs) == 0:
	case single && req.AllowResultArrayRef:
		out.Result = &gateway.Result_Ref{Ref: refs[""]}
	case single:
		out.Result = &gateway.Result_RefDeprecated{RefDeprecated: refs[""].Id}
	case !req.AllowResultReturn:
		return nil, status.Error(codes.Unimplemented, "the result is of several platforms, which the client does not know: update it")
	case req.AllowResultArrayRef:
		out.Result = &gateway.Result_Refs{Refs: &gateway.RefMap{Refs: refs}}
	default:
		ids := map[string]string{}
		for k, ref := range refs {
			ids[k] = ref.Id
		}
		out.Result = &gateway.Result_RefsDeprecated{RefsDeprecated: &gateway.RefMapDeprecated{Refs: ids}}
	}
	return out, nil
}

// keepGraph gives a graph's result an id. An empty file system has none.
func (r *Phase) keepGraph(ctx context.Context, br *build.Bridge, g *llb.Graph, evaluate bool) (*gateway.Ref, error) {
	if g == nil || g.Root.Vertex == nil {
		return &gateway.Ref{}, nil
	}
	ref, err := br.Solve(ctx, g)
	if err != nil {
		return nil, err
	}
	if evaluate {
		if err := ref.Evaluate(ctx); err != nil {
			return nil, err
		}
	}
	def, err := g.Marshal()
	if err != nil {
		return nil, fmt.Errorf("encode result: %w", err)
	}
	return &gateway.Ref{Id: r.keep(&kept{graph: g, ref: ref}), Def: def}, nil
}

// wireAttestations adds the statements about one platform's result.
func (r *Phase) wireAttestations(ctx context.Context, br *build.Bridge, p frontend.PlatformResult, out *gateway.Result) error {
	if len(p.Attestations) == 0 {
		return nil
	}
	list := &gateway.Attestations{}
	for _, a := range p.Attestations {
		// Clients read the ref of each, also where there is none.
		ref, err := r.keepGraph(ctx, br, a.Graph, false)
		if err != nil {
			return err
		}
		w := &gateway.Attestation{Metadata: a.Meta, Ref: ref, Path: a.Path, InTotoPredicateType: a.PredicateType}
		if a.Bundle {
			w.Kind = gateway.AttestationKind_Bundle
		}
		for _, s := range a.Subjects {
			subject := &gateway.InTotoSubject{Kind: gateway.InTotoSubjectKind_Raw, Name: s.Name}
			for _, d := range s.Digests {
				subject.Digest = append(subject.Digest, d.String())
			}
			if s.Self {
				subject.Kind = gateway.InTotoSubjectKind_Self
			}
			w.InTotoSubjects = append(w.InTotoSubjects, subject)
		}
		list.Attestation = append(list.Attestation, w)
	}
	if out.Attestations == nil {
		out.Attestations = map[string]*gateway.Attestations{}
	}
	out.Attestations[platformID(p)] = list
	return nil
}

// platformID names a platform's result, also where it is the only one.
func platformID(p frontend.PlatformResult) string {
	if p.ID != "" {
		return p.ID
	}
	return platforms.FormatAll(platforms.Normalize(p.Platform))
}

// result reads what a client returned.
func (r *Phase) result(w *gateway.Result, native ocispecs.Platform) (*frontend.Result, error) {
	res := &frontend.Result{Meta: map[string][]byte{}}
	if w == nil {
		return res, nil
	}
	for k, v := range w.Metadata {
		if !strings.HasPrefix(k, build.MetaConfig) {
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
	known, err := resultPlatforms(w.Metadata[build.MetaPlatforms])
	if err != nil {
		return nil, err
	}
	// Images stand in an index in the order in which their platforms were asked for.
	place := func(id string) int {
		return slices.IndexFunc(known, func(p build.PlatformEntry) bool { return p.ID == id || id == "" && len(known) == 1 })
	}
	order := func(a, b string) int { return cmp.Or(cmp.Compare(place(a), place(b)), strings.Compare(a, b)) }
	names := slices.SortedFunc(maps.Keys(ids), order)
	for i, p := range known { // one that was asked for twice is made twice
		if _, made := ids[p.ID]; made && place(p.ID) < i {
			names = slices.Insert(names, min(i, len(names)), p.ID)
		}
	}
	for _, id := range names {
		p := frontend.PlatformResult{ID: id, Config: w.Metadata[build.ConfigKey(id)]}
		if i := place(id); i >= 0 {
			p.Platform = known[i].Platform
		} else if id != "" {
			return nil, status.Errorf(codes.InvalidArgument, "result %q is not among refs.platforms", id)
		} else {
			p.Platform = configPlatform(p.Config, native)
		}
		if p.Graph, err = r.returned(ids[id]); err != nil {
			return nil, err
		}
		res.Platforms = append(res.Platforms, p)
	}
	return res, r.readAttestations(w.Attestations, res)
}

// returned is the graph of a ref that a client returns.
func (r *Phase) returned(id string) (*llb.Graph, error) {
	ref, err := r.lookup(id)
	if err != nil {
		return nil, status.Errorf(codes.NotFound, "return reference %s not found", id)
	}
	if ref == nil {
		return &llb.Graph{}, nil
	}
	return ref.graph, nil
}

// readAttestations gives the results of res the statements about them.
func (r *Phase) readAttestations(w map[string]*gateway.Attestations, res *frontend.Result) error {
	for _, key := range slices.Sorted(maps.Keys(w)) {
		var all []frontend.Attestation
		for _, a := range w[key].GetAttestation() {
			read, err := r.readAttestation(a)
			if err != nil {
				return err
			}
			all = append(all, read)
		}
		found := false
		for i, p := range res.Platforms {
			if key == p.ID || key == platformID(p) || key == platforms.Format(p.Platform) {
				res.Platforms[i].Attestations = append(p.Attestations, all...)
				found = true
			}
		}
		if !found {
			return status.Errorf(codes.InvalidArgument, "attestations of %q: there is no such result", key)
		}
	}
	return nil
}

func (r *Phase) readAttestation(w *gateway.Attestation) (frontend.Attestation, error) {
	a := frontend.Attestation{
		Bundle: w.GetKind() == gateway.AttestationKind_Bundle, Meta: w.GetMetadata(),
		Path: w.GetPath(), PredicateType: w.GetInTotoPredicateType(),
	}
	invalid := func(format string, args ...any) (frontend.Attestation, error) {
		return a, status.Errorf(codes.InvalidArgument, format, args...)
	}
	if w == nil {
		return invalid("invalid nil attestation")
	}
	if !a.Bundle && w.Kind != gateway.AttestationKind_InToto {
		return invalid("unknown attestation kind %d", w.Kind)
	}
	for _, s := range w.InTotoSubjects {
		if s == nil {
			return invalid("invalid nil attestation subject")
		}
		subject := frontend.Subject{Name: s.Name, Self: s.Kind == gateway.InTotoSubjectKind_Self}
		if !subject.Self && s.Kind != gateway.InTotoSubjectKind_Raw {
			return invalid("unknown attestation subject kind %d", s.Kind)
		}
		for _, text := range s.Digest {
			d, err := digest.Parse(text)
			if err != nil {
				return invalid("attestation subject %q: digest %q: %v", s.Name, text, err)
			}
			subject.Digests = append(subject.Digests, d)
		}
		a.Subjects = append(a.Subjects, subject)
	}
	if w.Ref.GetId() == "" {
		return a, nil
	}
	var err error
	a.Graph, err = r.returned(w.Ref.Id)
	return a, err
}

// configPlatform is the platform that an image's config names, or else native.
// What is wrong with the config is the exporter's to say.
func configPlatform(config []byte, native ocispecs.Platform) ocispecs.Platform {
	var p ocispecs.Platform
	if json.Unmarshal(config, &p) != nil || p.OS == "" || p.Architecture == "" {
		return native
	}
	return platforms.Normalize(p)
}

// resultPlatforms reads the metadata refs.platforms.
func resultPlatforms(b []byte) ([]build.PlatformEntry, error) {
	if len(b) == 0 {
		return nil, nil
	}
	var list build.PlatformList
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "decode refs.platforms: %v", err)
	}
	if len(list.Platforms) == 0 {
		return nil, status.Error(codes.InvalidArgument, "invalid empty platforms index for exporter: refs.platforms names none")
	}
	for _, p := range list.Platforms {
		if p.ID == "" {
			return nil, status.Error(codes.InvalidArgument, "invalid empty platform key for exporter: one of refs.platforms has no ID")
		}
		if p.Platform.OS == "" || p.Platform.Architecture == "" {
			return nil, status.Errorf(codes.InvalidArgument, "invalid platform value for exporter: refs.platforms: %q has no os or no architecture", p.ID)
		}
	}
	return list.Platforms, nil
}
