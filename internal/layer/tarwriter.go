package layer

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"path"
	"time"

	"golang.org/x/sys/unix"
)

// Names in layer archives that mean deletions (OCI image spec, "layer.md").
const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// xattrPAX is how archives name extended attributes.
const xattrPAX = "SCHILY.xattr."

// layerXattr is the one attribute that layers made here have: containerd, and so
// BuildKit, writes no other. Layers that come with others keep them.
const layerXattr = "security.capability"

// tarSink writes changes as a layer archive. The same changes give the same
// bytes: entries come in order, and headers say nothing that depends on when
// and where they are read.
type tarSink struct {
	ctx   context.Context
	tw    *tar.Writer
	epoch *int64 // Unix seconds that no time is later than
	links map[inode]string
	// below tells whether a directory covers one in the layers under this one;
	// a mark that it is opaque says nothing else.
	covers func(path string) (bool, error)
	buf    []byte
	// windows says that the archive is to be laid out as Windows wants it.
	windows bool
}

type inode struct{ dev, ino uint64 }

func newTarSink(ctx context.Context, w io.Writer, epoch *int64, covers func(string) (bool, error)) *tarSink {
	return &tarSink{
		ctx: ctx, tw: tar.NewWriter(w), epoch: epoch, covers: covers,
		links: map[inode]string{}, buf: make([]byte, 256<<10),
	}
}

// begin writes what comes before all else.
func (t *tarSink) begin() error {
	if !t.windows {
		return nil
	}
	for _, h := range windowsTop(t.time(0)) {
		if err := t.tw.WriteHeader(h); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
	return nil
}

func (t *tarSink) put(p string, dir int, name string, st *unix.Stat_t) error {
	h := t.header(p, st)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		return nil // means nothing without the process that listens
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
		h.Name += "/"
		return t.directory(h, dir, name)
	case unix.S_IFLNK:
		target, err := readLink(dir, name)
		if err != nil {
			return err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	case unix.S_IFREG:
	default:
		return fmt.Errorf("%s: file type %#o is unknown", p, st.Mode&unix.S_IFMT)
	}
	if st.Nlink > 1 {
		key := inode{uint64(st.Dev), st.Ino}
		if first, ok := t.links[key]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return t.write(h)
		}
		t.links[key] = p
	}
	if !isRegular(st) {
		return t.write(h)
	}
	h.Typeflag, h.Size = tar.TypeReg, st.Size
	return t.file(h, dir, name)
}

func (t *tarSink) header(p string, st *unix.Stat_t) *tar.Header {
	return &tar.Header{
		Name: p, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: t.time(int64(st.Mtim.Sec)),
	}
}

// time is whole seconds: fractions would need a longer header for each file,
// and other builders leave them out, too.
func (t *tarSink) time(seconds int64) time.Time {
	if t.epoch != nil {
		seconds = min(seconds, *t.epoch)
	}
	return time.Unix(max(seconds, 0), 0)
}

func (t *tarSink) write(h *tar.Header) error {
	if t.windows {
		toWindows(h)
	}
	if err := t.tw.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	return nil
}

func (t *tarSink) directory(h *tar.Header, dir int, name string) error {
	d, err := openDir(dir, name)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := addXattrs(h, fd(d)); err != nil {
		return err
	}
	return t.write(h)
}

func (t *tarSink) file(h *tar.Header, dir int, name string) error {
	f, err := openFile(dir, name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := addXattrs(h, fd(f)); err != nil {
		return err
	}
	if err := t.write(h); err != nil {
		return err
	}
	for left := h.Size; left > 0; {
		if err := t.ctx.Err(); err != nil {
			return err
		}
		n, err := f.Read(t.buf[:min(left, int64(len(t.buf)))])
		if n == 0 {
			return fmt.Errorf("%s: %d bytes are missing: %w", h.Name, left, err)
		}
		if _, err := t.tw.Write(t.buf[:n]); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
		left -= int64(n)
	}
	return nil
}

func addXattrs(h *tar.Header, f int) error {
	xattrs, err := readXattrs(f)
	if err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	if value := xattrs[layerXattr]; value != "" {
		h.PAXRecords = map[string]string{xattrPAX + layerXattr: value}
	}
	return nil
}

func (t *tarSink) remove(p string) error {
	dir, name := path.Split(p)
	return t.mark(dir + whiteoutPrefix + name)
}

func (t *tarSink) opaque(p string) error {
	covers, err := t.covers(p)
	if err != nil || !covers {
		return err
	}
	return t.mark(p + "/" + whiteoutOpaque)
}

func (t *tarSink) mark(p string) error {
	return t.write(&tar.Header{Typeflag: tar.TypeReg, Name: p, ModTime: t.time(0)})
}

func (t *tarSink) close() error { return t.tw.Close() }
