package oci

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/internal/executor"
)

// defaultHostname is the one that BuildKit gives, which some build scripts have
// learned to know.
const defaultHostname = "buildkitsandbox"

// checkSpec refuses what can not be run or would reach further than asked.
// Values here come from frontends and other programs' clients.
func (e *Executor) checkSpec(s executor.Spec) error {
	if s.ID == "" || len(s.ID) > 64 || strings.Trim(s.ID, "abcdefghijklmnopqrstuvwxyz0123456789") != "" {
		return fmt.Errorf("identifier %q: want 1 to 64 of a-z and 0-9", s.ID)
	}
	if info, err := os.Stat(s.Root); err != nil {
		return fmt.Errorf("root file system: %w", err)
	} else if !info.IsDir() {
		return fmt.Errorf("root file system %q: want a directory", s.Root)
	}
	switch s.Network {
	case executor.NetworkSandbox, executor.NetworkHost, executor.NetworkNone:
	default:
		return fmt.Errorf("network mode %d: want 0 (sandbox), 1 (host) or 2 (none)", s.Network)
	}
	if strings.ContainsAny(s.Hostname, "\x00\n\t ") || len(s.Hostname) > 64 {
		return fmt.Errorf("host name %q: want at most 64 bytes without blanks", s.Hostname)
	}
	for _, h := range s.Hosts {
		if h.Name == "" || strings.ContainsAny(h.Name+h.IP, "\x00\r\n\t #") {
			return fmt.Errorf("host %q with address %q: want a name and an address without blanks", h.Name, h.IP)
		}
	}
	if s.Limits != (executor.Limits{}) && !e.cgroups.usable() {
		return errors.New("limits on memory or processors: this daemon has no cgroups to set them with")
	}
	if strings.Contains(s.CgroupParent, ":") || strings.ContainsRune(s.CgroupParent, 0) {
		return fmt.Errorf("cgroup parent %q: want a path below the root of the cgroups", s.CgroupParent)
	}
	return e.checkProcess(s.Process)
}

func (e *Executor) checkProcess(p executor.Process) error {
	if len(p.Args) == 0 || p.Args[0] == "" {
		return errors.New("process without a program to run")
	}
	if !path.IsAbs(p.Cwd) {
		return fmt.Errorf("working directory %q: want an absolute path", p.Cwd)
	}
	for _, env := range p.Env {
		if strings.HasPrefix(env, "=") {
			return fmt.Errorf("environment entry %q: want NAME=value", env)
		}
	}
	return e.ids.check(p.UID, p.GID)
}

// ociSpec is the bundle's config.json. netns is the path of a network namespace
// to join, or empty.
func (e *Executor) ociSpec(s executor.Spec, files etcPaths, netns string) (*specs.Spec, error) {
	process, err := e.ociProcess(s.Process, s.Insecure)
	if err != nil {
		return nil, err
	}
	mounts, err := e.ociMounts(s, files)
	if err != nil {
		return nil, err
	}
	hostname := s.Hostname
	if hostname == "" {
		hostname = defaultHostname
	}
	out := &specs.Spec{
		Version:  "1.2.0", // what every runc from 1.1 on reads
		Process:  process,
		Root:     &specs.Root{Path: s.Root, Readonly: s.ReadOnlyRoot},
		Hostname: hostname,
		Mounts:   mounts,
		Linux: &specs.Linux{
			Namespaces: e.ociNamespaces(s, netns),
			Resources:  e.ociResources(s),
		},
	}
	if e.cgroups.usable() {
		out.Linux.CgroupsPath = e.cgroups.containerPath(e.cgroupParent(s), s.ID)
	}
	if s.Insecure {
		out.Linux.Devices = e.insecureDevices()
		e.confine(out, true)
		return out, nil
	}
	out.Linux.Seccomp = e.seccomp
	out.Linux.MaskedPaths = maskedPaths()
	out.Linux.ReadonlyPaths = readonlyPaths()
	if !e.cgroups.usable() {
		// Without a sysfs of its own a container sees the daemon's cgroups,
		// which its user may be allowed to change (CVE-2023-25809).
		out.Linux.MaskedPaths = append(out.Linux.MaskedPaths, "/sys/fs/cgroup")
	}
	e.confine(out, false)
	return out, nil
}

func (e *Executor) ociProcess(p executor.Process, insecure bool) (*specs.Process, error) {
	limits, err := e.ociRlimits(p.Rlimits)
	if err != nil {
		return nil, err
	}
	return &specs.Process{
		Terminal:     p.Tty,
		User:         specs.User{UID: p.UID, GID: p.GID, AdditionalGids: e.ids.groups(allGroups(p))},
		Args:         p.Args,
		Env:          assigned(p.Env),
		Cwd:          path.Clean(p.Cwd),
		Capabilities: processCapabilities(e.caps, insecure),
		Rlimits:      limits,
	}, nil
}

