package gateway

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/fsutil"
	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/internal/build"
	"github.com/kiln-build/kiln/internal/safepath"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/llb/pb"
)

// NewContainer makes a container, for processes to be run in.
func (s *Service) NewContainer(ctx context.Context, r *gateway.NewContainerRequest) (*gateway.NewContainerResponse, error) {
	run, br, err := s.running(ctx)
	if err != nil {
		return nil, err
	}
	spec, err := run.containerSpec(r)
	if err != nil {
		return nil, err
	}
	// The client's id is a key of a map and nothing else (CVE-2026-33747).
	if err := run.reserveContainer(r.ContainerID); err != nil {
		return nil, err
	}
	c, err := br.NewContainer(ctx, spec)
	if err != nil {
		run.setContainer(r.ContainerID, nil)
		return nil, run.failed(br, err)
	}
	if !run.setContainer(r.ContainerID, c) {
		_ = c.Release() // nobody is there to be told how
		return nil, run.ended()
	}
	return &gateway.NewContainerResponse{}, nil
}

// containerSpec checks what a client wants of a container.
func (r *Phase) containerSpec(w *gateway.NewContainerRequest) (build.ContainerSpec, error) {
	invalid := func(format string, args ...any) error {
		return status.Errorf(codes.InvalidArgument, format, args...)
	}
	spec := build.ContainerSpec{Hostname: w.Hostname, Network: llb.NetMode(w.Network), Platform: ReadPlatform(w.Platform)}
	if spec.Network < llb.NetSandbox || spec.Network > llb.NetNone {
		return spec, invalid("invalid network mode %d", w.Network)
	}
	for i, h := range w.ExtraHosts {
		if h == nil {
			return spec, invalid("extra host %d is nil", i)
		}
		if _, err := netip.ParseAddr(h.IP); err != nil {
			return spec, invalid("failed to parse IP %s of host %q", h.IP, h.Host)
		}
		spec.Hosts = append(spec.Hosts, llb.HostIP{Host: h.Host, IP: h.IP})
	}
	if len(w.Mounts) > mostMounts {
		return spec, invalid("%d mounts: expected at most %d", len(w.Mounts), mostMounts)
	}
	root := false
	for i, m := range w.Mounts {
		if m == nil {
			return spec, invalid("mount %d is nil", i)
		}
		mount, err := readMount(m)
		if err != nil {
			return spec, invalid("mount %q: %v", m.Dest, err)
		}
		root = root || m.Dest == "/"
		ref, err := r.mountRef(m.ResultID)
		if err != nil {
			return spec, status.Errorf(codes.NotFound, "failed to find ref %s for %q mount: %v", m.ResultID, m.Dest, err)
		}
		spec.Mounts = append(spec.Mounts, build.ContainerMount{Mount: mount, Ref: ref})
	}
	if !root {
		return spec, invalid("root mount is required")
	}
	return spec, nil
}

func readMount(w *pb.Mount) (llb.Mount, error) {
	m := llb.Mount{
		Kind: llb.MountKind(w.MountType), Selector: w.Selector, Dest: w.Dest, ReadOnly: w.Readonly,
		TmpfsSize: w.GetTmpfsOpt().GetSize(),
		CacheID:   w.GetCacheOpt().GetID(), CacheSharing: llb.CacheSharing(w.GetCacheOpt().GetSharing()),
	}
	switch {
	case m.Dest == "":
		return m, errors.New("has no destination")
	case m.Kind < llb.MountBind || m.Kind > llb.MountTmpfs:
		return m, fmt.Errorf("mount type %d is unknown", m.Kind)
	case m.CacheSharing < llb.CacheShared || m.CacheSharing > llb.CacheLocked:
		return m, fmt.Errorf("cache sharing mode %d is unknown", m.CacheSharing)
	case m.TmpfsSize < 0:
		return m, fmt.Errorf("tmpfs size %d is negative", m.TmpfsSize)
	case m.Dest == "/" && m.Kind != llb.MountBind:
		return m, fmt.Errorf("invalid mount type %s for /", w.MountType)
	}
	switch o := w.SecretOpt; {
	case m.Kind == llb.MountSecret && o == nil:
		return m, errors.New("a secret mount requires options")
	case m.Kind == llb.MountSecret:
		m.Secret = &llb.SecretMount{ID: o.ID, UID: o.Uid, GID: o.Gid, Mode: o.Mode, Optional: o.Optional}
	}
	switch o := w.SSHOpt; {
	case m.Kind == llb.MountSSH && o == nil:
		return m, errors.New("an SSH mount requires options")
	case m.Kind == llb.MountSSH:
		m.Secret = &llb.SecretMount{ID: o.ID, UID: o.Uid, GID: o.Gid, Mode: o.Mode, Optional: o.Optional}
	}
	return m, nil
}

