package fileop

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/internal/safepath"
)

// Limits of one archive, far beyond any that is meant well. What fits on the
// disk is checked as well.
const (
	maxEntries  = 8 << 20
	maxUnpacked = 1 << 40 // bytes
	paxXattr    = "SCHILY.xattr."
)

// unpack extracts the source into the destination directory if it is an
// archive; else it returns false, and the source is to be copied.
func (c *copier) unpack(name string) (bool, error) {
	from, err := c.src.Resolve(name)
	if err != nil {
		return false, failed("unpack", name, err)
	}
	f, err := c.src.Open(from)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, safepath.ErrSpecial) || errors.Is(err, unix.ENOTDIR) {
		return false, nil // for the copy to tell
	}
	if err != nil {
		return false, failed("unpack", name, err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || fi.IsDir() {
		return false, err
	}
	if !isArchive(f) {
		return false, nil
	}
	c.copied(path.Clean(name))
	dest := withTail(c.action.Dest)
	if _, err := mkdirAll(c.dst, dest, 0o755, c.owner, c.time); err != nil {
		return false, err
	}
	root, err := c.dst.Sub(dest)
	if err != nil {
		return false, failed("unpack to", dest, err)
	}
	defer root.Close()
	if err := Unpack(c.ctx, root, f, UnpackOptions{Owner: c.owner}); err != nil {
		return false, failed("unpack", path.Clean(name), err)
	}
	return true, nil
}

// isArchive says whether a file begins like a tar archive, compressed or not.
func isArchive(f *os.File) bool {
	r, err := decompress(io.NewSectionReader(f, 0, 1<<62))
	if err != nil {
		return false
	}
	defer r.Close()
	_, err = tar.NewReader(r).Next()
	return err == nil
}

// UnpackOptions say how an archive is unpacked.
type UnpackOptions struct {
	Owner *Owner // replaces the archive's owners; nil leaves them
	// Spread asks for what [safepath.Root.Spread] does to the directories that
	// the archive makes.
	Spread bool
}

// Unpack extracts a tar archive, plain or compressed by gzip, bzip2, xz or
// zstd, into root. Names and links are meant inside root: one that would lead
// out is an error. An entry replaces what is there, but directories merge.
func Unpack(ctx context.Context, root *safepath.Root, archive io.Reader, o UnpackOptions) error {
	r, err := decompress(archive)
	if err != nil {
		return err
	}
	defer r.Close()
	u := &unpacker{ctx: ctx, root: root, owner: o.Owner, spread: o.Spread, buf: make([]byte, 128<<10)}
	defer u.leave()
	tr := tar.NewReader(r)
	for range maxEntries {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return u.finish()
		}
		if err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
		if err := u.entry(h, tr); err != nil {
			var pe *fs.PathError
			if errors.As(err, &pe) {
				err = pe.Err
			}
			return fmt.Errorf("archive entry %q: %w", h.Name, err)
		}
	}
	return fmt.Errorf("archive has more than %d entries", maxEntries)
}

type unpacker struct {
	ctx    context.Context
	root   *safepath.Root
	owner  *Owner
	spread bool
	total  int64
	dirs   []*tar.Header // to get their times at the end

	// The directory of the last file, kept open: most archives have one
	// directory's files after one another.
	parent *safepath.Root
	at     string // its name
	buf    []byte
	room   int64 // bytes that are known to be free on the disk
}

// local is the name in the root that an archive means by name.
func local(name string) (string, error) {
	depth := 0
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "", ".":
		case "..":
			if depth--; depth < 0 {
				return "", errors.New("it leads out of the destination")
			}
		default:
			depth++
		}
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", errors.New("its name has a NUL byte")
	}
	return path.Join("/", name), nil
}

func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	if err := u.ctx.Err(); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := local(h.Name)
	if err != nil {
		return err
	}
	h.Name = name
	isDir := h.Typeflag == tar.TypeDir
	if name == "/" {
		if !isDir {
			return errors.New("it would replace the destination itself")
		}
		return nil // which stays as it is
	}
	if h.Typeflag == tar.TypeReg || h.Typeflag == tar.TypeGNUSparse {
		return u.file(h, content)
	}
	if _, err := mkdirAll(u.root, path.Dir(name), 0o755, u.owner, nil); err != nil {
		return err
	}
	fi, err := u.root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case !fi.IsDir() || !isDir:
		if err := u.remove(name); err != nil {
			return err
		}
	}
	if err := u.make(h); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeLink {
		return nil // all else is the other name's
	}
	return u.dress(h)
}

