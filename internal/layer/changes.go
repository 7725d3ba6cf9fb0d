package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// A sink takes what one state has that another has not, parents first and
// names in order. Paths are relative and clean.
type sink interface {
	// put takes what name in dir is, without what is below it.
	put(path string, dir int, name string, st *unix.Stat_t) error
	// remove takes a name that is there no more.
	remove(path string) error
	// opaque takes a directory of which nothing is left but what is put.
	opaque(path string) error
}

// marks knows how overlay marks directories. See the kernel's
// Documentation/filesystems/overlayfs.rst.
type marks struct{ opaqueXattr string }

func marksFor(userXattr bool) marks {
	if userXattr {
		return marks{"user.overlay.opaque"}
	}
	return marks{"trusted.overlay.opaque"}
}

func (m marks) isOpaque(dir int) (bool, error) {
	var value [2]byte
	n, err := unix.Fgetxattr(dir, m.opaqueXattr, value[:])
	switch err {
	case nil:
		return n == 1 && value[0] == 'y', nil
	case unix.ENODATA, unix.ENOTSUP, unix.ERANGE:
		return false, nil
	}
	return false, fmt.Errorf("read attribute %s: %w", m.opaqueXattr, err)
}

func (m marks) setOpaque(dir int) error {
	if err := unix.Fsetxattr(dir, m.opaqueXattr, []byte("y"), 0); err != nil {
		return fmt.Errorf("set attribute %s: %w", m.opaqueXattr, err)
	}
	return nil
}

func makeWhiteout(dir int, name string) error {
	if err := unix.Mknodat(dir, name, unix.S_IFCHR, 0); err != nil {
		return &os.PathError{Op: "make whiteout", Path: name, Err: err}
	}
	return nil
}

// walk tells to what a directory holds that has overlay's marks, which
// is what an upper directory is.
func (m marks) walk(ctx context.Context, dir *os.File, at string, to sink) error {
	names, err := readNames(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := m.walkEntry(ctx, dir, name, path.Join(at, name), to); err != nil {
			return err
		}
	}
	return nil
}

func (m marks) walkEntry(ctx context.Context, dir *os.File, name, at string, to sink) error {
	st, err := lstat(fd(dir), name)
	if err != nil {
		return err
	}
	switch {
	case st == nil:
		return fmt.Errorf("%s vanished while it was read", at)
	case isWhiteout(st):
		return to.remove(at)
	case !isDir(st):
		return to.put(at, fd(dir), name, st)
	}
	sub, err := openDir(fd(dir), name)
	if err != nil {
		return err
	}
	defer sub.Close()
	if unseen(fd(sub)) != "" {
		return nil // counts as no change, as with BuildKit
	}
	if err := to.put(at, fd(dir), name, st); err != nil {
		return err
	}
	opaque, err := m.isOpaque(fd(sub))
	if err != nil {
		return err
	}
	if opaque {
		if err := to.opaque(at); err != nil {
			return err
		}
	}
	return m.walk(ctx, sub, at, to)
}

// comparison finds out what one tree has that another has not.
type comparison struct {
	to      sink
	pending []pendingDir // directories on the way that were not told yet
}

type pendingDir struct {
	path, name string
	dir        int
	st         *unix.Stat_t
}

// compare tells to what the tree new has that the tree old has not. Old may be nil.
func compare(ctx context.Context, before, after *os.File, to sink) error {
	c := &comparison{to: to}
	return c.dirs(ctx, before, after, "")
}

func (c *comparison) dirs(ctx context.Context, before, after *os.File, at string) error {
	was, err := namesOf(before)
	if err != nil {
		return err
	}
	is, err := namesOf(after)
	if err != nil {
		return err
	}
	for len(was) > 0 || len(is) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		switch {
		case len(is) == 0 || len(was) > 0 && was[0] < is[0]:
			if err := c.gone(path.Join(at, was[0])); err != nil {
				return err
			}
			was = was[1:]
		case len(was) == 0 || is[0] < was[0]:
			if err := c.entry(ctx, nil, after, is[0], path.Join(at, is[0])); err != nil {
				return err
			}
			is = is[1:]
		default:
			if err := c.entry(ctx, before, after, is[0], path.Join(at, is[0])); err != nil {
				return err
			}
			was, is = was[1:], is[1:]
		}
	}
	return nil
}

func namesOf(d *os.File) ([]string, error) {
	if d == nil {
		return nil, nil
	}
	return readNames(d)
}

func (c *comparison) gone(at string) error {
	if err := c.tellPending(); err != nil {
		return err
	}
	return c.to.remove(at)
}

