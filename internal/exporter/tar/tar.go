// Package tar exports files as one tar archive, streamed to the client while
// it is made.
//
// Its bytes depend on the files alone: entries come in a fixed order, times
// in whole seconds, owners as numbers.
package tar

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/kiln-build/kiln/internal/exporter"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/safepath"
	"github.com/kiln-build/kiln/internal/session/export"
	"github.com/kiln-build/kiln/internal/session/files"
)

// Exporter exports files.
type Exporter struct{ layers exporter.Mounter }

// New returns an exporter of files that layers has.
func New(layers exporter.Mounter) *Exporter { return &Exporter{layers} }

// Check tells bad attributes.
func (e *Exporter) Check(attrs map[string]string) error {
	_, err := exporter.CheckFiles(attrs)
	return err
}

// Export sends the archive.
func (e *Exporter) Export(ctx context.Context, in exporter.Input, to exporter.Target) (_ map[string]string, err error) {
	o, err := exporter.DecodeFiles(to.Attrs, in)
	if err != nil {
		return nil, err
	}
	if to.Session == nil {
		return nil, errors.New("export archive: there is no client to send it to")
	}
	mounted, release, err := exporter.MountAll(ctx, e.layers, in, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, release()) }()
	// A stream that is not closed is thrown away by the client when ctx ends.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := export.Open(ctx, to.Session, to.ID, nil)
	if err != nil {
		return nil, err
	}
	task := progress.StepFrom(ctx).Task("sending tarball", 0)
	defer task.Done()
	buffered := bufio.NewWriterSize(counted{stream, task}, 1<<20)
	if err := writeAll(ctx, buffered, mounted); err != nil {
		return nil, err
	}
	if err := buffered.Flush(); err != nil {
		return nil, fmt.Errorf("send archive: %w", err)
	}
	if err := stream.Close(); err != nil {
		return nil, fmt.Errorf("send archive: %w", err)
	}
	return map[string]string{}, nil
}

// counted tells a task of what is written.
type counted struct {
	io.Writer
	task *progress.Task
}

func (c counted) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.task.Add(int64(n))
	return n, err
}

func writeAll(ctx context.Context, w io.Writer, mounted []exporter.Mounted) error {
	out := &archive{w: tar.NewWriter(w), buf: make([]byte, 256<<10), from: map[string]int{}}
	for i, m := range mounted {
		out.prefix, out.epoch = "", m.Epoch
		if m.Name != "" {
			out.prefix = m.Name + "/"
			top := &tar.Header{Typeflag: tar.TypeDir, Name: out.prefix, Mode: 0o755, ModTime: time.Unix(0, 0)}
			if m.Epoch != nil {
				top.ModTime = *m.Epoch
			}
			if err := out.w.WriteHeader(top); err != nil {
				return fmt.Errorf("write %s to archive: %w", m.Name, err)
			}
		}
		if err := out.tree(ctx, mounted, i); err != nil {
			return err
		}
	}
	if err := out.w.Close(); err != nil {
		return fmt.Errorf("finish archive: %w", err)
	}
	return nil
}

// archive is a tar under way.
type archive struct {
	w      *tar.Writer
	prefix string
	epoch  *time.Time
	buf    []byte
	from   map[string]int // whose entry it is: kept where platforms share a folder
}

// tree writes the files of a platform.
func (a *archive) tree(ctx context.Context, mounted []exporter.Mounted, i int) error {
	m := mounted[i]
	dir, err := files.OpenDir(m.Dir, files.Filter{}, files.OwnerKept)
	if err != nil {
		return fmt.Errorf("open result: %w", err)
	}
	defer dir.Close() //nolint:errcheck // it is only read from
	var tree files.Tree = dir
	if len(m.Extra) > 0 {
		contents := map[string][]byte{}
		for _, f := range m.Extra {
			contents[f.Name] = f.Data
		}
		extra, err := files.Static(contents, time.Now().UnixNano())
		if err != nil {
			return fmt.Errorf("add attestations: %w", err)
		}
		tree = files.Merge(func(string, int, int) error { return nil }, tree, extra)
	}
	return tree.Walk(ctx, func(st *files.Stat) error {
		if m.Name == "" && len(mounted) > 1 {
			first, seen := a.from[st.GetPath()]
			if isDir := fs.FileMode(st.GetMode()).IsDir(); seen && isDir {
				return nil
			} else if seen {
				return exporter.Clash(st.GetPath(), mounted[first], m)
			}
			a.from[st.GetPath()] = i
		}
		h, err := a.header(st)
		if err == nil {
			err = a.w.WriteHeader(h)
		}
		if err == nil && h.Typeflag == tar.TypeReg && h.Size > 0 {
			err = a.content(tree, st)
		}
		if err != nil {
			return fmt.Errorf("write %q to archive: %w", st.GetPath(), err)
		}
		return nil
	})
}

func (a *archive) content(tree files.Tree, st *files.Stat) (err error) {
	r, err := tree.Open(st.GetPath())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	n, err := io.CopyBuffer(onlyWriter{a.w}, onlyReader{r}, a.buf)
	if err == nil && n != st.GetSize() {
		err = fmt.Errorf("read %d bytes, expected %d", n, st.GetSize())
	}
	return err
}

// onlyWriter and onlyReader hide shortcuts of io.Copy, which would use smaller buffers.
type onlyWriter struct{ io.Writer }
type onlyReader struct{ io.Reader }

// header is an entry's header.
func (a *archive) header(st *files.Stat) (*tar.Header, error) {
	mode := fs.FileMode(st.GetMode())
	at := time.Unix(0, st.GetModTime())
	if a.epoch != nil {
		at = *a.epoch
	}
	h := &tar.Header{
		Name: a.prefix + st.GetPath(), Mode: int64(safepath.UnixPerm(mode)), Uid: int(st.GetUid()), Gid: int(st.GetGid()),
		ModTime: at.Truncate(time.Second),
	}
	for name, value := range st.GetXattrs() {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+name] = string(value)
	}
	switch mode & fs.ModeType {
	case 0:
		h.Typeflag, h.Size = tar.TypeReg, st.GetSize()
		if st.GetLinkname() != "" {
			h.Typeflag, h.Size, h.Linkname = tar.TypeLink, 0, a.prefix+st.GetLinkname()
		}
	case fs.ModeDir:
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
	case fs.ModeSymlink:
		h.Typeflag, h.Linkname = tar.TypeSymlink, st.GetLinkname()
	case fs.ModeNamedPipe:
		h.Typeflag = tar.TypeFifo
	case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
		h.Typeflag = tar.TypeBlock
		if mode&fs.ModeCharDevice != 0 {
			h.Typeflag = tar.TypeChar
		}
		h.Devmajor, h.Devminor = st.GetDevmajor(), st.GetDevminor()
	default:
		return nil, fmt.Errorf("files of type %v do not go into an archive", mode.Type())
	}
	return h, nil
}
