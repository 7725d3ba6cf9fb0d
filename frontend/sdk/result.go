package sdk

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	"github.com/containerd/platforms"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/client"
	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
)

// Keys of a result's metadata (BuildKit's exporter/containerimage/exptypes).
const (
	metaConfig    = "containerimage.config"
	metaBase      = "containerimage.base.config"
	metaPlatforms = "refs.platforms"
)

// platformList is the metadata refs.platforms.
type platformList struct {
	Platforms []platformEntry
}

type platformEntry struct {
	ID       string
	Platform ocispecs.Platform
}

// result makes a frontend's result one of the client: its graphs become
// references.
func (g *gateway) result(ctx context.Context, res *frontend.Result) (*client.BuildResult, error) {
	out := &client.BuildResult{Metadata: map[string][]byte{}}
	if res == nil {
		return out, nil
	}
	maps.Copy(out.Metadata, res.Meta)
	var list platformList
	for _, p := range res.Platforms {
		ref, err := g.solve(ctx, p.Graph)
		if err != nil {
			return nil, err
		}
		suffix := ""
		if p.ID == "" {
			out.Ref = ref
			if p.Platform.OS != "" {
				list.Platforms = append(list.Platforms, platformEntry{platformID(p), p.Platform})
			}
		} else {
			suffix = "/" + p.ID
			out.AddRef(p.ID, ref)
			list.Platforms = append(list.Platforms, platformEntry{p.ID, p.Platform})
		}
		if p.Config != nil {
			out.AddMeta(metaConfig+suffix, p.Config)
		}
		if err := g.attest(ctx, p, out); err != nil {
			return nil, err
		}
	}
	if len(list.Platforms) > 0 && out.Metadata[metaPlatforms] == nil {
		b, err := json.Marshal(list)
		if err != nil {
			return nil, fmt.Errorf("encode platforms: %w", err)
		}
		out.AddMeta(metaPlatforms, b)
	}
	return out, nil
}

// attest adds the statements about one platform's result.
func (g *gateway) attest(ctx context.Context, p frontend.PlatformResult, out *client.BuildResult) error {
	for _, a := range p.Attestations {
		ref, err := g.solve(ctx, a.Graph)
		if err != nil {
			return err
		}
		told := client.Attestation{Bundle: a.Bundle, Metadata: a.Meta, Ref: ref, Path: a.Path, PredicateType: a.PredicateType}
		for _, s := range a.Subjects {
			told.Subjects = append(told.Subjects, client.Subject(s))
		}
		if out.Attestations == nil {
			out.Attestations = map[string][]client.Attestation{}
		}
		id := platformID(p)
		out.Attestations[id] = append(out.Attestations[id], told)
	}
	return nil
}

// readResult makes what another frontend made a frontend's result.
func readResult(ctx context.Context, w *client.BuildResult) (*frontend.Result, error) {
	res := &frontend.Result{Meta: map[string][]byte{}}
	for k, v := range w.Metadata {
		if k != metaPlatforms && !strings.HasPrefix(k, metaConfig) {
			res.Meta[k] = v
		}
	}
	refs := w.Refs
	if refs == nil {
		refs = map[string]*client.Reference{"": w.Ref}
	}
	var list platformList
	if b := w.Metadata[metaPlatforms]; len(b) > 0 {
		if err := json.Unmarshal(b, &list); err != nil {
			return nil, fmt.Errorf("decode %s: %w", metaPlatforms, err)
		}
	}
	for _, id := range sortedKeys(refs) {
		p := frontend.PlatformResult{ID: id, Platform: platforms.DefaultSpec(), Config: w.Metadata[metaConfig]}
		if id != "" {
			p.Config = w.Metadata[metaConfig+"/"+id]
		}
		for _, e := range list.Platforms {
			if e.ID == id || id == "" && len(list.Platforms) == 1 {
				p.Platform = e.Platform
			}
		}
		var err error
		if p.Graph, err = graphOf(ctx, refs[id]); err != nil {
			return nil, err
		}
		for _, a := range w.Attestations[attested(w, p)] {
			told, err := readAttestation(ctx, a)
			if err != nil {
				return nil, err
			}
			p.Attestations = append(p.Attestations, told)
		}
		res.Platforms = append(res.Platforms, p)
	}
	return res, nil
}

// attested is the key of the statements about a platform's result.
func attested(w *client.BuildResult, p frontend.PlatformResult) string {
	if _, ok := w.Attestations[p.ID]; ok {
		return p.ID
	}
	return platformID(p)
}

// platformID names a platform's result, also where it is the only one.
func platformID(p frontend.PlatformResult) string {
	return cmp.Or(p.ID, platforms.FormatAll(platforms.Normalize(p.Platform)))
}

func readAttestation(ctx context.Context, a client.Attestation) (frontend.Attestation, error) {
	told := frontend.Attestation{Bundle: a.Bundle, Meta: a.Metadata, Path: a.Path, PredicateType: a.PredicateType}
	for _, s := range a.Subjects {
		told.Subjects = append(told.Subjects, frontend.Subject(s))
	}
	var err error
	if a.Ref != nil {
		told.Graph, err = graphOf(ctx, a.Ref)
	}
	return told, err
}

// graphOf is the graph that makes a reference.
func graphOf(ctx context.Context, r *client.Reference) (*llb.Graph, error) {
	st, err := r.ToState()
	if err != nil {
		return nil, err
	}
	return st.Graph(ctx)
}
