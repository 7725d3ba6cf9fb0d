package build

import (
	"strings"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/source"
)

// askMore passes on what else a frontend wants to know of a source.
func askMore(so *source.Options, opt frontend.ResolveOpt) {
	so.GitObjects = opt.GitObjects
	if q := opt.Checksum; q != nil {
		so.Checksum = &source.ChecksumQuery{Algorithm: q.Algorithm, Suffix: q.Suffix}
	}
}

// tellMore adds what only some sources tell.
func tellMore(m *frontend.SourceMeta, pin *source.Pin, so source.Options) *frontend.SourceMeta {
	if g := pin.Git; g != nil {
		m.Git = &frontend.GitMeta{
			Checksum: g.Checksum, Ref: g.Ref, CommitChecksum: g.CommitChecksum, CommitObject: g.CommitObject, TagObject: g.TagObject,
		}
	}
	if id := pin.Op.Identifier; strings.HasPrefix(id, "http://") || strings.HasPrefix(id, "https://") {
		m.HTTP = &frontend.HTTPMeta{Filename: pin.Name, LastModified: pin.LastModified, Checksum: pin.Checksum}
		if so.Checksum != nil {
			m.HTTP.Suffix = so.Checksum.Suffix
		}
	}
	return m
}
