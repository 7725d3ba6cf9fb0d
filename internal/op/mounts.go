package op

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/internal/executor"
	"github.com/kiln-build/kiln/internal/fileop"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/safepath"
	"github.com/kiln-build/kiln/internal/solver"
	"github.com/kiln-build/kiln/llb"
)

// newID names a container: lower-case letters and digits.
func newID() string { return strings.ToLower(rand.Text()) }

// mountSet is the file systems of one run.
type mountSet struct {
	worker      *Worker
	inputs      []*layer.Ref
	description string

	root         string // where the root file system is mounted on this machine
	rootReadOnly bool
	binds        []executor.Mount
	outputs      map[int]output
	states       []*layer.Mutable
	undo         []func() error // in reverse order
}

// output is a mount that the run's result is made of: a state that it may
// have changed, or the input where it could not.
type output struct {
	state *layer.Mutable
	ref   *layer.Ref
}

func (s *mountSet) onUnmount(f func() error) { s.undo = append(s.undo, f) }

// mountAll makes the mounts ready, the root first and then parents before
// what is mounted below them.
func (s *mountSet) mountAll(ctx context.Context, ms []llb.Mount) error {
	s.outputs = map[int]output{}
	ms = slices.Clone(ms)
	slices.SortStableFunc(ms, func(a, b llb.Mount) int { return strings.Compare(path.Clean(a.Dest), path.Clean(b.Dest)) })
	for _, m := range ms {
		if err := s.mount(ctx, m); err != nil {
			return fmt.Errorf("mount %s: %w", m.Dest, err)
		}
	}
	return nil
}

func (s *mountSet) mount(ctx context.Context, m llb.Mount) error {
	switch m.Kind {
	case llb.MountBind:
		return s.bind(ctx, m)
	case llb.MountCache:
		return s.cache(ctx, m)
	case llb.MountTmpfs:
		mt := executor.Mount{Type: "tmpfs", Source: "tmpfs", Dest: m.Dest, Options: []string{"nosuid"}}
		if m.TmpfsSize > 0 {
			mt.Options = append(mt.Options, fmt.Sprintf("size=%d", m.TmpfsSize))
		}
		s.binds = append(s.binds, mt)
		return nil
	case llb.MountSecret:
		return s.secret(ctx, m)
	case llb.MountSSH:
		return s.ssh(ctx, m)
	}
	return fmt.Errorf("unknown kind of mount %d", m.Kind)
}

func (s *mountSet) bind(ctx context.Context, m llb.Mount) error {
	var in *layer.Ref
	if m.Input != llb.None {
		in = s.inputs[m.Input]
	}
	dir, err := s.open(ctx, m, in)
	if err != nil {
		return err
	}
	if m.Dest == "/" {
		s.root, s.rootReadOnly = dir, m.ReadOnly
		return nil
	}
	if m.Selector != "" && path.Clean(m.Selector) != "/" {
		if dir, err = s.sub(dir, m.Selector); err != nil {
			return err
		}
	}
	s.binds = append(s.binds, executor.Mount{Type: "bind", Source: dir, Dest: m.Dest, ReadOnly: m.ReadOnly, Options: []string{"rbind"}})
	return nil
}

// open mounts an input, as it is or to be changed.
func (s *mountSet) open(ctx context.Context, m llb.Mount, in *layer.Ref) (dir string, err error) {
	var release func() error
	if m.ReadOnly {
		dir, release, err = s.worker.Layers.Mount(ctx, in)
		if err == nil && m.Output != llb.None {
			s.outputs[m.Output] = output{ref: in}
		}
	} else {
		var state *layer.Mutable
		if state, err = s.worker.Layers.New(ctx, in, layer.NewOptions{Description: s.description}); err != nil {
			return "", err
		}
		s.states = append(s.states, state)
		dir, release, err = state.Mount(ctx)
		if m.Output != llb.None {
			s.outputs[m.Output] = output{state: state}
		}
	}
	if err != nil {
		return "", err
	}
	s.onUnmount(release)
	return dir, nil
}

// sub makes a path inside dir a mount point of its own. It is mounted by
// handle, so that nobody can put a link in its place in between.
func (s *mountSet) sub(dir, selector string) (string, error) {
	root, err := safepath.Open(dir)
	if err != nil {
		return "", err
	}
	defer root.Close()
	f, err := root.OpenPath(selector)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%q: not found in the mount's source", selector)
	} else if err != nil {
		return "", fmt.Errorf("open %q: %w", selector, err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return "", err
	}
	target, err := s.point(fi.IsDir())
	if err != nil {
		return "", err
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return "", fmt.Errorf("bind %q: %w", selector, err)
	}
	s.onUnmount(func() error { return unix.Unmount(target, unix.MNT_DETACH) })
	return target, nil
}

// point makes an empty file or directory to mount something on.
func (s *mountSet) point(dir bool) (string, error) {
	target := filepath.Join(s.worker.Scratch, newID())
	var err error
	if dir {
		err = os.Mkdir(target, 0o700)
	} else {
		err = os.WriteFile(target, nil, 0o600)
	}
	if err != nil {
		return "", fmt.Errorf("make mount point: %w", err)
	}
	s.onUnmount(func() error { return os.Remove(target) })
	return target, nil
}

