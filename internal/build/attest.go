package build

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/platforms"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/exporter"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/provenance"
	"github.com/kiln-build/kiln/internal/safepath"
	"github.com/kiln-build/kiln/llb"
)

// attests are the attestations that a request asks for.
type attests struct {
	sbom       *frontend.SBOMRequest
	provenance *provenance.Options // nil for none
	builderID  string              // for the history, which has provenance in any case
}

func parseAttests(opts map[string]string) (a attests, err error) {
	all, err := frontend.AttestOptions(opts)
	if err != nil {
		return a, err
	}
	if a.sbom, err = frontend.SBOMOptions(opts); err != nil {
		return a, err
	}
	values, ok := all[frontend.AttestProvenance]
	if !ok {
		return a, nil
	}
	o, err := provenance.ParseOptions(values)
	a.provenance, a.builderID = &o, o.BuilderID
	return a, err
}

// MaterialsError says that a build which must tell all that it is made of used
// something that cannot be told.
type MaterialsError struct {
	Locals []string         // directories of the client
	Gaps   []provenance.Gap // requests of steps
}

// Error lists them.
func (e *MaterialsError) Error() string {
	text := "provenance materials are incomplete\n\n" +
		"The build requested complete provenance materials, but not all dependencies could be captured."
	if len(e.Locals) > 0 {
		text += "\n\nUncaptured local sources:"
		for _, name := range e.Locals {
			text += "\n  - " + name + "\n    reason: local_source"
		}
	}
	if len(e.Gaps) > 0 {
		text += "\n\nUncaptured requests:"
	}
	for _, g := range e.Gaps {
		text += "\n  - " + g.Name + "\n    method: " + g.Method + "\n    url: " + g.URI + "\n    reason: " + g.Reason
	}
	return text
}

// scan has the SBOM made that a request asks for, unless the frontend did.
func (br *Bridge) scan(ctx context.Context, res *frontend.Result, a attests) error {
	if a.sbom == nil || res.HasSBOM() {
		return nil
	}
	s, err := frontend.NewScanner(ctx, br, *a.sbom, br.builder.Worker.Platforms[0], br.values.Mode)
	if err != nil {
		return err
	}
	v, told := br.req.Opts["no-cache"]
	s.IgnoreCache = told && v == "" // for all stages
	for i := range res.Platforms {
		p := &res.Platforms[i]
		if p.Graph == nil || p.Graph.Root.Vertex == nil {
			continue
		}
		p.Attestations = append(p.Attestations, s.Scan(platformID(*p), p.Graph.Root, nil))
	}
	return nil
}

// platformID names the platform of a result, even if it is the only one.
func platformID(p frontend.PlatformResult) string {
	if p.ID != "" {
		return p.ID
	}
	return platforms.FormatAll(platforms.Normalize(p.Platform))
}

// checkMaterials refuses a build that must be complete and is not.
func (br *Bridge) checkMaterials(res *frontend.Result, a attests) error {
	if a.provenance == nil || !a.provenance.Complete {
		return nil
	}
	for i, p := range res.Platforms {
		if c := br.captureOf(res, i); p.Graph != nil && (c.Incomplete || len(c.Locals) > 0) {
			return &MaterialsError{Locals: c.Locals, Gaps: c.Gaps}
		}
	}
	return nil
}

// captureOf tells what the i-th result depends on.
func (br *Bridge) captureOf(res *frontend.Result, i int) *provenance.Capture {
	var others []*llb.Graph
	var all []ocispecs.Platform
	for _, p := range res.Platforms {
		others = append(others, p.Graph)
		all = append(all, p.Platform)
		for _, a := range p.Attestations {
			others = append(others, a.Graph)
		}
	}
	return br.records.capture(res.Platforms[i].Graph, others, res.Platforms[i].Platform, all)
}

// predicate is the provenance of the i-th result, as it is now.
func (br *Bridge) predicate(res *frontend.Result, i int, ref *layer.Ref, o provenance.Options) ([]byte, error) {
	p := res.Platforms[i]
	c := br.captureOf(res, i)
	br.finished.Do(func() { br.finishedAt = time.Now().UTC() })
	run := provenance.Run{
		ID: br.invocation, Started: br.started, Finished: br.finishedAt, CompatibilityVersion: br.req.CompatibilityVersion,
		Builder: br.builder.Worker.Platforms[0], Custom: br.builder.ProvenanceEnv,
	}
	if run.CompatibilityVersion == 0 {
		run.CompatibilityVersion = exporter.CompatCurrent
	}
	if c.Request.Frontend == "dockerfile.v0" {
		run.DockerfileVersion = br.builder.DockerfileVersion
	}
	if !o.Min {
		run.Layers = layersOf(p.Graph, ref)
	}
	predicate, err := provenance.New(c, p.Graph, run, o)
	if err != nil {
		return nil, err
	}
	return predicate.Encode(o)
}

