package local

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"
	"syscall"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/internal/contenthash"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/safepath"
	"github.com/kiln-build/kiln/internal/session/files"
)

// intake makes a new state of an old one and a client's listing. It is a
// files.Destination: both lists are in the same order, so one pass compares
// them. The layer is begun with the first difference.
type intake struct {
	ctx  context.Context
	cfg  Config
	name string
	task *progress.Task
	old  *state
	twin *state // what may turn out to be the same; nil for none

	next    int     // the entry of old to be compared
	gone    string  // a directory of old that was removed, with all below
	entries []entry // of the new state, so far
	again   map[string]bool
	links   []int           // hard links, to be made once their targets are whole
	touched map[string]bool // directories whose time is to be set
	removed []string
	extra   *entry // a file that is in no listing, written last
	content []byte // of extra

	mutable *layer.Mutable
	release func() error
	root    *safepath.Root
	depth   int

	mu    sync.Mutex
	sums  map[string]digest.Digest // of files that were received
	sizes map[string]int64         // of those that were not as large as announced, bytes
}

func newIntake(ctx context.Context, cfg Config, name string, old *state, task *progress.Task) *intake {
	return &intake{
		ctx: ctx, cfg: cfg, name: name, old: old, task: task,
		entries: make([]entry, 0, len(old.entries)),
		again:   map[string]bool{}, touched: map[string]bool{}, sums: map[string]digest.Digest{}, sizes: map[string]int64{},
	}
}

// Stat compares an entry of the listing with the old state.
func (in *intake) Stat(st *files.Stat) (bool, error) {
	now := newEntry(st)
	var before *entry
	for in.next < len(in.old.entries) {
		e := &in.old.entries[in.next]
		order := files.ComparePaths(e.Path, now.Path)
		if order > 0 {
			break
		}
		in.next++
		if order == 0 {
			before = e
			break
		}
		if err := in.remove(e); err != nil {
			return false, err
		}
	}
	if before != nil && in.isGone(before.Path) {
		before = nil
	}
	if before != nil && before.same(&now) && (!now.isLink() || !in.again[now.Linkname]) {
		now.Sum = before.Sum
		in.entries = append(in.entries, now)
		return false, nil
	}
	in.entries = append(in.entries, now)
	return now.isRegular(), in.change(before, len(in.entries)-1)
}

func (in *intake) isGone(p string) bool { return in.gone != "" && strings.HasPrefix(p, in.gone+"/") }

// remove takes away what the client has no more.
func (in *intake) remove(e *entry) error {
	if in.isGone(e.Path) {
		return nil
	}
	if err := in.begin(); err != nil {
		return err
	}
	if e.isDir() {
		in.gone = e.Path
	}
	in.touched[path.Dir(e.Path)] = true
	in.removed = append(in.removed, e.Path)
	if err := in.root.RemoveAll(e.Path); err != nil {
		return fmt.Errorf("remove %q: %w", e.Path, err)
	}
	return nil
}

// change makes an entry what the client says, but for the content of a file
// and for what has to wait until the end.
func (in *intake) change(before *entry, i int) error {
	if err := in.begin(); err != nil {
		return err
	}
	e := &in.entries[i]
	mode := fs.FileMode(e.Mode)
	e.new = true
	in.again[e.Path] = true
	in.touched[path.Dir(e.Path)] = true
	if before != nil && (!before.isDir() || !e.isDir()) {
		if before.isDir() {
			in.gone = before.Path
		}
		if err := in.root.RemoveAll(e.Path); err != nil {
			return fmt.Errorf("replace %q: %w", e.Path, err)
		}
		before = nil
	}
	switch {
	case e.isLink():
		in.links = append(in.links, i)
		return nil
	case e.isRegular():
		return nil // Create does it
	case e.isDir():
		in.touched[e.Path] = true
		if before == nil {
			if err := in.root.Mkdir(e.Path, 0o700); err != nil {
				return fmt.Errorf("make directory %q: %w", e.Path, err)
			}
		}
		return in.own(e)
	case mode&fs.ModeSymlink != 0:
		if err := in.root.Symlink(e.Linkname, e.Path); err != nil {
			return fmt.Errorf("make symlink %q: %w", e.Path, err)
		}
		return in.own(e)
	}
	if err := in.node(e); err != nil {
		return fmt.Errorf("make special file %q: %w", e.Path, err)
	}
	return in.own(e)
}

// own sets owner, permissions and time of what is not a regular file.
func (in *intake) own(e *entry) error {
	mode := fs.FileMode(e.Mode)
	if err := in.root.Lchown(e.Path, int(e.UID), int(e.GID)); err != nil {
		return fmt.Errorf("set owner of %q: %w", e.Path, err)
	}
	if mode&fs.ModeSymlink == 0 {
		if err := in.root.Chmod(e.Path, mode&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky)); err != nil {
			return fmt.Errorf("set mode of %q: %w", e.Path, err)
		}
	}
	if e.isDir() {
		return nil // its time is set at the end
	}
	return in.setTime(e)
}

