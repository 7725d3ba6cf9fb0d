package local

import (
	"fmt"
	"io"
	"os"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/safepath"
	"github.com/kiln-build/kiln/internal/session/files"
)

// begin starts the new layer, once.
func (in *intake) begin() error {
	if in.mutable != nil {
		return nil
	}
	parent := in.old.ref
	in.depth = in.old.depth + 1
	flatten := in.depth > in.cfg.MaxDepth
	if flatten {
		parent, in.depth = nil, 1
	}
	m, err := in.cfg.Layers.New(in.ctx, parent, layer.NewOptions{
		Description: "local source for " + in.name, Type: "source.local",
	})
	if err != nil {
		return fmt.Errorf("make layer: %w", err)
	}
	in.mutable = m
	dir, release, err := m.Mount(in.ctx)
	if err != nil {
		return fmt.Errorf("mount layer: %w", err)
	}
	in.release = release
	if in.root, err = safepath.Open(dir); err != nil {
		return fmt.Errorf("open layer: %w", err)
	}
	if flatten {
		return in.flatten()
	}
	return nil
}

// flatten puts the whole old state into the new layer, so that layers do not
// pile up without end.
func (in *intake) flatten() error {
	dir, release, err := in.cfg.Layers.Mount(in.ctx, in.old.ref)
	if err != nil {
		return fmt.Errorf("mount last state: %w", err)
	}
	defer release() //nolint:errcheck // it was only read from
	from, err := safepath.Open(dir)
	if err != nil {
		return fmt.Errorf("open last state: %w", err)
	}
	defer from.Close()
	buf := make([]byte, copyBuffer)
	for i := range in.old.entries {
		e := &in.old.entries[i]
		switch {
		case e.isDir():
			in.touched[e.Path] = true
			if err = in.root.Mkdir(e.Path, 0o700); err == nil {
				err = in.own(e)
			}
		case e.isLink():
			err = in.root.Link(e.Linkname, e.Path)
		case e.isRegular():
			err = in.copyFile(from, e, buf)
		case e.Linkname != "":
			if err = in.root.Symlink(e.Linkname, e.Path); err == nil {
				err = in.own(e)
			}
		default:
			if err = in.node(e); err == nil {
				err = in.own(e)
			}
		}
		if err != nil {
			return fmt.Errorf("copy %q of last state: %w", e.Path, err)
		}
		if in.ctx.Err() != nil {
			return in.ctx.Err()
		}
	}
	return nil
}

// copyBuffer is how much of a file is copied at once, bytes.
const copyBuffer = 128 << 10

// copyFile copies a file of the last state by way of buf. The kernel does not copy
// from a stack of layers, and io.Copy would make a buffer of its own for each file.
func (in *intake) copyFile(from *safepath.Root, e *entry, buf []byte) error {
	src, err := from.Open(e.Path)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := in.root.OpenFile(e.Path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, buf); err != nil {
		_ = dst.Close() // the first error counts
		return err
	}
	c := &received{in: in, f: dst, n: e.Size, st: e.stat()}
	return c.Commit()
}

func (e *entry) stat() *files.Stat {
	return &files.Stat{
		Path: e.Path, Mode: e.Mode, Uid: e.UID, Gid: e.GID, Size: e.Size, ModTime: e.ModTime,
		Linkname: e.Linkname, Devmajor: e.Major, Devminor: e.Minor, Xattrs: e.Xattrs,
	}
}

// finish does what had to wait for the end of the listing and of all content,
// and returns the new state: the old one itself if nothing changed.
func (in *intake) finish() (*state, error) {
	for ; in.next < len(in.old.entries); in.next++ {
		if err := in.remove(&in.old.entries[in.next]); err != nil {
			return nil, err
		}
	}
	if err := in.writeExtra(); err != nil {
		return nil, err
	}
	if in.mutable == nil {
		return in.old, nil
	}
	for _, i := range in.links {
		e := &in.entries[i]
		if err := in.root.Link(e.Linkname, e.Path); err != nil {
			return nil, fmt.Errorf("make hard link %q: %w", e.Path, err)
		}
	}
	for i := range in.entries {
		e := &in.entries[i]
		if sum, ok := in.sums[e.Path]; ok {
			e.Sum = sum
		}
		if size, ok := in.sizes[e.Path]; ok {
			e.Size = size
		}
		if e.isDir() && in.touched[e.Path] {
			if err := in.setTime(e); err != nil {
				return nil, err
			}
		}
	}
	if in.twin.equal(in.entries, in.extra) {
		return in.twin, nil // and what was made of the listing is discarded
	}
	if in.touched["."] {
		// The root is not in the listing. Its time must not depend on today's.
		if err := in.setTime(&entry{Path: "."}); err != nil {
			return nil, err
		}
	}
	if err := in.unmount(); err != nil {
		return nil, err
	}
	ref, err := in.mutable.Commit(in.ctx)
	if err != nil {
		return nil, fmt.Errorf("commit layer: %w", err)
	}
	now := &state{id: ref.ID(), ref: ref, depth: in.depth, entries: in.entries, extra: in.extra}
	if err := now.plant(in.old.tree, in.removed); err != nil {
		return nil, err
	}
	return now, nil
}

func (in *intake) unmount() error {
	if in.root != nil {
		_ = in.root.Close() // nothing is pending on a directory's handle
		in.root = nil
	}
	if in.release == nil {
		return nil
	}
	release := in.release
	in.release = nil
	if err := release(); err != nil {
		return fmt.Errorf("unmount layer: %w", err)
	}
	return nil
}

// discard forgets what was not finished.
func (in *intake) discard() {
	if in.mutable == nil {
		return
	}
	// What cannot be cleaned up now is swept when the daemon starts again.
	_ = in.unmount()
	_ = in.mutable.Discard()
}
