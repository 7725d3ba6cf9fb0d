package safepath

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxLinks is how many symlinks one resolution follows; the kernel's number.
const maxLinks = 40

// ErrSpecial tells that something is neither a regular file nor a directory
// and was therefore not opened: opening a device or a fifo can block, or act.
var ErrSpecial = errors.New("neither a regular file nor a directory")

// Root is a directory that nothing done through it can leave. Its methods may
// be used from several goroutines. Methods whose names begin with L, and all
// that create, remove, rename or read a link, act on a symlink at the end of
// the name; the others follow it inside the root.
type Root struct {
	dir  *os.File
	walk atomic.Bool // openat2 is not to be had
}

// Open makes the existing directory dir a root. Symlinks in dir itself are the
// machine's own and are followed.
func Open(dir string) (*Root, error) {
	fd, err := ignoreEINTR(func() (int, error) {
		return unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open root", Path: dir, Err: err}
	}
	return &Root{dir: os.NewFile(uintptr(fd), dir)}, nil
}

// Close releases the handle. Files opened through r stay open.
func (r *Root) Close() error { return r.dir.Close() }

// Sub makes the directory name a root of its own, following a symlink at its end.
func (r *Root) Sub(name string) (*Root, error) { return r.sub(name, 0) }

// LSub is Sub, but fails on a symlink at the end of name.
func (r *Root) LSub(name string) (*Root, error) { return r.sub(name, unix.O_NOFOLLOW) }

func (r *Root) sub(name string, flags int) (*Root, error) {
	fd, err := r.open(name, unix.O_RDONLY|unix.O_DIRECTORY|flags, 0)
	if err != nil {
		return nil, pathError("open directory", name, err)
	}
	s := &Root{dir: os.NewFile(uintptr(fd), clean(name))}
	s.walk.Store(r.walk.Load())
	return s, nil
}

// ChrootDir opens the directory name as a process in a chroot would: here alone,
// names are not cleaned first, and a ".." after a symlink is the parent of what
// the symlink leads to.
func (r *Root) ChrootDir(name string) (*os.File, error) {
	fd, err := -1, error(unix.EINVAL)
	if strings.IndexByte(name, 0) < 0 {
		// Relative, or the kernel would refuse an empty name.
		fd, err = r.openRelative("./"+name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	}
	if err != nil {
		return nil, pathError("open directory", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Open opens a regular file or a directory for reading. For anything else the
// error is [ErrSpecial].
func (r *Root) Open(name string) (*os.File, error) { return r.OpenFile(name, os.O_RDONLY, 0) }

// Create makes or truncates a regular file for reading and writing.
func (r *Root) Create(name string) (*os.File, error) {
	return r.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o666)
}

// OpenPath gives a handle (O_PATH) of whatever name is, for system calls that
// take one; it cannot be read.
func (r *Root) OpenPath(name string) (*os.File, error) {
	fd, err := r.open(name, unix.O_PATH, 0)
	if err != nil {
		return nil, pathError("open", name, err)
	}
	return os.NewFile(uintptr(fd), clean(name)), nil
}

// OpenFile is os.OpenFile inside the root. With unix.O_NOFOLLOW a symlink at
// the end of name fails. Devices, fifos and sockets are never opened.
func (r *Root) OpenFile(name string, flags int, perm fs.FileMode) (*os.File, error) {
	f, err := r.openFile(name, flags, perm)
	if err != nil {
		return nil, pathError("open", name, err)
	}
	return f, nil
}

func (r *Root) openFile(name string, flags int, perm fs.FileMode) (*os.File, error) {
	at := name
	for range maxLinks {
		if flags&os.O_CREATE != 0 {
			fd, err := r.createNew(at, flags, perm)
			if err == nil {
				return os.NewFile(uintptr(fd), clean(at)), nil
			}
			if !errors.Is(err, unix.EEXIST) || flags&os.O_EXCL != 0 {
				return nil, err
			}
		}
		f, err := r.openExisting(at, flags&^(os.O_CREATE|os.O_EXCL))
		if err == nil || flags&os.O_CREATE == 0 || !errors.Is(err, unix.ENOENT) || flags&unix.O_NOFOLLOW != 0 {
			return f, err
		}
		// A symlink to what does not exist yet, or something just removed.
		if at, err = r.Resolve(name); err != nil {
			return nil, err
		}
	}
	return nil, unix.ELOOP
}

func (r *Root) createNew(name string, flags int, perm fs.FileMode) (int, error) {
	flags |= os.O_CREATE | os.O_EXCL | unix.O_NOFOLLOW
	if rel, err := inside(name); err == nil && rel != "." && !r.walk.Load() {
		// What keeps the kernel from resolving it all is met again below.
		fd, err := r.openat2(rel, flags|unix.O_CLOEXEC, UnixPerm(perm))
		if err == nil || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOENT) {
			return fd, err
		}
	}
	dir, base, err := r.parent(name)
	if err != nil {
		return -1, err
	}
	defer dir.close()
	return ignoreEINTR(func() (int, error) {
		return unix.Openat(dir.fd, base, flags|unix.O_CLOEXEC, UnixPerm(perm))
	})
}

func (r *Root) openExisting(name string, flags int) (*os.File, error) {
	fd, err := r.open(name, unix.O_PATH|flags&(unix.O_NOFOLLOW|unix.O_DIRECTORY), 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFDIR:
	case unix.S_IFLNK:
		return nil, unix.ELOOP
	default:
		return nil, ErrSpecial
	}
	// By way of the handle, so that what was checked is what is opened.
	again, err := ignoreEINTR(func() (int, error) {
		return unix.Open(procPath(fd), flags&^unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(again), clean(name)), nil
}

// ReadFile reads a regular file of at most limit bytes.
func (r *Root) ReadFile(name string, limit int64) ([]byte, error) {
	f, err := r.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1)) // of a directory, it is an error
	if err == nil && int64(len(data)) > limit {
		err = pathError("read", name, fmt.Errorf("it exceeds %d bytes", limit))
	}
	return data, err
}

// OpenListed opens for reading what a listing of a directory has just called a
// regular file, where nobody changes the tree meanwhile. It asks the kernel
// once where OpenFile, which must not open a device even if somebody puts one
// there, asks three times, and tells what the file is. Anything but a regular file
// gives ErrSpecial.
func (r *Root) OpenListed(name string) (*os.File, fs.FileInfo, error) {
	fd, fi, err := r.OpenListedFD(name)
	if err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fd), clean(name)), fi, nil
}

// OpenListedFD is OpenListed that gives the descriptor itself: making an os.File of
// it takes three system calls more, which many small files would show.
func (r *Root) OpenListedFD(name string) (int, fs.FileInfo, error) {
	fd, err := r.open(name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return -1, nil, pathError("open", name, err)
	}
	fi := &info{name: path.Base(clean(name))}
	err = syscall.Fstat(fd, &fi.st)
	if err == nil && !fi.Mode().IsRegular() {
		err = ErrSpecial
	}
	if err != nil {
		unix.Close(fd)
		return -1, nil, pathError("open", name, err)
	}
	return fd, fi, nil
}

// CreateFD makes a file that was not there for writing, and gives its descriptor.
func (r *Root) CreateFD(name string, perm fs.FileMode) (int, error) {
	fd, err := r.createNew(name, os.O_WRONLY, perm)
	if err != nil {
		return -1, pathError("open", name, err)
	}
	return fd, nil
}

// open resolves name in the root; flags are of an existing thing.
func (r *Root) open(name string, flags int, perm uint32) (int, error) {
	rel, err := inside(name)
	if err != nil {
		return -1, err
	}
	return r.openRelative(rel, flags, perm)
}

// openRelative is open of a name that is relative to the root already.
func (r *Root) openRelative(rel string, flags int, perm uint32) (int, error) {
	if !r.walk.Load() {
		fd, err := r.openat2(rel, flags|unix.O_CLOEXEC, perm)
		switch {
		case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM) && !r.hasOpenat2():
			r.walk.Store(true)
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENAMETOOLONG) && len(rel) >= unix.PathMax:
			// Renames kept the kernel from being sure, or it cannot take a name
			// this long; the slow way can.
		default:
			return fd, err
		}
	}
	return r.openWalking(rel, flags)
}

