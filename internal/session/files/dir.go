package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/internal/api/fsutil"
)

// Owner says what to tell of files' owners.
type Owner int

const (
	// OwnerRoot tells that all belongs to user and group 0, as of a context.
	OwnerRoot Owner = iota
	// OwnerKept tells the truth, as of a build's result.
	OwnerKept
)

// Dir is a directory as a tree that can be sent. It is read by handles: no
// symlink leads out of it. Close it after use.
type Dir struct {
	root  *os.Root
	match *matcher
	owner Owner
}

// OpenDir opens the files of a directory that f wants. Sockets are left out, and
// with OwnerRoot extended attributes of the user's, as BuildKit's clients do.
func OpenDir(name string, f Filter, owner Owner) (*Dir, error) {
	root, err := os.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	followed, err := follow(root, f.FollowPaths)
	if err == nil {
		var m *matcher
		if m, err = newMatcher(f, followed); err == nil {
			return &Dir{root: root, match: m, owner: owner}, nil
		}
	}
	return nil, errors.Join(err, root.Close())
}

// Close lets the directory go.
func (d *Dir) Close() error { return d.root.Close() }

// Open opens a regular file; it yields as many bytes as the file has now.
func (d *Dir) Open(name string) (io.ReadCloser, error) {
	f, err := d.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%q is no regular file any more", name)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return limited{io.LimitedReader{R: f, N: info.Size()}, f}, nil
}

// limited is a file up to the size it had when it was opened, so that one that
// grows all the time ends too.
type limited struct {
	io.LimitedReader
	io.Closer
}

func (l limited) Read(p []byte) (int, error) { return l.LimitedReader.Read(p) }

// Walk lists the wanted files.
func (d *Dir) Walk(ctx context.Context, f func(*fsutil.Stat) error) error {
	top, err := d.root.Open(".")
	if err != nil {
		return err
	}
	w := &dirWalk{ctx: ctx, dir: d, f: f, links: map[inode]string{}}
	return errors.Join(w.walk(top, "", verdict{}), top.Close())
}

type inode struct{ dev, ino uint64 }

// dirWalk is one walk. Directories that are not wanted for themselves wait in
// pending until something below them is.
type dirWalk struct {
	ctx     context.Context
	dir     *Dir
	f       func(*fsutil.Stat) error
	links   map[inode]string // first path of a file with several
	pending []*fsutil.Stat
}

func (w *dirWalk) walk(dir *os.File, prefix string, parent verdict) error {
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("read directory %q: %w", "/"+prefix, err)
	}
	slices.Sort(names)
	for _, name := range names {
		if w.ctx.Err() != nil {
			return context.Cause(w.ctx)
		}
		p := path.Join(prefix, name)
		v, err := w.dir.match.match(p, parent)
		if err != nil {
			return err
		}
		if !v.send && !v.descend {
			continue
		}
		if err := w.entry(dir, name, p, v); err != nil {
			return err
		}
	}
	return nil
}

// entry tells of one entry and what lies below it.
func (w *dirWalk) entry(dir *os.File, name, p string, v verdict) error {
	var raw unix.Stat_t
	err := unix.Fstatat(int(dir.Fd()), name, &raw, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it went away meanwhile
	} else if err != nil {
		return fmt.Errorf("stat %q: %w", p, err)
	}
	isDir := raw.Mode&unix.S_IFMT == unix.S_IFDIR
	if raw.Mode&unix.S_IFMT == unix.S_IFSOCK || !isDir && !v.send {
		return nil
	}
	st, err := w.stat(dir, name, p, &raw)
	if err != nil {
		return fmt.Errorf("stat %q: %w", p, err)
	}
	if v.send {
		if err := w.tell(st); err != nil {
			return err
		}
	}
	if !isDir || !v.descend {
		return nil
	}
	depth := len(w.pending)
	if !v.send {
		w.pending = append(w.pending, st)
	}
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open directory %q: %w", p, err)
	}
	sub := os.NewFile(uintptr(fd), p)
	err = errors.Join(w.walk(sub, p, v), sub.Close())
	w.pending = w.pending[:min(depth, len(w.pending))]
	return err
}

// tell tells of st, after the directories that lead to it.
func (w *dirWalk) tell(st *fsutil.Stat) error {
	for _, d := range w.pending {
		if err := w.f(d); err != nil {
			return err
		}
	}
	w.pending = w.pending[:0]
	return w.f(st)
}

// stat makes the protocol's record of an entry.
func (w *dirWalk) stat(dir *os.File, name, p string, raw *unix.Stat_t) (*fsutil.Stat, error) {
	st := &fsutil.Stat{Path: p, Mode: uint32(fileMode(raw.Mode)), ModTime: raw.Mtim.Nano()}
	if w.dir.owner == OwnerKept {
		st.Uid, st.Gid = raw.Uid, raw.Gid
	}
	switch raw.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		st.Size = raw.Size
		if raw.Nlink > 1 {
			id := inode{uint64(raw.Dev), raw.Ino}
			if first, ok := w.links[id]; ok {
				st.Linkname = first
			} else {
				w.links[id] = p
			}
		}
	case unix.S_IFLNK:
		buf := make([]byte, maxPath)
		n, err := unix.Readlinkat(int(dir.Fd()), name, buf)
		if err != nil {
			return nil, err
		}
		st.Linkname, st.Size = string(buf[:n]), int64(n)
		return st, nil
	case unix.S_IFBLK, unix.S_IFCHR:
		st.Devmajor, st.Devminor = int64(unix.Major(uint64(raw.Rdev))), int64(unix.Minor(uint64(raw.Rdev)))
	}
	var err error
	st.Xattrs, err = w.xattrs(dir, name)
	return st, err
}

// xattrs reads the extended attributes that a tree keeps.
func (w *dirWalk) xattrs(dir *os.File, name string) (map[string][]byte, error) {
	p := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)
	var list [4096]byte
	n, err := unix.Llistxattr(p, list[:])
	if err != nil || n == 0 {
		return nil, nil // none, or none to be had: they are extras
	}
	var out map[string][]byte
	for _, key := range strings.Split(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if !w.keepXattr(key) {
			continue
		}
		value := make([]byte, 64<<10) // Linux's limit
		n, err := unix.Lgetxattr(p, key, value)
		if errors.Is(err, unix.ENODATA) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("attribute %s: %w", key, err)
		}
		if out == nil {
			out = map[string][]byte{}
		}
		out[key] = slices.Clone(value[:n])
	}
	return out, nil
}

func (w *dirWalk) keepXattr(key string) bool {
	switch {
	case strings.HasPrefix(key, "com.apple."), strings.HasPrefix(key, "trusted.overlay."),
		strings.HasPrefix(key, "user.overlay."), key == "security.selinux":
		return false
	case strings.HasPrefix(key, "user."):
		return w.dir.owner == OwnerKept
	}
	return true
}

// fileMode turns Linux's mode into Go's, whose bits the protocol uses.
func fileMode(mode uint32) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		m |= fs.ModeDir
	case unix.S_IFLNK:
		m |= fs.ModeSymlink
	case unix.S_IFBLK:
		m |= fs.ModeDevice
	case unix.S_IFCHR:
		m |= fs.ModeDevice | fs.ModeCharDevice
	case unix.S_IFIFO:
		m |= fs.ModeNamedPipe
	}
	if mode&unix.S_ISUID != 0 {
		m |= fs.ModeSetuid
	}
	if mode&unix.S_ISGID != 0 {
		m |= fs.ModeSetgid
	}
	if mode&unix.S_ISVTX != 0 {
		m |= fs.ModeSticky
	}
	return m
}
