package safepath

import (
	"errors"
	"io/fs"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// at runs a system call on the directory that name is in and name's last component.
func (r *Root) at(op, name string, call func(dir int, base string) error) error {
	dir, base, err := r.parent(name)
	if err != nil {
		return pathError(op, name, err)
	}
	defer dir.close()
	for {
		if err = call(dir.fd, base); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return pathError(op, name, err)
	}
	return nil
}

// on runs a system call on a handle (O_PATH) of name.
func (r *Root) on(op, name string, flags int, call func(fd int) error) error {
	fd, err := r.open(name, unix.O_PATH|flags, 0)
	if err != nil {
		return pathError(op, name, err)
	}
	defer unix.Close(fd)
	if err := call(fd); err != nil {
		return pathError(op, name, err)
	}
	return nil
}

// Mkdir makes a directory; the process's umask counts, as in os.Mkdir.
func (r *Root) Mkdir(name string, perm fs.FileMode) error {
	return r.at("mkdir", name, func(dir int, base string) error { return unix.Mkdirat(dir, base, UnixPerm(perm)) })
}

// MkdirAll makes a directory and what is missing above it, through symlinks
// where they are on the way, and tells which directories it made, parents
// first, as names for r ("/a/b"). What exists is left as it is. The umask
// counts.
func (r *Root) MkdirAll(name string, perm fs.FileMode) (made []string, err error) {
	resolved, err := r.Resolve(name)
	if err != nil {
		return nil, err
	}
	if fi, err := r.Lstat(resolved); err == nil && fi.IsDir() {
		return nil, nil
	}
	at := ""
	for part := range strings.SplitSeq(strings.Trim(resolved, "/"), "/") {
		at += "/" + part
		switch err := r.Mkdir(at, perm); {
		case err == nil:
			made = append(made, at)
		case !errors.Is(err, fs.ErrExist):
			return made, err
		}
	}
	fi, err := r.Stat(resolved)
	if err == nil && !fi.IsDir() {
		err = pathError("mkdir", name, unix.ENOTDIR)
	}
	return made, err
}

// Symlink makes newname a symlink to target, whatever that is.
func (r *Root) Symlink(target, newname string) error {
	return r.at("symlink", newname, func(dir int, base string) error { return unix.Symlinkat(target, dir, base) })
}

// Link makes newname a hard link to oldname. A symlink is linked itself.
func (r *Root) Link(oldname, newname string) error {
	return r.two("link", oldname, newname, func(d1 int, b1 string, d2 int, b2 string) error {
		return unix.Linkat(d1, b1, d2, b2, 0)
	})
}

// Rename moves oldname to newname, replacing it as rename(2) does.
func (r *Root) Rename(oldname, newname string) error {
	return r.two("rename", oldname, newname, unix.Renameat)
}

func (r *Root) two(op, name1, name2 string, call func(int, string, int, string) error) error {
	return r.at(op, name1, func(d1 int, b1 string) error {
		return r.at(op, name2, func(d2 int, b2 string) error { return call(d1, b1, d2, b2) })
	})
}

// Mknod makes a fifo, socket, device or regular file; mode is st_mode with its
// type, dev as from unix.Mkdev. The umask counts.
func (r *Root) Mknod(name string, mode uint32, dev uint64) error {
	return r.at("mknod", name, func(dir int, base string) error { return unix.Mknodat(dir, base, mode, int(dev)) })
}

// Chown sets the owner; -1 keeps a side.
func (r *Root) Chown(name string, uid, gid int) error {
	return r.on("chown", name, 0, func(fd int) error { return unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH) })
}

// Lchown is Chown of a symlink itself.
func (r *Root) Lchown(name string, uid, gid int) error {
	return r.on("lchown", name, unix.O_NOFOLLOW, func(fd int) error {
		return unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH)
	})
}

// Chmod sets permission bits, with setuid, setgid and sticky.
func (r *Root) Chmod(name string, mode fs.FileMode) error {
	return r.on("chmod", name, 0, func(fd int) error { return unix.Chmod(procPath(fd), UnixPerm(mode)) })
}

// Lchmod is Chmod, but fails on a symlink at the end of name.
func (r *Root) Lchmod(name string, mode fs.FileMode) error {
	return r.on("chmod", name, unix.O_NOFOLLOW, func(fd int) error {
		if _, isLink, err := readLinkHandle(fd); err != nil || isLink {
			return errors.Join(err, unix.ELOOP)
		}
		return unix.Chmod(procPath(fd), UnixPerm(mode))
	})
}

// Utimes sets the times of access and modification, of a symlink itself.
func (r *Root) Utimes(name string, atime, mtime time.Time) error {
	a, err := unix.TimeToTimespec(atime)
	if err != nil {
		return pathError("utimes", name, err)
	}
	m, err := unix.TimeToTimespec(mtime)
	if err != nil {
		return pathError("utimes", name, err)
	}
	return r.on("utimes", name, unix.O_NOFOLLOW, func(fd int) error {
		return unix.UtimesNanoAt(fd, "", []unix.Timespec{a, m}, unix.AT_EMPTY_PATH)
	})
}