// assigned are the variables of an environment that have values; programs that make a
// container out of their own environment name others, too.
func assigned(env []string) (out []string) {
	for _, entry := range env {
		if strings.Contains(entry, "=") {
			out = append(out, entry)
		}
	}
	return out
}

// rlimitNumbers are the limits that getrlimit(2) names, by the name that
// clients use.
func rlimitNumbers() map[string]int {
	return map[string]int{
		"as": unix.RLIMIT_AS, "core": unix.RLIMIT_CORE, "cpu": unix.RLIMIT_CPU, "data": unix.RLIMIT_DATA,
		"fsize": unix.RLIMIT_FSIZE, "locks": unix.RLIMIT_LOCKS, "memlock": unix.RLIMIT_MEMLOCK,
		"msgqueue": unix.RLIMIT_MSGQUEUE, "nice": unix.RLIMIT_NICE, "nofile": unix.RLIMIT_NOFILE,
		"nproc": unix.RLIMIT_NPROC, "rss": unix.RLIMIT_RSS, "rtprio": unix.RLIMIT_RTPRIO,
		"rttime": unix.RLIMIT_RTTIME, "sigpending": unix.RLIMIT_SIGPENDING, "stack": unix.RLIMIT_STACK,
	}
}

// ociRlimits clamps limits to what this process may give: its own hard limit,
// where it has no CAP_SYS_RESOURCE to raise it. Asking for more would fail the
// whole run.
func (e *Executor) ociRlimits(limits []executor.Rlimit) ([]specs.POSIXRlimit, error) {
	if len(limits) == 0 {
		return nil, nil
	}
	known := rlimitNumbers()
	var out []specs.POSIXRlimit
	for _, l := range limits {
		number, ok := known[l.Name]
		if !ok {
			return nil, fmt.Errorf("resource limit %q: want one of getrlimit(2), like nofile", l.Name)
		}
		var own unix.Rlimit
		if err := unix.Getrlimit(number, &own); err != nil {
			return nil, fmt.Errorf("resource limit %q: %w", l.Name, err)
		}
		hard := l.Hard
		if !slices.Contains(e.caps.insecure, "CAP_SYS_RESOURCE") || e.cfg.Rootless {
			hard = min(hard, own.Max)
		}
		out = append(out, specs.POSIXRlimit{
			Type: "RLIMIT_" + strings.ToUpper(l.Name), Soft: min(l.Soft, hard), Hard: hard,
		})
	}
	return out, nil
}

func (e *Executor) ociNamespaces(s executor.Spec, netns string) []specs.LinuxNamespace {
	list := []specs.LinuxNamespace{
		{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
	}
	if e.cgroups.usable() && e.cgroups.namespace {
		list = append(list, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	if netns != "" || s.Network == executor.NetworkNone {
		list = append(list, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: netns})
	}
	return list
}

func (e *Executor) ociResources(s executor.Spec) *specs.LinuxResources {
	if !e.cgroups.usable() {
		return nil
	}
	// The runtime adds the devices that every container has, like /dev/null.
	res := &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: s.Insecure, Access: "rwm"}}}
	l := s.Limits
	if l.Memory != 0 || l.MemorySwap != 0 {
		res.Memory = &specs.LinuxMemory{Limit: positive(l.Memory), Swap: positive(l.MemorySwap)}
	}
	if l.CPUShares != 0 || l.CPUPeriod != 0 || l.CPUQuota != 0 || l.CPUSetCPUs != "" || l.CPUSetMems != "" {
		res.CPU = &specs.LinuxCPU{
			Shares: positive(l.CPUShares), Period: positive(l.CPUPeriod), Quota: positive(l.CPUQuota),
			Cpus: l.CPUSetCPUs, Mems: l.CPUSetMems,
		}
	}
	return res
}

// positive is a pointer to a bound, or nil for none.
func positive[T int64 | uint64](v T) *T {
	if v == 0 {
		return nil
	}
	return &v
}

