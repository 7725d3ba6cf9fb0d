package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/internal/api/fsutil"
	"github.com/kiln-build/kiln/internal/safepath"
)

// Owner says what to tell of files' owners.
type Owner int

const (
	// OwnerRoot tells that all belongs to user and group 0, as of a context.
	OwnerRoot Owner = iota
	// OwnerKept tells the truth, as of a build's result.
	OwnerKept
)

// Dir is a directory as a tree that can be sent. It is read by handles: no
// symlink leads out of it. Close it after use.
type Dir struct {
	root  *safepath.Root
	match *matcher
	owner Owner
	attrs attributes
}

// OpenDir opens the files of a directory that f wants. Sockets are left out, and
// with OwnerRoot extended attributes of the user's, as BuildKit's clients do.
func OpenDir(name string, f Filter, owner Owner) (*Dir, error) {
	root, err := safepath.Open(name)
	if err != nil {
		return nil, err
	}
	followed, err := follow(root, f.FollowPaths)
	if err == nil {
		var m *matcher
		if m, err = newMatcher(f, followed); err == nil {
			d := &Dir{root: root, match: m, owner: owner}
			d.attrs.keep = d.keepXattr
			return d, nil
		}
	}
	return nil, errors.Join(err, root.Close())
}

// Close lets the directory go.
func (d *Dir) Close() error { return d.root.Close() }

// Open opens a regular file; it yields as many bytes as the file has now. One
// of a context that is gone since it was listed has none: a build does not fail
// because a temporary file vanished, and whoever receives it sees the difference.
func (d *Dir) Open(name string) (io.ReadCloser, error) {
	f, info, err := d.root.OpenListed(name)
	if errors.Is(err, fs.ErrNotExist) && d.owner == OwnerRoot {
		return io.NopCloser(strings.NewReader("")), nil
	}
	if errors.Is(err, safepath.ErrSpecial) || errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("%q is no regular file any more", name)
	} else if err != nil {
		return nil, err
	}
	return limited{io.LimitedReader{R: f, N: info.Size()}, f}, nil
}

// limited is a file up to the size it had when it was opened, so that one that
// grows all the time ends too.
type limited struct {
	io.LimitedReader
	io.Closer
}

func (l limited) Read(p []byte) (int, error) { return l.LimitedReader.Read(p) }

// Walk lists the wanted files.
func (d *Dir) Walk(ctx context.Context, f func(*fsutil.Stat) error) error {
	top, err := d.root.Open(".")
	if err != nil {
		return err
	}
	w := &dirWalk{ctx: ctx, dir: d, f: f, links: map[inode]string{}}
	return errors.Join(w.walk(top, "", verdict{}), top.Close())
}

type inode struct{ dev, ino uint64 }

// dirWalk is one walk. Directories that are not wanted for themselves wait in
// pending until something below them is.
type dirWalk struct {
	ctx     context.Context
	dir     *Dir
	f       func(*fsutil.Stat) error
	links   map[inode]string // first path of a file with several
	pending []*fsutil.Stat
}

func (w *dirWalk) walk(dir *os.File, prefix string, parent verdict) error {
	names, err := dir.Readdirnames(-1)
	if err != nil && (w.dir.owner != OwnerRoot || prefix == "" || !errors.Is(err, fs.ErrNotExist)) { // else it went away meanwhile
		return fmt.Errorf("read directory %q: %w", "/"+prefix, err)
	}
	slices.Sort(names)
	wanted := make([]named, 0, len(names))
	for _, name := range names {
		v, err := w.dir.match.match(path.Join(prefix, name), parent)
		if err != nil {
			return err
		}
		if v.send || v.descend {
			wanted = append(wanted, named{name, v})
		}
	}
	stop := make(chan struct{})
	batches := w.dir.lookAhead(int(dir.Fd()), prefix, wanted, stop)
	defer func() {
		close(stop)
		for range batches {
			continue // so that dir is not looked at any more
		}
	}()
	for batch := range batches {
		for i := range batch {
			if w.ctx.Err() != nil {
				return context.Cause(w.ctx)
			}
			if err := w.entry(dir, &batch[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// entry tells of one entry and what lies below it.
func (w *dirWalk) entry(dir *os.File, l *looked) error {
	if l.err != nil {
		return fmt.Errorf("stat %q: %w", l.path, l.err)
	}
	st := l.stat
	if st == nil {
		return nil
	}
	if l.links {
		if first, ok := w.links[l.inode]; ok {
			st.Linkname = first
		} else {
			w.links[l.inode] = l.path
		}
	}
	if l.verdict.send {
		if err := w.tell(st); err != nil {
			return err
		}
	}
	if !isDir(st) || !l.verdict.descend {
		return nil
	}
	depth := len(w.pending)
	if !l.verdict.send {
		w.pending = append(w.pending, st)
	}
	fd, err := unix.Openat(int(dir.Fd()), l.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if w.dir.owner == OwnerRoot && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)) {
		w.pending = w.pending[:min(depth, len(w.pending))]
		return nil // it went away meanwhile
	} else if err != nil {
		return fmt.Errorf("open directory %q: %w", l.path, err)
	}
	sub := os.NewFile(uintptr(fd), l.path)
	err = errors.Join(w.walk(sub, l.path, l.verdict), sub.Close())
	w.pending = w.pending[:min(depth, len(w.pending))]
	return err
}

// tell tells of st, after the directories that lead to it.
func (w *dirWalk) tell(st *fsutil.Stat) error {
	for _, d := range w.pending {
		if err := w.f(d); err != nil {
			return err
		}
	}
	w.pending = w.pending[:0]
	return w.f(st)
}
