package cachemount

import (
	"archive/tar"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/kiln-build/kiln/internal/safepath"
)

const (
	blockSize   = 512           // tar's
	trailerSize = 2 * blockSize // zeros, at the end of an archive
	maxXattrs   = 1 << 20       // bytes of one file's extended attributes
	xattrPrefix = "SCHILY.xattr."
)

// tree is a folder as a tar archive that nobody has written: entries in the
// order of their paths, any part of which can be read on its own.
type tree struct {
	root    *safepath.Root
	entries []entry
}

// entry is a file of a tree.
type entry struct {
	Path   string // "a/b"; "." is the tree itself
	LinkTo string // an earlier path of the same file
	Stat   stat
	Length int64 // of header, content and padding, in bytes; 0: not known yet
}

// stat is what tells whether a file has changed.
type stat struct {
	Ino, Size, Mtime, Ctime int64 // times in ns
	Mode, UID, GID          uint32
}

// list returns what is in a folder. Devices, fifos and sockets are passed over.
func list(root *safepath.Root) (*tree, error) {
	t := &tree{root: root}
	fi, err := root.Lstat("/")
	if err != nil {
		return nil, err
	}
	t.add(".", fi)
	if err := t.walk(""); err != nil {
		return nil, err
	}
	slices.SortFunc(t.entries, func(a, b entry) int { return cmp.Compare(a.sortKey(), b.sortKey()) })
	t.link()
	return t, nil
}

// sortKey puts a folder before what is in it, and all of that before the next.
func (e *entry) sortKey() string {
	if e.Path == "." {
		return ""
	}
	return strings.ReplaceAll(e.Path, "/", "\x00")
}