// setTime sets the time of anything, a symlink itself included.
func (in *intake) setTime(e *entry) error {
	dir, err := in.root.Open(path.Dir(e.Path))
	if err != nil {
		return fmt.Errorf("set time of %q: %w", e.Path, err)
	}
	defer dir.Close()
	if err := unix.UtimesNanoAt(int(dir.Fd()), path.Base(e.Path), times(e.ModTime), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set time of %q: %w", e.Path, err)
	}
	return nil
}

func times(nano int64) []unix.Timespec {
	t := unix.NsecToTimespec(nano)
	return []unix.Timespec{t, t}
}

// node makes a device, pipe or socket.
func (in *intake) node(e *entry) error {
	mode, perm := fs.FileMode(e.Mode), uint32(0o600)
	switch {
	case mode&fs.ModeCharDevice != 0:
		perm |= syscall.S_IFCHR
	case mode&fs.ModeDevice != 0:
		perm |= syscall.S_IFBLK
	case mode&fs.ModeNamedPipe != 0:
		perm |= syscall.S_IFIFO
	default:
		perm |= syscall.S_IFSOCK
	}
	dir, err := in.root.Open(path.Dir(e.Path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return unix.Mknodat(int(dir.Fd()), path.Base(e.Path), perm, int(unix.Mkdev(uint32(e.Major), uint32(e.Minor))))
}

// Create begins to write a file.
func (in *intake) Create(st *files.Stat) (files.Content, error) {
	f, err := in.root.OpenFile(st.GetPath(), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make file %q: %w", st.GetPath(), err)
	}
	c := &received{in: in, st: st, f: f, hash: contenthash.NewHash(hashStat(st))}
	return c, nil
}

// received is a file under way.
type received struct {
	in   *intake
	st   *files.Stat
	f    *os.File
	hash hash.Hash // nil for a copy of what was hashed before
	n    int64
}

func (c *received) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	c.in.task.Add(int64(len(p)))
	if len(p) < muchContent {
		c.hash.Write(p)
		return c.f.Write(p)
	}
	hashed := make(chan struct{})
	go func() {
		defer close(hashed)
		c.hash.Write(p)
	}()
	n, err := c.f.Write(p)
	<-hashed
	return n, err
}

// muchContent is from how many bytes on content is hashed while it is written.
const muchContent = 64 << 10

// Commit sets owner, permissions and time.
func (c *received) Commit() error {
	err := c.commit()
	if cerr := c.f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("write file %q: %w", c.st.GetPath(), err)
	}
	return nil
}

func (c *received) commit() error {
	if c.n != c.st.GetSize() {
		if err := c.resize(); err != nil {
			return err
		}
	}
	fd := int(c.f.Fd())
	if err := unix.Fchown(fd, int(c.st.GetUid()), int(c.st.GetGid())); err != nil {
		return fmt.Errorf("set owner: %w", err)
	}
	mode := fs.FileMode(c.st.GetMode())
	if err := c.f.Chmod(mode & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)); err != nil {
		return err
	}
	for name, value := range c.st.GetXattrs() {
		if err := unix.Fsetxattr(fd, name, value, 0); err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("set attribute %s: %w", name, err)
		}
	}
	if err := files.SetTime(c.f, c.st.GetModTime()); err != nil {
		return err
	}
	if c.hash != nil {
		d := contenthash.Sum(c.hash)
		c.in.mu.Lock()
		c.in.sums[c.st.GetPath()] = d
		c.in.mu.Unlock()
	}
	return nil
}

// resize takes a file as it came, though another size was announced: logs grow
// and temporary files vanish while a directory is sent, and a build must not
// fail for that. The size is part of the digest, so that it is made anew.
func (c *received) resize() error {
	c.in.warnResized(c.st.GetPath(), c.st.GetSize(), c.n)
	c.st = proto.CloneOf(c.st)
	c.st.Size = c.n
	c.hash = contenthash.NewHash(hashStat(c.st))
	if _, err := io.Copy(c.hash, io.NewSectionReader(c.f, 0, c.n)); err != nil {
		return fmt.Errorf("read what came: %w", err)
	}
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	c.in.sizes[c.st.GetPath()] = c.n
	return nil
}

func (in *intake) warnResized(file string, announced, came int64) {
	short := fmt.Sprintf("%s: file %q changed while it was sent: %d bytes came, %d were announced; the build goes on with what came", in.name, file, came, announced)
	progress.StepFrom(in.ctx).Warn(progress.Warning{Level: 1, Short: []byte(short)})
}

// Abort leaves the file: the whole layer is discarded.
func (c *received) Abort() { _ = c.f.Close() }

func (e *entry) isDir() bool     { return fs.FileMode(e.Mode).IsDir() }
func (e *entry) isLink() bool    { return fs.FileMode(e.Mode)&fs.ModeType == 0 && e.Linkname != "" }
func (e *entry) isRegular() bool { return fs.FileMode(e.Mode)&fs.ModeType == 0 && e.Linkname == "" }
