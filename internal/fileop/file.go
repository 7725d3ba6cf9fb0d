package fileop

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/internal/safepath"
)

// errRemovedMark refuses what overlay file systems take for a removed file.
var errRemovedMark = errors.New("a character device 0/0 marks a removed file in layers and cannot be made")

// files copies files of one directory, several at a time if there are many.
func (c *copier) files(files []entry) error {
	const each = 8 // fewer are not worth a goroutine
	workers := min(2*runtime.GOMAXPROCS(0), (len(files)+each-1)/each)
	if workers <= 1 {
		for _, e := range files {
			if err := c.file(e); err != nil {
				return err
			}
		}
		return nil
	}
	var next atomic.Int64
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for errs[w] == nil {
				i := int(next.Add(1)) - 1
				if i >= len(files) {
					return
				}
				errs[w] = c.file(files[i])
			}
			next.Store(int64(len(files))) // the others may stop, too
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err // one is enough; the others are of the same kind
		}
	}
	return nil
}

// file copies anything but a directory.
func (c *copier) file(e entry) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	if err := c.makeRoom(e); err != nil {
		return err
	}
	err := c.regular(e)
	if errors.Is(err, safepath.ErrSpecial) || errors.Is(err, unix.ELOOP) {
		err = c.special(e)
	}
	if err != nil {
		return failed("copy", e.name, err)
	}
	return nil
}

// makeRoom removes what is where a file is to be. A directory is in the way,
// unless it is to be replaced whatever it is.
func (c *copier) makeRoom(e entry) error {
	if e.dir.fresh {
		return nil
	}
	fi, err := e.dir.dst.Lstat(e.dst)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return failed("copy to", e.target(), err)
	case fi.IsDir() && !c.action.ReplaceExistingDest:
		return fmt.Errorf("cannot replace to directory %s with file", e.target())
	}
	if err := e.dir.dst.RemoveAll(e.dst); err != nil {
		return failed("replace", e.target(), err)
	}
	return nil
}

