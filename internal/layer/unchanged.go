package layer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// dropUnchanged removes from an upper directory what is the same in the layers
// below. The kernel copies up what is merely opened to be written, or gets the
// owner that it has, and each folder in which a mount point was made; a layer,
// and a diff, must hold only what the step changed. Some changes later steps see,
// but no layer is to have them, as with BuildKit: the time of a folder, attributes
// that layers have not, and that a file as it was is now another name of one inode.
// These stay, and the upper directory has a mark.
func (s *Store) dropUnchanged(ctx context.Context, upper string, lowers []string) error {
	root, err := openRoot(upper)
	if err != nil {
		return err
	}
	defer root.Close()
	below, err := openBelow(lowers, s.marks)
	if err != nil {
		return err
	}
	defer below.Close()
	kept, err := s.dropIn(ctx, root, below.dirs, "")
	if err != nil || kept.unseen == 0 {
		return err
	}
	what := unseenFolders
	if kept.files > 0 {
		what = unseenFiles
	}
	return s.marks.markUnseen(fd(root), what) // so that one look tells
}

// remains counts what stays in a folder.
type remains struct {
	changed int
	unseen  int // at any depth: what is another in a way that no layer tells
	files   int // of these, what is no folder
}

// dropIn does so in one folder, which has the path at, and tells what stays
// there. Below are the folders that it covers, the topmost first.
func (s *Store) dropIn(ctx context.Context, dir *os.File, below []*os.File, at string) (kept remains, err error) {
	var before unix.Stat_t
	if err := unix.Fstat(fd(dir), &before); err != nil {
		return kept, err
	}
	names, err := readNames(dir)
	if err != nil {
		return kept, err
	}
	dropped := false
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return kept, err
		}
		of, flags, err := s.unchanged(ctx, dir, below, name, path.Join(at, name))
		if err == nil && of == (remains{}) {
			dropped = true
			err = unix.Unlinkat(fd(dir), name, flags)
		}
		if err != nil {
			return kept, fmt.Errorf("compare %s with what it was: %w", path.Join(at, name), err)
		}
		kept.changed += of.changed
		kept.unseen += of.unseen
		kept.files += of.files
	}
	if dropped {
		err = setTimes(fd(dir), "", before.Mtim)
	}
	return kept, err
}

// unchanged compares an entry with what the layers below have in its place, and
// tells what stays of it. Flags are those to unlink it with.
func (s *Store) unchanged(ctx context.Context, dir *os.File, below []*os.File, name, at string) (kept remains, flags int, err error) {
	changed := remains{changed: 1}
	now, err := lstat(fd(dir), name)
	if err != nil || now == nil || isWhiteout(now) {
		return changed, 0, err
	}
	was, parent, err := topmost(below, name)
	if err != nil || was == nil && !isDir(now) {
		return changed, 0, err
	}
	if !isDir(now) {
		how, err := differ(fd(parent), was, fd(dir), now, name)
		switch {
		case err != nil || how == changedInLayers:
			return changed, 0, err
		case how == changedHere || now.Nlink > 1: // the link itself may be what is new
			return remains{unseen: 1, files: 1}, 0, nil
		}
		return remains{}, 0, nil
	}
	sub, err := openDir(fd(dir), name)
	if err != nil {
		return changed, 0, err
	}
	defer sub.Close()
	opaque, err := s.marks.isOpaque(fd(sub))
	if err != nil || !opaque && (was == nil || !isDir(was)) {
		return changed, 0, err
	}
	covered, err := s.folders(below, name)
	defer func() {
		for _, f := range covered {
			f.Close()
		}
	}()
	if err == nil && opaque {
		err = errors.Join(s.spellOut(sub, covered), s.marks.markReplaced(fd(sub)))
	}
	if err != nil || was == nil || !isDir(was) {
		return changed, 0, err
	}
	if kept, err = s.dropIn(ctx, sub, covered, at); err != nil {
		return changed, 0, err
	}
	how, err := differ(fd(parent), was, fd(dir), now, name)
	if err == nil && how == same {
		how, err = differInXattrs(sub, covered[0])
	}
	switch {
	case err != nil:
	case how == changedInLayers:
		kept.changed++
	case kept.changed == 0 && (kept.unseen > 0 || how == changedHere || now.Mtim != was.Mtim):
		kept.unseen++
		err = s.marks.markUnseen(fd(sub), unseenFolders)
	}
	return kept, unix.AT_REMOVEDIR, err
}

// spellOut takes the mark off a folder that hides all that was in its place, and
// marks each name that is gone instead: layers of images should tell removed
// files one by one, says the OCI specification, and BuildKit's do.
func (s *Store) spellOut(dir *os.File, covered []*os.File) error {
	var before unix.Stat_t
	if err := unix.Fstat(fd(dir), &before); err != nil {
		return err
	}
	for _, c := range covered {
		names, err := readNames(c)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := s.spellOutName(dir, covered, name); err != nil {
				return fmt.Errorf("mark %s as removed: %w", name, err)
			}
		}
	}
	if err := unix.Fremovexattr(fd(dir), s.marks.opaqueXattr); err != nil && !errors.Is(err, unix.ENODATA) {
		return fmt.Errorf("remove attribute %s: %w", s.marks.opaqueXattr, err)
	}
	return setTimes(fd(dir), "", before.Mtim)
}

func (s *Store) spellOutName(dir *os.File, covered []*os.File, name string) error {
	now, err := lstat(fd(dir), name)
	if err != nil {
		return err
	}
	was, _, err := topmost(covered, name)
	switch {
	case err != nil || was == nil:
		return err
	case now == nil:
		return makeWhiteout(fd(dir), name)
	case !isDir(now) || !isDir(was):
		return nil
	}
	// A folder in a hidden folder's place hides as much, without a mark.
	sub, err := openDir(fd(dir), name)
	if err != nil {
		return err
	}
	defer sub.Close()
	below, err := s.folders(covered, name)
	defer func() {
		for _, f := range below {
			f.Close()
		}
	}()
	if err != nil {
		return err
	}
	return s.spellOut(sub, below)
}

// topmost finds a name in folders that cover each other; st is nil if it is not there.
func topmost(dirs []*os.File, name string) (st *unix.Stat_t, parent *os.File, err error) {
	for _, d := range dirs {
		if st, err = lstat(fd(d), name); err != nil {
			return nil, nil, err
		}
		if st != nil {
			if isWhiteout(st) {
				st = nil
			}
			return st, d, nil
		}
	}
	return nil, nil, nil
}

// folders opens a folder in all layers that show in it, the topmost first.
func (s *Store) folders(dirs []*os.File, name string) (open []*os.File, err error) {
	for _, d := range dirs {
		sub, err := openDir(fd(d), name)
		switch {
		case err == nil:
		case os.IsNotExist(err):
			continue
		case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP): // a whiteout, a file or a link covers the rest
			return open, nil
		default:
			return open, err
		}
		open = append(open, sub)
		opaque, err := s.marks.isOpaque(fd(sub))
		if err != nil || opaque {
			return open, err
		}
	}
	return open, nil
}