// layersOf are the blobs of a result's layers, and of those of the steps that it
// builds on as long as each adds one layer. Layers that are no blobs yet have
// none to tell of.
func layersOf(g *llb.Graph, ref *layer.Ref) map[llb.Edge][]ocispecs.Descriptor {
	out := map[llb.Edge][]ocispecs.Descriptor{}
	edge := g.Root
	chain, depth := blobChain(ref)
	for edge.Vertex != nil && ref != nil {
		if depth <= len(chain) {
			out[edge] = chain[:depth:depth]
		}
		below, ok := baseOf(edge)
		if !ok {
			break
		}
		edge, ref, depth = below, ref.Parent(), depth-1
	}
	return out
}

// blobChain are the blobs of a chain of layers, base first, up to the first that
// has none, and how many layers there are.
func blobChain(ref *layer.Ref) (chain []ocispecs.Descriptor, depth int) {
	var layers []*layer.Ref
	for r := ref; r != nil; r = r.Parent() {
		layers = append(layers, r)
	}
	for _, r := range slices.Backward(layers) {
		blobs := r.Record().Blobs
		names := slices.Sorted(maps.Keys(blobs))
		if len(names) == 0 {
			break
		}
		name := names[0]
		if slices.Contains(names, "image") { // as it came
			name = "image"
		}
		d := blobs[name]
		chain = append(chain, ocispecs.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size})
	}
	return chain, len(layers)
}

// baseOf is what a step puts its one layer on top of.
func baseOf(e llb.Edge) (llb.Edge, bool) {
	switch op := e.Vertex.Op.(type) {
	case *llb.ExecOp:
		return baseOfExec(e, op)
	case *llb.FileOp:
		at := slices.IndexFunc(op.Actions, func(a llb.FileStep) bool { return a.Output == e.Index })
		for at >= 0 && at < len(op.Actions) {
			in := op.Actions[at].Input
			if in >= 0 && in < len(e.Vertex.Inputs) {
				return e.Vertex.Inputs[in], true
			}
			at = in - len(e.Vertex.Inputs) // an earlier action, or below 0: nothing
		}
	}
	return llb.Edge{}, false
}

func baseOfExec(e llb.Edge, op *llb.ExecOp) (llb.Edge, bool) {
	for _, m := range op.Mounts {
		if m.Kind == llb.MountBind && m.Output == e.Index && m.Input >= 0 && m.Input < len(e.Vertex.Inputs) && !m.ReadOnly && m.Selector == "" {
			return e.Vertex.Inputs[m.Input], true
		}
	}
	return llb.Edge{}, false
}

// attestations are the statements about a result: those of the frontend and of
// the scanner, and provenance if it was asked for.
func (br *Bridge) attestations(ctx context.Context, res *frontend.Result, i int, ref *layer.Ref, a attests) ([]exporter.Attestation, error) {
	p := res.Platforms[i]
	made := make([][]exporter.Attestation, len(p.Attestations))
	eg, gctx := errgroup.WithContext(ctx)
	for n, att := range p.Attestations {
		eg.Go(func() (err error) {
			made[n], err = br.read(gctx, att)
			return err
		})
	}
	if err := eg.Wait(); err != nil {
		return nil, err
	}
	out := slices.Concat(made...)
	if a.provenance == nil || p.Graph == nil || p.Graph.Root.Vertex == nil {
		return out, nil
	}
	o := *a.provenance
	predicate := sync.OnceValues(func() ([]byte, error) { return br.predicate(res, i, ref, o) })
	return append(out, exporter.Attestation{
		Path: o.Filename, PredicateType: o.PredicateType(), InlineOnly: o.InlineOnly,
		Statement: func(_ context.Context, about exporter.About) ([]byte, error) {
			data, err := predicate()
			if err != nil {
				return nil, err
			}
			return statement(o.PredicateType(), data, nil, about)
		},
	}), nil
}

// maxAttestation is the size of the largest statement that is read, in bytes.
const maxAttestation = 80 << 20

// read reads an attestation that a frontend made. The core of an SBOM comes first.
func (br *Bridge) read(ctx context.Context, att frontend.Attestation) ([]exporter.Attestation, error) {
	ref, err := br.Solve(ctx, att.Graph)
	if err != nil {
		return nil, err
	}
	if att.Graph == nil || att.Graph.Root.Vertex == nil {
		return nil, errors.New("no available content for attestation: the frontend gave no result that holds it")
	}
	if !att.Bundle && provenance.IsProvenance(att.PredicateType) {
		return nil, errors.New("frontend may not set provenance attestations")
	}
	if !att.Bundle && att.Path == "" {
		return nil, errors.New("attestation does not have set path")
	}
	var out []exporter.Attestation
	err = ref.(*Ref).WithRoot(ctx, func(root *safepath.Root) error {
		if !att.Bundle {
			data, err := root.ReadFile(att.Path, maxAttestation)
			if err != nil {
				return fmt.Errorf("cannot read in-toto attestation: %w", err)
			}
			out = []exporter.Attestation{br.given(att, att.Path, att.PredicateType, data, att.Subjects)}
			return nil
		}
		out, err = br.unbundle(root, att)
		return err
	})
	if err != nil {
		return nil, err
	}
	core := string(att.Meta[frontend.AttestationSBOMCore])
	slices.SortStableFunc(out, func(x, y exporter.Attestation) int { return rank(y, core) - rank(x, core) })
	return out, nil
}

