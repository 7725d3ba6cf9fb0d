package provenance

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/containerd/platforms"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/llb"
)

// The build types: who reads a predicate knows by them how to read it.
const (
	buildType1  = "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md"
	buildType02 = "https://mobyproject.org/buildkit@v1"
)

// Predicate is SLSA's provenance, version 1.
type Predicate struct {
	BuildDefinition Definition `json:"buildDefinition"`
	RunDetails      RunDetails `json:"runDetails"`
}

// Definition says what was built and of what.
type Definition struct {
	BuildType            string             `json:"buildType"`
	ResolvedDependencies []Material         `json:"resolvedDependencies,omitempty"`
	ExternalParameters   ExternalParameters `json:"externalParameters"`
	InternalParameters   InternalParameters `json:"internalParameters"`
}

// Material is something that the result was made of.
type Material struct {
	URI    string    `json:"uri,omitempty"`
	Digest DigestSet `json:"digest,omitempty"`
}

// ExternalParameters are what the user controls.
type ExternalParameters struct {
	ConfigSource ConfigSource `json:"configSource"`
	Request      Parameters   `json:"request"`
}

// InternalParameters are what the builder controls. Custom is written beside
// the other fields.
type InternalParameters struct {
	BuildConfig       *BuildConfig   `json:"buildConfig,omitempty"`
	BuilderPlatform   string         `json:"builderPlatform"`
	DockerfileVersion string         `json:"dockerfileVersion,omitempty"`
	Custom            map[string]any `json:"-"`
}

// MarshalJSON writes the fields and Custom as one object.
func (p InternalParameters) MarshalJSON() ([]byte, error) {
	type plain InternalParameters
	return withCustom(plain(p), p.Custom)
}

// RunDetails say who built it and when.
type RunDetails struct {
	Builder  Builder  `json:"builder"`
	Metadata Metadata `json:"metadata"`
}

// Builder names who built.
type Builder struct {
	ID string `json:"id"`
}

// Metadata is of one run of the build.
type Metadata struct {
	InvocationID string       `json:"invocationId,omitempty"`
	StartedOn    *time.Time   `json:"startedOn,omitempty"`
	FinishedOn   *time.Time   `json:"finishedOn,omitempty"`
	BuildKit     Extra        `json:"buildkit_metadata"`
	Hermetic     bool         `json:"buildkit_hermetic,omitempty"`
	Completeness Completeness `json:"buildkit_completeness"`
	Reproducible bool         `json:"buildkit_reproducible,omitempty"`
}

// Completeness says whether everything is told.
type Completeness struct {
	Request              bool `json:"request"`
	ResolvedDependencies bool `json:"resolvedDependencies"`
}

// Extra is what SLSA has no place for.
type Extra struct {
	VCS    map[string]string                  `json:"vcs,omitempty"`
	Source *Source                            `json:"source,omitempty"`
	Layers map[string][][]ocispecs.Descriptor `json:"layers,omitempty"`
	// Network tells how steps reached the network, if that was controlled.
	Network *Network `json:"network,omitempty"`
}

// Network is the mode of a controlled network, such as "proxy".
type Network struct {
	Mode  string         `json:"mode,omitempty"`
	Proxy *ProxiedDetail `json:"proxy,omitempty"`
}

// ProxiedDetail is what is to be told of the proxy network.
type ProxiedDetail struct {
	Incomplete []Gap `json:"incomplete,omitempty"`
}

// Run is what is to be told of a build beside what it depends on.
type Run struct {
	ID                   string // of this run of the build, and of no other
	Started, Finished    time.Time
	CompatibilityVersion int
	Builder              ocispecs.Platform
	DockerfileVersion    string         // "" if the Dockerfile frontend was not used
	Custom               map[string]any // what the daemon's owner adds
	// Layers are those of the results of steps, by vertex and output.
	Layers map[llb.Edge][]ocispecs.Descriptor
}

