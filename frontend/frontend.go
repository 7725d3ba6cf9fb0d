// Package frontend is the contract between a source language and Kiln: a
// frontend reads a build file and makes it a graph of package llb.
//
// A frontend sees the world through its [Gateway] alone. It knows neither the
// solver nor the cache nor how containers run, so the same code can run in the
// daemon, in a client or as an image.
package frontend

import (
	"context"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/llb"
)

// Frontend turns a request into a result.
type Frontend interface {
	Build(ctx context.Context, req Request, gw Gateway) (*Result, error)
}

// Request is what the user asked a frontend for.
type Request struct {
	// Opts are the frontend's options, such as "target" or "build-arg:NAME". For the
	// Dockerfile frontend they are listed in BuildKit's frontend/dockerui.
	Opts map[string]string
	// Inputs are graphs handed over by name in place of named contexts.
	Inputs map[string]*llb.Graph
	// Worker is the platform that steps run on unless they say otherwise.
	Worker ocispecs.Platform
}

// Gateway is how a frontend acts on the world.
type Gateway interface {
	// Solve evaluates a graph lazily: the result's files are there when read.
	Solve(ctx context.Context, g *llb.Graph) (Ref, error)
	// ResolveSource pins a source and tells what is known of it without fetching it whole.
	ResolveSource(ctx context.Context, op *llb.SourceOp, opt ResolveOpt) (*SourceMeta, error)
	// Warn tells the user of something that stops nothing.
	Warn(ctx context.Context, vertex digest.Digest, w Warning)
}

// Ref is an evaluated, or soon to be evaluated, file system.
type Ref interface {
	// ReadFile returns a file's content, at most 16 MiB of it. The error for a
	// missing file is fs.ErrNotExist.
	ReadFile(ctx context.Context, path string) ([]byte, error)
	// Evaluate runs what is needed for the files to be there.
	Evaluate(ctx context.Context) error
}

// ResolveOpt says how to resolve a source.
type ResolveOpt struct {
	Platform *ocispecs.Platform
	Mode     string // "default", "pull" or "local"
	LogName  string // what to show while resolving
	Image    ImageQuery
	// GitObjects asks for the objects in SourceMeta.Git; Checksum for the
	// checksum in SourceMeta.HTTP.
	GitObjects bool
	Checksum   *ChecksumQuery
}

// ImageQuery says what else to find out about an image.
type ImageQuery struct {
	NoConfig         bool // the config is not wanted
	AttestationChain bool // what vouches for it is wanted
	// Attestations asks for the statements of these predicate types with the chain.
	Attestations []string
}

// AttestationChain is the documents that vouch for an image (BuildKit's
// frontend/gateway/pb/gateway.proto). A digest is "" if there is no such document.
type AttestationChain struct {
	Root, ImageManifest, AttestationManifest digest.Digest
	SignatureManifests                       []digest.Digest
	Blobs                                    map[digest.Digest]Blob
}

// Blob is a document of a registry, with its bytes.
type Blob struct {
	Desc ocispecs.Descriptor
	Data []byte
}

// SourceMeta is what is known of a source.
type SourceMeta struct {
	Op     *llb.SourceOp // pinned; policy may have changed it
	Digest digest.Digest
	Config []byte            // an image's config, JSON
	Chain  *AttestationChain // of an image, if it was asked for
	Git    *GitMeta          // of a git reference
	HTTP   *HTTPMeta         // of a file at a URL
}

// Warning is a remark on a build file.
type Warning struct {
	Level  int
	Short  string
	Detail []string
	URL    string
	File   *llb.SourceFile
	Ranges []llb.Range
}

// Result is what a frontend made: for each platform a graph and, in Meta, an image
// config and the like by the keys of BuildKit's exporter/containerimage/exptypes.
type Result struct {
	Platforms []PlatformResult // one without ID if the build has but one platform
	Meta      map[string][]byte
}

// PlatformResult is the result for one platform.
type PlatformResult struct {
	ID       string // such as "linux/arm64"; empty in a build for one platform
	Platform ocispecs.Platform
	Graph    *llb.Graph
	Config   []byte // image config JSON, nil for the default
	// Attestations are statements about the result, such as an SBOM.
	Attestations []Attestation
}

// Attestation is a statement about a result, as a frontend made it (BuildKit's
// docs/attestations).
type Attestation struct {
	Bundle        bool              // Graph holds a folder of statements at Path, else one predicate
	Meta          map[string][]byte // what the frontend adds
	Graph         *llb.Graph        // nil if the content is elsewhere
	Path          string            // in the graph's files
	PredicateType string            // a URI
	Subjects      []Subject         // none stands for the result itself
}

// Subject is what an attestation speaks of.
type Subject struct {
	Self    bool            // the result itself; else what Name and Digests say
	Name    string          // a purl or a path
	Digests []digest.Digest // of the subject
}

// SourceError is an error at a place in a build file.
type SourceError struct {
	File   llb.SourceFile
	Ranges []llb.Range
	Err    error
}

// Error is the underlying error's text.
func (e *SourceError) Error() string { return e.Err.Error() }

// Unwrap returns the underlying error.
func (e *SourceError) Unwrap() error { return e.Err }