// mountRef finds what a mount is of: a result, or what a failed step left.
func (r *Phase) mountRef(id string) (*build.Ref, error) {
	r.mu.Lock()
	left, ok := r.states[id]
	r.mu.Unlock()
	if ok {
		return left, nil
	}
	g, err := r.lookup(id)
	if err != nil || g == nil {
		return nil, err
	}
	ref, ok := g.ref.(*build.Ref)
	if !ok {
		return nil, errors.New("the ref has no files")
	}
	return ref, nil
}

func (r *Phase) reserveContainer(id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.containers[id]; ok {
		return status.Errorf(codes.AlreadyExists, "Container %s already exists", id)
	}
	if len(r.containers) >= mostContainers {
		return status.Errorf(codes.ResourceExhausted, "a frontend may have %d containers at a time: release those that are not needed", mostContainers)
	}
	if r.containers == nil {
		r.containers = map[string]*build.Container{}
	}
	r.containers[id] = nil
	return nil
}

// setContainer keeps a container under a reserved id, or frees the id if there
// is none. It returns false if nobody wants the container any more.
func (r *Phase) setContainer(id string, c *build.Container) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c == nil || r.closed {
		delete(r.containers, id)
		return false
	}
	r.containers[id] = c
	return true
}

// container finds a container, and takes it out if it is to be released.
func (r *Phase) container(id string, take bool) (*build.Container, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[id]
	if c == nil {
		return nil, status.Errorf(codes.NotFound, "container %q previously released or not created", id)
	}
	if take {
		delete(r.containers, id)
	}
	return c, nil
}

// ReleaseContainer ends a container and tells how the first of its processes
// to fail ended.
func (s *Service) ReleaseContainer(ctx context.Context, r *gateway.ReleaseContainerRequest) (*gateway.ReleaseContainerResponse, error) {
	run, _, err := s.running(ctx)
	if err != nil {
		return nil, err
	}
	c, err := run.container(r.ContainerID, true)
	if err != nil {
		return nil, err
	}
	return &gateway.ReleaseContainerResponse{}, c.Release()
}

// withMount calls f with the files of a container's mount.
func (s *Service) withMount(ctx context.Context, id string, mount int32, f func(*safepath.Root) error) error {
	run, _, err := s.running(ctx)
	if err != nil {
		return err
	}
	c, err := run.container(id, false)
	if err != nil {
		return err
	}
	return c.WithMount(int(mount), f)
}

// ReadFileContainer reads a file of a container's mount as it is at the moment.
func (s *Service) ReadFileContainer(ctx context.Context, r *gateway.ReadFileRequest) (*gateway.ReadFileResponse, error) {
	return answerFile(ctx, r, func(f func(*safepath.Root) error) error { return s.withMount(ctx, r.Ref, r.MountIndex, f) })
}

// ReadDirContainer lists a directory of a container's mount.
func (s *Service) ReadDirContainer(ctx context.Context, r *gateway.ReadDirRequest) (*gateway.ReadDirResponse, error) {
	return answerDir(ctx, r, func(f func(*safepath.Root) error) error { return s.withMount(ctx, r.Ref, r.MountIndex, f) })
}

// StatFileContainer tells of a file of a container's mount. A symlink that may
// lead to another mount is left to the client to follow.
func (s *Service) StatFileContainer(ctx context.Context, r *gateway.StatFileRequest) (*gateway.StatFileResponse, error) {
	resp := &gateway.StatFileResponse{}
	err := s.withMount(ctx, r.Ref, r.MountIndex, func(root *safepath.Root) (err error) {
		resp.Stat, err = statLive(root, r.Path)
		return renamed(err, r.Path)
	})
	return resp, err
}

func statLive(root *safepath.Root, name string) (*fsutil.Stat, error) {
	st, err := stat(root, name)
	if err != nil || fs.FileMode(st.Mode)&fs.ModeSymlink == 0 || leadsOut(name, st.Linkname) {
		return st, err
	}
	at, err := root.Resolve(name)
	if err != nil {
		return nil, err
	}
	named := st.Path
	if st, err = stat(root, at); err == nil {
		st.Path = named
	}
	return st, err
}