// remove makes room for an entry.
func (u *unpacker) remove(name string) error {
	u.leave() // it may be what was on the way there
	return u.root.RemoveAll(name)
}

func (u *unpacker) leave() {
	if u.parent != nil {
		_ = u.parent.Close()
		u.parent = nil
	}
}

// enter opens a directory, and makes what is missing of it.
func (u *unpacker) enter(dir string) (*safepath.Root, error) {
	if u.parent != nil && u.at == dir {
		return u.parent, nil
	}
	u.leave()
	if _, err := mkdirAll(u.root, dir, 0o755, u.owner, nil); err != nil {
		return nil, err
	}
	parent, err := u.root.Sub(dir)
	if err != nil {
		return nil, err
	}
	u.parent, u.at = parent, dir
	return parent, nil
}

// make makes what has no content.
func (u *unpacker) make(h *tar.Header) error {
	switch h.Typeflag {
	case tar.TypeDir:
		err := u.root.Mkdir(h.Name, 0o700)
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		if err == nil && u.spread {
			u.root.Spread(h.Name)
		}
		return err
	case tar.TypeLink:
		target, err := local(h.Linkname)
		if err != nil {
			return fmt.Errorf("hard link to %q: %w", h.Linkname, err)
		}
		if err := u.root.Link(target, h.Name); err != nil {
			return fmt.Errorf("hard link to %q: %w", h.Linkname, errors.Unwrap(err))
		}
		return nil
	case tar.TypeSymlink:
		return u.root.Symlink(h.Linkname, h.Name)
	case tar.TypeFifo:
		return u.root.Mknod(h.Name, unix.S_IFIFO|0o600, 0)
	case tar.TypeChar, tar.TypeBlock:
		mode := uint32(unix.S_IFBLK)
		if h.Typeflag == tar.TypeChar {
			mode = unix.S_IFCHR
			if h.Devmajor == 0 && h.Devminor == 0 {
				return errRemovedMark
			}
		}
		if h.Devmajor < 0 || h.Devminor < 0 || h.Devmajor >= 1<<12 || h.Devminor >= 1<<20 {
			return fmt.Errorf("device number %d/%d is out of range", h.Devmajor, h.Devminor)
		}
		return u.root.Mknod(h.Name, mode|0o600, unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
	}
	return fmt.Errorf("unknown kind of entry %q", h.Typeflag)
}

// file makes a regular file, all by one handle: archives may have a great many.
func (u *unpacker) file(h *tar.Header, content io.Reader) error {
	if err := u.take(h.Size); err != nil {
		return err
	}
	f, err := u.create(h.Name)
	if err != nil {
		return err
	}
	w := &holeWriter{f: f}
	_, err = io.CopyBuffer(w, &untilDone{u.ctx, content}, u.buf)
	if err == nil && w.hole {
		err = f.Truncate(w.end)
	}
	if err == nil {
		err = u.dressFile(f, h)
	}
	return errors.Join(err, f.Close())
}

// take counts the bytes of a file that is about to be written.
func (u *unpacker) take(size int64) error {
	if size > maxUnpacked-u.total {
		return fmt.Errorf("the archive holds more than %d bytes", int64(maxUnpacked))
	}
	u.total += size
	if size > u.room {
		free, err := u.root.Free()
		if err != nil {
			return err
		}
		if uint64(size) > free {
			return fmt.Errorf("it has %d bytes, and %d are free on the disk: %w", size, free, unix.ENOSPC)
		}
		const lookAgain = 64 << 20 // others use the disk, too
		u.room = max(size, int64(min(free, lookAgain)))
	}
	u.room -= size
	return nil
}

// create makes a new file, in place of what there is.
func (u *unpacker) create(name string) (*os.File, error) {
	const flags = os.O_WRONLY | os.O_CREATE | os.O_EXCL
	for again := false; ; again = true {
		parent, err := u.enter(path.Dir(name))
		if err != nil {
			return nil, err
		}
		f, err := parent.OpenFile(path.Base(name), flags, 0o600)
		if again || !errors.Is(err, fs.ErrExist) {
			return f, err
		}
		if err := u.remove(name); err != nil {
			return nil, err
		}
	}
}

// holeWriter leaves holes for zeros, so that an archive of nothing, which may
// say in few bytes that it is huge, fills no disk. The file begins empty.
type holeWriter struct {
	f    *os.File
	end  int64
	hole bool // the last bytes are one
}

func (w *holeWriter) Write(b []byte) (int, error) {
	w.hole = slices.IndexFunc(b, func(c byte) bool { return c != 0 }) < 0
	if !w.hole {
		if n, err := w.f.WriteAt(b, w.end); err != nil {
			return n, err
		}
	}
	w.end += int64(len(b))
	return len(b), nil
}

// untilDone is a reader that ends with its context.
type untilDone struct {
	ctx context.Context
	r   io.Reader
}

func (r *untilDone) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(b)
}

