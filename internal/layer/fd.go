package layer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// The functions of this file work on open directories. Names are single
// components, never followed if they are links.

// openDir opens the directory name in dir.
func openDir(dir int, name string) (*os.File, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open directory", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// openRoot opens a directory by the path that this program gave it.
func openRoot(path string) (*os.File, error) { return openDir(unix.AT_FDCWD, path) }

func fd(f *os.File) int { return int(f.Fd()) }

// openFile opens the regular file name in dir for reading.
func openFile(dir int, name string) (*os.File, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// lstat tells what name in dir is; nil if there is nothing.
func lstat(dir int, name string) (*unix.Stat_t, error) {
	var st unix.Stat_t
	switch err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err {
	case nil:
		return &st, nil
	case unix.ENOENT:
		return nil, nil
	default:
		return nil, &os.PathError{Op: "stat", Path: name, Err: err}
	}
}

func isDir(st *unix.Stat_t) bool     { return st.Mode&unix.S_IFMT == unix.S_IFDIR }
func isRegular(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFREG }
func isLink(st *unix.Stat_t) bool    { return st.Mode&unix.S_IFMT == unix.S_IFLNK }

// isWhiteout says whether st is overlay's mark for a deleted name.
func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

func readNames(d *os.File) ([]string, error) {
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("read directory: %w", err)
	}
	slices.Sort(names)
	return names, nil
}

// removeAll removes name in dir with all that is below.
func removeAll(dir int, name string) error {
	switch err := unix.Unlinkat(dir, name, 0); err {
	case nil, unix.ENOENT:
		return nil
	case unix.EISDIR, unix.EPERM:
	default:
		return &os.PathError{Op: "remove", Path: name, Err: err}
	}
	if err := clearDir(dir, name); err != nil {
		return err
	}
	if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err != nil && err != unix.ENOENT {
		return &os.PathError{Op: "remove", Path: name, Err: err}
	}
	return nil
}

// clearDir empties the directory name in dir.
func clearDir(dir int, name string) error {
	d, err := openDir(dir, name)
	if err != nil {
		return err
	}
	defer d.Close()
	names, err := readNames(d)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := removeAll(fd(d), n); err != nil {
			return err
		}
	}
	return nil
}

// readLink returns the target of the symbolic link name in dir.
func readLink(dir int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return "", &os.PathError{Op: "read link", Path: name, Err: err}
	}
	return string(buf[:n]), nil
}

// Extended attributes. Only those that mean something elsewhere count:
// trusted.* and system.* belong to the machine.

func keptXattr(name string) bool {
	return name == layerXattr ||
		strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.")
}

// readXattrs returns the attributes of an open file that count.
func readXattrs(f int) (map[string]string, error) {
	buf := make([]byte, 256)
	n, err := unix.Flistxattr(f, buf)
	if err == unix.ERANGE {
		buf = make([]byte, 64<<10) // XATTR_LIST_MAX
		n, err = unix.Flistxattr(f, buf)
	}
	if err == unix.ENOTSUP || n == 0 && err == nil {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("list attributes: %w", err)
	}
	var out map[string]string
	for name := range bytes.SplitSeq(bytes.TrimSuffix(buf[:n], []byte{0}), []byte{0}) {
		if !keptXattr(string(name)) {
			continue
		}
		value := make([]byte, 64<<10) // XATTR_SIZE_MAX
		n, err := unix.Fgetxattr(f, string(name), value)
		if err == unix.ENODATA {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("read attribute %s: %w", name, err)
		}
		if out == nil {
			out = map[string]string{}
		}
		out[string(name)] = string(value[:n])
	}
	return out, nil
}

// writeXattrs sets those attributes that count and that the file system and
// the user can set.
func writeXattrs(f int, xattrs map[string]string) error {
	for name, value := range xattrs {
		if !keptXattr(name) {
			continue
		}
		switch err := unix.Fsetxattr(f, name, []byte(value), 0); err {
		case nil, unix.ENOTSUP, unix.EPERM:
		default:
			return fmt.Errorf("set attribute %s: %w", name, err)
		}
	}
	return nil
}

// copyMeta gives the open file or directory `to` the owner, mode, attributes
// and time of `from`.
func copyMeta(from int, st *unix.Stat_t, to int) error {
	if err := chown(to, "", int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Fchmod(to, st.Mode&0o7777); err != nil {
		return fmt.Errorf("change mode: %w", err)
	}
	xattrs, err := readXattrs(from)
	if err != nil {
		return err
	}
	if err := writeXattrs(to, xattrs); err != nil {
		return err
	}
	return setTimes(to, "", st.Mtim)
}

// chown changes the owner of name in dir, or of dir itself if name is "". An
// id that this user namespace does not have cannot be set; the file then stays
// the user's own.
func chown(dir int, name string, uid, gid int) error {
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags = unix.AT_EMPTY_PATH
	}
	if err := unix.Fchownat(dir, name, uid, gid, flags); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("change owner to %d:%d: %w", uid, gid, err)
	}
	return nil
}

func setTimes(dir int, name string, mtime unix.Timespec) error {
	times := []unix.Timespec{mtime, mtime}
	var err error
	if name == "" {
		err = unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", dir), times, 0)
	} else {
		err = unix.UtimesNanoAt(dir, name, times, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return fmt.Errorf("set time: %w", err)
	}
	return nil
}

// cloneEntry makes name in `to` the same as name in `from`, which is no
// directory: a hard link if that can be had, else a copy.
func cloneEntry(from int, st *unix.Stat_t, to int, name string) error {
	switch err := unix.Linkat(from, name, to, name, 0); err {
	case nil:
		return nil
	case unix.EMLINK, unix.EXDEV, unix.EPERM:
		return copyEntry(from, st, to, name)
	default:
		return &os.PathError{Op: "link", Path: name, Err: err}
	}
}

// copyEntry copies what is no directory.
func copyEntry(from int, st *unix.Stat_t, to int, name string) error {
	switch {
	case isRegular(st):
		return copyFile(from, st, to, name)
	case isLink(st):
		target, err := readLink(from, name)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(target, to, name); err != nil {
			return &os.PathError{Op: "link", Path: name, Err: err}
		}
	default:
		if err := unix.Mknodat(to, name, st.Mode, int(st.Rdev)); err != nil {
			return &os.PathError{Op: "make device", Path: name, Err: err}
		}
		if err := unix.Fchmodat(to, name, st.Mode&0o7777, 0); err != nil {
			return &os.PathError{Op: "change mode", Path: name, Err: err}
		}
	}
	if err := chown(to, name, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	return setTimes(to, name, st.Mtim)
}

func copyFile(from int, st *unix.Stat_t, to int, name string) error {
	src, err := openFile(from, name)
	if err != nil {
		return err
	}
	defer src.Close()
	n, err := unix.Openat(to, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "create", Path: name, Err: err}
	}
	dst := os.NewFile(uintptr(n), name)
	_, err = io.Copy(dst, src)
	if err == nil {
		err = copyMeta(fd(src), st, fd(dst))
	}
	return errors.Join(err, dst.Close())
}
