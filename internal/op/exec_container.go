package op

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"

	"github.com/kiln-build/kiln/internal/executor"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/safepath"
	"github.com/kiln-build/kiln/llb"
)

// ContainerSpec describes a container that is no step of a graph: one that a
// frontend or a debugger runs processes in.
type ContainerSpec struct {
	// Mounts are as those of an exec, but each is of the Ref of the same
	// number, nil being an empty file system. What is written to them is lost.
	Mounts   []llb.Mount
	Refs     []*layer.Ref
	Given    []GivenFolder // beside the mounts
	Network  llb.NetMode
	Hosts    []llb.HostIP
	Hostname string
	System   string // the operating system; "" is Linux
}

// ContainerProcess is a process to run in a [Container].
type ContainerProcess struct {
	Args, Env []string
	Cwd       string // "" is /
	User      string // "uid[:gid]" or names of the container's
	Tty       bool
	Security  llb.SecurityMode
	SecretEnv []llb.SecretEnv
}

// Container has its file systems mounted. The first process that is started
// makes it run; it ends with that process.
type Container struct {
	worker *Worker
	job    *Job
	spec   ContainerSpec
	mounts *mountSet
	ctx    context.Context // of all processes
	cancel context.CancelCauseFunc

	mu      sync.Mutex // held while a process is started
	running executor.Container
	restore func() error // takes the proxy's certificate from the files; nil if they have none
	closed  bool
	waits   sync.WaitGroup
	failed  error // how the first process to fail ended; read after waits
	failure sync.Once

	readers sync.RWMutex // held by those who look at the mounts
}

// NewContainer mounts what a container is to see. It lives until Close or the
// end of ctx, in which secrets and the like are asked for.
func (w *Worker) NewContainer(ctx context.Context, job *Job, spec ContainerSpec) (_ *Container, err error) {
	c := &Container{worker: w, job: job, spec: spec}
	c.spec.Mounts = slices.Clone(spec.Mounts)
	root := false
	for i := range c.spec.Mounts {
		m := &c.spec.Mounts[i]
		if m.Input = i; spec.Refs[i] == nil {
			m.Input = llb.None
		}
		m.Output = llb.None
		root = root || m.Dest == "/"
	}
	if !root {
		return nil, errors.New("root mount is required")
	}
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	c.mounts = &mountSet{worker: w, inputs: spec.Refs, live: true, good: true} // its user tells how it went, by what it does next
	err = c.mounts.mountAll(c.ctx, c.spec.Mounts)
	for _, f := range spec.Given {
		if err == nil {
			err = c.mounts.given(f)
		}
	}
	if err != nil {
		c.cancel(nil)
		return nil, errors.Join(err, c.mounts.discard())
	}
	return c, nil
}

// Start starts a process. Ending ctx kills it.
func (c *Container) Start(ctx context.Context, p ContainerProcess, io executor.IO) (executor.Task, error) {
	if err := c.allowed(p); err != nil {
		return nil, err
	}
	process, err := c.process(p)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errors.New("container is closed")
	}
	own, cancel := context.WithCancelCause(ctx)
	unhook := context.AfterFunc(c.ctx, func() { cancel(context.Cause(c.ctx)) })
	task, err := c.launch(own, p, process, io)
	if err != nil {
		unhook()
		cancel(nil)
		return nil, err
	}
	c.waits.Go(func() {
		err := task.Wait(context.Background())
		unhook()
		cancel(nil)
		if err != nil {
			c.failure.Do(func() { c.failed = err })
		}
	})
	return task, nil
}

// launch starts the container, or a further process in it. c.mu is held.
func (c *Container) launch(ctx context.Context, p ContainerProcess, process executor.Process, io executor.IO) (executor.Task, error) {
	if c.running != nil {
		return c.running.Exec(ctx, process, io)
	}
	spec := executor.Spec{
		ID: newID(), Process: process, Root: c.mounts.root, ReadOnlyRoot: c.mounts.rootReadOnly, Mounts: c.mounts.binds,
		Hostname: c.spec.Hostname, Insecure: p.Security == llb.SecurityInsecure, Trace: c.job.trace(""),
	}
	var err error
	if spec.Network, err = network(c.spec.Network); err != nil {
		return nil, err
	}
	if spec.Hosts, err = hosts(c.spec.Hosts); err != nil {
		return nil, err
	}
	if c.job.proxied(c.spec.Network) {
		if _, c.restore, err = c.worker.proxy(&spec, c.job.Proxy.Check); err != nil {
			return nil, err
		}
	}
	running, err := c.worker.Executor.Start(ctx, spec, io)
	if err != nil {
		return nil, errors.Join(err, c.distrust())
	}
	c.running = running
	return running, nil
}

// allowed checks what needs an entitlement, for every process anew: the values
// come from a frontend (CVE-2024-23653).
func (c *Container) allowed(p ContainerProcess) error {
	switch c.spec.Network {
	case llb.NetSandbox, llb.NetNone:
	case llb.NetHost:
		if err := c.job.allows(EntitlementNetworkHost); err != nil {
			return err
		}
	default:
		return fmt.Errorf("invalid network mode %d", c.spec.Network)
	}
	switch p.Security {
	case llb.SecuritySandbox:
		return nil
	case llb.SecurityInsecure:
		return c.job.allows(EntitlementSecurityInsecure)
	}
	return fmt.Errorf("invalid security mode %d", p.Security)
}

func (c *Container) process(p ContainerProcess) (out executor.Process, err error) {
	out = executor.Process{Args: p.Args, Cwd: p.Cwd, Tty: p.Tty}
	if out.Cwd == "" {
		out.Cwd = "/"
	}
	if out.UID, out.GID, out.Groups, err = c.mounts.user(p.User); err != nil {
		return out, err
	}
	env := slices.Clone(p.Env)
	if p.Tty && !slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "TERM=") }) {
		env = append(env, "TERM=xterm")
	}
	out.Env, err = c.worker.environment(c.ctx, env, p.SecretEnv, c.spec.System)
	return out, err
}

// WithMount calls f with the files that mount i shows at the moment.
func (c *Container) WithMount(i int, f func(*safepath.Root) error) error {
	c.readers.RLock()
	defer c.readers.RUnlock()
	if c.ctx.Err() != nil {
		return errors.New("container is closed")
	}
	if i < 0 || i >= len(c.mounts.dirs) {
		return fmt.Errorf("mount index %d is out of bounds (%d available)", i, len(c.mounts.dirs))
	}
	if c.mounts.dirs[i] == "" {
		return fmt.Errorf("mount %d, %s, has no files: %w", i, c.spec.Mounts[i].Dest, fs.ErrNotExist)
	}
	root, err := safepath.Open(c.mounts.dirs[i])
	if err != nil {
		return fmt.Errorf("mount %d, %s, is not a directory: %w", i, c.spec.Mounts[i].Dest, err)
	}
	defer root.Close()
	return f(root)
}

// Close kills the processes and forgets the files. It returns how the first
// process to fail ended, if one did.
func (c *Container) Close() error {
	c.cancel(context.Canceled)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	c.waits.Wait()
	err := c.failed
	if c.running != nil {
		if cerr := c.running.Close(); cerr != nil && err == nil {
			err = cerr
		}
	}
	if derr := c.distrust(); derr != nil && err == nil {
		err = derr
	}
	c.readers.Lock()
	defer c.readers.Unlock()
	if derr := c.mounts.discard(); derr != nil && err == nil {
		err = derr
	}
	return err
}
