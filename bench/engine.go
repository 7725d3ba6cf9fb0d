package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/conformance/peer"
)

const (
	kilnName     = "kiln"
	buildkitName = "buildkit"
)

// errHang says that a build did not end within its time.
var errHang = errors.New("hung")

// engine is a daemon and how to build with it.
type engine struct {
	*peer.Daemon
	// buildctl is BuildKit's client, which both daemons understand.
	buildctl string
}

// buildSpec says what to build.
type buildSpec struct {
	peer.Build
	llb        []byte   // a marshaled definition, in place of a context
	ociLayouts []string // NAME=DIRECTORY, which the definition may use
	command    []string // a command line in place of a build
}

// measured is what a build took.
type measured struct {
	wall                   time.Duration
	daemonPeak, clientPeak int64         // bytes
	cpu                    time.Duration // of daemon and client, without containers
}

// build runs a build to its end, or gives errHang after limit.
func (e *engine) build(ctx context.Context, limit time.Duration, s buildSpec) (measured, error) {
	args := e.BuildArgs(s.Build)
	if s.llb != nil {
		args = []string{e.buildctl, "--addr", e.Addr(), "build", "--progress=plain"}
		for _, l := range s.ociLayouts {
			args = append(args, "--oci-layout", l)
		}
	}
	if s.command != nil {
		args = s.command
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.WaitDelay = 5 * time.Second
	cmd.Env = e.Env()
	if s.llb != nil {
		cmd.Stdin = bytes.NewReader(s.llb)
	}
	log, err := os.Create(filepath.Join(e.Dir, "client.log"))
	if err != nil {
		return measured{}, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := e.resetPeak(); err != nil {
		return measured{}, err
	}
	before, err := e.cpu()
	if err != nil {
		return measured{}, err
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return measured{}, err
	}
	peak := watchPeak(cmd.Process.Pid)
	err = cmd.Wait()
	m := measured{wall: time.Since(began), clientPeak: peak()}
	if ctx.Err() == context.DeadlineExceeded {
		return m, fmt.Errorf("%s %w", e.Name, errHang)
	}
	if err != nil {
		text, _ := os.ReadFile(log.Name())
		return m, fmt.Errorf("%s: %w: %s", e.Name, err, peer.Tail(text))
	}
	if m.daemonPeak, err = e.memory("VmHWM"); err != nil {
		return m, err
	}
	after, err := e.cpu()
	m.cpu = after - before + cmd.ProcessState.SystemTime() + cmd.ProcessState.UserTime()
	return m, err
}

// cpu is how long processors have worked for the daemon's processes.
func (e *engine) cpu() (sum time.Duration, err error) {
	pids, err := e.pids()
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		const wholeProcess = 2 // CPUCLOCK_SCHED: see clock_getcpuclockid(3)
		var t unix.Timespec
		if err := unix.ClockGettime(int32(^pid<<3|wholeProcess), &t); err != nil {
			return 0, fmt.Errorf("read processor time of process %d: %w", pid, err)
		}
		sum += time.Duration(t.Nano())
	}
	return sum, nil
}

// How a daemon that rests is known, and how long it is waited for.
const (
	restLook  = 100 * time.Millisecond
	restWork  = 2 * time.Millisecond // of processors, in restLook
	restLimit = 3 * time.Second
)

// rest waits until the engines have done what their last builds left to do, or for
// restLimit.
func rest(engines []*engine) error {
	work := func() (sum time.Duration, err error) {
		for _, e := range engines {
			one, err := e.cpu()
			if err != nil {
				return 0, err
			}
			sum += one
		}
		return sum, nil
	}
	before, err := work()
	for waited := time.Duration(0); err == nil && waited < restLimit; waited += restLook {
		time.Sleep(restLook)
		var now time.Duration
		if now, err = work(); now-before <= restWork {
			break
		}
		before = now
	}
	return err
}

// watchPeak looks at a process's peak of memory until the function that it
// returns is called, which returns the last that was seen, in bytes. What the
// kernel tells of a process that has ended would not do: it counts the memory
// of this program, from before the other was executed.
func watchPeak(pid int) func() int64 {
	done, result := make(chan struct{}), make(chan int64)
	go func() {
		var last int64
		for {
			if n, err := statusField(pid, "VmHWM"); err == nil {
				last = n
			}
			select {
			case <-done:
				result <- last
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	return func() int64 {
		close(done)
		return <-result
	}
}

// pids are the daemon's processes: Kiln's has a double outside its namespaces.
// Containers are none of them.
func (e *engine) pids() ([]int, error) {
	program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", e.PID()))
	if err != nil {
		return nil, err
	}
	pids := []int{e.PID()}
	for i := 0; i < len(pids); i++ {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pids[i]))
		if err != nil {
			return nil, err
		}
		for _, task := range tasks {
			text, err := os.ReadFile(task)
			if err != nil {
				continue // the thread has ended
			}
			for word := range strings.FieldsSeq(string(text)) {
				exe, err := os.Readlink(filepath.Join("/proc", word, "exe"))
				if pid, convErr := strconv.Atoi(word); err == nil && convErr == nil && exe == program {
					pids = append(pids, pid)
				}
			}
		}
	}
	return pids, nil
}

// resetPeak makes the kernel forget the daemon's peak of memory.
func (e *engine) resetPeak() error {
	pids, err := e.pids()
	for _, pid := range pids {
		err = errors.Join(err, os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0))
	}
	return err
}

// memory returns a size from /proc's status of the daemon's processes, in bytes.
func (e *engine) memory(field string) (sum int64, err error) {
	pids, err := e.pids()
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		n, err := statusField(pid, field)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// statusField returns a size from a process's /proc status, in bytes.
func statusField(pid int, field string) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, value, ok := strings.Cut(string(text), "\n"+field+":")
	if !ok {
		return 0, fmt.Errorf("process %d has no %s", pid, field)
	}
	kb, err := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
	return kb << 10, err
}
