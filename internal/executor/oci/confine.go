package oci

import (
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// confine applies what the daemon's owner has chosen for all containers. An
// insecure one is not held by a profile: its user has been granted as much.
func (e *Executor) confine(out *specs.Spec, insecure bool) {
	if !insecure {
		out.Process.ApparmorProfile = e.cfg.AppArmor
	}
	if e.cfg.SharedProcesses {
		shareProcesses(out)
	}
}

// shareProcesses has a container see the daemon's processes: where the daemon
// is itself in a container that hides parts of /proc, the kernel gives no other
// /proc to a process id namespace of the container's own.
func shareProcesses(out *specs.Spec) {
	out.Linux.Namespaces = slices.DeleteFunc(out.Linux.Namespaces, func(n specs.LinuxNamespace) bool {
		return n.Type == specs.PIDNamespace
	})
	for i, m := range out.Mounts {
		if m.Destination == "/proc" && m.Type == "proc" {
			out.Mounts[i] = specs.Mount{Destination: "/proc", Type: "bind", Source: "/proc", Options: []string{"rbind"}}
		}
	}
	// What is hidden there already can not be hidden again.
	inProc := func(p string) bool { return strings.HasPrefix(p, "/proc/") }
	out.Linux.MaskedPaths = slices.DeleteFunc(out.Linux.MaskedPaths, inProc)
	out.Linux.ReadonlyPaths = slices.DeleteFunc(out.Linux.ReadonlyPaths, inProc)
}
