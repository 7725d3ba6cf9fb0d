package frontend

import (
	"time"

	digest "github.com/opencontainers/go-digest"
)

// GitMeta is what is known of a git reference. Checksums are hexadecimal names of
// objects.
type GitMeta struct {
	Checksum       string // a commit or, for an annotated tag, the tag
	Ref            string // the reference's full name, or the commit that was asked for
	CommitChecksum string // the commit of an annotated tag, otherwise ""
	// CommitObject and TagObject are as git stores them, without their headers,
	// if ResolveOpt.GitObjects asked for them.
	CommitObject, TagObject []byte
}

// HTTPMeta is what is known of a file at a URL, besides its digest.
type HTTPMeta struct {
	Filename     string
	LastModified *time.Time    // nil if the server does not say
	Checksum     digest.Digest // what ResolveOpt.Checksum asked for, of the file and Suffix
	Suffix       []byte
}

// ChecksumQuery asks for a checksum of a file with something put to its end.
type ChecksumQuery struct {
	Algorithm digest.Algorithm // SHA256, SHA384 or SHA512
	Suffix    []byte           // at most 4 KiB
}
