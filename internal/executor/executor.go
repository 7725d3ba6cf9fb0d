// Package executor defines what runs a process in a container.
//
// One value, [Spec], says everything about a run, so an executor needs to know
// neither graphs nor caches nor who asks. Implementations live below this
// folder and pass the suite in executortest.
package executor

import (
	"context"
	"fmt"
	"io"
	"net"
)

// Executor runs containers.
type Executor interface {
	// Start starts a container and its first process. The container ends, and
	// everything of it is gone, after Close; ending ctx kills it.
	Start(ctx context.Context, spec Spec, io IO) (Container, error)
}

// Task is a process in a container.
type Task interface {
	// Wait waits for the process to end, and for all that it wrote to have been
	// passed on. A process that ended with another code than 0 gives an
	// *[ExitError].
	Wait(ctx context.Context) error
	// Signal sends a signal to the process. One that has ended is no error.
	Signal(ctx context.Context, sig int) error
	// Resize sets the size of the process's terminal.
	Resize(ctx context.Context, rows, cols uint32) error
}

// Container is a running container. As a [Task] it is its first process.
type Container interface {
	Task
	// Exec starts a further process inside. It ends with the container, by
	// SIGKILL; ending ctx kills it alone.
	Exec(ctx context.Context, p Process, io IO) (Task, error)
	// Close kills what still runs and removes the container.
	Close() error
}

// Spec says everything about a run.
type Spec struct {
	ID      string // unique among running containers; [a-z0-9]+
	Process Process
	// Root is the directory of the root file system on this machine, already mounted.
	Root         string
	ReadOnlyRoot bool
	Mounts       []Mount // beside /proc, /dev and the like, in the order to be made
	Hostname     string  // "" for a default
	Hosts        []Host  // further lines of /etc/hosts
	Network      Network
	Proxy        Proxy  // the only way out of the container, to where Network leads; nil if it is free
	Trace        string // what the first process's own spans are part of, as W3C's traceparent; "" for nothing
	Insecure     bool   // all capabilities, no seccomp; the caller has checked the entitlement
	CgroupParent string
	Limits       Limits
	Devices      []string // CDI names, "vendor/class=name"; the caller has checked that they are allowed
}

// Proxy answers a container whose network is nothing but a proxy.
type Proxy interface {
	// Serve answers connections of the container's until l is closed. With dial
	// it reaches what a container of the spec's network would reach.
	Serve(l net.Listener, dial func(ctx context.Context, network, address string) (net.Conn, error))
}

// Device is a device of the machine that containers can be given.
type Device struct {
	Name        string // as CDI names it, "vendor/class=name"
	AutoAllow   bool   // builds may have it unasked
	Annotations map[string]string
}

// Process is a program to run.
type Process struct {
	Args []string
	Env  []string // "K=V"
	Cwd  string   // absolute
	UID  uint32
	GID  uint32
	// Groups are supplementary group ids.
	Groups  []uint32
	Tty     bool
	Rlimits []Rlimit
}

// Rlimit is a POSIX resource limit; Name is as in "nofile".
type Rlimit struct {
	Name       string
	Soft, Hard uint64
}

// IO is where a process reads and writes. Nil fields mean nothing and nowhere.
type IO struct {
	Stdin          io.ReadCloser
	Stdout, Stderr io.Writer
}

// Mount is a file system inside the container.
type Mount struct {
	Type     string   // "bind" or "tmpfs"
	Source   string   // a path on this machine, for bind, or /proc/self/fd/N for an open file of this process
	Dest     string   // absolute path in the container
	Options  []string // as for mount(8): "ro", "size=65536", ...
	ReadOnly bool
}

// Host is a line of /etc/hosts.
type Host struct{ Name, IP string }

// Network is what a container sees of networks.
type Network int

// Networks.
const (
	NetworkSandbox Network = iota // its own, with a way out
	NetworkHost                   // the daemon's
	NetworkNone                   // loopback alone
)

// Limits bound a container's use of the machine; zero fields set no bound.
type Limits struct {
	Memory, MemorySwap int64 // bytes
	CPUShares          uint64
	CPUPeriod          uint64 // microseconds
	CPUQuota           int64  // microseconds
	CPUSetCPUs         string
	CPUSetMems         string
}

// StartError says why a program could not be started. It wraps the *[ExitError] that
// the runtime ended with, which counts as the program's.
type StartError struct {
	Exit   *ExitError
	Reason string
}

// Error tells the reason.
func (e *StartError) Error() string { return "run container: " + e.Reason }

// Unwrap returns the exit code.
func (e *StartError) Unwrap() error { return e.Exit }

// ExitError says that a process ended with a code other than 0.
type ExitError struct {
	Code int
	// OOM says that the kernel killed a process for want of memory.
	OOM bool
}

// Error tells the code and, where known, the reason.
func (e *ExitError) Error() string {
	if e.OOM {
		return fmt.Sprintf("exit code: %d (out of memory)", e.Code)
	}
	return fmt.Sprintf("exit code: %d", e.Code)
}
