package fileop

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Links gives the folders in which a source's files are kept, to make further
// names of those in the destination. Who gives them vouches that nobody writes
// to a file of either side afterwards.
type Links interface {
	// Folders opens what makes up a folder of the source, given by a path without
	// symlinks: the directories of the layers, the topmost first. The first one
	// that has a name has what it is. The caller closes them.
	Folders(name string) ([]*os.File, error)
}

// keep opens the folders in which the files of d are kept. Where that fails,
// they are copied, and tell why they can not be read.
func (c *copier) keep(d *dir) {
	if c.keeps != nil {
		d.kept, _ = c.keeps.Folders(d.place)
	}
}

// link makes e a further name of the file in the source and tells whether it
// did: only if all that is kept of a file would be the same in a copy.
func (c *copier) link(e *entry) bool {
	for _, kept := range e.dir.kept {
		var st unix.Stat_t
		err := unix.Fstatat(int(kept.Fd()), e.src, &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		return err == nil && c.unchanged(&st) && !marked(kept, e.src) && c.mayName(&st) &&
			e.dir.dst.LinkFrom(kept, e.src, e.dst) == nil
	}
	return false
}

// unchanged tells whether a copy would have the metadata of the file itself.
func (c *copier) unchanged(st *unix.Stat_t) bool {
	if st.Mode&unix.S_IFMT != unix.S_IFREG || c.owner != nil && *c.owner != (Owner{st.Uid, st.Gid}) {
		return false
	}
	if c.time != nil && !c.time.Equal(time.Unix(st.Mtim.Unix())) {
		return false
	}
	mode := fromBits(st.Mode & 0o7777)
	return c.mode == nil || c.mode.apply(mode) == mode
}

// mayName keeps apart what several sources of one action give of the same file:
// hard links stay such within a source, but are none between sources.
func (c *copier) mayName(st *unix.Stat_t) bool {
	if c.named == nil {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	id := inode{st.Dev, st.Ino}
	first, ok := c.named[id]
	if !ok {
		c.named[id] = c.nth
	}
	return !ok || first == c.nth
}

// marked tells whether a file may have an attribute that a copy would not get.
func marked(dir *os.File, name string) bool {
	var names [4 << 10]byte
	n, err := unix.Llistxattr("/proc/self/fd/"+strconv.Itoa(int(dir.Fd()))+"/"+name, names[:])
	if errors.Is(err, unix.ENOTSUP) {
		return false
	}
	if err != nil {
		return true
	}
	for attr := range strings.SplitSeq(string(names[:n]), "\x00") {
		if overlayMark(attr) {
			return true
		}
	}
	return false
}
