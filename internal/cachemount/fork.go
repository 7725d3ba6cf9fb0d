package cachemount

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/internal/safepath"
)

// A fork is an overlay: what a private step changes goes to a folder of its
// own, above the mount's files, which nobody writes to meanwhile. If the step
// ends well, its changes become a layer that later forks begin with. When the
// last fork has ended, the layers are folded into the files.

const (
	maxLayers = 16          // below a fork; who comes then waits for a fold
	foldName  = "fold.json" // there while layers are folded: their names, lowest first
)

// overlay is how this machine mounts overlays.
type overlay struct {
	options string
	opaque  string // attribute of a folder that hides what is below it
}

// probe tells how overlays can be mounted over folders below dir; nil if not
// at all.
func probe(dir string) *overlay {
	base, err := os.MkdirTemp(dir, "probe-")
	if err != nil {
		return nil
	}
	defer os.RemoveAll(base)
	for _, o := range []overlay{
		{"redirect_dir=off,metacopy=off,index=off", "trusted.overlay.opaque"},
		{"userxattr", "user.overlay.opaque"},
	} {
		if target, err := o.mount(base, base, []string{base}); err == nil {
			if unix.Unmount(target, unix.MNT_DETACH) == nil {
				return &o
			}
		}
	}
	return nil
}

// mount makes an overlay over lower, the uppermost first, with the changes in
// dir, and returns where it is, a folder in points.
func (o *overlay) mount(dir, points string, lower []string) (target string, err error) {
	upper, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	// The mount's root is as the folder's is.
	fi, err := os.Stat(lower[len(lower)-1])
	if err != nil {
		return "", err
	}
	if err := errors.Join(os.MkdirAll(points, 0o700), os.MkdirAll(upper, 0o755), os.MkdirAll(work, 0o700)); err != nil {
		return "", err
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		err = os.Chown(upper, int(st.Uid), int(st.Gid))
	}
	if err := errors.Join(err, os.Chmod(upper, fi.Mode())); err != nil {
		return "", err
	}
	if target, err = os.MkdirTemp(points, "fork-"); err != nil {
		return "", err
	}
	options := fmt.Sprintf("%s,lowerdir=%s,upperdir=%s,workdir=%s", o.options, strings.Join(lower, ":"), upper, work)
	if err := unix.Mount("overlay", target, "overlay", 0, options); err != nil {
		return "", errors.Join(fmt.Errorf("mount overlay: %w", err), os.Remove(target))
	}
	return target, nil
}

// fork gives a step what the slot has, to be changed by it alone.
func (m *Mounts) fork(name string, s *slot) (*Use, error) {
	m.mu.Lock()
	layers := slices.Clone(s.layers)
	s.made++
	id := strconv.Itoa(s.made)
	m.mu.Unlock()
	base := filepath.Join(m.dir, name)
	var lower []string
	for _, l := range layers {
		lower = append(lower, filepath.Join(base, forksName, l, "upper"))
	}
	lower = append(lower, filepath.Join(base, filesName))
	dir := filepath.Join(base, forksName, id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("fork cache mount: %w", err)
	}
	target, err := m.overlay().mount(dir, filepath.Join(m.dir, mountPoints), lower)
	if err != nil {
		return nil, fmt.Errorf("fork cache mount: %w", err)
	}
	return &Use{Dir: target, release: func(good bool) error {
		err := unix.Unmount(target, unix.MNT_DETACH)
		if err == nil {
			err = os.Remove(target)
		}
		if err != nil {
			err = fmt.Errorf("unmount fork of cache mount: %w", err)
		}
		if good && err == nil {
			m.mu.Lock()
			s.layers = append([]string{id}, layers...)
			m.mu.Unlock()
		}
		return errors.Join(err, m.leave(name, true))
	}}, nil
}

// fold makes layers, the uppermost first, part of a slot's files, and removes
// all forks. After a crash in the middle, recover finishes it.
func (m *Mounts) fold(name string, layers []string) error {
	dir := filepath.Join(m.dir, name)
	mark := filepath.Join(dir, foldName)
	if len(layers) > 0 {
		lowestFirst := slices.Clone(layers)
		slices.Reverse(lowestFirst)
		if err := writeJSON(mark, lowestFirst); err != nil {
			return fmt.Errorf("fold forks of cache mount: %w", err)
		}
		if err := m.foldLayers(dir, lowestFirst); err != nil {
			return fmt.Errorf("fold forks of cache mount: %w", err)
		}
	} else if _, err := os.Lstat(filepath.Join(dir, forksName)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := os.RemoveAll(filepath.Join(dir, forksName)); err != nil {
		return fmt.Errorf("remove forks of cache mount: %w", err)
	}
	if err := os.Remove(mark); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("fold forks of cache mount: %w", err)
	}
	return nil
}