func (t *tree) walk(dir string) error {
	entries, err := t.root.ReadDir("/" + dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		fi, err := t.root.Lstat("/" + name)
		if err != nil {
			return err
		}
		t.add(name, fi)
		if fi.IsDir() {
			if err := t.walk(name); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *tree) add(name string, fi fs.FileInfo) {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || !fi.Mode().IsRegular() && !fi.IsDir() && fi.Mode()&fs.ModeSymlink == 0 {
		return
	}
	e := entry{Path: name, Stat: stat{
		Ino: int64(st.Ino), Size: st.Size, Mtime: st.Mtim.Nano(), Ctime: st.Ctim.Nano(), Mode: st.Mode, UID: st.Uid, GID: st.Gid,
	}}
	if fi.IsDir() {
		e.Stat.Size = 0 // the file system's affair
	}
	if fi.Mode().IsRegular() && st.Nlink > 1 {
		e.LinkTo = name // for link to settle
	}
	t.entries = append(t.entries, e)
}

// link settles which name of a file has its content: the first one.
func (t *tree) link() {
	first := map[int64]string{}
	for i := range t.entries {
		e := &t.entries[i]
		if e.LinkTo == "" {
			continue
		}
		if e.LinkTo = first[e.Stat.Ino]; e.LinkTo == "" {
			first[e.Stat.Ino] = e.Path
		}
	}
}

// header returns an entry's header, and the size of the content after it.
func (t *tree) header(e *entry) (b []byte, size int64, err error) {
	h := &tar.Header{
		Name: e.Path, Mode: int64(e.Stat.Mode & 0o7777), Uid: int(e.Stat.UID), Gid: int(e.Stat.GID),
		ModTime: time.Unix(0, e.Stat.Mtime), Format: tar.FormatPAX,
	}
	switch {
	case e.LinkTo != "":
		h.Typeflag, h.Linkname = tar.TypeLink, e.LinkTo
	case e.Stat.Mode&syscall.S_IFMT == syscall.S_IFDIR:
		h.Typeflag = tar.TypeDir
		h.Name += "/"
	case e.Stat.Mode&syscall.S_IFMT == syscall.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = t.root.Readlink("/" + e.Path); err != nil {
			return nil, 0, err
		}
	default:
		h.Typeflag, h.Size = tar.TypeReg, e.Stat.Size
	}
	if e.LinkTo == "" {
		if err := t.xattrs(h, e.Path); err != nil {
			return nil, 0, err
		}
	}
	var buf bytes.Buffer
	if err := tar.NewWriter(&buf).WriteHeader(h); err != nil {
		return nil, 0, fmt.Errorf("write header of %q: %w", e.Path, err)
	}
	return buf.Bytes(), h.Size, nil
}

func (t *tree) xattrs(h *tar.Header, name string) error {
	attrs, err := t.root.LXattrs("/" + name)
	if err != nil {
		return err
	}
	total := 0
	for key, value := range attrs {
		if overlayAttr(key) || strings.ContainsAny(key, "=\x00") {
			continue
		}
		if total += len(key) + len(value); total > maxXattrs {
			return fmt.Errorf("%q has more than %d bytes of extended attributes", name, maxXattrs)
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[xattrPrefix+key] = string(value)
	}
	return nil
}

// position is a place in a tree's archive.
type position struct {
	Entry  int
	Offset int64 // from the beginning of the entry
}

// advance is the position n bytes after p. The entries between are to have
// been read, so that their lengths are known.
func (t *tree) advance(p position, n int64) position {
	n += p.Offset
	for p.Entry < len(t.entries) && n >= t.entries[p.Entry].Length {
		n -= t.entries[p.Entry].Length
		p.Entry++
	}
	return position{p.Entry, n}
}

// reader reads a tree's archive from a position on.
type reader struct {
	tree *tree
	at   position

	head []byte // what is left of the header
	file io.ReadCloser
	left int64 // of the file's content
	pad  int64
	open bool // in an entry, or in the trailer
}

func (t *tree) read(from position) *reader { return &reader{tree: t, at: from} }

// Read fills b as far as there is something.
func (r *reader) Read(b []byte) (n int, err error) {
	for n < len(b) {
		if !r.open {
			if r.at.Entry > len(r.tree.entries) {
				break
			}
			if err := r.enter(); err != nil {
				return n, err
			}
		}
		k, err := r.part(b[n:])
		n += k
		r.at.Offset += int64(k)
		if err != nil {
			return n, err
		}
		if len(r.head) == 0 && r.left == 0 && r.pad == 0 {
			r.leave()
		}
	}
	if n == 0 && len(b) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// part reads from what is left of the entry.
func (r *reader) part(b []byte) (n int, err error) {
	switch {
	case len(r.head) > 0:
		n = copy(b, r.head)
		r.head = r.head[n:]
	case r.left > 0:
		n, err = io.ReadFull(r.file, b[:min(int64(len(b)), r.left)])
		r.left -= int64(n)
		if err != nil {
			err = fmt.Errorf("read %q, which has changed meanwhile: %w", r.tree.entries[r.at.Entry].Path, err)
		}
	default:
		n = int(min(int64(len(b)), r.pad))
		clear(b[:n])
		r.pad -= int64(n)
	}
	return n, err
}

// enter begins at the reader's position, which may be within an entry.
func (r *reader) enter() error {
	r.open = true
	skip := r.at.Offset
	if r.at.Entry == len(r.tree.entries) {
		r.pad = trailerSize - skip
		return nil
	}
	e := &r.tree.entries[r.at.Entry]
	head, size, err := r.tree.header(e)
	if err != nil {
		return err
	}
	pad := -size & (blockSize - 1)
	e.Length = int64(len(head)) + size + pad
	skip = min(skip, e.Length)
	inHead := min(skip, int64(len(head)))
	inFile := min(skip-inHead, size)
	r.head, r.left, r.pad = head[inHead:], size-inFile, pad-(skip-inHead-inFile)
	if r.left == 0 {
		return nil
	}
	f, err := r.tree.root.Open("/" + e.Path)
	if err != nil {
		return fmt.Errorf("read %q: %w", e.Path, err)
	}
	r.file = f
	if _, err := f.Seek(inFile, io.SeekStart); err != nil {
		return fmt.Errorf("read %q: %w", e.Path, err)
	}
	return nil
}

func (r *reader) leave() {
	_ = r.Close()
	r.at = position{Entry: r.at.Entry + 1}
}

// Close ends reading.
func (r *reader) Close() error {
	r.open, r.head, r.left, r.pad = false, nil, 0, 0
	if r.file == nil {
		return nil
	}
	f := r.file
	r.file = nil
	if err := f.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
		return err
	}
	return nil
}
