package layer

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// ErrArchive says that a layer's archive is broken or hostile.
var ErrArchive = errors.New("bad layer archive")

// largestArchive is how many bytes a blob of the given size may unpack to. No
// useful layer comes near; a bomb does.
func largestArchive(size int64) int64 {
	const floor, ratio = 4 << 30, 256
	if size > (math.MaxInt64-floor)/ratio {
		return math.MaxInt64
	}
	return floor + ratio*size
}

// capped is a reader with a limit that is an error.
type capped struct {
	r    io.Reader
	left int64
}

func (c *capped) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if e := c.take(int64(n)); e != nil {
		return n, e
	}
	return n, err
}

func (c *capped) take(n int64) error {
	if c.left -= n; c.left < 0 {
		return fmt.Errorf("%w: it unpacks to far more than a layer of its size should", ErrArchive)
	}
	return nil
}

// decompress reads what its first bytes say it is; media types may lie.
func decompress(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 256<<10)
	magic, err := b.Peek(6)
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("read blob: %w", err)
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, fmt.Errorf("%w: gzip: %w", ErrArchive, err)
		}
		return z, nil
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, fmt.Errorf("%w: zstd: %w", ErrArchive, err)
		}
		return z.IOReadCloser(), nil
	case bytes.HasPrefix(magic, []byte("BZh")), bytes.HasPrefix(magic, []byte("\xfd7zXZ\x00")):
		return nil, fmt.Errorf("%w: compressed with bzip2 or xz; layers are tar, gzip or zstd", ErrArchive)
	}
	return io.NopCloser(b), nil
}

// extracted is what an archive says beside its files.
type extracted struct {
	whiteouts []string // deleted paths
	opaques   []string // directories of which nothing below counts
	implied   []string // directories without an entry of their own
	rootSeen  bool     // the root had an entry
	times     map[string]unix.Timespec
}

// restoreTimes sets the times of directories, which writing has changed.
func (x *extracted) restoreTimes(root *os.File) error {
	for p, t := range x.times {
		dir, err := beneath(fd(root), p)
		if ignoreMissing(err) == nil && err != nil {
			continue // replaced by a later entry
		} else if err != nil {
			return err
		}
		err = setTimes(fd(dir), "", t)
		dir.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// extractor writes the entries of an archive below a directory. Whatever the
// archive says, nothing outside is touched: the kernel resolves every path
// with the directory as root.
type extractor struct {
	root   *os.File
	out    *extracted
	limit  *capped
	parent *os.File // of the last entry, kept open for the next
	at     string
	buf    []byte
}

// extractTar extracts into root. limit also counts what sparse files make of
// nothing. With windows, the archive may be laid out as Windows wants it.
func extractTar(ctx context.Context, r io.Reader, root *os.File, limit *capped, windows bool) (*extracted, error) {
	x := &extractor{
		root: root, limit: limit, buf: make([]byte, 256<<10),
		out: &extracted{times: map[string]unix.Timespec{}},
	}
	defer x.leave()
	tr := tar.NewReader(r)
	for first := true; ; first = false {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		h, err := tr.Next()
		if first && err == nil {
			windows = windows && isWindowsLayout(h)
		}
		if err == io.EOF {
			return x.out, nil
		} else if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrArchive, err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader || windows && !fromWindows(h) {
			continue
		}
		if err := x.entry(h, tr); err != nil {
			return nil, fmt.Errorf("entry %q: %w", shorten(h.Name), err)
		}
	}
}

func shorten(name string) string {
	if len(name) > 200 {
		return name[:200] + "..."
	}
	return name
}

// cleanName turns the name of an entry into a path relative to the root, "" for
// the root itself.
func cleanName(name string) (string, error) {
	if strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("%w: name has a zero byte", ErrArchive)
	}
	for c := range strings.SplitSeq(name, "/") {
		if c == ".." {
			return "", fmt.Errorf("%w: name %q leads upwards", ErrArchive, shorten(name))
		}
	}
	return strings.TrimPrefix(path.Clean("/"+name), "/"), nil
}

func (x *extractor) entry(h *tar.Header, content io.Reader) error {
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	dir, base := path.Split(name)
	dir = strings.TrimSuffix(dir, "/")
	if strings.HasPrefix(base, whiteoutPrefix) {
		return x.whiteout(dir, base)
	}
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) >= math.MaxUint32 || int64(h.Gid) >= math.MaxUint32 {
		return fmt.Errorf("%w: owner %d:%d is out of range", ErrArchive, h.Uid, h.Gid)
	}
	if name == "" {
		if h.Typeflag != tar.TypeDir {
			return fmt.Errorf("%w: the root is no directory", ErrArchive)
		}
		x.out.rootSeen = true
		return x.directoryMeta(fd(x.root), "", h)
	}
	parent, err := x.enter(dir)
	if err != nil {
		return err
	}
	if err := x.makeRoom(parent, base, h.Typeflag == tar.TypeDir); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return x.directory(parent, base, name, h)
	case tar.TypeReg, tar.TypeRegA, tar.TypeCont, tar.TypeGNUSparse: //nolint:staticcheck // old archives have TypeRegA
		return x.regular(parent, base, h, content)
	case tar.TypeSymlink:
		if err := unix.Symlinkat(h.Linkname, parent, base); err != nil {
			return fmt.Errorf("make link: %w", err)
		}
	case tar.TypeLink:
		return x.hardLink(parent, base, h)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		if made, err := makeNode(parent, base, h); !made || err != nil {
			return err
		}
	default:
		return fmt.Errorf("%w: entry type %q is unknown", ErrArchive, h.Typeflag)
	}
	if err := chown(parent, base, h.Uid, h.Gid); err != nil {
		return err
	}
	return setTimes(parent, base, timespec(h))
}

