package safepath

import (
	"errors"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// walker resolves a name component by component. It holds a handle of each
// directory on the way, so that ".." needs no look at the file system.
type walker struct {
	root  int
	fds   []int    // handles of names, without the root's
	names []string // the components resolved so far
	links int
}

func (w *walker) top() int {
	if len(w.fds) == 0 {
		return w.root
	}
	return w.fds[len(w.fds)-1]
}

func (w *walker) pop() {
	if n := len(w.fds); n > 0 {
		unix.Close(w.fds[n-1])
		w.fds, w.names = w.fds[:n-1], w.names[:n-1]
	}
}

// leave is pop for a "..", which only a directory has.
func (w *walker) leave() error {
	if len(w.fds) == 0 {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(w.top(), &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return unix.ENOTDIR
	}
	w.pop()
	return nil
}

func (w *walker) close() {
	for len(w.fds) > 0 {
		w.pop()
	}
}

// to walks along rel. What is left over is not there: the first of its
// components is missing. The end of the walk may be anything but a symlink,
// unless follow is false.
func (w *walker) to(rel string, follow bool) (missing []string, err error) {
	todo := strings.Split(rel, "/")
	for len(todo) > 0 {
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			if err := w.leave(); err != nil {
				return nil, err
			}
			continue
		}
		fd, err := ignoreEINTR(func() (int, error) {
			return unix.Openat(w.top(), part, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		})
		if errors.Is(err, unix.ENOENT) {
			return append([]string{part}, todo...), nil
		}
		if err != nil {
			return nil, err
		}
		target, isLink, err := readLinkHandle(fd)
		if err != nil {
			unix.Close(fd)
			return nil, err
		}
		if !isLink || !follow && strings.Join(todo, "") == "" {
			w.fds, w.names = append(w.fds, fd), append(w.names, part)
			continue
		}
		unix.Close(fd)
		if w.links++; w.links > maxLinks {
			return nil, unix.ELOOP
		}
		if strings.HasPrefix(target, "/") {
			for len(w.fds) > 0 {
				w.pop()
			}
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return nil, nil
}

// readLinkHandle reads the symlink that an O_PATH handle stands for.
func readLinkHandle(fd int) (target string, isLink bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", false, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", false, nil
	}
	target, err = readlinkat(fd, "")
	return target, true, err
}

func readlinkat(fd int, name string) (string, error) {
	buf := make([]byte, unix.PathMax) // the most a target can have
	n, err := ignoreEINTR(func() (int, error) { return unix.Readlinkat(fd, name, buf) })
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// openWalking is open without openat2.
func (r *Root) openWalking(rel string, flags int) (int, error) {
	w := &walker{root: r.fd()}
	defer w.close()
	missing, err := w.to(rel, flags&unix.O_NOFOLLOW == 0)
	if err != nil {
		return -1, err
	}
	if len(missing) > 0 {
		return -1, unix.ENOENT
	}
	if len(w.names) == 0 {
		return ignoreEINTR(func() (int, error) { return unix.Openat(w.root, ".", flags|unix.O_CLOEXEC, 0) })
	}
	last := w.names[len(w.names)-1]
	if flags&^(unix.O_NOFOLLOW|unix.O_CLOEXEC) == unix.O_PATH {
		fd := w.fds[len(w.fds)-1]
		return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	}
	above := w.root
	if n := len(w.fds); n > 1 {
		above = w.fds[n-2]
	}
	return ignoreEINTR(func() (int, error) {
		return unix.Openat(above, last, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
}

// Resolve evaluates every symlink in name, the last one too, as if the root
// were "/", and returns the path without symlinks, beginning with "/". A tail
// that is not there is kept as it stands. The answer is a name for further
// calls on r or for people; it proves nothing about the file system afterwards.
func (r *Root) Resolve(name string) (string, error) {
	rel, err := inside(name)
	if err != nil {
		return "", pathError("resolve", name, err)
	}
	w := &walker{root: r.fd()}
	defer w.close()
	missing, err := w.to(rel, true)
	if err != nil {
		return "", pathError("resolve", name, err)
	}
	return path.Join("/", strings.Join(w.names, "/"), strings.Join(missing, "/")), nil
}