// ownerOf is whom an entry is to belong to.
func (u *unpacker) ownerOf(h *tar.Header) (uid, gid int, err error) {
	uid, gid = h.Uid, h.Gid
	if u.owner != nil {
		uid, gid = int(u.owner.UID), int(u.owner.GID)
	}
	if uid < 0 || gid < 0 || uid >= 1<<32-1 || gid >= 1<<32-1 {
		return 0, 0, fmt.Errorf("owner %d:%d is out of range", uid, gid)
	}
	return uid, gid, nil
}

// setXattrs has set called for each extended attribute of an entry.
func setXattrs(h *tar.Header, set func(key string, value []byte) error) error {
	for k, v := range h.PAXRecords {
		key, ok := strings.CutPrefix(k, paxXattr)
		if !ok || overlayMark(key) {
			continue
		}
		if err := set(key, []byte(v)); err != nil && !xattrRefused(err) {
			return fmt.Errorf("set attribute %s: %w", key, err)
		}
	}
	return nil
}

// dressFile gives an open file what its entry says. The owner comes first: with
// a new one, a file loses its set-uid bits.
func (u *unpacker) dressFile(f *os.File, h *tar.Header) error {
	uid, gid, err := u.ownerOf(h)
	if err != nil {
		return err
	}
	if err := f.Chown(uid, gid); err != nil {
		return err
	}
	fd := int(f.Fd())
	err = setXattrs(h, func(key string, value []byte) error { return unix.Fsetxattr(fd, key, value, 0) })
	if err != nil {
		return err
	}
	if err := f.Chmod(h.FileInfo().Mode()); err != nil {
		return err
	}
	access, modified := timesOf(h)
	var times [2]unix.Timespec
	for i, t := range []time.Time{access, modified} {
		if times[i], err = unix.TimeToTimespec(t); err != nil {
			return err
		}
	}
	return unix.UtimesNanoAt(fd, "", times[:], unix.AT_EMPTY_PATH)
}

// dress is dressFile for what is no regular file.
func (u *unpacker) dress(h *tar.Header) error {
	uid, gid, err := u.ownerOf(h)
	if err != nil {
		return err
	}
	if err := u.root.Lchown(h.Name, uid, gid); err != nil {
		return err
	}
	err = setXattrs(h, func(key string, value []byte) error { return u.root.LSetXattr(h.Name, key, value) })
	if err != nil {
		return err
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := u.root.Lchmod(h.Name, h.FileInfo().Mode()); err != nil {
			return err
		}
	}
	if h.Typeflag == tar.TypeDir {
		u.dirs = append(u.dirs, &tar.Header{Name: h.Name, ModTime: h.ModTime, AccessTime: h.AccessTime})
		return nil
	}
	return u.times(h)
}

func (u *unpacker) times(h *tar.Header) error {
	access, modified := timesOf(h)
	return u.root.Utimes(h.Name, access, modified)
}

// timesOf are the times of access and modification that an entry gets.
func timesOf(h *tar.Header) (access, modified time.Time) {
	access = h.AccessTime
	if access.Before(h.ModTime) {
		access = h.ModTime
	}
	return inRange(access), inRange(h.ModTime)
}

// inRange leaves out times that file systems or their readers cannot hold.
func inRange(t time.Time) time.Time {
	if t.Before(time.Unix(0, 0)) || t.After(time.Unix(0, 1<<63-1)) {
		return time.Unix(0, 0)
	}
	return t
}

// finish gives directories their times, now that nothing more is made in them.
func (u *unpacker) finish() error {
	for i := len(u.dirs) - 1; i >= 0; i-- {
		h := u.dirs[i]
		if fi, err := u.root.Lstat(h.Name); err != nil || !fi.IsDir() {
			continue // a later entry replaced it
		}
		if err := u.times(h); err != nil {
			return failed("set times of", h.Name, err)
		}
	}
	return nil
}
