// Package fileop carries out LLB file actions on directories, without a
// container: copy, make and remove files, and unpack archives as Docker's ADD
// does. The results are what BuildKit makes of the same actions.
//
// Everything happens inside roots (package safepath): neither paths in an
// action, nor symlinks in a tree, nor names in an archive reach what is
// outside. Nothing is hard linked between source and destination, so that
// layers stay independent. It is called by internal/op, which mounts the
// states that actions work on.
package fileop

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/internal/safepath"
	"github.com/kiln-build/kiln/llb"
)

// Owner is a user and group by number.
type Owner struct{ UID, GID uint32 }

// Do carries out one action on dst. src is what a copy reads from, and may be
// nil for other actions; owner is the action's owner as [ResolveOwner] found
// it, and nil keeps a copied file's own.
func Do(ctx context.Context, dst, src *safepath.Root, action llb.FileDo, owner *Owner) error {
	switch a := action.(type) {
	case *llb.DoCopy:
		return Copy(ctx, dst, src, a, owner)
	case *llb.DoMkfile:
		return Mkfile(dst, a, owner)
	case *llb.DoMkdir:
		return Mkdir(dst, a, owner)
	case *llb.DoRm:
		return Rm(dst, a)
	case *llb.DoSymlink:
		return Symlink(dst, a, owner)
	}
	return fmt.Errorf("unknown file action %T", action)
}

// notFoundError says what Docker's users are used to read from COPY, and then
// what BuildKit's read from file actions.
type notFoundError struct{ path string }

func (e *notFoundError) Error() string {
	return strconv.Quote(e.path) + ": not found: lstat " + e.path + ": no such file or directory"
}

func (e *notFoundError) Is(target error) bool { return target == fs.ErrNotExist }

// failed describes what was tried in words of the action; the path in err may
// be of a part of the tree only.
func failed(verb, name string, err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	if errors.Is(err, safepath.ErrSpecial) {
		err = fmt.Errorf("it is %w", err)
	}
	return fmt.Errorf("%s %s: %w", verb, path.Join("/", name), err)
}

// timeOf is the time that an action asks for; nil is none.
func timeOf(timestamp int64) *time.Time {
	if timestamp == llb.KeepTime {
		return nil
	}
	t := time.Unix(0, timestamp)
	return &t
}

// dress gives something just made its owner and time, if asked for.
func dress(root *safepath.Root, name string, owner *Owner, at *time.Time) error {
	if owner != nil {
		if err := root.Lchown(name, int(owner.UID), int(owner.GID)); err != nil {
			return err
		}
	}
	if at != nil {
		return root.Utimes(name, *at, *at)
	}
	return nil
}

// mkdirAll makes a directory and its parents with exactly these permissions,
// and tells which it made.
func mkdirAll(root *safepath.Root, name string, perm fs.FileMode, owner *Owner, at *time.Time) (made []string, err error) {
	if fi, err := root.Stat(name); err == nil && fi.IsDir() {
		return nil, nil
	}
	if made, err = root.MkdirAll(name, perm); err != nil {
		return nil, failed("mkdir", name, err)
	}
	for i := len(made) - 1; i >= 0; i-- { // children first: they change their parents' times
		if err := root.Lchmod(made[i], perm); err != nil {
			return nil, failed("mkdir", name, err)
		}
		if err := dress(root, made[i], owner, at); err != nil {
			return nil, failed("mkdir", name, err)
		}
	}
	return made, nil
}

// Mkdir makes a directory. One that exists is left as it is.
func Mkdir(root *safepath.Root, a *llb.DoMkdir, owner *Owner) error {
	perm := fs.FileMode(a.Mode) & fs.ModePerm
	if a.Parents {
		_, err := mkdirAll(root, a.Path, perm, owner, timeOf(a.Timestamp))
		return err
	}
	name, err := root.Resolve(a.Path)
	if err != nil {
		return failed("mkdir", a.Path, err)
	}
	if fi, err := root.Lstat(name); err == nil && fi.IsDir() {
		return nil
	}
	if err := root.Mkdir(name, perm); err != nil {
		return failed("mkdir", a.Path, err)
	}
	if err := root.Lchmod(name, perm); err != nil {
		return failed("mkdir", a.Path, err)
	}
	if err := dress(root, name, owner, timeOf(a.Timestamp)); err != nil {
		return failed("mkdir", a.Path, err)
	}
	return nil
}

// Mkfile writes a file. What is there already is replaced, never written to: it
// may be a device. A symlink is followed inside the root.
func Mkfile(root *safepath.Root, a *llb.DoMkfile, owner *Owner) error {
	name, err := root.Resolve(a.Path)
	if err != nil {
		return failed("make file", a.Path, err)
	}
	if fi, err := root.Lstat(name); err == nil && fi.IsDir() {
		return failed("make file", a.Path, unix.EISDIR)
	}
	temp := path.Join(path.Dir(name), ".mkfile-"+rand.Text())
	err = writeNew(root, temp, a, owner)
	if err == nil {
		err = root.Rename(temp, name)
	}
	if err != nil {
		return errors.Join(failed("make file", a.Path, err), root.RemoveAll(temp))
	}
	return nil
}

func writeNew(root *safepath.Root, name string, a *llb.DoMkfile, owner *Owner) error {
	f, err := root.OpenFile(name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(a.Data)
	if err == nil {
		err = f.Chmod(fs.FileMode(a.Mode) & fs.ModePerm)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return dress(root, name, owner, timeOf(a.Timestamp))
}

// Symlink makes a symbolic link where nothing is yet.
func Symlink(root *safepath.Root, a *llb.DoSymlink, owner *Owner) error {
	name, err := root.Resolve(a.New)
	if err != nil {
		return failed("make symlink", a.New, err)
	}
	if err := root.Symlink(a.Old, name); err != nil {
		return failed("make symlink", a.New, err)
	}
	if err := dress(root, name, owner, timeOf(a.Timestamp)); err != nil {
		return failed("make symlink", a.New, err)
	}
	return nil
}

// Rm removes what is at a path, or at all that match a pattern. A pattern that
// matches nothing is no error. The root itself cannot be removed.
func Rm(root *safepath.Root, a *llb.DoRm) error {
	names := []string{path.Join("/", a.Path)}
	if a.Wildcard {
		var err error
		names, err = glob(root, a.Path, false)
		if a.AllowNotFound && errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return failed("remove", a.Path, err)
		}
	}
	for _, name := range names {
		if strings.Trim(name, "/") == "" {
			return fmt.Errorf("remove %q: it is the root, which cannot be removed", a.Path)
		}
		if !a.AllowNotFound {
			if _, err := root.Lstat(name); errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("remove: %w", &notFoundError{name})
			} else if err != nil {
				return failed("remove", name, err)
			}
		}
		if err := root.RemoveAll(name); err != nil {
			return failed("remove", name, err)
		}
	}
	return nil
}
