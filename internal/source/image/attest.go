package image

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/source"
)

// What marks the documents that vouch for an image (BuildKit's docs/attestations, and
// sigstore's and cosign's formats).
const (
	refersType    = "vnd.docker.reference.type"
	refersDigest  = "vnd.docker.reference.digest"
	isAttestation = "attestation-manifest"
	predicateType = "in-toto.io/predicate-type"

	sigstoreBundle  = "application/vnd.dev.sigstore.bundle.v0.3+json"
	cosignSignature = "application/vnd.dev.cosign.artifact.sig.v1+json"
)

// mostStatements is how many parts of an attestation or a signature are read.
const mostStatements = 64

// chain gathers what vouches for an image: the index that names it, the
// attestations in that index, and who signed them. An image without an index
// has none.
func (s *Source) chain(ctx context.Context, origin string, img *source.Image, types []string) (*source.AttestationChain, error) {
	if img.Root.Digest == img.Desc.Digest {
		return nil, nil
	}
	c := &chainReader{s: s, ctx: ctx, origin: origin, chain: &source.AttestationChain{
		Root: img.Root.Digest, ImageManifest: img.Desc.Digest, Blobs: map[digest.Digest]source.Blob{},
	}}
	raw, err := c.add(img.Root)
	if err != nil {
		return nil, err
	}
	var index ocispecs.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("image %s: decode index: %w", origin, err)
	}
	if index.MediaType != ocispecs.MediaTypeImageIndex && img.Root.MediaType != ocispecs.MediaTypeImageIndex {
		return nil, nil
	}
	at := slices.IndexFunc(index.Manifests, func(d ocispecs.Descriptor) bool {
		return d.Annotations[refersType] == isAttestation && d.Annotations[refersDigest] == img.Desc.Digest.String()
	})
	if at < 0 {
		return c.chain, nil
	}
	if err := c.attestations(index.Manifests[at], types); err != nil {
		return nil, err
	}
	return c.chain, c.signature(index.Manifests[at].Digest)
}

type chainReader struct {
	s      *Source
	ctx    context.Context
	origin string
	chain  *source.AttestationChain
}

// add reads a document into the chain.
func (c *chainReader) add(d ocispecs.Descriptor) ([]byte, error) {
	if err := d.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("image %s: malformed digest %q: %w", c.origin, d.Digest, err)
	}
	b, err := c.s.read(c.ctx, c.origin, d)
	if err != nil {
		return nil, err
	}
	c.chain.Blobs[d.Digest] = source.Blob{Desc: d, Data: b}
	return b, nil
}

// parts decodes a manifest's parts, those that are wanted.
func (c *chainReader) parts(d ocispecs.Descriptor, wanted func(ocispecs.Descriptor) bool) error {
	raw, err := c.add(d)
	if err != nil {
		return err
	}
	var m ocispecs.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return fmt.Errorf("image %s: decode %s: %w", c.origin, d.Digest, err)
	}
	if len(m.Layers) > mostStatements {
		return fmt.Errorf("image %s: %s has %d parts, expected at most %d", c.origin, d.Digest, len(m.Layers), mostStatements)
	}
	for _, l := range m.Layers {
		if wanted(l) {
			if _, err := c.add(l); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *chainReader) attestations(d ocispecs.Descriptor, types []string) error {
	c.chain.AttestationManifest = d.Digest
	return c.parts(d, func(l ocispecs.Descriptor) bool {
		t := l.Annotations[predicateType]
		return t != "" && slices.Contains(types, t)
	})
}

// signature adds who signed the attestations: a bundle, if there is one.
func (c *chainReader) signature(attestations digest.Digest) error {
	found, err := c.s.cfg.Registry.Referrers(c.ctx, c.origin, attestations)
	if err != nil {
		return err
	}
	for _, kind := range []string{sigstoreBundle, cosignSignature} {
		for _, d := range found {
			if d.ArtifactType == kind {
				c.chain.SignatureManifests = []digest.Digest{d.Digest}
				return c.parts(d, func(ocispecs.Descriptor) bool { return true })
			}
		}
	}
	return nil
}
