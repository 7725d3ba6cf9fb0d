package layer

import (
	"context"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// unseenXattr is the attribute of folders in which there is at most what no layer
// tells, such as the time of a folder, and of an upper directory that has
// something of the kind. As the name has the prefix of overlays, no mounted
// overlay shows it.
func (m marks) unseenXattr() string { return strings.TrimSuffix(m.opaqueXattr, "opaque") + "kiln.time" }

// replacedXattr is the attribute of folders that a step made in place of others.
func (m marks) replacedXattr() string {
	return strings.TrimSuffix(m.opaqueXattr, "opaque") + "kiln.replaced"
}

func (m marks) markReplaced(dir int) error {
	if err := unix.Fsetxattr(dir, m.replacedXattr(), []byte("y"), 0); err != nil {
		return fmt.Errorf("set attribute %s: %w", m.replacedXattr(), err)
	}
	return nil
}

// The values of the mark: files only count on an upper directory.
const (
	unseenFolders = "y"
	unseenFiles   = "f" // there are files, too, which only a comparison tells from others
)

func (m marks) markUnseen(dir int, what string) error {
	if err := unix.Fsetxattr(dir, m.unseenXattr(), []byte(what), 0); err != nil {
		return fmt.Errorf("set attribute %s: %w", m.unseenXattr(), err)
	}
	return nil
}

// unseen is the value of that mark, of whichever kind; "" if there is none.
func unseen(dir int) string {
	for _, m := range []marks{{"trusted.overlay.opaque"}, {"user.overlay.opaque"}} {
		var value [1]byte
		if n, err := unix.Fgetxattr(dir, m.unseenXattr(), value[:]); err == nil {
			return string(value[:n])
		}
	}
	return ""
}

// walkUpper tells to what the directory of r, which has marks, brings.
func (s *Store) walkUpper(ctx context.Context, r *Ref, dir *os.File, to sink) error {
	if unseen(fd(dir)) != unseenFiles {
		return s.marks.walk(ctx, dir, "", to)
	}
	under, err := s.openUnder(ctx, r.parent)
	if err != nil {
		return err
	}
	defer under.Close()
	return s.marks.walk(ctx, dir, "", &seenOnly{
		sink: to, marks: s.marks, below: under, told: map[inode]bool{}, waiting: map[inode][]string{},
	})
}

// seenOnly is a sink that passes on only the files that differ in what layers
// tell from what is below and, as with BuildKit, those names in replaced folders
// that are links to one of them.
type seenOnly struct {
	sink
	marks    marks
	below    *below
	replaced string             // the replaced folder that was told last, with a slash
	told     map[inode]bool     // files with several names that were passed on
	waiting  map[inode][]string // names in replaced folders of others
}

func (s *seenOnly) put(p string, dir int, name string, st *unix.Stat_t) error {
	if isDir(st) {
		if err := s.enter(p, dir, name); err != nil {
			return err
		}
		return s.sink.put(p, dir, name, st)
	}
	how, err := s.differ(p, dir, name, st)
	if err != nil {
		return err
	}
	key, linked := inode{uint64(st.Dev), st.Ino}, st.Nlink > 1
	if how != changedInLayers {
		inReplaced := s.replaced != "" && strings.HasPrefix(p, s.replaced)
		switch {
		case !linked || !inReplaced:
			return nil
		case !s.told[key]:
			s.waiting[key] = append(s.waiting[key], p)
			return nil
		}
	}
	if linked {
		s.told[key] = true
	}
	for _, to := range append([]string{p}, s.waiting[key]...) {
		if err := s.sink.put(to, dir, name, st); err != nil {
			return err
		}
	}
	delete(s.waiting, key)
	return nil
}

// enter notes a replaced folder.
func (s *seenOnly) enter(p string, dir int, name string) error {
	d, err := openDir(dir, name)
	if err != nil {
		return err
	}
	defer d.Close()
	if _, err := unix.Fgetxattr(fd(d), s.marks.replacedXattr(), nil); err != nil {
		return nil // it has no such mark
	}
	if s.replaced == "" || !strings.HasPrefix(p, s.replaced) {
		s.replaced = p + "/"
	}
	return nil
}

// differ compares a file with what is below in its place.
func (s *seenOnly) differ(p string, dir int, name string, st *unix.Stat_t) (difference, error) {
	parent, _, was, err := s.below.find(p)
	if err != nil || was == nil {
		return changedInLayers, err
	}
	defer parent.Close()
	return differ(fd(parent), was, dir, st, name)
}
