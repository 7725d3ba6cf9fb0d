package files

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/internal/api/fsutil"
	"github.com/kiln-build/kiln/internal/safepath"
)

// DirDestination writes a tree into a directory, by handles: nothing is written
// outside it, whatever symlinks it holds. Files belong to the current user. A
// file that is there with the same size, time and mode is kept as it is; a
// changed one is replaced in one step.
type DirDestination struct {
	root   *safepath.Root
	remove bool

	made  map[string]bool // directories that were not there, in which nothing is in the way
	dirs  []*fsutil.Stat  // their times are set at the end
	links []*fsutil.Stat  // hard links, made once their targets are whole
	kept  map[string]bool // all paths, if the others are to be removed
}

// OpenDestination opens a directory for writing; it is made if it is not there.
// With remove, Finish removes what was not sent.
func OpenDestination(name string, remove bool) (*DirDestination, error) {
	if err := os.MkdirAll(name, 0o755); err != nil {
		return nil, fmt.Errorf("make output directory: %w", err)
	}
	root, err := safepath.Open(name)
	if err != nil {
		return nil, fmt.Errorf("open output directory: %w", err)
	}
	d := &DirDestination{root: root, remove: remove, made: map[string]bool{}}
	if remove {
		d.kept = map[string]bool{}
	}
	return d, nil
}

// Close lets the directory go.
func (d *DirDestination) Close() error { return d.root.Close() }

// Stat makes everything but the content of files.
func (d *DirDestination) Stat(st *fsutil.Stat) (want bool, err error) {
	if d.remove {
		d.kept[st.GetPath()] = true
	}
	old, err := d.there(st.GetPath())
	if err != nil {
		return false, err
	}
	mode := fs.FileMode(st.GetMode())
	switch {
	case mode.IsDir():
		return false, d.makeDir(st, old)
	case isRegular(st) && sameFile(old, st):
		return false, nil
	case isRegular(st):
		if old != nil && !old.Mode().IsRegular() {
			return true, d.clear(st.GetPath(), old)
		}
		return true, nil
	}
	if err := d.clear(st.GetPath(), old); err != nil {
		return false, err
	}
	switch {
	case mode.IsRegular():
		d.links = append(d.links, st)
		return false, nil
	case mode&fs.ModeSymlink != 0:
		if err := d.root.Symlink(st.GetLinkname(), st.GetPath()); err != nil {
			return false, err
		}
		return false, d.special(st, nil)
	case mode&fs.ModeSocket != 0:
		return false, nil
	default:
		return false, d.special(st, func(dir int, name string) error {
			return unix.Mknodat(dir, name, unixMode(mode), int(unix.Mkdev(uint32(st.GetDevmajor()), uint32(st.GetDevminor()))))
		})
	}
}

// there returns what is in the place of name; nil if nothing is.
func (d *DirDestination) there(name string) (fs.FileInfo, error) {
	if d.made[path.Dir(name)] {
		return nil, nil
	}
	old, err := d.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return old, err
}

// sameFile tells whether a file need not be sent again.
func sameFile(old fs.FileInfo, st *fsutil.Stat) bool {
	return old != nil && old.Mode() == fs.FileMode(st.GetMode()) &&
		old.Size() == st.GetSize() && old.ModTime().UnixNano() == st.GetModTime()
}

// clear removes what is in the way.
func (d *DirDestination) clear(name string, old fs.FileInfo) error {
	if old == nil {
		return nil
	}
	return d.root.RemoveAll(name)
}

func (d *DirDestination) makeDir(st *fsutil.Stat, old fs.FileInfo) error {
	if old == nil || !old.IsDir() {
		if err := d.clear(st.GetPath(), old); err != nil {
			return err
		}
		if err := d.root.Mkdir(st.GetPath(), 0o700); err != nil {
			return err
		}
		d.made[st.GetPath()] = true
	}
	d.dirs = append(d.dirs, st)
	// Mode and time are set in the end: until then it must be writable.
	return nil
}

// special makes an entry with make, which may be nil, and sets its time.
func (d *DirDestination) special(st *fsutil.Stat, make func(dir int, name string) error) (err error) {
	parent, err := d.root.Open(path.Dir(st.GetPath()))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, parent.Close()) }()
	fd, name := int(parent.Fd()), path.Base(st.GetPath())
	if make != nil {
		if err := make(fd, name); err != nil {
			return fmt.Errorf("make special file %q: %w", st.GetPath(), err)
		}
	}
	at := unix.NsecToTimespec(st.GetModTime())
	if err := unix.UtimesNanoAt(fd, name, []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set time of %q: %w", st.GetPath(), err)
	}
	return nil
}

