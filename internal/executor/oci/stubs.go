package oci

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// maxLinks is how many symbolic links one path may lead through, as in Linux.
const maxLinks = 40

// stubs are the mount points that had to be made in a root file system. They
// are removed after the run, so that its layer holds only what the run wrote.
//
// Each is kept as a handle on its folder and the identity of what was made
// there. Removal looks nothing up by path: a run that puts a link in place of
// a parent folder changes which file a path names, not what a handle is.
//
// Containers with the same root share their stubs, and the last one removes
// them: the kernel unmounts what another container has on a mount point that
// is removed.
type stubs struct {
	id   rootID
	root *os.File
	uses int // guarded by stubTable.mu

	mu   sync.Mutex
	made []stub
}

// rootID is the identity of a root file system's folder.
type rootID struct{ dev, ino uint64 }

// stubTable has the stubs of each root file system in use.
type stubTable struct {
	mu    sync.Mutex
	roots map[rootID]*stubs
}

// open gives the stubs of a root file system, to be closed after use.
func (t *stubTable) open(root string) (*stubs, error) {
	f, err := os.OpenFile(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open root file system: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, fmt.Errorf("open root file system: %w", err)
	}
	id := rootID{st.Dev, st.Ino}
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.roots[id]
	if s == nil {
		s = &stubs{id: id, root: f}
		t.roots[id] = s
	} else {
		f.Close()
	}
	s.uses++
	return s, nil
}

// close ends a use; the last one removes the stubs.
func (t *stubTable) close(s *stubs) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.uses--; s.uses > 0 {
		return nil
	}
	delete(t.roots, s.id)
	return s.remove()
}

type stub struct {
	parent        *os.File
	name          string
	dir           bool
	dev, ino      uint64
	before, after folderTimes // of parent, around the making
}

type folderTimes struct{ atime, mtime unix.Timespec }

// add makes the mount point dest, with its parents, where it is missing.
func (s *stubs) add(dest string, dir bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	made, err := s.make(dest, dir, func(*os.File, string) error { return nil })
	s.made = append(s.made, made...)
	if err != nil {
		return fmt.Errorf("make mount point %s: %w", dest, err)
	}
	return nil
}

// addShared makes the mount point of a folder in memory. The runtime gives that
// the mode of its mount point; one that was missing is for all to write to.
func (s *stubs) addShared(dest string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	made, err := s.make(dest, true, func(*os.File, string) error { return nil })
	s.made = append(s.made, made...)
	if err == nil && len(made) > 0 {
		last := made[len(made)-1]
		err = unix.Fchmodat(int(last.parent.Fd()), last.name, 0o1777, 0)
	}
	if err != nil {
		return fmt.Errorf("make mount point %s: %w", dest, err)
	}
	return nil
}

// mkdir makes a folder that stays, with its parents, where it is missing.
func (s *stubs) mkdir(dest string, uid, gid uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	made, err := s.make(dest, true, func(parent *os.File, name string) error {
		return unix.Fchownat(int(parent.Fd()), name, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW)
	})
	for _, m := range made {
		m.parent.Close()
	}
	if err != nil {
		return fmt.Errorf("make folder %s: %w", dest, err)
	}
	return nil
}

// make makes what is missing of a path, which it resolves as the runtime will:
// links are followed inside the root, and what a dangling one names is made.
func (s *stubs) make(dest string, dir bool, each func(parent *os.File, name string) error) ([]stub, error) {
	var made []stub
	var at []string // resolved so far, free of links
	todo := split(dest)
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		if name == ".." {
			at = at[:max(len(at)-1, 0)]
			continue
		}
		kind, target, err := s.look(append(slices.Clone(at), name))
		switch {
		case errors.Is(err, unix.ENOENT):
			m, err := s.create(at, name, dir || len(todo) > 0)
			if err != nil {
				return made, err
			}
			made = append(made, m)
			if err := each(m.parent, name); err != nil {
				return made, err
			}
		case err != nil:
			return made, err
		case kind == unix.S_IFLNK:
			if links++; links > maxLinks {
				return made, unix.ELOOP
			}
			if path.IsAbs(target) {
				at = nil
			}
			todo = append(split(target), todo...)
			continue
		}
		at = append(at, name)
	}
	return made, nil
}

func split(p string) []string {
	return slices.DeleteFunc(strings.Split(p, "/"), func(c string) bool { return c == "" || c == "." })
}

// open opens a path that must lead through no link.
func (s *stubs) open(at []string, flags uint64) (*os.File, error) {
	name := path.Join(append([]string{"."}, at...)...)
	fd, err := unix.Openat2(int(s.root.Fd()), name, &unix.OpenHow{
		Flags:   flags | unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (s *stubs) look(at []string) (kind uint32, target string, err error) {
	f, err := s.open(at, 0)
	if err != nil {
		return 0, "", err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, "", err
	}
	kind = st.Mode & unix.S_IFMT
	if kind != unix.S_IFLNK {
		return kind, "", nil
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(f.Fd()), "", buf)
	if err != nil {
		return 0, "", err
	}
	return kind, string(buf[:n]), nil
}

func (s *stubs) create(at []string, name string, dir bool) (m stub, err error) {
	parent, err := s.open(at, unix.O_DIRECTORY)
	if err != nil {
		return m, err
	}
	defer func() {
		if err != nil {
			parent.Close()
		}
	}()
	fd := int(parent.Fd())
	m = stub{parent: parent, name: name, dir: dir}
	if m.before, err = timesOf(fd); err != nil {
		return m, err
	}
	if dir {
		if err = unix.Mkdirat(fd, name, 0o755); err == nil {
			err = unix.Fchmodat(fd, name, 0o755, 0) // whatever the umask
		}
	} else {
		var file int
		file, err = unix.Openat(fd, name, unix.O_CREAT|unix.O_EXCL|unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
		if err == nil {
			err = unix.Close(file)
		}
	}
	if err != nil {
		return m, err
	}
	var st unix.Stat_t
	if err = unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return m, err
	}
	m.dev, m.ino = st.Dev, st.Ino
	m.after, err = timesOf(fd)
	return m, err
}

func timesOf(fd int) (folderTimes, error) {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	return folderTimes{st.Atim, st.Mtim}, err
}

// remove takes away the mount points that are still as they were made, and
// gives folders that nothing else has changed their times back, so that they
// do not count as changed.
func (s *stubs) remove() error {
	var errs []error
	for _, m := range slices.Backward(s.made) {
		if err := m.remove(); err != nil {
			errs = append(errs, fmt.Errorf("remove mount point %s: %w", m.name, err))
		}
		m.parent.Close()
	}
	s.made = nil
	s.root.Close()
	return errors.Join(errs...)
}

func (m stub) remove() error {
	fd := int(m.parent.Fd())
	var st unix.Stat_t
	if err := unix.Fstatat(fd, m.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return err
	}
	if st.Dev != m.dev || st.Ino != m.ino || !m.dir && st.Size != 0 {
		return nil // the run made it its own
	}
	now, err := timesOf(fd)
	if err != nil {
		return err
	}
	flags := 0
	if m.dir {
		flags = unix.AT_REMOVEDIR
	}
	if err := unix.Unlinkat(fd, m.name, flags); err != nil {
		if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.ENOENT) {
			return nil
		}
		return err
	}
	if now.mtime == m.after.mtime { // else the run wrote here, and the time is its
		now = m.before
	}
	// A handle without read access sets times by its name in /proc.
	return unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd),
		[]unix.Timespec{now.atime, now.mtime}, 0)
}