// New makes the predicate of a result: g made it, c is what it depends on.
func New(c *Capture, g *llb.Graph, run Run, o Options) (*Predicate, error) {
	materials, err := c.materials()
	if err != nil {
		return nil, err
	}
	request := NewRequest(c.Request.Frontend, c.Request.Args, c)
	p := &Predicate{
		BuildDefinition: Definition{
			BuildType: buildType1, ResolvedDependencies: materials,
			ExternalParameters: ExternalParameters{ConfigSource: request.ConfigSource, Request: c.Request},
			InternalParameters: InternalParameters{
				BuilderPlatform: platforms.Format(platforms.Normalize(run.Builder)), DockerfileVersion: run.DockerfileVersion, Custom: run.Custom,
			},
		},
		RunDetails: RunDetails{Builder: Builder{ID: o.BuilderID}},
	}
	r := &p.BuildDefinition.ExternalParameters.Request
	r.Args, r.CompatibilityVersion = maps.Clone(request.Request.Args), run.CompatibilityVersion
	r.Locals = nil
	for _, name := range c.Locals {
		r.Locals = append(r.Locals, Local{Name: name})
	}
	complete := !c.Incomplete && len(c.Locals) == 0
	m := &p.RunDetails.Metadata
	*m = Metadata{
		InvocationID: run.ID, StartedOn: &run.Started, FinishedOn: &run.Finished, Reproducible: o.Reproducible,
		Hermetic:     complete && !c.Network,
		Completeness: Completeness{Request: c.Request.Frontend != "", ResolvedDependencies: complete},
	}
	m.BuildKit.VCS = takeVCS(r.Args)
	if c.Proxied {
		m.BuildKit.Network = &Network{Mode: "proxy"}
		if len(c.Gaps) > 0 {
			m.BuildKit.Network.Proxy = &ProxiedDetail{Incomplete: c.Gaps}
		}
	}
	if o.Min {
		if r.scrub() {
			m.Completeness.Request = false
		}
		return p, nil
	}
	return p, p.addConfig(g, run)
}

// addConfig tells how it was built.
func (p *Predicate) addConfig(g *llb.Graph, run Run) error {
	config, index, err := newBuildConfig(g)
	if err != nil || config == nil {
		return err
	}
	p.BuildDefinition.InternalParameters.BuildConfig = config
	extra := &p.RunDetails.Metadata.BuildKit
	if extra.Source, err = newSource(g, index); err != nil {
		return err
	}
	for e, layers := range run.Layers {
		if i, ok := index[e.Vertex.Digest()]; ok {
			if extra.Layers == nil {
				extra.Layers = map[string][][]ocispecs.Descriptor{}
			}
			extra.Layers[fmt.Sprintf("%s:%d", stepID(i), e.Index)] = [][]ocispecs.Descriptor{layers}
		}
	}
	return nil
}

// takeVCS takes what the client said of its version control out of the arguments.
func takeVCS(args map[string]string) map[string]string {
	vcs := map[string]string{}
	for k, v := range args {
		key, ok := strings.CutPrefix(k, "vcs:")
		if !ok {
			continue
		}
		delete(args, k)
		if key == "source" {
			v = redact(v)
		}
		if v != "" {
			vcs[key] = v
		}
	}
	if len(vcs) == 0 {
		return nil
	}
	return vcs
}

// materials are the sources as SLSA lists them.
func (c *Capture) materials() (out []Material, err error) {
	add := func(kind, ref string, platform *ocispecs.Platform, d DigestSet, more ...qualifier) {
		uri, e := packageURL(kind, ref, platform, more...)
		if err == nil {
			err = e
		}
		out = append(out, Material{URI: uri, Digest: d})
	}
	kind := map[bool]string{false: purlDocker, true: purlOCI}
	for _, i := range c.Images {
		add(kind[i.Layout], i.Ref, i.Platform, digestSet(i.Digest))
	}
	for _, b := range c.Blobs {
		add(kind[b.Layout], b.Ref, nil, digestSet(b.Digest), qualifier{"ref_type", "blob"})
	}
	for _, g := range c.Git {
		out = append(out, Material{URI: g.URL, Digest: commitDigest(g.Commit)})
		scheme, rest, _ := strings.Cut(g.Bundle, "://")
		ref, d, ok := strings.Cut(rest, "@")
		if ok {
			add(kind[scheme == "oci-layout+blob"], ref, nil, digestSet(digest.Digest(d)),
				qualifier{"ref_type", "bundle"}, qualifier{"vcs_url", g.URL})
		}
	}
	for _, h := range c.HTTP {
		out = append(out, Material{URI: h.URL, Digest: digestSet(h.Digest)})
	}
	return out, err
}

func digestSet(d digest.Digest) DigestSet {
	algorithm, hex, ok := strings.Cut(string(d), ":")
	if !ok {
		return nil
	}
	return DigestSet{algorithm: hex}
}

// commitDigest is a commit's id by the algorithm that its length tells.
func commitDigest(commit string) DigestSet {
	if len(commit) == 64 {
		return DigestSet{"sha256": commit}
	}
	return DigestSet{"sha1": commit}
}

// withCustom writes v, an object, with more fields.
func withCustom(v any, custom map[string]any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil || len(custom) == 0 {
		return data, err
	}
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(data, &fields); err != nil {
		return nil, err
	}
	for k, v := range custom {
		if fields[k], err = json.Marshal(v); err != nil {
			return nil, fmt.Errorf("encode %q, which the daemon's configuration adds to provenance: %w", k, err)
		}
	}
	return json.Marshal(fields)
}
