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
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/internal/cachemount"
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
	cwd         string // what relative destinations are relative to
	live        bool   // others than the process look at the mounts, too

	root         string // where the root file system is mounted on this machine
	rootReadOnly bool
	binds        []executor.Mount
	dirs         []string // of each mount, in the order asked for; "" for none
	outputs      map[int]output
	caches       map[cachemount.Key]string // folders of the run's cache mounts
	good         bool                      // the run did what it should: forks of cache mounts are kept
	states       []mountState
	undo         []func() error // in reverse order
}

// mountState is a state that the run may change, and the mount that shows it.
type mountState struct {
	mount int
	*layer.Mutable
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
	s.caches = map[cachemount.Key]string{}
	s.dirs = make([]string, len(ms))
	ms = slices.Clone(ms)
	order := make([]int, len(ms))
	for i := range ms {
		order[i] = i
		if ms[i].Dest = path.Clean(ms[i].Dest); !path.IsAbs(ms[i].Dest) {
			ms[i].Dest = path.Join("/", s.cwd, ms[i].Dest)
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return strings.Compare(ms[a].Dest, ms[b].Dest) })
	for _, i := range order {
		dir, err := s.mount(ctx, i, ms[i])
		if err != nil {
			return fmt.Errorf("mount %s: %w", ms[i].Dest, err)
		}
		s.dirs[i] = dir
	}
	return nil
}

// mount makes mount i ready and returns where its files are on this machine;
// "" if there is nothing to be mounted.
func (s *mountSet) mount(ctx context.Context, i int, m llb.Mount) (dir string, err error) {
	if m.Dest == "/" && m.Kind != llb.MountBind {
		return "", errors.New("the root file system must be a bind mount")
	}
	options := []string{"rbind"}
	switch m.Kind {
	case llb.MountBind:
		dir, err = s.bind(ctx, i, m)
	case llb.MountCache:
		dir, err = s.cache(ctx, m)
	case llb.MountTmpfs:
		if !s.live {
			s.tmpfs(m)
			return "", nil
		}
		dir, err = s.memory("mode=1777", m.TmpfsSize)
	case llb.MountSecret:
		m.ReadOnly, options = true, []string{"bind", "nodev", "nosuid", "noexec"}
		dir, err = s.secret(ctx, m)
	case llb.MountSSH:
		options = []string{"bind"}
		dir, err = s.ssh(ctx, m)
	default:
		return "", fmt.Errorf("unknown kind of mount %d", m.Kind)
	}
	switch {
	case err != nil || dir == "":
		return "", err
	case m.Dest == "/":
		s.root, s.rootReadOnly = dir, m.ReadOnly
	default:
		s.binds = append(s.binds, executor.Mount{Type: "bind", Source: dir, Dest: m.Dest, ReadOnly: m.ReadOnly, Options: options})
	}
	return dir, nil
}

// tmpfs is a mount that the process alone sees.
func (s *mountSet) tmpfs(m llb.Mount) {
	mt := executor.Mount{Type: "tmpfs", Source: "tmpfs", Dest: m.Dest, ReadOnly: m.ReadOnly, Options: []string{"nosuid"}}
	if m.TmpfsSize > 0 {
		mt.Options = append(mt.Options, fmt.Sprintf("size=%d", m.TmpfsSize))
	}
	s.binds = append(s.binds, mt)
}

func (s *mountSet) bind(ctx context.Context, i int, m llb.Mount) (dir string, err error) {
	var in *layer.Ref
	if m.Input != llb.None {
		in = s.inputs[m.Input]
	}
	if dir, err = s.open(ctx, i, m, in); err != nil {
		return "", err
	}
	if m.Dest != "/" && m.Selector != "" && path.Clean(m.Selector) != "/" {
		return s.sub(dir, m.Selector)
	}
	return dir, nil
}

// open mounts an input, as it is or to be changed.
func (s *mountSet) open(ctx context.Context, i int, m llb.Mount, in *layer.Ref) (dir string, err error) {
	var release func() error
	if m.ReadOnly && m.Dest != "/" { // in a root file system, mount points can be missing
		dir, release, err = s.worker.Layers.Mount(ctx, in)
		if err == nil && m.Output != llb.None {
			s.outputs[m.Output] = output{ref: in}
		}
	} else {
		var state *layer.Mutable
		if state, err = s.worker.Layers.New(ctx, in, layer.NewOptions{Description: s.describe(m)}); err != nil {
			return "", err
		}
		s.states = append(s.states, mountState{i, state})
		dir, release, err = state.Mount(ctx)
		switch {
		case m.Output == llb.None:
		case m.ReadOnly:
			s.outputs[m.Output] = output{ref: in}
		default:
			s.outputs[m.Output] = output{state: state}
		}
	}
	if err != nil {
		return "", err
	}
	s.onUnmount(release)
	return dir, nil
}