// whiteout notes a deletion. It is carried out at the end, since it means what
// is below and not what this archive brings.
func (x *extractor) whiteout(dir, base string) error {
	if base == whiteoutOpaque {
		x.out.opaques = append(x.out.opaques, dir)
		return nil
	}
	if strings.HasPrefix(base, whiteoutPrefix+whiteoutPrefix) {
		return nil // AUFS kept its own books under such names
	}
	switch name := strings.TrimPrefix(base, whiteoutPrefix); name {
	case "", ".", "..":
		return fmt.Errorf("%w: it deletes %q", ErrArchive, name)
	default:
		x.out.whiteouts = append(x.out.whiteouts, path.Join(dir, name))
	}
	return nil
}

func (x *extractor) leave() {
	if x.parent != nil {
		x.parent.Close()
		x.parent = nil
	}
}

// enter opens the directory in which an entry goes.
func (x *extractor) enter(dir string) (int, error) {
	if x.parent != nil && x.at == dir {
		return fd(x.parent), nil
	}
	x.leave()
	d, err := x.open(dir)
	if err != nil {
		return -1, err
	}
	x.parent, x.at = d, dir
	return fd(d), nil
}

// open opens a directory, making what is missing of it. Links are followed as
// if the root were the root of the machine.
func (x *extractor) open(dir string) (*os.File, error) {
	if dir == "" {
		dir = "."
	}
	how := &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	n, err := unix.Openat2(fd(x.root), dir, how)
	if err == unix.ENOENT && dir != "." {
		up, name := path.Split(dir)
		parent, err := x.open(strings.TrimSuffix(up, "/"))
		if err != nil {
			return nil, err
		}
		defer parent.Close()
		if err := unix.Mkdirat(fd(parent), name, 0o755); err != nil {
			if err == unix.EEXIST {
				return nil, fmt.Errorf("%w: %q is a link that leads nowhere", ErrArchive, shorten(dir))
			}
			return nil, fmt.Errorf("make directory %q: %w", shorten(dir), err)
		}
		x.out.implied = append(x.out.implied, dir)
		return openDir(fd(parent), name)
	}
	if err != nil {
		return nil, fmt.Errorf("open directory %q: %w", shorten(dir), err)
	}
	return os.NewFile(uintptr(n), dir), nil
}

// makeRoom removes what is in the way of a new entry.
func (x *extractor) makeRoom(parent int, base string, dir bool) error {
	st, err := lstat(parent, base)
	if err != nil || st == nil || dir && isDir(st) {
		return err
	}
	return removeAll(parent, base)
}

func (x *extractor) directory(parent int, base, name string, h *tar.Header) error {
	if err := unix.Mkdirat(parent, base, 0o700); err != nil && err != unix.EEXIST {
		return fmt.Errorf("make directory: %w", err)
	}
	d, err := openDir(parent, base)
	if err != nil {
		return err
	}
	defer d.Close()
	return x.directoryMeta(fd(d), name, h)
}

func (x *extractor) directoryMeta(d int, name string, h *tar.Header) error {
	x.out.times[name] = timespec(h)
	return fileMeta(d, h)
}

