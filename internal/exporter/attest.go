package exporter

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// The marks of attestations in an image (BuildKit's docs/attestations).
const (
	attestationArtifact  = "application/vnd.docker.attestation.manifest.v1+json"
	attestationStatement = "application/vnd.in-toto+json"
	annotationPredicate  = "in-toto.io/predicate-type"
	annotationRefType    = "vnd.docker.reference.type"
	annotationRefDigest  = "vnd.docker.reference.digest"
	refTypeAttestation   = "attestation-manifest"
)

// unknownPlatform keeps attestations from being run as images.
const unknownPlatform = "unknown"

// inline are the attestations that make an index of a single image.
func (p Platform) inline(o ImageOptions) bool {
	for _, a := range p.Attestations {
		if o.InlineAll || !a.InlineOnly {
			return true
		}
	}
	return false
}

// attest makes the manifest of the attestations about an image.
func (img *Image) attest(ctx context.Context, p part, platform Platform, o ImageOptions) (ocispecs.Descriptor, error) {
	about := About{LayerOf: p.layerOf}
	for _, name := range img.Names {
		about.Subjects = append(about.Subjects, Subject{Image: name, Platform: platform.Platform, Digest: p.manifest.Desc.Digest})
	}
	statements := make([]Blob, len(platform.Attestations))
	g, gctx := errgroup.WithContext(ctx)
	for i, a := range platform.Attestations {
		g.Go(func() error {
			data, err := a.Statement(gctx, about)
			if err != nil {
				return fmt.Errorf("make attestation %s of image%s: %w", a.Path, forPlatform(platform.ID), err)
			}
			statements[i] = newBlob(attestationStatement, data)
			statements[i].Desc.Annotations = map[string]string{annotationPredicate: a.PredicateType}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return ocispecs.Descriptor{}, err
	}
	m := ocispecs.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageManifest}
	for _, s := range statements {
		m.Layers = append(m.Layers, s.Desc)
	}
	config, err := attestationConfig(&m, p.manifest.Desc, *o.OCIArtifact)
	if err != nil {
		return ocispecs.Descriptor{}, err
	}
	data, err := encodeManifest(m)
	if err != nil {
		return ocispecs.Descriptor{}, fmt.Errorf("encode attestation manifest: %w", err)
	}
	b := newBlob(ocispecs.MediaTypeImageManifest, data)
	b.Desc.Platform = &ocispecs.Platform{OS: unknownPlatform, Architecture: unknownPlatform}
	b.Desc.Annotations = map[string]string{
		annotationRefType: refTypeAttestation, annotationRefDigest: p.manifest.Desc.Digest.String(),
	}
	img.Configs = append(append(img.Configs, statements...), config)
	img.Manifests = append(img.Manifests, b)
	return b.Desc, nil
}

// attestationConfig makes the manifest an artifact that refers to target, or an
// image of the statements that old tools take.
func attestationConfig(m *ocispecs.Manifest, target ocispecs.Descriptor, artifact bool) (Blob, error) {
	if artifact {
		m.ArtifactType, m.Config = attestationArtifact, ocispecs.DescriptorEmptyJSON
		m.Subject = &ocispecs.Descriptor{MediaType: target.MediaType, Digest: target.Digest, Size: target.Size}
		d := m.Config
		d.Data = nil
		return Blob{Desc: d, Data: []byte("{}")}, nil
	}
	img := ocispecs.Image{RootFS: ocispecs.RootFS{Type: "layers"}}
	img.OS, img.Architecture = unknownPlatform, unknownPlatform
	for _, s := range m.Layers {
		img.RootFS.DiffIDs = append(img.RootFS.DiffIDs, s.Digest)
	}
	data, err := json.Marshal(img)
	if err != nil {
		return Blob{}, fmt.Errorf("encode attestation config: %w", err)
	}
	b := newBlob(ocispecs.MediaTypeImageConfig, data)
	m.Config = b.Desc
	return b, nil
}

// File is a file that comes with a result.
type File struct {
	Name string
	Data []byte
}

// attestationFiles are the statements about the files in dir, as files.
// Names tell of the platform where the files of several are in one folder.
func (p Platform) attestationFiles(ctx context.Context, dir string, o FilesOptions) ([]File, error) {
	var wanted []Attestation
	for _, a := range p.Attestations {
		if !a.InlineOnly {
			wanted = append(wanted, a)
		}
	}
	if len(wanted) == 0 {
		return nil, nil
	}
	subjects, err := fileSubjects(ctx, dir)
	if err != nil {
		return nil, err
	}
	var out []File
	seen := map[string]bool{}
	for _, a := range wanted {
		data, err := a.Statement(ctx, About{Subjects: subjects})
		if err != nil {
			return nil, fmt.Errorf("make attestation %s%s: %w", a.Path, forPlatform(p.ID), err)
		}
		var text bytes.Buffer
		if err := json.Indent(&text, data, "", "  "); err != nil {
			return nil, fmt.Errorf("format attestation %s: %w", a.Path, err)
		}
		name := o.AttestationPrefix + path.Base(a.Path)
		if p.ID != "" && !o.PlatformSplit {
			suffix, err := PlatformDir(p.ID)
			if err != nil {
				return nil, err
			}
			ext := path.Ext(name)
			name = strings.TrimSuffix(name, ext) + "." + suffix + ext
		}
		if seen[name] {
			return nil, fmt.Errorf("duplicate attestation path name %s: two attestations would be one file", name)
		}
		seen[name] = true
		out = append(out, File{name, text.Bytes()})
	}
	return out, nil
}

// fileSubjects digests the regular files in a directory.
func fileSubjects(ctx context.Context, dir string) (out []Subject, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if !utf8.ValidString(name) && err != nil {
			return fs.SkipDir // JSON has no word for the files in it
		}
		if err != nil || !d.Type().IsRegular() || !utf8.ValidString(name) {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		f, err := root.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		hash := digest.Canonical.Digester()
		if _, err := io.Copy(hash.Hash(), f); err != nil {
			return err
		}
		out = append(out, Subject{File: name, Digest: hash.Digest()})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("digest result's files: %w", err)
	}
	return out, nil
}
