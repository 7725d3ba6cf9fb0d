package client

import (
	"context"
	"errors"
	"fmt"
	"strings"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/llb/pb"
)

// What can be asked of a source, and what the answer holds (BuildKit's
// frontend/gateway/pb/gateway.proto).
type (
	// SourceMetaRequest asks what a source is at present.
	SourceMetaRequest = gateway.ResolveSourceMetaRequest
	// SourceMeta is the answer; a policy may have changed its Source.
	SourceMeta = gateway.ResolveSourceMetaResponse
	// SourceImageRequest says what to find out about an image.
	SourceImageRequest = gateway.ResolveSourceImageRequest
	// SourceGitRequest says what to find out about a commit.
	SourceGitRequest = gateway.ResolveSourceGitRequest
	// SourceHTTPRequest says what to find out about a download.
	SourceHTTPRequest = gateway.ResolveSourceHTTPRequest
)

// ResolveSourceMetadata looks up what a source is at present.
func (g *Gateway) ResolveSourceMetadata(ctx context.Context, req *SourceMetaRequest) (*SourceMeta, error) {
	if !g.opts.Caps["source.metaresolver"] {
		return g.resolveOld(ctx, req)
	}
	if img := req.GetImage(); img.GetAttestationChain() || len(img.GetResolveAttestations()) > 0 {
		if err := g.opts.Caps.need("source.metaresolver.image.attestations", "resolve attestations of images"); err != nil {
			return nil, err
		}
	}
	if req.GetHTTP().GetChecksumRequest() != nil {
		if err := g.opts.Caps.need("source.metaresolver.http.checksumrequest", "checksum downloads"); err != nil {
			return nil, err
		}
	}
	resp, err := g.api.ResolveSourceMeta(ctx, req)
	if err == nil && resp.GetSource() == nil {
		err = errors.New("resolve source: the daemon's answer names none")
	}
	return resp, err
}

// resolveOld asks a daemon that knows of images only.
func (g *Gateway) resolveOld(ctx context.Context, req *SourceMetaRequest) (*SourceMeta, error) {
	scheme, ref, _ := strings.Cut(req.GetSource().GetIdentifier(), "://")
	if scheme != "docker-image" {
		return &SourceMeta{Source: req.GetSource()}, nil
	}
	resp, err := g.api.ResolveImageConfig(ctx, &gateway.ResolveImageConfigRequest{
		Ref: ref, Platform: req.GetPlatform(), ResolveMode: req.GetResolveMode(), LogName: req.GetLogName(), SourcePolicies: req.GetSourcePolicies(),
	})
	if err != nil {
		return nil, err
	}
	if resp.GetRef() != "" {
		ref = resp.GetRef()
	}
	return &SourceMeta{
		Source: &pb.SourceOp{Identifier: scheme + "://" + ref, Attrs: req.GetSource().GetAttrs()},
		Image:  &gateway.ResolveSourceImageResponse{Digest: resp.GetDigest(), Config: resp.GetConfig()},
	}, nil
}

// ResolveImageConfig looks up an image: its reference, which a policy may have
// changed, its digest and the JSON of its config. With it, a Gateway is an
// [llb.ImageMetaResolver].
func (g *Gateway) ResolveImageConfig(ctx context.Context, ref string, opt llb.ResolveImageOpt) (string, digest.Digest, []byte, error) {
	meta, err := g.ResolveSourceMetadata(ctx, &SourceMetaRequest{
		Source: &pb.SourceOp{Identifier: "docker-image://" + ref}, Platform: platformPB(opt.Platform), ResolveMode: opt.ResolveMode,
	})
	if err != nil {
		return "", "", nil, err
	}
	resolved, ok := strings.CutPrefix(meta.GetSource().GetIdentifier(), "docker-image://")
	if !ok || meta.GetImage() == nil {
		return "", "", nil, fmt.Errorf("ref %q has become %s, which is no image", ref, meta.GetSource().GetIdentifier())
	}
	return resolved, digest.Digest(meta.GetImage().GetDigest()), meta.GetImage().GetConfig(), nil
}

func platformPB(p *ocispecs.Platform) *pb.Platform {
	if p == nil {
		return nil
	}
	return &pb.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures}
}
