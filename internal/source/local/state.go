package local

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/contenthash"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/session/files"
)

// state is what a client sent last. It is not changed once it is complete.
type state struct {
	id      string
	ref     *layer.Ref // nil if there are no files
	depth   int        // layers on top of each other
	entries []entry    // in the protocol's order
	extra   *entry     // a file beside them; nil for none
	tree    *contenthash.Tree
}

// entry is a file, directory or other thing in a tree.
type entry struct {
	Path     string
	Mode     uint32 // of Go's fs.FileMode
	UID, GID uint32
	Size     int64
	ModTime  int64 // Unix nanoseconds
	Linkname string
	Major    int64
	Minor    int64
	Sum      digest.Digest // of regular files: contenthash's
	Xattrs   map[string][]byte
	new      bool // since the state that this one derives from
}

func newEntry(st *files.Stat) entry {
	return entry{
		Path: st.GetPath(), Mode: st.GetMode(), UID: st.GetUid(), GID: st.GetGid(), Size: st.GetSize(),
		ModTime: st.GetModTime(), Linkname: st.GetLinkname(), Major: st.GetDevmajor(), Minor: st.GetDevminor(),
		Xattrs: st.GetXattrs(),
	}
}

// same tells whether a client need not send an entry again. The time of a
// directory changes with what is in it, and says nothing by itself.
func (e *entry) same(o *entry) bool {
	if e.Mode != o.Mode || e.UID != o.UID || e.GID != o.GID || e.Linkname != o.Linkname ||
		e.Major != o.Major || e.Minor != o.Minor {
		return false
	}
	return e.isDir() || e.ModTime == o.ModTime && e.Size == o.Size
}

// equal tells whether a state is of just these entries.
func (s *state) equal(entries []entry, extra *entry) bool {
	if s == nil || s.ref == nil || (s.extra == nil) != (extra == nil) || extra != nil && !s.extra.equal(extra) {
		return false
	}
	return slices.EqualFunc(s.entries, entries, func(a, b entry) bool { return a.equal(&b) })
}

// equal tells whether two entries are of the same file, to the last bit.
func (e *entry) equal(o *entry) bool {
	return e.Path == o.Path && e.same(o) && e.ModTime == o.ModTime && e.Sum == o.Sum &&
		maps.EqualFunc(e.Xattrs, o.Xattrs, bytes.Equal)
}

// plant makes the tree of digests. Where the state derives from another one, its
// tree is given and what was removed from it; else all there is is put.
func (s *state) plant(from *contenthash.Tree, removed []string) error {
	if from != nil {
		s.tree = from.Derive()
		for _, p := range removed {
			s.tree.Remove(p)
		}
	} else {
		s.tree = contenthash.New()
	}
	for i := range s.entries {
		e := &s.entries[i]
		if from != nil && !e.new {
			continue
		}
		if err := s.tree.Put(e.Path, hashStat(e.stat()), e.Sum); err != nil {
			return fmt.Errorf("keep digest: %w", err)
		}
	}
	if s.extra != nil {
		if err := s.tree.Put(s.extra.Path, hashStat(s.extra.stat()), s.extra.Sum); err != nil {
			return fmt.Errorf("keep digest: %w", err)
		}
	}
	s.tree.SetComplete()
	return nil
}

// hashStat is what of an entry counts as content. Device numbers do not, as
// they do not where a tree is read from disk.
func hashStat(st *files.Stat) contenthash.Stat {
	mode := fs.FileMode(st.GetMode())
	if mode&fs.ModeSymlink != 0 {
		mode |= fs.ModePerm // as on disk
	}
	return contenthash.Stat{
		Mode: mode, UID: st.GetUid(), GID: st.GetGid(), Size: st.GetSize(),
		Linkname: st.GetLinkname(), Xattrs: st.GetXattrs(),
	}
}
