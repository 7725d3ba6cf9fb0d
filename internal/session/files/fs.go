package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/kiln-build/kiln/internal/api/fsutil"
)

// FromFS is the source of a file system of this program. Regular files, directories
// and, where it has them, symlinks are told of.
func FromFS(fsys fs.FS) Source {
	return func(f Filter) (Tree, error) {
		m, err := newMatcher(f.withoutLinks(), nil)
		if err != nil {
			return nil, err
		}
		return &fsTree{fsys, m}, nil
	}
}

// fsTree is a file system as a tree that can be sent.
type fsTree struct {
	fsys  fs.FS
	match *matcher
}

// Open opens a regular file.
func (t *fsTree) Open(name string) (io.ReadCloser, error) { return t.fsys.Open(name) }

// Walk lists the wanted files.
func (t *fsTree) Walk(ctx context.Context, f func(*fsutil.Stat) error) error {
	w := &fsWalk{ctx: ctx, tree: t, f: f}
	return w.walk(".", verdict{})
}

// fsWalk is one walk; see dirWalk for pending.
type fsWalk struct {
	ctx     context.Context
	tree    *fsTree
	f       func(*fsutil.Stat) error
	pending []*fsutil.Stat
}

func (w *fsWalk) walk(dir string, parent verdict) error {
	entries, err := fs.ReadDir(w.tree.fsys, dir)
	if err != nil {
		return fmt.Errorf("read directory %q: %w", dir, err)
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	for _, e := range entries {
		if w.ctx.Err() != nil {
			return context.Cause(w.ctx)
		}
		name := e.Name()
		if dir != "." {
			name = dir + "/" + name
		}
		v, err := w.tree.match.match(name, parent)
		if err != nil {
			return err
		}
		if v.send || v.descend {
			if err := w.entry(e, name, v); err != nil {
				return err
			}
		}
	}
	return nil
}

// entry tells of one entry and what lies below it.
func (w *fsWalk) entry(e fs.DirEntry, name string, v verdict) error {
	info, err := e.Info()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it went away meanwhile
	} else if err != nil {
		return err
	}
	st := &fsutil.Stat{Path: name, Mode: uint32(info.Mode())}
	if t := info.ModTime(); !t.IsZero() { // embedded files have none
		st.ModTime = t.UnixNano()
	}
	switch info.Mode() & fs.ModeType {
	case 0:
		st.Size = info.Size()
	case fs.ModeSymlink:
		if st.Linkname, err = fs.ReadLink(w.tree.fsys, name); err != nil {
			return err
		}
		st.Size = int64(len(st.Linkname))
	case fs.ModeDir:
	default:
		return nil
	}
	if v.send {
		for _, d := range append(w.pending, st) {
			if err := w.f(d); err != nil {
				return err
			}
		}
		w.pending = w.pending[:0]
	}
	if !e.IsDir() || !v.descend {
		return nil
	}
	depth := len(w.pending)
	if !v.send {
		w.pending = append(w.pending, st)
	}
	err = w.walk(name, v)
	w.pending = w.pending[:min(depth, len(w.pending))]
	return err
}
