package layer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// applier lays a marked directory over a plain one.
type applier struct {
	marks marks
	move  bool // the files of the source are not needed any more
}

// apply lays the entries of src over dst.
func (a applier) apply(ctx context.Context, src, dst *os.File) error {
	names, err := readNames(src)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := a.entry(ctx, src, dst, name); err != nil {
			return err
		}
	}
	return nil
}

func (a applier) entry(ctx context.Context, src, dst *os.File, name string) error {
	st, err := lstat(fd(src), name)
	if err != nil || st == nil {
		return err
	}
	if isDir(st) {
		return a.dir(ctx, src, dst, name, st)
	}
	if err := removeAll(fd(dst), name); err != nil {
		return err
	}
	switch {
	case isWhiteout(st):
		return nil
	case a.move:
		if err := unix.Renameat(fd(src), name, fd(dst), name); err != nil {
			return &os.PathError{Op: "move", Path: name, Err: err}
		}
		return nil
	}
	return cloneEntry(fd(src), st, fd(dst), name)
}

func (a applier) dir(ctx context.Context, src, dst *os.File, name string, st *unix.Stat_t) error {
	from, err := openDir(fd(src), name)
	if err != nil {
		return err
	}
	defer from.Close()
	old, err := lstat(fd(dst), name)
	if err != nil {
		return err
	}
	opaque, err := a.marks.isOpaque(fd(from))
	if err != nil {
		return err
	}
	if old != nil && (opaque || !isDir(old)) {
		if err := removeAll(fd(dst), name); err != nil {
			return err
		}
		old = nil
	}
	to, err := makeDir(fd(dst), name, old)
	if err != nil {
		return err
	}
	defer to.Close()
	if err := a.apply(ctx, from, to); err != nil {
		return err
	}
	return copyMeta(fd(from), st, fd(to))
}

// makeDir opens the directory name in dir, making it unless st says it is there.
func makeDir(dir int, name string, st *unix.Stat_t) (*os.File, error) {
	if st == nil {
		if err := unix.Mkdirat(dir, name, 0o700); err != nil {
			return nil, &os.PathError{Op: "make directory", Path: name, Err: err}
		}
	}
	return openDir(dir, name)
}

// treeWriter is a sink that makes what it is told in a directory. With marks
// it keeps what is removed as whiteouts, as an upper directory does; without,
// it removes.
type treeWriter struct {
	root  *os.File
	marks bool
	mode  marks
	dirs  []dirMeta // whose times are to be set when all is there
}

type dirMeta struct {
	path string
	time unix.Timespec
}

// at opens the parent of a path.
func (w *treeWriter) at(p string) (parent *os.File, name string, err error) {
	dir, name := path.Split(p)
	parent, err = beneath(fd(w.root), strings.TrimSuffix(dir, "/"))
	return parent, name, err
}

func (w *treeWriter) put(p string, dir int, name string, st *unix.Stat_t) error {
	parent, base, err := w.at(p)
	if err != nil {
		return err
	}
	defer parent.Close()
	if !isDir(st) {
		if err := removeAll(fd(parent), base); err != nil {
			return err
		}
		return cloneEntry(dir, st, fd(parent), base)
	}
	old, err := lstat(fd(parent), base)
	if err != nil {
		return err
	}
	if old != nil && !isDir(old) {
		if err := removeAll(fd(parent), base); err != nil {
			return err
		}
		old = nil
	}
	to, err := makeDir(fd(parent), base, old)
	if err != nil {
		return err
	}
	defer to.Close()
	from, err := openDir(dir, name)
	if err != nil {
		return err
	}
	defer from.Close()
	w.dirs = append(w.dirs, dirMeta{p, st.Mtim})
	return copyMeta(fd(from), st, fd(to))
}

func (w *treeWriter) remove(p string) error {
	parent, base, err := w.at(p)
	if err != nil {
		return err
	}
	defer parent.Close()
	if err := removeAll(fd(parent), base); err != nil || !w.marks {
		return err
	}
	return makeWhiteout(fd(parent), base)
}

func (w *treeWriter) opaque(p string) error {
	dir, err := beneath(fd(w.root), p)
	if err != nil {
		return err
	}
	defer dir.Close()
	if w.marks {
		return w.mode.setOpaque(fd(dir))
	}
	names, err := readNames(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := removeAll(fd(dir), name); err != nil {
			return err
		}
	}
	return nil
}

