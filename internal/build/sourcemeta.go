package build

import (
	"context"
	"fmt"
	"strings"

	digest "github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/pass"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/internal/source"
	"github.com/kiln-build/kiln/llb"
)

// ResolveSource pins a source and tells what is known of it, once the build's
// policies let it be used.
func (br *Bridge) ResolveSource(ctx context.Context, o *llb.SourceOp, opt frontend.ResolveOpt) (*frontend.SourceMeta, error) {
	return br.ResolveSourceUnder(ctx, o, opt, nil)
}

// ResolveSourceUnder is ResolveSource with further policies for this one call.
func (br *Bridge) ResolveSourceUnder(ctx context.Context, o *llb.SourceOp, opt frontend.ResolveOpt, more []pass.Policy) (*frontend.SourceMeta, error) {
	o, err := br.checkSource(ctx, o, opt.Platform, more)
	if err != nil {
		return nil, fmt.Errorf("could not resolve image due to policy: %w", err)
	}
	meta, err := br.resolveSource(ctx, o, opt)
	if err == nil {
		br.records.resolved(ctx, meta.Op, opt.Platform, meta.Digest)
	}
	return meta, err
}

// resolveSource is ResolveSource without policies.
func (br *Bridge) resolveSource(ctx context.Context, o *llb.SourceOp, opt frontend.ResolveOpt) (*frontend.SourceMeta, error) {
	if strings.HasPrefix(o.Identifier, "local://") {
		return &frontend.SourceMeta{Op: o}, nil // what is in it is known once it has been sent
	}
	name := opt.LogName
	if name == "" {
		name = "resolve image config for " + o.Identifier
	}
	so := br.sourceOptions(opt)
	var pin *source.Pin
	err := progress.Run(session.WithGroup(ctx, br), br.req.Sink, name, func(ctx context.Context) (err error) {
		pin, err = br.builder.Worker.Resolve(ctx, o, so)
		return err
	})
	if err != nil {
		return nil, err
	}
	return sourceMeta(pin, so), nil
}

// sourceOptions says to a source what a frontend wants to know of it.
func (br *Bridge) sourceOptions(opt frontend.ResolveOpt) source.Options {
	so := source.Options{
		Platform: br.builder.Worker.Platforms[0], Mode: opt.Mode, WantConfig: !opt.Image.NoConfig,
		WantChain: opt.Image.AttestationChain, Attestations: opt.Image.Attestations, GitObjects: opt.GitObjects,
	}
	if opt.Platform != nil {
		so.Platform = *opt.Platform
	}
	if so.Mode == "" {
		so.Mode = br.values.Mode
	}
	if q := opt.Checksum; q != nil {
		so.Checksum = &source.ChecksumQuery{Algorithm: q.Algorithm, Suffix: q.Suffix}
	}
	return so
}

// sourceMeta is what a frontend is told of a source that was asked about with so.
func sourceMeta(pin *source.Pin, so source.Options) *frontend.SourceMeta {
	m := &frontend.SourceMeta{Op: pin.Op, Digest: pin.Digest, Config: pin.Config, Chain: attestationChain(pin.Chain)}
	if g := pin.Git; g != nil {
		m.Git = &frontend.GitMeta{
			Checksum: g.Checksum, Ref: g.Ref, CommitChecksum: g.CommitChecksum, CommitObject: g.CommitObject, TagObject: g.TagObject,
		}
	}
	if id := pin.Op.Identifier; strings.HasPrefix(id, "http://") || strings.HasPrefix(id, "https://") {
		m.HTTP = &frontend.HTTPMeta{Filename: pin.Name, LastModified: pin.LastModified, Checksum: pin.Checksum}
		if so.Checksum != nil {
			m.HTTP.Suffix = so.Checksum.Suffix
		}
	}
	return m
}

func attestationChain(c *source.AttestationChain) *frontend.AttestationChain {
	if c == nil {
		return nil
	}
	out := &frontend.AttestationChain{
		Root: c.Root, ImageManifest: c.ImageManifest, AttestationManifest: c.AttestationManifest,
		SignatureManifests: c.SignatureManifests, Blobs: map[digest.Digest]frontend.Blob{},
	}
	for d, b := range c.Blobs {
		out.Blobs[d] = frontend.Blob(b)
	}
	return out
}
