package client

import (
	"context"
	"fmt"

	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/llb/pb"
)

// ContainerRequest describes a container, without its processes.
type ContainerRequest struct {
	Mounts      []ContainerMount // one of them at "/"
	Hostname    string
	Network     pb.NetMode
	ExtraHosts  []*pb.HostIP
	Platform    *pb.Platform
	Constraints *pb.WorkerConstraints
}

// ContainerMount is a mount of a container.
type ContainerMount struct {
	Dest      string
	Selector  string     // path in the reference; "" is all of it
	Ref       *Reference // what is mounted
	ResultID  string     // of [Error].OpInputs or OpMounts, in place of Ref
	Readonly  bool
	Type      pb.MountType
	CacheOpt  *pb.CacheOpt
	SecretOpt *pb.SecretOpt
	SSHOpt    *pb.SSHOpt
}

// Container is a container of a build. It must be released.
type Container struct {
	gateway *Gateway
	id      string
}

// NewContainer makes a container.
func (g *Gateway) NewContainer(ctx context.Context, r ContainerRequest) (*Container, error) {
	if err := g.opts.Caps.need("gateway.exec", "run processes for its clients"); err != nil {
		return nil, err
	}
	req := &gateway.NewContainerRequest{
		ContainerID: randomID(), Network: r.Network, Platform: r.Platform, Constraints: r.Constraints,
		ExtraHosts: r.ExtraHosts, Hostname: r.Hostname,
	}
	for _, m := range r.Mounts {
		id := m.ResultID
		if m.Ref != nil {
			id = m.Ref.id
		}
		req.Mounts = append(req.Mounts, &pb.Mount{
			Dest: m.Dest, Selector: m.Selector, Readonly: m.Readonly, MountType: m.Type, ResultID: id,
			CacheOpt: m.CacheOpt, SecretOpt: m.SecretOpt, SSHOpt: m.SSHOpt,
		})
	}
	if _, err := g.api.NewContainer(ctx, req); err != nil {
		return nil, err
	}
	return &Container{g, req.GetContainerID()}, nil
}

// Release ends the container and what runs in it.
func (c *Container) Release(ctx context.Context) error {
	_, err := c.gateway.api.ReleaseContainer(ctx, &gateway.ReleaseContainerRequest{ContainerID: c.id})
	return err
}

func (c *Container) needFiles() error {
	return c.gateway.opts.Caps.need("gateway.exec.filesystem", "read files of containers")
}

// ReadFile reads a file, or a part of it, of the container's mount with an index.
func (c *Container) ReadFile(ctx context.Context, mount int, name string, part *FileRange) ([]byte, error) {
	if err := c.needFiles(); err != nil {
		return nil, err
	}
	resp, err := c.gateway.api.ReadFileContainer(ctx, readRequest(c.id, name, part, mount))
	return resp.GetData(), err
}

// ReadDir lists a directory of a mount; see [Reference.ReadDir].
func (c *Container) ReadDir(ctx context.Context, mount int, name, pattern string) ([]FileStat, error) {
	if err := c.needFiles(); err != nil {
		return nil, err
	}
	resp, err := c.gateway.api.ReadDirContainer(ctx, &gateway.ReadDirRequest{
		Ref: c.id, DirPath: name, IncludePattern: pattern, MountIndex: int32(mount),
	})
	if err != nil {
		return nil, err
	}
	return fileStats(resp.GetEntries()), nil
}

// StatFile describes a file of a mount.
func (c *Container) StatFile(ctx context.Context, mount int, name string) (*FileStat, error) {
	if err := c.needFiles(); err != nil {
		return nil, err
	}
	resp, err := c.gateway.api.StatFileContainer(ctx, &gateway.StatFileRequest{Ref: c.id, Path: name, MountIndex: int32(mount)})
	if err != nil {
		return nil, err
	}
	st := fileStat(resp.GetStat())
	return &st, nil
}

// ExitError says that a process of a container ended with a code other than 0.
type ExitError struct {
	Code int
	Err  error // what the daemon says of it
}

// Error says with which code.
func (e *ExitError) Error() string {
	if e.Err != nil {
		return e.Err.Error()
	}
	return fmt.Sprintf("exit code: %d", e.Code)
}

// Unwrap returns what the daemon says.
func (e *ExitError) Unwrap() error { return e.Err }
