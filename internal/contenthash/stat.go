package contenthash

import (
	"crypto/sha256"
	"hash"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/safepath"
)

// Stat is what of a file's metadata makes part of its digest.
type Stat struct {
	Mode               fs.FileMode
	UID, GID           uint32
	Size               int64  // bytes, counts for regular files only
	Linkname           string // target of a symlink; for other files the path of what they are a hard link of
	Devmajor, Devminor int64
	Xattrs             map[string][]byte
}

// NewHash begins the digest of a file: whoever has the content writes it, all
// of it, and then [Sum] is the file's digest for [Tree.Put]. What is no regular
// file has no content.
func NewHash(st Stat) hash.Hash {
	h := sha256.New()
	h.Write(header(st))
	return h
}

// Sum is the digest of what was written to h.
func Sum(h hash.Hash) digest.Digest { return digest.NewDigest(digest.SHA256, h) }

// header is the form in which Docker's "tarsum v1" wrote a tar header, of an
// entry without name. BuildKit kept it, so it is part of every cache key.
func header(st Stat) []byte {
	var size int64
	var linkname string
	typeflag := byte('0') // also of what tar has no type for: sockets
	switch t := st.Mode; {
	case t.IsDir():
		typeflag = '5'
	case t&fs.ModeSymlink != 0:
		typeflag, linkname = '2', st.Linkname
	case t&fs.ModeDevice != 0 && t&fs.ModeCharDevice != 0:
		typeflag = '3'
	case t&fs.ModeDevice != 0:
		typeflag = '4'
	case t&fs.ModeNamedPipe != 0:
		typeflag = '6'
	default:
		size = st.Size
	}
	b := make([]byte, 0, 160)
	number := func(name string, n int64) { b = strconv.AppendInt(append(b, name...), n, 10) }
	b = append(b, "name"...)
	number("mode", int64(safepath.UnixPerm(st.Mode)))
	number("uid", int64(st.UID))
	number("gid", int64(st.GID))
	number("size", size)
	b = append(append(b, "typeflag"...), typeflag)
	b = append(append(b, "linkname"...), linkname...)
	b = append(b, "unamegname"...)
	number("devmajor", st.Devmajor)
	number("devminor", st.Devminor)
	for _, k := range slices.Sorted(maps.Keys(st.Xattrs)) {
		if counts(k) {
			b = append(append(b, k...), st.Xattrs[k]...)
		}
	}
	return b
}

// counts says whether an xattr makes part of the digest: what a security
// module or the system labels files with differs from machine to machine.
func counts(xattr string) bool {
	return xattr == "security.capability" || !strings.HasPrefix(xattr, "security.") && !strings.HasPrefix(xattr, "system.")
}

// statOf is the Stat of a file on disk. Device numbers stay 0: BuildKit never
// counts them when it reads a tree from disk, so neither must we.
func statOf(fi fs.FileInfo, linkname string, xattrs map[string][]byte) Stat {
	st := Stat{Mode: fi.Mode(), Size: fi.Size(), Linkname: linkname, Xattrs: xattrs}
	if sys, ok := fi.Sys().(*syscall.Stat_t); ok {
		st.UID, st.GID = sys.Uid, sys.Gid
	}
	return st
}
