package safepath

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// info is what fstat says of a handle.
type info struct {
	name string
	st   syscall.Stat_t
}

func (i *info) Name() string       { return i.name }
func (i *info) Size() int64        { return i.st.Size }
func (i *info) ModTime() time.Time { return time.Unix(i.st.Mtim.Unix()) }
func (i *info) IsDir() bool        { return i.Mode().IsDir() }
func (i *info) Sys() any           { return &i.st }
func (i *info) Mode() fs.FileMode  { return FileMode(i.st.Mode) }

// FileMode makes Go's mode of the kernel's st_mode, or of permission bits alone.
func FileMode(m uint32) fs.FileMode {
	mode := fs.FileMode(m & 0o777)
	switch m & unix.S_IFMT {
	case unix.S_IFDIR:
		mode |= fs.ModeDir
	case unix.S_IFLNK:
		mode |= fs.ModeSymlink
	case unix.S_IFIFO:
		mode |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		mode |= fs.ModeSocket
	case unix.S_IFBLK:
		mode |= fs.ModeDevice
	case unix.S_IFCHR:
		mode |= fs.ModeDevice | fs.ModeCharDevice
	}
	if m&unix.S_ISUID != 0 {
		mode |= fs.ModeSetuid
	}
	if m&unix.S_ISGID != 0 {
		mode |= fs.ModeSetgid
	}
	if m&unix.S_ISVTX != 0 {
		mode |= fs.ModeSticky
	}
	return mode
}

// UnixPerm makes the kernel's permission bits of a mode, with setuid, setgid and sticky.
func UnixPerm(mode fs.FileMode) uint32 {
	m := uint32(mode.Perm())
	if mode&fs.ModeSetuid != 0 {
		m |= unix.S_ISUID
	}
	if mode&fs.ModeSetgid != 0 {
		m |= unix.S_ISGID
	}
	if mode&fs.ModeSticky != 0 {
		m |= unix.S_ISVTX
	}
	return m
}

// FDInfo is os.File.Stat of a descriptor. It has no name.
func FDInfo(fd int) (fs.FileInfo, error) {
	fi := &info{}
	if err := syscall.Fstat(fd, &fi.st); err != nil {
		return nil, fmt.Errorf("stat: %w", err)
	}
	return fi, nil
}

// FDChmod is os.File.Chmod of a descriptor.
func FDChmod(fd int, mode fs.FileMode) error { return unix.Fchmod(fd, UnixPerm(mode)) }

// Owner is the user and group of a file that a [Root], or os.Stat, told of.
func Owner(fi fs.FileInfo) (uid, gid uint32, ok bool) {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, false
	}
	return st.Uid, st.Gid, true
}

// Lstat describes name; its Sys is a *syscall.Stat_t.
func (r *Root) Lstat(name string) (fs.FileInfo, error) {
	return r.stat("lstat", name, unix.O_NOFOLLOW)
}

// Stat is Lstat of what a symlink at the end of name leads to.
func (r *Root) Stat(name string) (fs.FileInfo, error) { return r.stat("stat", name, 0) }

func (r *Root) stat(op, name string, flags int) (fs.FileInfo, error) {
	fd, err := r.open(name, unix.O_PATH|flags, 0)
	if err != nil {
		return nil, pathError(op, name, err)
	}
	defer unix.Close(fd)
	fi := &info{name: path.Base(clean(name))}
	if err := syscall.Fstat(fd, &fi.st); err != nil {
		return nil, pathError(op, name, err)
	}
	return fi, nil
}

// ReadDir lists a directory, sorted by name in byte order.
func (r *Root) ReadDir(name string) ([]fs.DirEntry, error) {
	fd, err := r.open(name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, pathError("read directory", name, err)
	}
	// Named by its handle: where a file system does not tell types, os looks the
	// entries up below this name.
	f := os.NewFile(uintptr(fd), procPath(fd))
	defer f.Close()
	entries, err := f.ReadDir(-1)
	if err != nil {
		return nil, pathError("read directory", name, err)
	}
	for i, e := range entries {
		entries[i] = entry{DirEntry: e, dir: name, root: r}
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, nil
}

type entry struct {
	fs.DirEntry
	dir  string
	root *Root
}

func (e entry) Info() (fs.FileInfo, error) { return e.root.Lstat(path.Join(e.dir, e.Name())) }

// Readlink returns the target of a symlink, as it stands.
func (r *Root) Readlink(name string) (string, error) {
	fd, err := r.open(name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", pathError("readlink", name, err)
	}
	defer unix.Close(fd)
	target, isLink, err := readLinkHandle(fd)
	if err == nil && !isLink {
		err = unix.EINVAL
	}
	if err != nil {
		return "", pathError("readlink", name, err)
	}
	return target, nil
}

// Free tells how many bytes the file system of the root can still take.
func (r *Root) Free() (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(r.fd(), &st); err != nil {
		return 0, pathError("statfs", "/", err)
	}
	return st.Bavail * uint64(st.Bsize), nil
}