func (m *Mounts) foldLayers(dir string, layers []string) error {
	root, err := safepath.Open(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	o := m.overlay()
	if o == nil {
		return errors.New("overlays cannot be mounted here any more")
	}
	for _, l := range layers {
		upper := path.Join(forksName, l, "upper")
		if _, err := root.Lstat(upper); errors.Is(err, fs.ErrNotExist) {
			continue // folded before a crash
		}
		if err := o.merge(root, upper, filesName); err != nil {
			return err
		}
		if err := root.RemoveAll(path.Join(forksName, l)); err != nil {
			return err
		}
	}
	return nil
}

// merge moves what is in the folder upper to the folder to, as the overlay
// showed them together. Done twice, it does the same.
func (o *overlay) merge(root *safepath.Root, upper, to string) error {
	entries, err := root.ReadDir(upper)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := o.mergeEntry(root, path.Join(upper, e.Name()), path.Join(to, e.Name())); err != nil {
			return err
		}
	}
	return dress(root, upper, to)
}

func (o *overlay) mergeEntry(root *safepath.Root, from, to string) error {
	fi, err := root.Lstat(from)
	if err != nil {
		return err
	}
	st, _ := fi.Sys().(*syscall.Stat_t)
	if fi.Mode()&fs.ModeCharDevice != 0 && st != nil && st.Rdev == 0 { // it hides what is below
		return errors.Join(root.RemoveAll(to), root.Remove(from))
	}
	below, err := root.Lstat(to)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil && fi.IsDir() && below.IsDir() {
		attrs, err := root.LXattrs(from)
		if err != nil {
			return err
		}
		if string(attrs[o.opaque]) != "y" {
			return o.merge(root, from, to)
		}
	}
	if err == nil && (fi.IsDir() || below.IsDir()) {
		if err := root.RemoveAll(to); err != nil {
			return err
		}
	}
	return root.Rename(from, to)
}

// dress gives the folder to the owner, mode, times and attributes of the folder
// from.
func dress(root *safepath.Root, from, to string) error {
	fi, err := root.Lstat(from)
	if err != nil {
		return err
	}
	uid, gid, _ := safepath.Owner(fi)
	if err := root.Lchown(to, int(uid), int(gid)); err != nil {
		return err
	}
	if err := root.Lchmod(to, fi.Mode()); err != nil {
		return err
	}
	attrs, err := root.LXattrs(from)
	if err != nil {
		return err
	}
	for key, value := range attrs {
		if overlayAttr(key) {
			continue
		}
		if err := root.LSetXattr(to, key, value); err != nil {
			return err
		}
	}
	return root.Utimes(to, fi.ModTime(), fi.ModTime())
}

// overlayAttr tells the attributes that overlays keep for themselves.
func overlayAttr(key string) bool {
	return strings.HasPrefix(key, "trusted.overlay.") || strings.HasPrefix(key, "user.overlay.")
}

// recover finishes folds that a crash has cut off, and removes forks and
// imports that were under way.
func (m *Mounts) recover() error {
	if err := os.RemoveAll(filepath.Join(m.dir, mountPoints)); err != nil {
		return fmt.Errorf("clear mount points of cache mounts: %w", err)
	}
	entries, err := os.ReadDir(m.dir)
	if err != nil {
		return fmt.Errorf("list cache mounts: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), incomingPrefix) {
			if err := os.RemoveAll(filepath.Join(m.dir, e.Name())); err != nil {
				return fmt.Errorf("clear import of a cache mount: %w", err)
			}
			continue
		}
		var layers []string
		if b, err := os.ReadFile(filepath.Join(m.dir, e.Name(), foldName)); err == nil && json.Unmarshal(b, &layers) == nil {
			slices.Reverse(layers)
		}
		if err := m.fold(e.Name(), layers); err != nil {
			// What cannot be repaired is begun anew: it is a cache.
			if err := m.discard(e.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}
