package fake

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/kiln-build/kiln/internal/executor"
)

const (
	maxLinks  = 40
	maxScript = 16 << 20
)

// view is the files that a container sees: its root and, over it, its mounts.
// Every access goes through an [os.Root], so that no link leads out; links are
// followed here, as absolute ones mean the container's root.
type view struct {
	mounts []mounted // the last that fits counts; the first is the root
	temp   []string  // folders of tmpfs mounts
}

type mounted struct {
	dest     string // "/" or "/a/b"
	root     *os.Root
	file     string // for a mount of one file: its name in root
	readOnly bool
}

func openView(s executor.Spec) (v *view, err error) {
	v = &view{}
	defer func() {
		if err != nil {
			v.close()
		}
	}()
	root, err := os.OpenRoot(s.Root)
	if err != nil {
		return v, fmt.Errorf("root file system: %w", err)
	}
	v.mounts = []mounted{{dest: "/", root: root, readOnly: s.ReadOnlyRoot}}
	for _, m := range s.Mounts {
		if err := v.mount(m); err != nil {
			return v, err
		}
	}
	return v, nil
}

func (v *view) mount(m executor.Mount) error {
	dest := path.Clean(m.Dest)
	if !path.IsAbs(m.Dest) || dest == "/" {
		return fmt.Errorf("mount at %q: want an absolute path below /", m.Dest)
	}
	readOnly := m.ReadOnly || slices.Contains(m.Options, "ro")
	source, file := m.Source, ""
	switch m.Type {
	case "tmpfs":
		temp, err := os.MkdirTemp("", "fake-tmpfs")
		if err != nil {
			return fmt.Errorf("mount at %s: %w", dest, err)
		}
		v.temp = append(v.temp, temp)
		source = temp
	case "bind":
		info, err := os.Stat(source)
		if err != nil {
			return fmt.Errorf("mount source of %s: %w", dest, err)
		}
		if !info.IsDir() {
			if source, err = filepath.EvalSymlinks(source); err != nil { // it may be a handle in /proc
				return fmt.Errorf("mount source of %s: %w", dest, err)
			}
			source, file = path.Split(source)
		}
	default:
		return fmt.Errorf("mount at %q: type %q: want bind or tmpfs", m.Dest, m.Type)
	}
	root, err := os.OpenRoot(source)
	if err != nil {
		return fmt.Errorf("mount source of %s: %w", dest, err)
	}
	v.mounts = append(v.mounts, mounted{dest: dest, root: root, file: file, readOnly: readOnly})
	return nil
}

func (v *view) close() {
	for _, m := range v.mounts {
		m.root.Close()
	}
	for _, dir := range v.temp {
		os.RemoveAll(dir)
	}
}

// place is a file by the root that it is in.
type place struct {
	mounted
	rel string
}

// at finds the mount that an absolute path free of links is in.
func (v *view) at(name string) place {
	for _, m := range slices.Backward(v.mounts) {
		switch {
		case name == m.dest && m.file != "":
			return place{m, m.file}
		case name == m.dest:
			return place{m, "."}
		case m.file == "" && strings.HasPrefix(name, strings.TrimSuffix(m.dest, "/")+"/"):
			return place{m, strings.TrimPrefix(name[len(strings.TrimSuffix(m.dest, "/")):], "/")}
		}
	}
	return place{v.mounts[0], "."}
}

// resolve follows the links of a path, the last one only if asked. What does
// not exist stands for itself.
func (v *view) resolve(name string, last bool) (place, error) {
	done := "/"
	todo := split(name)
	for links := 0; len(todo) > 0; {
		next := todo[0]
		todo = todo[1:]
		if next == ".." {
			done = path.Dir(done)
			continue
		}
		here := path.Join(done, next)
		p := v.at(here)
		info, err := p.root.Lstat(p.rel)
		if err != nil || info.Mode()&fs.ModeSymlink == 0 || len(todo) == 0 && !last {
			done = here
			continue
		}
		if links++; links > maxLinks {
			return place{}, syscall.ELOOP
		}
		target, err := p.root.Readlink(p.rel)
		if err != nil {
			return place{}, err
		}
		if path.IsAbs(target) {
			done = "/"
		}
		todo = append(split(target), todo...)
	}
	return v.at(done), nil
}

func split(p string) []string {
	return slices.DeleteFunc(strings.Split(p, "/"), func(c string) bool { return c == "" || c == "." })
}

// writable is resolve for what changes a file.
func (v *view) writable(name string, last bool) (place, error) {
	p, err := v.resolve(name, last)
	if err == nil && p.readOnly {
		err = syscall.EROFS
	}
	return p, err
}

func (v *view) openFile(name string, flag int, perm os.FileMode) (*os.File, error) {
	find := v.resolve
	if flag&(os.O_WRONLY|os.O_RDWR|os.O_CREATE|os.O_TRUNC) != 0 {
		find = v.writable
	}
	p, err := find(name, true)
	if err != nil {
		return nil, err
	}
	// Without waiting: a pipe may have nobody at its other end.
	return p.root.OpenFile(p.rel, flag|syscall.O_NONBLOCK, perm)
}

func (v *view) stat(name string, follow bool) (fs.FileInfo, error) {
	p, err := v.resolve(name, follow)
	if err != nil {
		return nil, err
	}
	return p.root.Lstat(p.rel)
}

func (v *view) readDir(name string) ([]fs.DirEntry, error) {
	f, err := v.openFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	entries, err := f.ReadDir(-1)
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, err
}

// readFile reads a script.
func (v *view) readFile(name string) ([]byte, error) {
	info, err := v.stat(name, true)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, pathError("read", name, errors.New("not a regular file"))
	}
	f, err := v.openFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxScript+1))
	if err == nil && len(text) > maxScript {
		err = pathError("read", name, fmt.Errorf("larger than %d bytes", maxScript))
	}
	return text, err
}

// mkdirAll makes a folder with its parents.
func (v *view) mkdirAll(name string) error {
	p, err := v.resolve(name, true)
	if err != nil {
		return err
	}
	if info, err := p.root.Stat(p.rel); err == nil && info.IsDir() {
		return nil
	}
	if p.readOnly {
		return pathError("mkdir", name, syscall.EROFS)
	}
	return p.root.MkdirAll(p.rel, 0o755)
}
