package files

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// attributes reads extended attributes of entries of directories.
type attributes struct {
	keep func(key string) bool
	// byPath says that the kernel, before Linux 6.13, lists attributes by path
	// only, or that a filter allows no more.
	byPath atomic.Bool
}

// of returns the attributes that are kept of an entry, of a symlink itself.
func (a *attributes) of(dir int, name string) (map[string][]byte, error) {
	var list [4096]byte
	n, err := a.list(dir, name, list[:])
	if err != nil || n == 0 {
		return nil, nil // none, or none to be had: they are extras
	}
	var out map[string][]byte
	for key := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if !a.keep(key) {
			continue
		}
		value := make([]byte, 64<<10) // Linux's limit
		n, err := unix.Lgetxattr(pathBelow(dir, name), key, value)
		if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOENT) {
			continue // it went away meanwhile
		} else if err != nil {
			return nil, fmt.Errorf("attribute %s: %w", key, err)
		}
		if out == nil {
			out = map[string][]byte{}
		}
		out[key] = slices.Clone(value[:n])
	}
	return out, nil
}

// list lists the names of attributes into buf, each ended by a zero byte.
func (a *attributes) list(dir int, name string, buf []byte) (int, error) {
	if !a.byPath.Load() {
		// It takes a third of the time: the other way goes through four
		// directories and links of /proc.
		n, err := listxattrat(dir, name, buf)
		if !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EPERM) {
			return n, err
		}
		a.byPath.Store(true)
	}
	return unix.Llistxattr(pathBelow(dir, name), buf)
}

func pathBelow(dir int, name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", dir, name) }

// listxattrat is listxattrat(2), for which there is no wrapper yet.
func listxattrat(dir int, name string, buf []byte) (int, error) {
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return 0, err
	}
	n, _, errno := unix.Syscall6(unix.SYS_LISTXATTRAT, uintptr(dir), uintptr(unsafe.Pointer(p)), unix.AT_SYMLINK_NOFOLLOW,
		uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)), 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// keepXattr tells whether a tree keeps an attribute.
func (d *Dir) keepXattr(key string) bool {
	switch {
	case strings.HasPrefix(key, "com.apple."), strings.HasPrefix(key, "trusted.overlay."),
		strings.HasPrefix(key, "user.overlay."), key == "security.selinux":
		return false
	case strings.HasPrefix(key, "user."):
		return d.owner == OwnerKept
	}
	return true
}
