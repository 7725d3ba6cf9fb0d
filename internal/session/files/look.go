package files

import (
	"errors"
	"io/fs"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/internal/api/fsutil"
	"github.com/kiln-build/kiln/internal/safepath"
)

// named is an entry of a directory that is wanted, or has something that is.
type named struct {
	name    string
	verdict verdict
}

// looked is what was found when looking at an entry.
type looked struct {
	named
	path  string
	stat  *fsutil.Stat // nil if it is nothing to be sent
	links bool         // it is a file with several links, of which inode tells
	inode inode
	err   error
}

// lookBatch is how many entries are looked at ahead of those that are sent.
const lookBatch = 32

// lookAhead looks at the entries of the directory with the handle dir, in order,
// while those before them are being sent. It ends when stop is closed; until
// what it returns is closed, dir must stay open.
func (d *Dir) lookAhead(dir int, prefix string, entries []named, stop <-chan struct{}) <-chan []looked {
	if len(entries) <= lookBatch {
		only := make(chan []looked, 1)
		only <- d.look(dir, prefix, entries)
		close(only)
		return only
	}
	batches := make(chan []looked, 1)
	go func() {
		defer close(batches)
		for batch := range slices.Chunk(entries, lookBatch) {
			select {
			case batches <- d.look(dir, prefix, batch):
			case <-stop:
				return
			}
		}
	}()
	return batches
}

func (d *Dir) look(dir int, prefix string, entries []named) []looked {
	batch := make([]looked, len(entries))
	for i, e := range entries {
		batch[i] = looked{named: e, path: path.Join(prefix, e.name)}
		batch[i].err = d.lookAt(dir, &batch[i])
	}
	return batch
}

// lookAt makes the protocol's record of an entry.
func (d *Dir) lookAt(dir int, l *looked) error {
	var raw unix.Stat_t
	err := unix.Fstatat(dir, l.name, &raw, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it went away meanwhile
	} else if err != nil {
		return err
	}
	kind := raw.Mode & unix.S_IFMT
	if kind == unix.S_IFSOCK || kind != unix.S_IFDIR && !l.verdict.send {
		return nil
	}
	st := &fsutil.Stat{Path: l.path, Mode: uint32(safepath.FileMode(raw.Mode)), ModTime: raw.Mtim.Nano()}
	if d.owner == OwnerKept {
		st.Uid, st.Gid = raw.Uid, raw.Gid
	}
	l.stat = st
	switch kind {
	case unix.S_IFREG:
		st.Size = raw.Size
		l.links, l.inode = raw.Nlink > 1, inode{uint64(raw.Dev), raw.Ino}
	case unix.S_IFLNK:
		buf := make([]byte, maxPath)
		n, err := unix.Readlinkat(dir, l.name, buf)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EINVAL) {
			l.stat = nil // it went away, or another thing took its place
			return nil
		} else if err != nil {
			return err
		}
		st.Linkname, st.Size = string(buf[:n]), int64(n)
		return nil
	case unix.S_IFBLK, unix.S_IFCHR:
		st.Devmajor, st.Devminor = int64(unix.Major(uint64(raw.Rdev))), int64(unix.Minor(uint64(raw.Rdev)))
	}
	st.Xattrs, err = d.attrs.of(dir, l.name)
	return err
}
