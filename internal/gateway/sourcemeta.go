package gateway

import (
	"maps"
	"slices"
	"strings"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/api/gateway"
)

// ReadResolveOpt is what a client wants to know of a source.
func ReadResolveOpt(r *gateway.ResolveSourceMetaRequest) (frontend.ResolveOpt, error) {
	o := frontend.ResolveOpt{Platform: ReadPlatform(r.GetPlatform()), Mode: r.GetResolveMode(), LogName: r.GetLogName()}
	if i := r.GetImage(); i != nil {
		o.Image = frontend.ImageQuery{
			NoConfig: i.GetNoConfig(), Attestations: i.GetResolveAttestations(),
			AttestationChain: i.GetAttestationChain() || len(i.GetResolveAttestations()) > 0,
		}
	}
	return o, readQueries(r, &o)
}

// WireMeta tells what is known of a source.
func WireMeta(m *frontend.SourceMeta) *gateway.ResolveSourceMetaResponse {
	resp := &gateway.ResolveSourceMetaResponse{Source: WireSourceOp(m.Op), Git: wireGit(m.Git), HTTP: wireHTTP(m)}
	switch scheme, _, _ := strings.Cut(m.Op.Identifier, "://"); scheme {
	case "docker-image", "oci-layout":
		resp.Image = &gateway.ResolveSourceImageResponse{
			Digest: string(m.Digest), Config: m.Config, AttestationChain: wireChain(m.Chain),
		}
	}
	return resp
}

func wireChain(c *frontend.AttestationChain) *gateway.AttestationChain {
	if c == nil {
		return nil
	}
	out := &gateway.AttestationChain{
		Root: string(c.Root), ImageManifest: string(c.ImageManifest), AttestationManifest: string(c.AttestationManifest),
		Blobs: map[string]*gateway.Blob{},
	}
	for _, d := range c.SignatureManifests {
		out.SignatureManifests = append(out.SignatureManifests, string(d))
	}
	for _, d := range slices.Sorted(maps.Keys(c.Blobs)) {
		b := c.Blobs[d]
		out.Blobs[string(d)] = &gateway.Blob{Data: b.Data, Descriptor_: &gateway.Descriptor{
			MediaType: b.Desc.MediaType, Size: b.Desc.Size, Digest: string(b.Desc.Digest), Annotations: b.Desc.Annotations,
		}}
	}
	return out
}