// rank is 1 for the file of an SBOM that is about the result itself.
func rank(a exporter.Attestation, core string) int {
	if isCore(a.Path, core) {
		return 1
	}
	return 0
}

func isCore(name, core string) bool {
	stem, _, _ := strings.Cut(path.Base(name), ".")
	return core != "" && stem == core
}

// unbundle reads the statements of a folder.
func (br *Bridge) unbundle(root *safepath.Root, att frontend.Attestation) (out []exporter.Attestation, err error) {
	dir := att.Path
	if dir == "" {
		dir = "/"
	}
	entries, err := root.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read bundle of attestations: %w", err)
	}
	for _, e := range entries {
		name := path.Join(att.Path, e.Name())
		data, err := root.ReadFile(path.Join(dir, e.Name()), maxAttestation)
		if err != nil {
			return nil, fmt.Errorf("read bundle of attestations: %w", err)
		}
		s, err := provenance.ReadStatement(data)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		if provenance.IsProvenance(s.PredicateType) {
			return nil, errors.New("frontend may not bundle provenance attestations")
		}
		if att.PredicateType != "" && s.PredicateType != att.PredicateType {
			return nil, fmt.Errorf("bundle entry %s does not match required predicate type %s", s.PredicateType, att.PredicateType)
		}
		var subjects []frontend.Subject
		for _, sub := range s.Subject {
			given := frontend.Subject{Name: sub.Name}
			for algorithm, hex := range sub.Digest {
				given.Digests = append(given.Digests, digest.Digest(algorithm+":"+hex))
			}
			subjects = append(subjects, given)
		}
		out = append(out, br.given(att, name, s.PredicateType, s.Predicate, subjects))
	}
	return out, nil
}

// given is an attestation that a frontend made.
func (br *Bridge) given(att frontend.Attestation, name, predicateType string, predicate []byte, subjects []frontend.Subject) exporter.Attestation {
	supplement := predicateType == provenance.PredicateSPDX && isCore(name, string(att.Meta[frontend.AttestationSBOMCore]))
	return exporter.Attestation{
		Path: name, PredicateType: predicateType, InlineOnly: string(att.Meta[frontend.AttestationInlineOnly]) == "true",
		Statement: func(ctx context.Context, about exporter.About) (_ []byte, err error) {
			data := predicate
			if supplement && about.LayerOf != nil {
				if data, err = provenance.SupplementSPDX(ctx, data, "kiln-"+br.builder.Version, about.LayerOf); err != nil {
					return nil, err
				}
			}
			return statement(predicateType, data, subjects, about)
		},
	}
}

// statement puts a predicate and what it is about together.
func statement(predicateType string, predicate []byte, given []frontend.Subject, about exporter.About) ([]byte, error) {
	if len(given) == 0 {
		given = []frontend.Subject{{Self: true}}
	}
	var subjects []provenance.Subject
	for _, g := range given {
		if !g.Self {
			name := g.Name
			if name == "" {
				name = "_"
			}
			subjects = append(subjects, provenance.NamedSubject(name, g.Digests...))
			continue
		}
		for _, s := range about.Subjects {
			one := provenance.FileSubject(s.File, s.Digest)
			if s.Image != "" {
				var err error
				if one, err = provenance.ImageSubject(s.Image, s.Platform, s.Digest); err != nil {
					return nil, err
				}
			}
			subjects = append(subjects, one)
			if g.Name != "" && g.Name != "_" {
				subjects = append(subjects, provenance.Subject{Name: g.Name, Digest: one.Digest})
			}
		}
	}
	return provenance.NewStatement(predicateType, predicate, subjects).Encode()
}

// attest makes the statements about all results.
func (br *Bridge) attest(ctx context.Context, res *frontend.Result, in *exporter.Input, a attests) error {
	if err := br.checkMaterials(res, a); err != nil {
		return err
	}
	for i := range res.Platforms {
		var err error
		if in.Platforms[i].Attestations, err = br.attestations(ctx, res, i, in.Platforms[i].Ref, a); err != nil {
			return err
		}
	}
	return nil
}

// recordProvenance hands the whole provenance of every result to the history.
func (br *Bridge) recordProvenance(res *frontend.Result, in exporter.Input, a attests) {
	if br.req.Attested == nil {
		return
	}
	o := provenance.Options{BuilderID: a.builderID, Version: provenance.V1}
	for i, p := range res.Platforms {
		if p.Graph == nil || p.Graph.Root.Vertex == nil {
			continue
		}
		data, err := br.predicate(res, i, in.Platforms[i].Ref, o)
		if err != nil {
			slog.Error("record provenance", "ref", br.req.Ref, "error", err) // the build is none the worse
			continue
		}
		br.req.Attested(p.ID, o.PredicateType(), data)
	}
}