// describe says what a layer is that a mount makes, as disk usage shows it.
func (s *mountSet) describe(m llb.Mount) string {
	if s.description == "" {
		return ""
	}
	return "mount " + m.Dest + " from exec " + s.description
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

func (s *mountSet) cache(ctx context.Context, m llb.Mount) (dir string, err error) {
	key := cachemount.Key{ID: cacheID(m)}
	fill := func(dir string) error { return nil }
	if m.Input != llb.None {
		key.Base = s.inputs[m.Input].ID()
		fill = func(dir string) error { return s.seed(ctx, dir, s.inputs[m.Input]) }
	}
	dir, ok := s.caches[key] // a locked one would wait for itself
	if !ok {
		sharing, err := cacheSharing(m.CacheSharing)
		if err != nil {
			return "", err
		}
		use, err := s.worker.CacheMounts.Acquire(ctx, key, sharing, fill)
		if err != nil {
			return "", err
		}
		dir = use.Dir
		s.caches[key] = dir
		s.onUnmount(func() error { return use.Release(s.good) })
	}
	if path.Join("/", m.Selector) != "/" {
		return s.sub(dir, m.Selector)
	}
	return dir, nil
}

// seed copies what a cache mount is to begin with.
func (s *mountSet) seed(ctx context.Context, dir string, from *layer.Ref) error {
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
	info, err := root.Lstat("/")
	if err != nil {
		return err
	}
	if err := fileop.Do(ctx, to, root, &llb.DoCopy{
		Src: "/", Dest: "/", DirContents: true, CreateDest: true, Mode: -1, Timestamp: llb.KeepTime,
	}, nil); err != nil {
		return err
	}
	// The copy is of what is in the directory; it is to be like it, too.
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		if err := os.Chown(dir, int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	return os.Chmod(dir, info.Mode())
}

// memory makes a directory whose files are never written to disk. A size of 0
// sets no limit.
func (s *mountSet) memory(mode string, size int64) (string, error) {
	dir, err := s.point(true)
	if err != nil {
		return "", err
	}
	if size > 0 {
		mode += fmt.Sprintf(",size=%d", size)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, mode); err != nil {
		return "", fmt.Errorf("mount memory: %w", err)
	}
	s.onUnmount(func() error { return unix.Unmount(dir, unix.MNT_DETACH) })
	return dir, nil
}

// secret puts a secret into a file of memory; "" if it is optional and there
// is none.
func (s *mountSet) secret(ctx context.Context, m llb.Mount) (string, error) {
	o := m.Secret
	value, err := s.worker.secret(ctx, o.ID, o.Optional)
	if err != nil || value == nil {
		return "", err
	}
	dir, err := s.memory("mode=0700", 0)
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "secret")
	if err := os.WriteFile(file, value, 0o600); err != nil {
		return "", fmt.Errorf("write secret %q: %w", o.ID, err)
	}
	if err := s.own(file, o); err != nil {
		return "", fmt.Errorf("set owner of secret %q: %w", o.ID, err)
	}
	return file, nil
}

func (s *mountSet) own(file string, o *llb.SecretMount) error {
	if err := os.Chown(file, int(o.UID), int(o.GID)); err != nil {
		return err
	}
	return os.Chmod(file, fs.FileMode(o.Mode&0o777))
}

func (s *mountSet) ssh(ctx context.Context, m llb.Mount) (string, error) {
	o := *m.Secret
	if o.ID == "" {
		o.ID = "default"
	}
	dir, err := s.memory("mode=0700", 0)
	if err != nil {
		return "", err
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
		return "", nil
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("no SSH key %q forwarded from the client: unset ssh forward key %s, pass --ssh %s", o.ID, o.ID, o.ID)
	case err != nil:
		return "", err
	}
	if err := s.own(socket, &o); err != nil {
		return "", fmt.Errorf("set owner of ssh agent %q: %w", o.ID, err)
	}
	return socket, nil
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
		return nil, fmt.Errorf("secret %s: not found: the client has none of this id; pass --secret id=%s,src=FILE", id, id)
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
	s.states = nil
	return errors.Join(errs...)
}