// insecureDevices are the machine's loop and fuse devices, which are what a
// build with all capabilities asks for: to make and mount disk images.
func (e *Executor) insecureDevices() []specs.LinuxDevice {
	if e.cfg.Rootless {
		return nil
	}
	var out []specs.LinuxDevice
	names := []string{"/dev/fuse", "/dev/loop-control"}
	for n := range 8 {
		names = append(names, fmt.Sprintf("/dev/loop%d", n))
	}
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Stat(name, &st); err != nil {
			continue // this machine has no such device
		}
		kind := "c"
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			kind = "b"
		}
		mode := os.FileMode(st.Mode & 0o777)
		out = append(out, specs.LinuxDevice{
			Path: name, Type: kind, FileMode: &mode,
			Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		})
	}
	return out
}

// ociMounts are the mounts that every container has, then those of the spec. A
// mount of the spec takes the place of a default one at the same path, as one
// of /dev/shm with another size does.
func (e *Executor) ociMounts(s executor.Spec, files etcPaths) ([]specs.Mount, error) {
	var own []specs.Mount
	var taken []string
	for _, m := range s.Mounts {
		mount, err := ociMount(m)
		if err != nil {
			return nil, err
		}
		own = append(own, mount)
		taken = append(taken, mount.Destination)
	}
	mounts := append(e.systemMounts(s), files.mounts()...)
	mounts = slices.DeleteFunc(mounts, func(m specs.Mount) bool { return slices.Contains(taken, m.Destination) })
	return append(mounts, own...), nil
}

func (e *Executor) systemMounts(s executor.Spec) []specs.Mount {
	pts := []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}
	if !e.cfg.Rootless {
		pts = append(pts, "gid=5") // group tty; not every user namespace has it
	}
	access := "ro"
	if s.Insecure {
		access = "rw"
	}
	sys := specs.Mount{
		Destination: "/sys", Type: "sysfs", Source: "sysfs",
		Options: []string{"nosuid", "noexec", "nodev", access},
	}
	if e.cfg.Rootless {
		// A sysfs can be mounted only by who owns the network namespace.
		sys.Type, sys.Source = "none", "/sys"
		sys.Options = []string{"rbind", "nosuid", "noexec", "nodev", "ro"}
	}
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{
			Destination: "/dev", Type: "tmpfs", Source: "tmpfs",
			Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"},
		},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: pts},
		{
			Destination: "/dev/shm", Type: "tmpfs", Source: "shm",
			Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"},
		},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		sys,
	}
	if e.cgroups.usable() {
		mounts = append(mounts, specs.Mount{
			Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup",
			Options: []string{"nosuid", "noexec", "nodev", "relatime", access},
		})
	}
	return mounts
}

// ociMount checks a mount of the spec. Options pass by a list: the runtime
// knows some that reach outside, like a shared propagation (CVE-2024-9407).
func ociMount(m executor.Mount) (specs.Mount, error) {
	dest := path.Clean(m.Dest)
	if !path.IsAbs(m.Dest) || dest == "/" {
		return specs.Mount{}, fmt.Errorf("mount at %q: want an absolute path below /", m.Dest)
	}
	out := specs.Mount{Destination: dest}
	var keys []string
	switch m.Type {
	case "bind":
		if !path.IsAbs(m.Source) {
			return specs.Mount{}, fmt.Errorf("mount of %q at %q: want an absolute path", m.Source, m.Dest)
		}
		out.Type, out.Source, out.Options = "none", m.Source, []string{"rbind", "rprivate"}
	case "tmpfs":
		out.Type, out.Source, out.Options = "tmpfs", "tmpfs", []string{"nosuid", "nodev"}
		keys = []string{"size", "mode", "nr_inodes", "uid", "gid"}
	default:
		return specs.Mount{}, fmt.Errorf("mount at %q: type %q: want bind or tmpfs", m.Dest, m.Type)
	}
	plain := []string{"ro", "rw", "bind", "rbind", "nosuid", "nodev", "noexec", "suid", "dev", "exec", "noatime", "relatime"}
	for _, o := range m.Options {
		key, _, valued := strings.Cut(o, "=")
		if strings.ContainsAny(o, ",\x00") || valued && !slices.Contains(keys, key) || !valued && !slices.Contains(plain, key) {
			return specs.Mount{}, fmt.Errorf("mount at %q: option %q is not one of a %s mount", m.Dest, o, m.Type)
		}
		if key != "bind" && key != "rbind" {
			out.Options = append(out.Options, o)
		}
	}
	if m.ReadOnly {
		out.Options = append(out.Options, "ro")
	}
	return out, nil
}

// allGroups are the supplementary groups of a process. Its own group is one of
// them: a process that gives that up must not get past what is denied to the
// group (CVE-2023-25173).
func allGroups(p executor.Process) []uint32 {
	if slices.Contains(p.Groups, p.GID) {
		return p.Groups
	}
	return append([]uint32{p.GID}, p.Groups...)
}
