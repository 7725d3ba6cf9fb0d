package build

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/executor"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/op"
	"github.com/kiln-build/kiln/internal/safepath"
	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/llb"
)

// ContainerSpec describes a container that a frontend wants to run processes in.
type ContainerSpec struct {
	Mounts   []ContainerMount // one of them at "/"
	Given    []GivenFolder    // beside the mounts
	Network  llb.NetMode
	Hosts    []llb.HostIP
	Hostname string
	Platform *ocispecs.Platform // nil is the worker's
}

// ContainerMount is a mount of a container. Input and Output do not count.
type ContainerMount struct {
	llb.Mount
	Ref *Ref // where its content comes from; nil is an empty file system
}

// GivenFolder is a folder of files that no graph makes.
type GivenFolder = op.GivenFolder

// Process is a process to run in a container.
type Process = op.ContainerProcess

// Container is one that a frontend asked for. It ends with the frontend's part
// of the build at the latest.
type Container struct {
	inner *op.Container
	leave func()
}

// containers are those of a build that are open.
type containers struct {
	mu     sync.Mutex
	open   map[*Container]struct{}
	making sync.WaitGroup
	closed bool
}

// NewContainer makes the results to be mounted and mounts them. Nothing runs
// until the first process is started.
func (br *Bridge) NewContainer(ctx context.Context, spec ContainerSpec) (*Container, error) {
	done, err := br.containers.enter()
	if err != nil {
		return nil, err
	}
	defer done()
	inner, err := containerSpec(ctx, spec)
	if err != nil {
		return nil, err
	}
	c, err := br.newContainer(inner)
	if err != nil {
		return nil, err
	}
	return br.own(c, func() {}), nil
}

// containerSpec makes the results to be mounted.
func containerSpec(ctx context.Context, spec ContainerSpec) (inner op.ContainerSpec, err error) {
	inner = op.ContainerSpec{Given: spec.Given, Network: spec.Network, Hosts: spec.Hosts, Hostname: spec.Hostname}
	if spec.Platform != nil {
		inner.System = spec.Platform.OS
	}
	for _, m := range spec.Mounts {
		var ref *layer.Ref
		if m.Ref != nil {
			if ref, err = m.Ref.Layer(ctx); err != nil {
				return inner, fmt.Errorf("mount %s: %w", m.Dest, err)
			}
		}
		inner.Mounts = append(inner.Mounts, m.Mount)
		inner.Refs = append(inner.Refs, ref)
	}
	return inner, nil
}

// newContainer makes a container that outlives the call that makes it, but not the
// build.
func (br *Bridge) newContainer(spec op.ContainerSpec) (*op.Container, error) {
	return br.builder.Worker.NewContainer(session.WithGroup(br.ctx, br), br.values, spec)
}

// own makes a container the build's. left is called when that releases it.
func (br *Bridge) own(inner *op.Container, left func()) *Container {
	c := &Container{inner: inner}
	leave := br.containers.add(c)
	c.leave = sync.OnceFunc(func() { leave(); left() })
	return c
}

// Start starts a process; the first makes the container run. Ending ctx kills it.
func (c *Container) Start(ctx context.Context, p Process, io executor.IO) (executor.Task, error) {
	return c.inner.Start(ctx, p, io)
}

// WithMount calls f with the files that mount i shows at the moment.
func (c *Container) WithMount(i int, f func(*safepath.Root) error) error {
	return c.inner.WithMount(i, f)
}

// Release kills the processes and forgets the files. It returns how the first
// process to fail ended, if one did.
func (c *Container) Release() error {
	c.leave()
	return c.inner.Close()
}

// enter counts a container in the making.
func (cs *containers) enter() (done func(), err error) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if cs.closed {
		return nil, errors.New("the frontend's part of the build has ended")
	}
	cs.making.Add(1)
	return cs.making.Done, nil
}

func (cs *containers) add(c *Container) (leave func()) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if cs.open == nil {
		cs.open = map[*Container]struct{}{}
	}
	cs.open[c] = struct{}{}
	return func() {
		cs.mu.Lock()
		defer cs.mu.Unlock()
		delete(cs.open, c)
	}
}

// close releases all containers and has no more made. How their processes
// ended is of no interest any more.
func (cs *containers) close() {
	cs.mu.Lock()
	cs.closed = true
	cs.mu.Unlock()
	cs.making.Wait()
	cs.mu.Lock()
	open := slices.Collect(maps.Keys(cs.open))
	cs.mu.Unlock()
	var all sync.WaitGroup
	for _, c := range open {
		all.Go(func() { _ = c.Release() })
	}
	all.Wait()
}
