// Package source defines how files are brought in from outside.
//
// A source is used in two steps: Resolve pins what an identifier means now (a
// tag becomes a digest), which is all that the cache needs; Fetch makes the
// files of a pin available, as late as possible. Implementations live below
// this folder and pass the suite in sourcetest.
package source

import (
	"context"
	"fmt"
	"strings"
	"time"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/llb"
)

// Source brings files in. Sessions, credentials and progress come in the
// context (session.FromContext, progress.StepFrom).
type Source interface {
	// Schemes are the identifiers that the source takes, such as "docker-image".
	Schemes() []string
	// Resolve pins what op means now.
	Resolve(ctx context.Context, op *llb.SourceOp, opt Options) (*Pin, error)
	// Fetch returns the files of a pin. Nil is the empty file system.
	Fetch(ctx context.Context, pin *Pin) (*layer.Ref, error)
}

// Options say how to resolve.
type Options struct {
	Platform ocispecs.Platform
	Mode     string // "default", "pull" or "local"; for images
	// WantConfig asks for Pin.Config.
	WantConfig bool
	// WantChain asks for Pin.Chain; Attestations for the statements of these
	// predicate types in it.
	WantChain    bool
	Attestations []string
	// GitObjects asks for the objects in Pin.Git; Checksum for Pin.Checksum.
	GitObjects bool
	Checksum   *ChecksumQuery
	// WritableFiles gives the files of git repositories the modes of BuildKit before
	// 0.15: 0666 where it is 0644 now.
	WritableFiles bool
}

// AttestationChain is the documents that vouch for an image. A digest is "" if
// there is no such document.
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

// UnknownAttr is the error for an attribute that no source of its scheme has.
// Names without a dot belong to nobody: a policy may leave its marks there.
func UnknownAttr(key string) error {
	if !strings.Contains(key, ".") {
		return nil
	}
	return fmt.Errorf("attribute %q is not known", key)
}

// Pin is a source, pinned: fetching it gives the same files at any time.
type Pin struct {
	Op       *llb.SourceOp
	Platform ocispecs.Platform
	// Key is the text that the cache key is made of (by BuildKit's source packages). One that
	// begins with "session:" holds for one session only and counts by content.
	Key          string
	Digest       digest.Digest     // of the manifest, the file or the commit
	Config       []byte            // image config JSON, if asked for
	Chain        *AttestationChain // what vouches for an image, if asked for and there is any
	Name         string            // a file's name, for http
	LastModified *time.Time
	Checksum     digest.Digest // of the file and Options.Checksum's suffix, for http
	Git          *Git          // for git
	Private      any           // for the source that made the pin
}
