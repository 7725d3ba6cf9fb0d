// Package files moves trees of files between a client and the daemon, in both
// directions: the daemon reads a build's context (FileSync), and writes the
// result of `type=local` into a directory of the client (FileSend).
//
// Both speak the same protocol of packets (as in tonistiigi/fsutil), in which the
// sender lists a tree and the receiver asks for the files it lacks. Neither side
// here can be made to wait for the other's requests, so a transfer of any number
// of files cannot stall; nothing that the peer says is trusted.
package files

import (
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/kiln-build/kiln/internal/api/fsutil"
)

// Request metadata of FileSync.DiffCopy (BuildKit's session/filesync). keyChunk is
// Kiln's own: the largest content in bytes of a DATA packet that the receiver
// would like; BuildKit's clients ignore it.
const (
	keyDirName = "dir-name"
	keyInclude = "include-patterns"
	keyExclude = "exclude-patterns"
	keyFollow  = "followpaths"
	keyChunk   = "kiln-chunk"
)

// maxPath is the longest path taken from a peer, in bytes: Linux's PATH_MAX.
const maxPath = 4096

// packetStream is either side of a stream of packets.
type packetStream interface {
	Send(*fsutil.Packet) error
	Recv() (*fsutil.Packet, error)
	RecvMsg(m any) error
}

// isRegular tells whether an entry has content of its own.
func isRegular(st *fsutil.Stat) bool {
	return fs.FileMode(st.GetMode())&fs.ModeType == 0 && st.GetLinkname() == ""
}

// pathOrder checks that a listing is what the protocol says: clean relative
// paths that ascend, each below a directory listed before.
type pathOrder struct {
	last string
	dirs []string // the directories that the last entry lies in or is
}

func (o *pathOrder) check(st *fsutil.Stat) error {
	p := st.GetPath()
	if err := checkPath(p); err != nil {
		return err
	}
	if o.last != "" && ComparePaths(o.last, p) >= 0 {
		return fmt.Errorf("entry %q comes after %q: want ascending paths without repetition", p, o.last)
	}
	parent := path.Dir(p)
	for len(o.dirs) > 0 && o.dirs[len(o.dirs)-1] != parent {
		o.dirs = o.dirs[:len(o.dirs)-1]
	}
	if len(o.dirs) == 0 && parent != "." {
		return fmt.Errorf("entry %q has no directory %q listed before it", p, parent)
	}
	mode := fs.FileMode(st.GetMode())
	if mode.IsDir() {
		o.dirs = append(o.dirs, p)
	}
	if err := checkType(st, mode); err != nil {
		return err
	}
	o.last = p
	return nil
}

// checkPath rejects what is no clean relative path.
func checkPath(p string) error {
	switch {
	case len(p) > maxPath:
		return fmt.Errorf("path of %d bytes: at most %d are allowed", len(p), maxPath)
	case !fs.ValidPath(p) || p == ".":
		return fmt.Errorf("path %q: want a clean path relative to the root", p)
	case strings.ContainsRune(p, 0):
		return fmt.Errorf("path %q holds a zero byte", p)
	}
	return nil
}

// checkType rejects modes that are no file's and links to nowhere.
func checkType(st *fsutil.Stat, mode fs.FileMode) error {
	switch mode & fs.ModeType {
	case 0:
		// A hard link, if there is a link name: it must point back.
		if link := st.GetLinkname(); link != "" {
			if err := checkPath(link); err != nil {
				return fmt.Errorf("hard link %q: %w", st.GetPath(), err)
			}
			if ComparePaths(link, st.GetPath()) >= 0 {
				return fmt.Errorf("hard link %q to %q, which was not listed before", st.GetPath(), link)
			}
		}
	case fs.ModeSymlink:
		if st.GetLinkname() == "" || len(st.GetLinkname()) > maxPath {
			return fmt.Errorf("symlink %q has a target of %d bytes", st.GetPath(), len(st.GetLinkname()))
		}
	case fs.ModeDir, fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice, fs.ModeNamedPipe, fs.ModeSocket:
	default:
		return fmt.Errorf("entry %q is of no known type (mode %#o)", st.GetPath(), st.GetMode())
	}
	if st.GetSize() < 0 {
		return fmt.Errorf("entry %q has the size %d", st.GetPath(), st.GetSize())
	}
	return nil
}

// ComparePaths orders paths as the protocol lists them: by bytes, but the
// separator before any other byte, so that a directory is followed by what it
// holds. It returns -1, 0 or 1.
func ComparePaths(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] == b[i] {
			continue
		}
		switch {
		case a[i] == '/':
			return -1
		case b[i] == '/':
			return 1
		case a[i] < b[i]:
			return -1
		default:
			return 1
		}
	}
	switch {
	case len(a) < len(b):
		return -1
	case len(a) > len(b):
		return 1
	}
	return 0
}