func (c *comparison) tellPending() error {
	for _, p := range c.pending {
		if err := c.to.put(p.path, p.dir, p.name, p.st); err != nil {
			return err
		}
	}
	c.pending = nil
	return nil
}

// entry compares a name that is in after and, unless before is nil, in before.
func (c *comparison) entry(ctx context.Context, before, after *os.File, name, at string) error {
	st, err := lstat(fd(after), name)
	if err != nil {
		return err
	}
	if st == nil {
		return fmt.Errorf("%s vanished while it was read", at)
	}
	var old *unix.Stat_t
	if before != nil {
		if old, err = lstat(fd(before), name); err != nil {
			return err
		}
	}
	changed := old == nil
	if old != nil {
		how, err := differ(fd(before), old, fd(after), st, name)
		if err != nil {
			return err
		}
		changed = how == changedInLayers
	}
	if !isDir(st) {
		if !changed {
			return nil
		}
		if err := c.tellPending(); err != nil {
			return err
		}
		return c.to.put(at, fd(after), name, st)
	}
	return c.dir(ctx, before, after, pendingDir{at, name, fd(after), st}, old, changed)
}

func (c *comparison) dir(ctx context.Context, before, after *os.File, p pendingDir, old *unix.Stat_t, changed bool) error {
	if changed {
		if err := c.tellPending(); err != nil {
			return err
		}
		if err := c.to.put(p.path, p.dir, p.name, p.st); err != nil {
			return err
		}
	} else {
		c.pending = append(c.pending, p)
	}
	sub, err := openDir(fd(after), p.name)
	if err != nil {
		return err
	}
	defer sub.Close()
	var oldSub *os.File
	if old != nil && isDir(old) {
		if oldSub, err = openDir(fd(before), p.name); err != nil {
			return err
		}
		defer oldSub.Close()
	}
	if err := c.dirs(ctx, oldSub, sub, p.path); err != nil {
		return err
	}
	if n := len(c.pending); n > 0 {
		c.pending = c.pending[:n-1] // it is this one, or it would have been told
	}
	return nil
}

// difference is in what way two entries of one name differ.
type difference int

const (
	same            difference = iota
	changedHere                // in what steps see and no layer tells
	changedInLayers            // in what layers tell
)

// differ says how the entry name in the directory b differs from that in a.
func differ(a int, sa *unix.Stat_t, b int, sb *unix.Stat_t, name string) (difference, error) {
	switch {
	case sa.Mode != sb.Mode || sa.Uid != sb.Uid || sa.Gid != sb.Gid || sa.Rdev != sb.Rdev:
		return changedInLayers, nil
	case isDir(sa):
		return same, nil
	case sa.Size != sb.Size || sa.Mtim != sb.Mtim:
		return changedInLayers, nil
	case isLink(sa):
		ta, err := readLink(a, name)
		if err != nil {
			return same, err
		}
		tb, err := readLink(b, name)
		if ta != tb {
			return changedInLayers, err
		}
		return same, err
	case !isRegular(sa) || sa.Ino == sb.Ino && sa.Ctim == sb.Ctim: // one file, seen through two mounts
		return same, nil
	}
	return filesDiffer(a, b, name)
}

func filesDiffer(a, b int, name string) (difference, error) {
	fa, err := openFile(a, name)
	if err != nil {
		return same, err
	}
	defer fa.Close()
	fb, err := openFile(b, name)
	if err != nil {
		return same, err
	}
	defer fb.Close()
	how, err := differInXattrs(fa, fb)
	if err != nil || how == changedInLayers {
		return how, err
	}
	other, err := contentsDiffer(fa, fb)
	if other {
		how = changedInLayers
	}
	return how, err
}

// differInXattrs compares attributes, of which layers have but one.
func differInXattrs(a, b *os.File) (difference, error) {
	xa, err := readXattrs(fd(a))
	if err != nil {
		return same, err
	}
	xb, err := readXattrs(fd(b))
	switch {
	case err != nil || maps.Equal(xa, xb):
		return same, err
	case xa[layerXattr] == xb[layerXattr]:
		return changedHere, nil
	}
	return changedInLayers, nil
}

func contentsDiffer(a, b io.Reader) (bool, error) {
	var ba, bb [64 << 10]byte
	for {
		na, ea := io.ReadFull(a, ba[:])
		nb, eb := io.ReadFull(b, bb[:])
		if !bytes.Equal(ba[:na], bb[:nb]) {
			return true, nil
		}
		for _, err := range []error{ea, eb} {
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				return false, err
			}
		}
		if ea != nil || eb != nil {
			return false, nil
		}
	}
}