func (s *mountSet) cache(ctx context.Context, m llb.Mount) error {
	id := m.CacheID
	if id == "" {
		id = path.Clean(m.Dest)
	}
	fill := func(dir string) error { return nil }
	if m.Input != llb.None {
		fill = func(dir string) error { return s.seed(ctx, dir, s.inputs[m.Input], m.Selector) }
	}
	dir, release, err := s.worker.CacheMounts.acquire(ctx, id, m.CacheSharing, fill)
	if err != nil {
		return err
	}
	s.onUnmount(func() error { release(); return nil })
	s.binds = append(s.binds, executor.Mount{Type: "bind", Source: dir, Dest: m.Dest, ReadOnly: m.ReadOnly, Options: []string{"rbind"}})
	return nil
}

// seed copies what a cache mount is to begin with.
func (s *mountSet) seed(ctx context.Context, dir string, from *layer.Ref, selector string) error {
	src, release, err := s.worker.Layers.Mount(ctx, from)
	if err != nil {
		return err
	}
	defer func() { _ = release() }() // read-only: nothing can be lost
	root, err := safepath.Open(src)
	if err != nil {
		return err
	}
	defer root.Close()
	to, err := safepath.Open(dir)
	if err != nil {
		return err
	}
	defer to.Close()
	return fileop.Do(ctx, to, root, &llb.DoCopy{
		Src: path.Join("/", selector), Dest: "/", DirContents: true, CreateDest: true, Mode: -1, Timestamp: llb.KeepTime,
	}, nil)
}

// memory makes a directory whose files are never written to disk.
func (s *mountSet) memory() (string, error) {
	dir, err := s.point(true)
	if err != nil {
		return "", err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return "", fmt.Errorf("mount memory for secrets: %w", err)
	}
	s.onUnmount(func() error { return unix.Unmount(dir, unix.MNT_DETACH) })
	return dir, nil
}

func (s *mountSet) secret(ctx context.Context, m llb.Mount) error {
	o := m.Secret
	value, err := s.worker.secret(ctx, o.ID, o.Optional)
	if err != nil || value == nil {
		return err
	}
	dir, err := s.memory()
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "secret")
	if err := os.WriteFile(file, value, 0o600); err != nil {
		return fmt.Errorf("write secret %q: %w", o.ID, err)
	}
	if err := s.own(file, o); err != nil {
		return fmt.Errorf("set owner of secret %q: %w", o.ID, err)
	}
	s.binds = append(s.binds, executor.Mount{
		Type: "bind", Source: file, Dest: m.Dest, ReadOnly: true, Options: []string{"bind", "nodev", "nosuid", "noexec"},
	})
	return nil
}

func (s *mountSet) own(file string, o *llb.SecretMount) error {
	if err := os.Chown(file, int(o.UID), int(o.GID)); err != nil {
		return err
	}
	return os.Chmod(file, fs.FileMode(o.Mode&0o777))
}

func (s *mountSet) ssh(ctx context.Context, m llb.Mount) error {
	o := *m.Secret
	if o.ID == "" {
		o.ID = "default"
	}
	dir, err := s.memory()
	if err != nil {
		return err
	}
	socket := filepath.Join(dir, "agent.sock")
	if s.worker.SSH == nil {
		err = fs.ErrNotExist
	} else {
		var stop func()
		if stop, err = s.worker.SSH.Listen(ctx, o.ID, socket); err == nil {
			s.onUnmount(func() error { stop(); return nil })
		}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist) && o.Optional:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("ssh agent %q: the client offers none; pass --ssh %s", o.ID, o.ID)
	case err != nil:
		return err
	}
	if err := s.own(socket, &o); err != nil {
		return fmt.Errorf("set owner of ssh agent %q: %w", o.ID, err)
	}
	s.binds = append(s.binds, executor.Mount{Type: "bind", Source: socket, Dest: m.Dest, Options: []string{"bind"}})
	return nil
}

// secret gets a secret's value; nil if it is optional and there is none.
func (w *Worker) secret(ctx context.Context, id string, optional bool) ([]byte, error) {
	err := fs.ErrNotExist
	var value []byte
	if w.Secrets != nil {
		value, err = w.Secrets.Secret(ctx, id)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist) && optional:
		return nil, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("secret %q: the client has none of this id; pass --secret id=%s,src=FILE", id, id)
	case err != nil:
		return nil, fmt.Errorf("get secret %q: %w", id, err)
	}
	if value == nil {
		value = []byte{}
	}
	return value, nil
}

// user looks up the user to run as in the root file system.
func (s *mountSet) user(name string) (uid, gid uint32, groups []uint32, err error) {
	root, err := safepath.Open(s.root)
	if err != nil {
		return 0, 0, nil, err
	}
	defer root.Close()
	return fileop.LookupUser(root, name)
}

// commit freezes what the run changed and returns its n results.
func (s *mountSet) commit(ctx context.Context, n int) ([]solver.Result, error) {
	if err := s.unmount(); err != nil {
		return nil, err
	}
	out := make([]solver.Result, n)
	for i := range out {
		o, ok := s.outputs[i]
		if !ok {
			return nil, fmt.Errorf("no mount makes output %d", i)
		}
		if o.state != nil {
			var err error
			if o.ref, err = o.state.Commit(ctx); err != nil {
				return nil, fmt.Errorf("keep result: %w", err)
			}
		}
		out[i] = o.ref
	}
	return out, nil
}

// unmount undoes all that was set up, but keeps what the run changed.
func (s *mountSet) unmount() error {
	var errs []error
	for _, f := range slices.Backward(s.undo) {
		errs = append(errs, f())
	}
	s.undo = nil
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("unmount after run: %w", err)
	}
	return nil
}

// discard forgets all but what was committed.
func (s *mountSet) discard() error {
	errs := []error{s.unmount()}
	for _, m := range s.states {
		errs = append(errs, m.Discard())
	}
	return errors.Join(errs...)
}