// open opens a regular file that no listing has told of.
func (e *entry) open() (*os.File, fs.FileInfo, error) {
	f, err := e.dir.src.OpenFile(e.src, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, nil, err
	}
	fi, err := f.Stat()
	if err == nil && fi.IsDir() {
		err = unix.EISDIR // it was none a moment ago
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, fi, nil
}

// regular copies a regular file. Sources are layers, which do not change.
func (c *copier) regular(e entry) error {
	if !e.regular {
		in, fi, err := e.open()
		if err != nil {
			return err
		}
		defer in.Close()
		return c.opened(e, in, fi)
	}
	fd, fi, err := e.dir.src.OpenListedFD(e.src)
	if err != nil {
		return err
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok && st.Nlink < 2 && fi.Size() <= smallFile {
		defer unix.Close(fd)
		return c.small(e, fd, fi)
	}
	in := os.NewFile(uintptr(fd), e.name)
	defer in.Close()
	return c.opened(e, in, fi)
}

func (c *copier) opened(e entry, in *os.File, fi fs.FileInfo) error {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || st.Nlink < 2 {
		return c.content(e, in, fi)
	}
	id := inode{st.Dev, st.Ino}
	c.mu.Lock()
	first := c.links[id]
	if first != nil {
		c.mu.Unlock()
		return c.link(e, first, in, fi)
	}
	l := &linked{done: make(chan struct{})}
	c.links[id] = l
	c.mu.Unlock()
	defer close(l.done)
	if err := c.content(e, in, fi); err != nil {
		return err
	}
	l.path = e.target()
	return nil
}

// link makes a further name of a file that was copied, or is just now.
func (c *copier) link(e entry, first *linked, in *os.File, fi fs.FileInfo) error {
	select {
	case <-first.done:
	case <-c.ctx.Done():
		return c.ctx.Err()
	}
	if first.path == "" { // it failed, and so will all
		return c.content(e, in, fi)
	}
	err := c.dst.Link(first.path, e.target())
	if errors.Is(err, unix.EMLINK) || errors.Is(err, fs.ErrNotExist) {
		// Too many names, or the first one was replaced by a later source.
		return c.content(e, in, fi)
	}
	return err
}

// content copies a regular file's bytes and metadata. The file begins with the
// permissions that it is to have, of which the umask may leave all.
func (c *copier) content(e entry, in *os.File, fi fs.FileInfo) error {
	out, err := e.dir.dst.OpenFile(e.dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, c.modeOf(fi).Perm())
	if err != nil {
		return err
	}
	err = c.bytes(out, in, fi.Size())
	if err == nil {
		err = c.dressFile(int(out.Fd()), int(in.Fd()), fi)
	}
	return errors.Join(err, out.Close())
}

// small is content of a small file, in as few system calls as that takes.
func (c *copier) small(e entry, in int, fi fs.FileInfo) error {
	out, err := e.dir.dst.CreateFD(e.dst, c.modeOf(fi).Perm())
	if err != nil {
		return err
	}
	if fi.Size() > 0 {
		err = c.copySmall(out, in, fi.Size())
	}
	if err == nil {
		err = c.dressFile(out, in, fi)
	}
	return errors.Join(err, unix.Close(out))
}

func (c *copier) copySmall(out, in int, size int64) error {
	buf := c.buffer()
	defer c.buffers.Put(buf)
	for at := int64(0); at < size; {
		n, err := unix.Pread(in, buf[:size-at], at)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 { // it has become shorter
			return err
		}
		for from := 0; from < n; {
			k, err := unix.Pwrite(out, buf[from:n], at)
			if err != nil && !errors.Is(err, unix.EINTR) {
				return err
			}
			k = max(k, 0)
			from, at = from+k, at+int64(k)
		}
	}
	return nil
}

// buffer is one for a small file, which is to be put back.
func (c *copier) buffer() *[smallFile]byte {
	if buf, ok := c.buffers.Get().(*[smallFile]byte); ok {
		return buf
	}
	return new([smallFile]byte)
}

// dressFile gives a new file what is to be kept of in's metadata.
func (c *copier) dressFile(out, in int, fi fs.FileInfo) error {
	if err := c.own(out, fi); err != nil {
		return err
	}
	attrs, err := safepath.FDXattrs(in)
	if err != nil {
		return err
	}
	for k, v := range attrs {
		if overlayMark(k) {
			continue
		}
		if err := unix.Fsetxattr(out, k, v, 0); err != nil && !xattrRefused(err) {
			return fmt.Errorf("set xattr %s: %w", k, err)
		}
	}
	at, mod := c.times(fi)
	ts := []unix.Timespec{unix.NsecToTimespec(at.UnixNano()), unix.NsecToTimespec(mod.UnixNano())}
	return unix.UtimesNanoAt(out, "", ts, unix.AT_EMPTY_PATH)
}

// own gives a new file its owner and mode. To look costs much less than to change
// what is right already, as it mostly is.
func (c *copier) own(out int, fi fs.FileInfo) error {
	is, err := safepath.FDInfo(out)
	if err != nil {
		return err
	}
	uid, gid := c.ownerOf(fi)
	if u, g, ok := safepath.Owner(is); !ok || u != uid || g != gid {
		if err := unix.Fchown(out, int(uid), int(gid)); err != nil {
			return err
		}
	}
	// A change of owner takes nothing from a new file's mode, which has no setuid yet.
	if mode := c.modeOf(fi); is.Mode() != mode {
		return safepath.FDChmod(out, mode)
	}
	return nil
}

// xattrRefused says that an xattr is not for us, or not for this file system,
// which is no reason not to copy a file.
func xattrRefused(err error) bool {
	return errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EINVAL)
}

// special copies symlinks, devices, fifos and sockets.
func (c *copier) special(e entry) error {
	fi, err := e.dir.src.Lstat(e.src)
	if err != nil {
		return err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("unknown kind of file %s", fi.Mode().Type())
	}
	switch {
	case fi.Mode()&fs.ModeSymlink != 0:
		target, err := e.dir.src.Readlink(e.src)
		if err != nil {
			return err
		}
		if err := e.dir.dst.Symlink(target, e.dst); err != nil {
			return err
		}
	case fi.Mode()&fs.ModeCharDevice != 0 && st.Rdev == 0:
		return errRemovedMark
	case fi.Mode()&(fs.ModeDevice|fs.ModeNamedPipe|fs.ModeSocket) != 0:
		if err := e.dir.dst.Mknod(e.dst, st.Mode&unix.S_IFMT|0o600, st.Rdev); err != nil {
			return err
		}
	default:
		return fmt.Errorf("unknown kind of file %s", fi.Mode().Type())
	}
	return c.metadata(e.dir.src, e.src, e.dir.dst, e.dst, fi)
}

// metadata gives dst, by name, what is to be kept of src's metadata.
func (c *copier) metadata(src *safepath.Root, from string, dst *safepath.Root, to string, fi fs.FileInfo) error {
	uid, gid := c.ownerOf(fi)
	if err := dst.Lchown(to, int(uid), int(gid)); err != nil {
		return err
	}
	if fi.Mode()&fs.ModeSymlink == 0 {
		if err := dst.Lchmod(to, c.modeOf(fi)); err != nil {
			return err
		}
	}
	attrs, err := src.LXattrs(from)
	if err != nil {
		return err
	}
	for k, v := range attrs {
		if overlayMark(k) {
			continue
		}
		if err := dst.LSetXattr(to, k, v); err != nil && !xattrRefused(err) {
			return err
		}
	}
	at, mod := c.times(fi)
	return dst.Utimes(to, at, mod)
}

func (c *copier) ownerOf(fi fs.FileInfo) (uid, gid uint32) {
	if c.owner != nil {
		return c.owner.UID, c.owner.GID
	}
	uid, gid, _ = safepath.Owner(fi)
	return uid, gid
}

func (c *copier) modeOf(fi fs.FileInfo) fs.FileMode {
	if c.mode == nil {
		return fi.Mode()
	}
	return c.mode.apply(fi.Mode())
}

func (c *copier) times(fi fs.FileInfo) (access, modified time.Time) {
	if c.time != nil {
		return *c.time, *c.time
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return time.Unix(st.Atim.Unix()), fi.ModTime()
	}
	return fi.ModTime(), fi.ModTime()
}

// Sizes of copying: a small file is read and written at once, others go in
// chunks, so that a cancel is soon heard.
const (
	smallFile = 64 << 10
	chunk     = 16 << 20
)

// bytes copies size bytes: shared extents where the file system has them, else
// inside the kernel, and holes stay holes.
func (c *copier) bytes(out, in *os.File, size int64) error {
	if size == 0 {
		return nil
	}
	if size > smallFile && c.clone.Load() {
		if unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) == nil {
			return nil
		}
		c.clone.Store(false)
	}
	if size <= smallFile {
		return c.copyPlain(out, in, 0, size)
	}
	src := int(in.Fd())
	for off := int64(0); off < size; {
		data, err := unix.Seek(src, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // only a hole is left
		}
		hole := size
		if err != nil {
			data = off // the file system tells no holes
		} else if hole, err = unix.Seek(src, data, unix.SEEK_HOLE); err != nil {
			hole = size
		}
		if err := c.extent(out, in, data, min(hole, size)); err != nil {
			return err
		}
		off = hole
	}
	return out.Truncate(size)
}

func (c *copier) extent(out, in *os.File, from, to int64) error {
	r, w := from, from
	for r < to {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		n, err := unix.CopyFileRange(int(in.Fd()), &r, int(out.Fd()), &w, int(min(to-r, chunk)), 0)
		if err != nil && !errors.Is(err, unix.EINTR) {
			if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
				return err
			}
			return c.copyPlain(out, in, r, to) // not between these file systems
		}
		if err == nil && n == 0 {
			return nil // it has become shorter
		}
	}
	return nil
}

// copyPlain copies a range by way of memory.
func (c *copier) copyPlain(out, in *os.File, from, to int64) error {
	var buf []byte
	if to-from <= smallFile {
		small := c.buffer()
		defer c.buffers.Put(small)
		buf = small[:]
	} else {
		buf = make([]byte, min(to-from, 256<<10))
	}
	for from < to {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		n, err := in.ReadAt(buf[:min(to-from, int64(len(buf)))], from)
		if n > 0 {
			if _, err := out.WriteAt(buf[:n], from); err != nil {
				return err
			}
			from += int64(n)
		}
		if n == 0 {
			return ignoreEOF(err)
		}
	}
	return nil
}
