package safepath

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// maxXattrs caps the list of names and each value; the kernel's own limits.
const maxXattrs = 64 << 10

// LXattrs returns the extended attributes that can be read, of a symlink
// itself. A file system without any gives none.
func (r *Root) LXattrs(name string) (map[string][]byte, error) {
	var attrs map[string][]byte
	err := r.xattrPath("list xattrs", name, func(p string) (err error) {
		attrs, err = xattrs(p, unix.Llistxattr, unix.Lgetxattr)
		return err
	})
	return attrs, err
}

// Xattrs is LXattrs of an open file or directory.
func Xattrs(f *os.File) (map[string][]byte, error) {
	attrs, err := FDXattrs(int(f.Fd()))
	if err != nil {
		return nil, pathError("list xattrs", f.Name(), err)
	}
	return attrs, nil
}

// FDXattrs is Xattrs of a descriptor.
func FDXattrs(fd int) (map[string][]byte, error) {
	return xattrs("",
		func(_ string, b []byte) (int, error) { return unix.Flistxattr(fd, b) },
		func(_, key string, b []byte) (int, error) { return unix.Fgetxattr(fd, key, b) })
}

// LSetXattr sets an extended attribute, of a symlink itself.
func (r *Root) LSetXattr(name, key string, value []byte) error {
	return r.xattrPath("set xattr "+key, name, func(p string) error { return unix.Lsetxattr(p, key, value, 0) })
}

// xattrPath names a file for the xattr calls, which take no O_PATH handle: by
// a handle of its directory, so that only the last component is looked up.
func (r *Root) xattrPath(op, name string, call func(p string) error) error {
	if clean(name) == "/" {
		if err := call(procPath(r.fd()) + "/."); err != nil {
			return pathError(op, name, err)
		}
		return nil
	}
	return r.at(op, name, func(dir int, base string) error { return call(procPath(dir) + "/" + base) })
}

func xattrs(p string, listxattr func(string, []byte) (int, error), getxattr func(string, string, []byte) (int, error)) (map[string][]byte, error) {
	var short [256]byte
	list, err := grow(short[:], func(b []byte) (int, error) { return listxattr(p, b) })
	if errors.Is(err, unix.ENOTSUP) || err == nil && len(list) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	attrs := map[string][]byte{}
	for key := range strings.SplitSeq(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		var buf [256]byte
		v, err := grow(buf[:], func(b []byte) (int, error) { return getxattr(p, key, b) })
		if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOTSUP) {
			continue // gone, or none of ours
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
		attrs[key] = append([]byte{}, v...)
	}
	return attrs, nil
}

func grow(buf []byte, get func([]byte) (int, error)) ([]byte, error) {
	n, err := get(buf)
	if errors.Is(err, unix.ERANGE) {
		buf = make([]byte, maxXattrs)
		n, err = get(buf)
	}
	if err != nil {
		return nil, err
	}
	return buf[:n], nil
}