func (r *Root) openat2(rel string, flags int, perm uint32) (int, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags),
		Mode:    uint64(perm),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	const tries = 32 // EAGAIN: a rename somewhere while ".." was resolved
	for i := 0; ; i++ {
		fd, err := unix.Openat2(r.fd(), rel, &how)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) && i < tries {
			continue
		}
		return fd, err
	}
}

// hasOpenat2 tells a filter that denies the call from a file that denies access.
func (r *Root) hasOpenat2() bool {
	fd, err := unix.Openat2(r.fd(), ".", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err == nil {
		unix.Close(fd)
	}
	return err == nil
}

func (r *Root) fd() int { return int(r.dir.Fd()) }

// handle is a directory to act in; the root's own handle is not closed.
type handle struct {
	fd   int
	keep bool
}

func (h handle) close() {
	if !h.keep {
		unix.Close(h.fd)
	}
}

// parent opens the directory that name is in. Names of the root itself fail.
func (r *Root) parent(name string) (handle, string, error) {
	rel, err := inside(name)
	if err != nil {
		return handle{}, "", err
	}
	if rel == "." {
		return handle{}, "", fmt.Errorf("the root itself: %w", unix.EBUSY)
	}
	dir, base := path.Split(rel)
	if dir == "" {
		return handle{fd: r.fd(), keep: true}, base, nil
	}
	fd, err := r.open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	return handle{fd: fd}, base, err
}

// inside cleans a name as if the root were "/", and makes it relative to it.
func inside(name string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return "", fmt.Errorf("name has a NUL byte: %w", unix.EINVAL)
	}
	if c := clean(name); c != "/" {
		return c[1:], nil
	}
	return ".", nil
}

func clean(name string) string { return path.Join("/", name) }

func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

func pathError(op, name string, err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

func ignoreEINTR(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