func (x *extractor) regular(parent int, base string, h *tar.Header, content io.Reader) (err error) {
	if err := x.limit.take(max(h.Size, 0) - rawSize(h)); err != nil {
		return err
	}
	n, err := unix.Openat(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("create file: %w", err)
	}
	f := os.NewFile(uintptr(n), base)
	defer func() {
		if e := f.Close(); err == nil {
			err = e
		}
	}()
	if _, err := io.CopyBuffer(struct{ io.Writer }{f}, content, x.buf); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("%w: it ends in the middle of a file of %d bytes", ErrArchive, h.Size)
		}
		return fmt.Errorf("write file: %w", err)
	}
	if err := fileMeta(fd(f), h); err != nil {
		return err
	}
	return setTimes(fd(f), "", timespec(h))
}

// rawSize is how many bytes of the archive, already counted, a file has; a
// sparse one has few and becomes many.
func rawSize(h *tar.Header) int64 {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return 0
		}
	}
	if h.Typeflag == tar.TypeGNUSparse {
		return 0
	}
	return max(h.Size, 0)
}

// fileMeta sets what an entry says of an open file. The owner comes first:
// changing it takes set-uid bits and capabilities away.
func fileMeta(f int, h *tar.Header) error {
	if err := chown(f, "", h.Uid, h.Gid); err != nil {
		return err
	}
	if err := unix.Fchmod(f, uint32(h.Mode&0o7777)); err != nil {
		return fmt.Errorf("change mode: %w", err)
	}
	xattrs := map[string]string{}
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, xattrPAX); ok {
			xattrs[name] = value
		}
	}
	return writeXattrs(f, xattrs)
}

func (x *extractor) hardLink(parent int, base string, h *tar.Header) error {
	target, err := cleanName(h.Linkname)
	if err != nil {
		return err
	}
	dir, name := path.Split(target)
	if name == "" {
		return fmt.Errorf("%w: hard link to the root", ErrArchive)
	}
	d, err := x.open(strings.TrimSuffix(dir, "/"))
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Linkat(fd(d), name, parent, base, 0); err != nil {
		return fmt.Errorf("%w: hard link to %q: %w", ErrArchive, shorten(h.Linkname), err)
	}
	return linkMeta(parent, base, h)
}

// linkMeta sets what the entry of a hard link says in another way than that of the
// file did: the last one counts, as with containerd.
func linkMeta(parent int, base string, h *tar.Header) error {
	st, err := lstat(parent, base)
	if err != nil || st == nil {
		return err
	}
	if int(st.Uid) != h.Uid || int(st.Gid) != h.Gid {
		if err := chown(parent, base, h.Uid, h.Gid); err != nil {
			return err
		}
	}
	if !isLink(st) && int64(st.Mode&0o7777) != h.Mode&0o7777 {
		if err := unix.Fchmodat(parent, base, uint32(h.Mode&0o7777), 0); err != nil {
			return fmt.Errorf("change mode: %w", err)
		}
	}
	return setTimes(parent, base, timespec(h))
}

// makeNode makes a device or a pipe. Inside a user namespace no device can be
// made; it is left out there, as other tools do.
func makeNode(parent int, base string, h *tar.Header) (made bool, err error) {
	mode, device := uint32(h.Mode&0o7777), uint64(0)
	switch h.Typeflag {
	case tar.TypeFifo:
		mode |= unix.S_IFIFO
	case tar.TypeChar, tar.TypeBlock:
		if h.Devmajor < 0 || h.Devminor < 0 || h.Devmajor > math.MaxUint32 || h.Devminor > math.MaxUint32 {
			return false, fmt.Errorf("%w: device %d:%d is out of range", ErrArchive, h.Devmajor, h.Devminor)
		}
		device = unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
		mode |= unix.S_IFBLK
		if h.Typeflag == tar.TypeChar {
			if device == 0 {
				return false, fmt.Errorf("%w: device 0:0 is overlay's mark for a deletion", ErrArchive)
			}
			mode = mode&^unix.S_IFMT | unix.S_IFCHR
		}
	}
	switch err := unix.Mknodat(parent, base, mode, int(device)); {
	case err == unix.EPERM && h.Typeflag != tar.TypeFifo:
		return false, nil
	case err != nil:
		return false, fmt.Errorf("make device: %w", err)
	}
	// The process's umask has taken bits away.
	if err := unix.Fchmodat(parent, base, uint32(h.Mode&0o7777), 0); err != nil {
		return false, fmt.Errorf("change mode: %w", err)
	}
	return true, nil
}

func timespec(h *tar.Header) unix.Timespec {
	if h.ModTime.Unix() < 0 {
		return unix.Timespec{}
	}
	return unix.Timespec{Sec: h.ModTime.Unix(), Nsec: int64(h.ModTime.Nanosecond())}
}
