package source

import digest "github.com/opencontainers/go-digest"

// Git is what is known of a pinned git reference.
type Git struct {
	// Checksum is the object that the reference names: a commit or, for an
	// annotated tag, the tag. Hexadecimal, like CommitChecksum.
	Checksum string
	// Ref is the full name of the reference, such as "refs/heads/main", or the
	// commit if a commit was asked for.
	Ref string
	// CommitChecksum is the commit of an annotated tag, otherwise "".
	CommitChecksum string
	// CommitObject and TagObject are the objects as git stores them, without
	// their headers, if asked for by Options.GitObjects.
	CommitObject, TagObject []byte
}

// ChecksumQuery asks for a checksum of a file of any size with Suffix put to its
// end. That is what an OpenPGP signature signs.
type ChecksumQuery struct {
	Algorithm digest.Algorithm // SHA256, SHA384 or SHA512
	Suffix    []byte           // at most MaxChecksumSuffix bytes
}

// MaxChecksumSuffix is the size of the longest suffix in a [ChecksumQuery], bytes.
const MaxChecksumSuffix = 4 << 10