// Create begins a file: under its own name if that is free, else beside it.
func (d *DirDestination) Create(st *fsutil.Stat) (Content, error) {
	const flags = os.O_WRONLY | os.O_CREATE | os.O_EXCL
	name := st.GetPath()
	f, err := d.root.OpenFile(name, flags, 0o600)
	if errors.Is(err, fs.ErrExist) {
		name = path.Join(path.Dir(name), ".kiln-"+rand.Text())
		f, err = d.root.OpenFile(name, flags, 0o600)
	}
	if err != nil {
		return nil, err
	}
	return &fileContent{dest: d, stat: st, file: f, name: name}, nil
}

// fileContent is a file being written, called name for now.
type fileContent struct {
	dest *DirDestination
	stat *fsutil.Stat
	file *os.File
	name string
}

func (c *fileContent) Write(p []byte) (int, error) { return c.file.Write(p) }

func (c *fileContent) Commit() error {
	err := c.commit()
	if err != nil {
		err = errors.Join(err, c.dest.root.Remove(c.name))
	}
	return err
}

func (c *fileContent) commit() error {
	setXattrs(c.file, c.stat)
	err := errors.Join(c.file.Chmod(fs.FileMode(c.stat.GetMode())), SetTime(c.file, c.stat.GetModTime()), c.file.Close())
	if err != nil {
		return err
	}
	if c.name == c.stat.GetPath() {
		return nil
	}
	return c.dest.root.Rename(c.name, c.stat.GetPath())
}

func (c *fileContent) Abort() {
	// The transfer has failed already, and that is what is told.
	_ = c.file.Close()
	_ = c.dest.root.Remove(c.name)
}

// SetTime sets the access and modification time of an open file or directory,
// in nanoseconds since 1970.
func SetTime(f *os.File, nano int64) error {
	at := unix.NsecToTimespec(nano)
	err := unix.UtimesNanoAt(int(f.Fd()), "", []unix.Timespec{at, at}, unix.AT_EMPTY_PATH)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // before Linux 5.8
		t := time.Unix(0, nano)
		err = os.Chtimes(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), t, t)
	}
	if err != nil {
		return fmt.Errorf("set time of %q: %w", f.Name(), err)
	}
	return nil
}

// setXattrs sets the attributes that this user and file system allow.
func setXattrs(f *os.File, st *fsutil.Stat) {
	for k, v := range st.GetXattrs() {
		_ = unix.Fsetxattr(int(f.Fd()), k, v, 0)
	}
}

// Finish removes what is not wanted, and sets what must be set last.
func (d *DirDestination) Finish() error {
	for _, st := range d.links {
		if err := d.root.Link(st.GetLinkname(), st.GetPath()); err != nil {
			return err
		}
	}
	if d.remove {
		if err := d.removeOthers(); err != nil {
			return err
		}
	}
	for i := len(d.dirs) - 1; i >= 0; i-- {
		if err := d.finishDir(d.dirs[i]); err != nil {
			return err
		}
	}
	return nil
}

func (d *DirDestination) finishDir(st *fsutil.Stat) (err error) {
	f, err := d.root.Open(st.GetPath())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	setXattrs(f, st)
	if err := SetTime(f, st.GetModTime()); err != nil {
		return err
	}
	return f.Chmod(fs.FileMode(st.GetMode()))
}

// removeOthers removes what was not sent.
func (d *DirDestination) removeOthers() error {
	return d.removeIn(".")
}

// removeIn removes what was not sent of a directory that was.
func (d *DirDestination) removeIn(dir string) error {
	entries, err := d.root.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list output directory: %w", err)
	}
	for _, e := range entries {
		p := path.Join(dir, e.Name())
		switch {
		case !d.kept[p]:
			if err := d.root.RemoveAll(p); err != nil {
				return fmt.Errorf("remove %q from output directory: %w", p, err)
			}
		case e.IsDir() && !d.made[p]:
			if err := d.removeIn(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// unixMode turns Go's mode of a special file into Linux's.
func unixMode(mode fs.FileMode) uint32 {
	m := uint32(mode.Perm())
	switch {
	case mode&fs.ModeCharDevice != 0:
		m |= unix.S_IFCHR
	case mode&fs.ModeDevice != 0:
		m |= unix.S_IFBLK
	case mode&fs.ModeNamedPipe != 0:
		m |= unix.S_IFIFO
	}
	return m
}
