package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/containerd/containerd/v2/core/snapshots"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// counter adds up what files take on the disk.
type counter struct {
	work         *errgroup.Group // folders being read
	size, inodes atomic.Int64

	mu   sync.Mutex
	seen map[inode]struct{} // files with several names
}

type inode struct{ dev, ino uint64 }

// diskUsage counts dir and all that is below, a file of several names once, on all
// cores. Nobody may change the files meanwhile.
func diskUsage(ctx context.Context, dir string) (snapshots.Usage, error) {
	f, err := os.Open(dir)
	if err != nil {
		return snapshots.Usage{}, fmt.Errorf("count files: %w", err)
	}
	c := &counter{seen: map[inode]struct{}{}}
	c.work, ctx = errgroup.WithContext(ctx)
	c.work.SetLimit(runtime.GOMAXPROCS(0))
	c.work.Go(func() error {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return errors.Join(err, f.Close())
		}
		c.add(&st)
		return c.folder(ctx, f)
	})
	if err := c.work.Wait(); err != nil {
		return snapshots.Usage{}, fmt.Errorf("count files of %s: %w", dir, err)
	}
	return snapshots.Usage{Inodes: c.inodes.Load(), Size: c.size.Load()}, nil
}

// add counts one name.
func (c *counter) add(st *unix.Stat_t) {
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		c.mu.Lock()
		defer c.mu.Unlock()
		id := inode{st.Dev, st.Ino}
		if _, ok := c.seen[id]; ok {
			return
		}
		c.seen[id] = struct{}{}
	}
	const block = 512 // stat(2): whatever the file system's own are
	c.inodes.Add(1)
	c.size.Add(st.Blocks * block)
}

// folder counts what is below d, and closes it.
func (c *counter) folder(ctx context.Context, d *os.File) (err error) {
	defer func() { err = errors.Join(err, d.Close()) }()
	const some = 1024
	dir := int(d.Fd())
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		names, err := d.Readdirnames(some)
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		for _, name := range names {
			if err := c.name(ctx, dir, name); err != nil {
				return err
			}
		}
	}
}

// name counts name in dir with all that is below.
func (c *counter) name(ctx context.Context, dir int, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "stat", Path: name, Err: err}
	}
	c.add(&st)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	below := os.NewFile(uintptr(fd), name)
	if c.work.TryGo(func() error { return c.folder(ctx, below) }) {
		return nil
	}
	return c.folder(ctx, below)
}
