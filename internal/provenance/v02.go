package provenance

import "time"

// predicate02 is SLSA's provenance, version 0.2.
type predicate02 struct {
	Builder     Builder      `json:"builder"`
	BuildType   string       `json:"buildType"`
	Materials   []Material   `json:"materials,omitempty"`
	Invocation  invocation   `json:"invocation"`
	BuildConfig *BuildConfig `json:"buildConfig,omitempty"`
	Metadata    metadata02   `json:"metadata"`
}

type invocation struct {
	ConfigSource configSource02 `json:"configSource"`
	Parameters   Parameters     `json:"parameters"`
	Environment  environment    `json:"environment"`
}

type configSource02 struct {
	URI        string    `json:"uri,omitempty"`
	Digest     DigestSet `json:"digest,omitempty"`
	EntryPoint string    `json:"entryPoint,omitempty"`
}

type environment struct {
	Platform          string         `json:"platform"`
	DockerfileVersion string         `json:"dockerfileVersion,omitempty"`
	Custom            map[string]any `json:"-"`
}

// MarshalJSON writes the fields and Custom as one object.
func (e environment) MarshalJSON() ([]byte, error) {
	type plain environment
	return withCustom(plain(e), e.Custom)
}

type metadata02 struct {
	BuildInvocationID string         `json:"buildInvocationID,omitempty"`
	BuildStartedOn    *time.Time     `json:"buildStartedOn,omitempty"`
	BuildFinishedOn   *time.Time     `json:"buildFinishedOn,omitempty"`
	Completeness      completeness02 `json:"completeness"`
	Reproducible      bool           `json:"reproducible"`
	BuildKit          Extra          `json:"https://mobyproject.org/buildkit@v1#metadata"`
	Hermetic          bool           `json:"https://mobyproject.org/buildkit@v1#hermetic,omitempty"`
}

type completeness02 struct {
	Parameters  bool `json:"parameters"`
	Environment bool `json:"environment"`
	Materials   bool `json:"materials"`
}

// v02 says the same in the words of version 0.2.
func (p *Predicate) v02() predicate02 {
	in, ext, m := p.BuildDefinition.InternalParameters, p.BuildDefinition.ExternalParameters, p.RunDetails.Metadata
	return predicate02{
		Builder: p.RunDetails.Builder, BuildType: buildType02, Materials: p.BuildDefinition.ResolvedDependencies,
		Invocation: invocation{
			ConfigSource: configSource02{ext.ConfigSource.URI, ext.ConfigSource.Digest, ext.ConfigSource.Path},
			Parameters:   ext.Request,
			Environment:  environment{in.BuilderPlatform, in.DockerfileVersion, in.Custom},
		},
		BuildConfig: in.BuildConfig,
		Metadata: metadata02{
			BuildInvocationID: m.InvocationID, BuildStartedOn: m.StartedOn, BuildFinishedOn: m.FinishedOn,
			Completeness: completeness02{m.Completeness.Request, true, m.Completeness.ResolvedDependencies},
			Reproducible: m.Reproducible, BuildKit: m.BuildKit, Hermetic: m.Hermetic,
		},
	}
}
