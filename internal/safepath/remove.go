package safepath

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Remove removes a file, a symlink itself, or an empty directory.
func (r *Root) Remove(name string) error {
	return r.at("remove", name, func(dir int, base string) error {
		err := unix.Unlinkat(dir, base, 0)
		if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
			if derr := unix.Unlinkat(dir, base, unix.AT_REMOVEDIR); !errors.Is(derr, unix.ENOTDIR) {
				return derr
			}
		}
		return err
	})
}

// RemoveAll removes whatever name is, and all in it. A symlink is removed
// itself. It is no error if there is nothing; the root cannot be removed.
func (r *Root) RemoveAll(name string) error {
	err := r.at("remove", name, removeAll)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	return err
}

// removeAll keeps at most one handle per level open. It never follows a
// symlink: a directory swapped for one is unlinked as such.
func removeAll(dir int, base string) error {
	const tries = 16 // something keeps adding entries
	for i := 0; ; i++ {
		err := unix.Unlinkat(dir, base, 0)
		if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
			return ignoreNotExist(err)
		}
		derr := unix.Unlinkat(dir, base, unix.AT_REMOVEDIR)
		switch {
		case errors.Is(derr, unix.ENOTDIR):
			if i < tries && !errors.Is(err, unix.EPERM) {
				continue
			}
			return err
		case !errors.Is(derr, unix.ENOTEMPTY) && !errors.Is(derr, unix.EEXIST) || i == tries:
			return ignoreNotExist(derr)
		}
		if err := removeEntries(dir, base); err != nil {
			return err
		}
	}
}

func removeEntries(dir int, base string) error {
	fd, err := ignoreEINTR(func() (int, error) {
		return unix.Openat(dir, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOENT) {
		return nil // swapped; removeAll looks again
	}
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := removeAll(fd, name); err != nil {
			return err
		}
	}
	return nil
}

func ignoreNotExist(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
