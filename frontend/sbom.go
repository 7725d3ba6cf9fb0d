package frontend

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/distribution/reference"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/llb"
)

// Keys of [Attestation.Meta] and what they may say.
const (
	AttestationReason     = "reason" // why it was made: AttestSBOM or AttestProvenance
	AttestationSBOMCore   = "sbom-core"
	AttestationInlineOnly = "inline-only" // "true": for images in a store only
)

// PredicateSPDX is the type of an SBOM's predicate.
const PredicateSPDX = "https://spdx.dev/Document"

// defaultScanner is the image that scans unless the user names another.
const defaultScanner = "docker/buildkit-syft-scanner:stable-1"

// SBOMRequest is what a request says of the SBOM it asks for.
type SBOMRequest struct {
	Generator string            // the scanner's image
	Params    map[string]string // for the scanner: BUILDKIT_SCAN_<key>=<value>
}

// SBOMOptions reads what a request says of its SBOM; nil if it asks for none.
func SBOMOptions(opts map[string]string) (*SBOMRequest, error) {
	all, err := AttestOptions(opts)
	if err != nil {
		return nil, err
	}
	values, ok := all[AttestSBOM]
	if !ok {
		return nil, nil
	}
	r := &SBOMRequest{Generator: defaultScanner, Params: maps.Clone(values)}
	if v, told := values["generator"]; told {
		r.Generator = v
	}
	delete(r.Params, "generator")
	if r.Generator == "" {
		return nil, errors.New("sbom generator cannot be empty: name an image")
	}
	ref, err := reference.ParseNormalizedNamed(r.Generator)
	if err != nil {
		return nil, fmt.Errorf("failed to parse sbom generator %s: %w", r.Generator, err)
	}
	r.Generator = reference.TagNameOnly(ref).String()
	return r, nil
}

// Where a scanner finds what it is to scan, and where it writes (BuildKit's
// docs/attestations).
const (
	scanCore   = "/run/src/core/sbom"
	scanExtras = "/run/src/extras"
	scanOut    = "/run/out/"
)

// sbomName is the name of the scan of the result itself; those of other stages
// and contexts begin with it.
const sbomName = "sbom"

// Scanner runs the image that makes SBOMs.
type Scanner struct {
	request  SBOMRequest
	platform ocispecs.Platform
	image    *llb.SourceOp
	config   ocispecs.ImageConfig
	// IgnoreCache scans anew what was scanned before.
	IgnoreCache bool
}

// NewScanner looks up the scanner's image for a platform; mode is as in
// [ResolveOpt].
func NewScanner(ctx context.Context, gw Gateway, r SBOMRequest, platform ocispecs.Platform, mode string) (*Scanner, error) {
	op := &llb.SourceOp{Identifier: "docker-image://" + r.Generator}
	meta, err := gw.ResolveSource(ctx, op, ResolveOpt{Platform: &platform, Mode: mode, LogName: "resolve image config for " + op.Identifier})
	if err != nil {
		return nil, fmt.Errorf("resolve SBOM scanner %s: %w", r.Generator, err)
	}
	s := &Scanner{request: r, platform: platform, image: op}
	if meta.Op != nil {
		s.image = meta.Op
	}
	var img ocispecs.Image
	if err := json.Unmarshal(meta.Config, &img); err != nil {
		return nil, fmt.Errorf("decode config of SBOM scanner %s: %w", r.Generator, err)
	}
	s.config = img.Config
	if len(img.Config.Entrypoint)+len(img.Config.Cmd) == 0 {
		return nil, fmt.Errorf("scanner %s does not have cmd: expected an image with an entrypoint or a command", r.Generator)
	}
	return s, nil
}

// Scan makes the attestation of what is in core, the result for the platform
// called name. extras are other file systems that are worth a look, by name.
func (s *Scanner) Scan(name string, core llb.Edge, extras map[string]llb.Edge) Attestation {
	image := &llb.Vertex{Op: s.image, Platform: &s.platform}
	v := &llb.Vertex{Inputs: []llb.Edge{{Vertex: image}}, Platform: &s.platform, Meta: llb.Metadata{
		IgnoreCache: s.IgnoreCache,
		Description: map[string]string{"llb.customname": fmt.Sprintf("[%s] generating sbom using %s", name, s.request.Generator)},
	}}
	op := &llb.ExecOp{
		Args: slices.Concat(s.config.Entrypoint, s.config.Cmd), Cwd: s.config.WorkingDir,
		Env:    append(slices.Clone(s.config.Env), "BUILDKIT_SCAN_DESTINATION="+scanOut, "BUILDKIT_SCAN_SOURCE="+scanCore),
		Mounts: []llb.Mount{{Input: 0, Dest: "/", Output: 0}},
	}
	if op.Cwd == "" {
		op.Cwd = "/"
	}
	mount := func(dest string, e llb.Edge) {
		in := llb.None
		if e.Vertex != nil {
			in = slices.Index(v.Inputs, e)
			if in < 0 {
				in = len(v.Inputs)
				v.Inputs = append(v.Inputs, e)
			}
		}
		op.Mounts = append(op.Mounts, llb.Mount{Input: in, Dest: dest, Output: llb.None, ReadOnly: true})
	}
	mount(scanCore, core)
	if len(extras) > 0 {
		op.Env = append(op.Env, "BUILDKIT_SCAN_SOURCE_EXTRAS="+scanExtras)
	}
	for _, extra := range slices.Sorted(maps.Keys(extras)) {
		mount(scanExtras+"/"+sbomName+"-"+extra, extras[extra])
	}
	for _, key := range slices.Sorted(maps.Keys(s.request.Params)) {
		op.Env = append(op.Env, "BUILDKIT_SCAN_"+key+"="+s.request.Params[key])
	}
	op.Mounts = append(op.Mounts,
		llb.Mount{Kind: llb.MountTmpfs, Input: llb.None, Dest: "/tmp", Output: llb.None},
		llb.Mount{Input: llb.None, Dest: scanOut, Output: 1},
	)
	v.Op = op
	return Attestation{
		Bundle: true, PredicateType: PredicateSPDX, Graph: &llb.Graph{Root: llb.Edge{Vertex: v, Index: 1}},
		Meta: map[string][]byte{AttestationReason: []byte(AttestSBOM), AttestationSBOMCore: []byte(sbomName)},
	}
}

// HasSBOM tells whether a result brings an SBOM of its own.
func (r *Result) HasSBOM() bool {
	for _, p := range r.Platforms {
		for _, a := range p.Attestations {
			if a.PredicateType == PredicateSPDX {
				return true
			}
		}
	}
	return false
}