// finish sets the times of directories, which writing into them has changed.
func (w *treeWriter) finish() error {
	for i := len(w.dirs) - 1; i >= 0; i-- {
		dir, err := beneath(fd(w.root), w.dirs[i].path)
		if err != nil {
			return err
		}
		err = setTimes(fd(dir), "", w.dirs[i].time)
		dir.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// beneath opens the directory p below root; no component may be a link.
func beneath(root int, p string) (*os.File, error) {
	if p == "" {
		p = "."
	}
	n, err := unix.Openat2(root, p, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil, fmt.Errorf("open directory %s: %w", p, err)
	}
	return os.NewFile(uintptr(n), p), nil
}

// below is the state under a layer: directories with marks, the topmost first.
type below struct {
	dirs  []*os.File
	marks marks
}

func openBelow(paths []string, m marks) (*below, error) {
	b := &below{marks: m}
	for _, p := range paths {
		d, err := openRoot(p)
		if err != nil {
			b.Close()
			return nil, err
		}
		b.dirs = append(b.dirs, d)
	}
	return b, nil
}

// openUnder opens the state r, nil for none, for what is laid over it.
func (s *Store) openUnder(ctx context.Context, r *Ref) (*below, error) {
	lowers, err := s.lowers(ctx, r)
	if err != nil {
		return nil, err
	}
	return openBelow(lowers, s.marks)
}

// Close closes the directories.
func (b *below) Close() {
	for _, d := range b.dirs {
		d.Close()
	}
}

// find returns what path is in the state that the directories make, and the
// open directory that has it, to be closed by the caller. St is nil if there
// is nothing.
func (b *below) find(p string) (parent *os.File, name string, st *unix.Stat_t, err error) {
	dir, name := path.Split(p)
	components := strings.FieldsFunc(dir, func(r rune) bool { return r == '/' })
	for _, root := range b.dirs {
		parent, covers, err := b.descend(root, components)
		if err != nil {
			return nil, "", nil, err
		}
		if parent != nil {
			st, err := lstat(fd(parent), name)
			if err != nil {
				parent.Close()
				return nil, "", nil, err
			}
			if st != nil && !isWhiteout(st) {
				return parent, name, st, nil
			}
			parent.Close()
			covers = covers || st != nil
		}
		if covers {
			return nil, "", nil, nil
		}
	}
	return nil, "", nil, nil
}

// descend opens a directory in one of the layers. covers says that the layers
// under this one do not show there.
func (b *below) descend(root *os.File, components []string) (dir *os.File, covers bool, err error) {
	n, err := unix.Dup(fd(root))
	if err != nil {
		return nil, false, err
	}
	dir = os.NewFile(uintptr(n), root.Name())
	for _, c := range components {
		next, err := openDir(fd(dir), c)
		dir.Close()
		switch {
		case err == nil:
		case os.IsNotExist(err):
			return nil, covers, nil
		case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP): // a whiteout, a file or a link
			return nil, true, nil
		default:
			return nil, false, err
		}
		dir = next
		opaque, err := b.marks.isOpaque(fd(dir))
		if err != nil {
			dir.Close()
			return nil, false, err
		}
		covers = covers || opaque
	}
	return dir, covers, nil
}

// list names what is in a folder of the state that the directories make, in order.
func (b *below) list(p string) ([]string, error) {
	components := strings.FieldsFunc(p, func(r rune) bool { return r == '/' })
	seen := map[string]bool{} // whether it is there
	for _, root := range b.dirs {
		dir, covers, err := b.descend(root, components)
		if err != nil {
			return nil, err
		}
		if dir != nil {
			err = listInto(seen, dir)
			dir.Close()
		}
		if err != nil {
			return nil, err
		}
		if covers {
			break
		}
	}
	maps.DeleteFunc(seen, func(_ string, there bool) bool { return !there })
	return slices.Sorted(maps.Keys(seen)), nil
}

func listInto(seen map[string]bool, dir *os.File) error {
	names, err := readNames(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, known := seen[name]; known {
			continue
		}
		st, err := lstat(fd(dir), name)
		if err != nil {
			return err
		}
		seen[name] = st != nil && !isWhiteout(st)
	}
	return nil
}

// markFinder is a sink that fails with errMarked at the first mark.
type markFinder struct{}

func (markFinder) put(string, int, string, *unix.Stat_t) error { return nil }
func (markFinder) remove(string) error                         { return errMarked }
func (markFinder) opaque(string) error                         { return errMarked }

// opaqueFinder is a sink that fails with errMarked at the first folder that
// replaces another.
type opaqueFinder struct{ markFinder }

func (opaqueFinder) remove(string) error { return nil }
