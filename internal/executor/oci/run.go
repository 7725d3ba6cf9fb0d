package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	runc "github.com/containerd/go-runc"
	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/internal/executor"
)

// startPatience is how long a runtime may take to make a container that is
// already to be killed. After it the runtime itself is killed.
const startPatience = 10 * time.Second

// maxRuntimeLog bounds what is read of the runtime's log.
const maxRuntimeLog = 64 << 10

// container is one "runc run". The runtime stays in the foreground: it is the
// parent of the container's first process and removes the container when that
// ends, so no second call of it is needed.
type container struct {
	e      *Executor
	spec   executor.Spec
	bundle string
	staged []string // mounts in the bundle
	stubs  *stubs
	oom    oomWatch
	net    *sandbox
	proxy  *proxied
	stdio  *stdio

	runtimePID  int
	runtimeMu   sync.Mutex
	runtimeGone bool // its number may be another process's

	done    chan struct{} // closed when all of the container is gone
	err     error         // how it ended; read after done
	cleanup error         // what could not be removed; read after done

	initMu sync.Mutex
	init   int // pidfd of the first process, 0 until asked for

	killMu sync.Mutex
	killed error // why we killed it

	execMu  sync.Mutex
	noExecs bool // the container is being removed
	execs   sync.WaitGroup
}

// Start starts a container. It returns once the runtime runs; an error of
// making the container, like a program that does not exist, is Wait's.
func (e *Executor) Start(ctx context.Context, spec executor.Spec, io executor.IO) (executor.Container, error) {
	if err := e.checkSpec(spec); err != nil {
		return nil, fmt.Errorf("start container: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("start container: %w", context.Cause(ctx))
	}
	if _, err := e.runtime(); err != nil {
		return nil, fmt.Errorf("start container: %w", err)
	}
	c := &container{e: e, spec: spec, done: make(chan struct{}), oom: oomWatch{event: -1}}
	if err := e.add(c); err != nil {
		return nil, err
	}
	if err := c.prepare(io); err != nil {
		return nil, fmt.Errorf("start container: %w", errors.Join(err, c.release()))
	}
	launched := make(chan int, 1)
	go c.run(context.WithoutCancel(ctx), launched)
	pid, ok := <-launched
	if !ok {
		<-c.done
		return nil, fmt.Errorf("start container: %w", c.err)
	}
	c.runtimePID = pid
	go c.watch(ctx)
	return c, nil
}

// prepare makes all that the runtime wants to find.
func (c *container) prepare(io executor.IO) (err error) {
	e, s := c.e, c.spec
	c.bundle = filepath.Join(e.cfg.StateDir, "run", s.ID)
	if err := os.Mkdir(c.bundle, 0o700); err != nil {
		return fmt.Errorf("make bundle: %w", err)
	}
	netns, hostNetwork, err := c.connect(&s)
	if err != nil {
		return fmt.Errorf("connect container: %w", err)
	}
	if s.Mounts, err = c.stageHandles(); err != nil {
		return err
	}
	files, err := e.files.prepare(s, hostNetwork, c.bundle)
	if err != nil {
		return err
	}
	config, err := e.ociSpec(s, files, netns)
	if err != nil {
		return err
	}
	e.traced(s, config)
	own := slices.Clone(config.Mounts)
	if err := e.cfg.Devices.inject(config, s.Devices); err != nil {
		return err
	}
	if c.stubs, err = e.stubs.open(s.Root); err != nil {
		return err
	}
	if err := c.makeStubs(deviceMounts(config, own)); err != nil {
		return err
	}
	if c.oom, err = e.cgroups.watchOOM(config.Linux.CgroupsPath); err != nil {
		return err
	}
	text, err := json.Marshal(config)
	if err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	if err := os.WriteFile(filepath.Join(c.bundle, "config.json"), text, 0o600); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	c.stdio, err = newStdio(io, s.Process.Tty)
	return err
}

// connect readies the container's network. A namespace of "" is one of the
// runtime's, or the daemon's own.
func (c *container) connect(s *executor.Spec) (netns string, host bool, err error) {
	e := c.e
	switch {
	case s.Proxy != nil && s.Network != executor.NetworkNone:
		if c.proxy, err = e.newProxied(*s); err != nil {
			return "", false, err
		}
		s.Process.Env = c.proxy.environment(s.Process.Env)
		s.Network = executor.NetworkSandbox
		return c.proxy.path(), false, nil
	case s.Network != executor.NetworkSandbox:
		return "", s.Network == executor.NetworkHost, nil
	case e.net == nil:
		return "", true, nil
	}
	if c.net, err = e.net.acquire(); err != nil {
		return "", false, err
	}
	return c.net.path(), false, nil
}

func (c *container) pidFile() string { return filepath.Join(c.bundle, "pid") }
func (c *container) logFile() string { return filepath.Join(c.bundle, "log") }

// run runs the runtime to its end and then removes what is the container's.
func (c *container) run(ctx context.Context, launched chan int) {
	defer close(c.done)
	driver, err := c.e.driver(c.logFile())
	if err != nil {
		close(launched)
		c.err = errors.Join(err, c.release())
		return
	}
	started := make(chan int, 1)
	var connected sync.WaitGroup
	connected.Go(func() {
		if pid, ok := <-started; ok {
			c.stdio.started()
			launched <- pid
		}
		close(launched)
	})
	code, err := driver.Run(ctx, c.spec.ID, c.bundle, &runc.CreateOpts{
		PidFile: c.pidFile(), IO: c.stdio, Started: started,
	})
	connected.Wait()
	c.runtimeMu.Lock()
	c.runtimeGone = true
	c.runtimeMu.Unlock()
	c.err = c.outcome(code, err)
	if code < 0 {
		c.e.forceDelete(c.spec.ID) // the runtime did not live to do it
	}
	c.cleanup = c.release()
	if c.cleanup != nil {
		c.e.log.Warn("something of a container is left", "container", c.spec.ID, "error", c.cleanup)
	}
}

// outcome says how the container ended. The runtime writes the pid file once
// the process runs, which tells its own failures from the process's.
func (c *container) outcome(code int, err error) error {
	oom := c.oom.ended(code)
	c.oom.event = -1
	c.killMu.Lock()
	killed := c.killed
	c.killMu.Unlock()
	_, started := os.Stat(c.pidFile())
	switch {
	case killed != nil:
		return killed
	case code == 0 && err == nil:
		return nil
	case started == nil && code > 0:
		return &executor.ExitError{Code: code, OOM: oom}
	case started == nil:
		return errors.New("run container: the runtime was killed")
	}
	if reason := runtimeError(c.logFile()); reason != "" {
		return startError(code, oom, reason)
	}
	return fmt.Errorf("run container: %w", err)
}

// startError is why a runtime that ended with a code has not started a program.
func startError(code int, oom bool, reason string) error {
	if code <= 0 {
		return fmt.Errorf("run container: %s", reason)
	}
	return &executor.StartError{Exit: &executor.ExitError{Code: code, OOM: oom}, Reason: reason}
}

// runtimeError finds the last error in a runtime's log, which is lines of JSON.
func runtimeError(name string) string {
	f, err := os.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	buf := make([]byte, maxRuntimeLog)
	n, err := f.Read(buf)
	if err != nil {
		return ""
	}
	last := ""
	for line := range bytes.Lines(buf[:n]) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal(line, &entry) == nil && (entry.Level == "error" || entry.Level == "fatal") {
			last = entry.Msg
		}
	}
	for _, prefix := range []string{"runc run failed: ", "exec failed: ", "unable to start container process: "} {
		last = strings.TrimPrefix(last, prefix)
	}
	return last
}

// release removes what belongs to the container alone. The runtime has ended.
func (c *container) release() error {
	e := c.e
	c.awaitExecs()
	var errs []error
	if c.stdio != nil {
		c.stdio.ended()
	}
	if c.stubs != nil {
		errs = append(errs, e.stubs.close(c.stubs))
	}
	if c.oom.event >= 0 {
		unix.Close(c.oom.event)
	}
	if e.cgroups.usable() {
		e.cgroups.removeContainer(e.cgroupParent(c.spec), c.spec.ID)
	}
	if c.net != nil {
		// With all capabilities it may have changed its network for good.
		e.net.release(c.net, !c.spec.Insecure)
	}
	if c.proxy != nil {
		errs = append(errs, e.endProxied(c.proxy))
	}
	unstaged := c.unstage()
	errs = append(errs, unstaged)
	if c.bundle != "" && unstaged == nil { // else it would remove what is mounted there
		errs = append(errs, os.RemoveAll(c.bundle))
	}
	c.initMu.Lock()
	if c.init > 0 {
		unix.Close(c.init)
	}
	c.init = -1
	c.initMu.Unlock()
	e.remove(c)
	return errors.Join(errs...)
}

// watch kills the container when ctx ends first.
func (c *container) watch(ctx context.Context) {
	select {
	case <-ctx.Done():
		c.kill(fmt.Errorf("run container: %w", context.Cause(ctx)))
	case <-c.done:
	}
}

// kill ends the container's first process, and by that all of its PID
// namespace, and waits for it to be gone.
func (c *container) kill(reason error) {
	c.killMu.Lock()
	if c.killed == nil {
		c.killed = reason
	}
	c.killMu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), startPatience)
	defer cancel()
	err := c.signal(ctx, unix.SIGKILL)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		_ = c.signalRuntime(unix.SIGKILL)
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		_ = c.signalRuntime(unix.SIGKILL)
		<-c.done
	}
}

// signalRuntime sends a signal to the runtime. It gives unix.ESRCH when that
// has ended.
func (c *container) signalRuntime(sig unix.Signal) error {
	c.runtimeMu.Lock()
	defer c.runtimeMu.Unlock()
	if c.runtimeGone {
		return unix.ESRCH
	}
	return unix.Kill(c.runtimePID, sig)
}

// signal sends a signal to the first process, once that runs. It gives
// unix.ESRCH when it has ended.
func (c *container) signal(ctx context.Context, sig unix.Signal) error {
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for {
		c.initMu.Lock()
		err := c.openInit()
		if err == nil {
			err = unix.PidfdSendSignal(c.init, sig, nil, 0)
		}
		c.initMu.Unlock()
		if !errors.Is(err, os.ErrNotExist) {
			return err
		}
		select {
		case <-poll.C:
		case <-c.done:
			return unix.ESRCH
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// openInit opens the first process. Its number comes from a file and may be
// another process's by now; only one whose parent is our runtime is taken.
func (c *container) openInit() error {
	if c.init > 0 {
		return nil
	}
	if c.init < 0 {
		return unix.ESRCH
	}
	fd, err := openChild(c.pidFile(), c.runtimePID)
	if err != nil {
		return err
	}
	c.init = fd
	return nil
}

// openChild opens the process that a pid file names, if it is a child of parent.
func openChild(pidFile string, parent int) (pidfd int, err error) {
	text, err := os.ReadFile(pidFile)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, os.ErrNotExist // half written
	}
	if pidfd, err = unix.PidfdOpen(pid, 0); err != nil {
		return 0, err
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		unix.Close(pidfd)
		return 0, unix.ESRCH
	}
	// pid (name) state parent ...; a name may hold anything.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 2 || fields[1] != strconv.Itoa(parent) {
		unix.Close(pidfd)
		return 0, unix.ESRCH
	}
	return pidfd, nil
}

// Wait waits for the container to end and everything of it to be gone.
func (c *container) Wait(ctx context.Context) error {
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Signal sends a signal to the first process. One that has ended is no error.
func (c *container) Signal(ctx context.Context, sig int) error {
	err := c.signal(ctx, unix.Signal(sig))
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("send signal %d: %w", sig, err)
	}
	return nil
}

// Resize sets the size of the terminal; the runtime passes it on.
func (c *container) Resize(_ context.Context, rows, cols uint32) error {
	if err := c.stdio.resize(rows, cols); err != nil {
		return err
	}
	if err := c.signalRuntime(unix.SIGWINCH); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("resize terminal: %w", err)
	}
	return nil
}

// Close kills what still runs and returns when all of the container is gone.
func (c *container) Close() error {
	select {
	case <-c.done:
	default:
		c.kill(errors.New("run container: closed before its end"))
	}
	return c.cleanup
}

// forceDelete has the runtime end and forget a container that a killed runtime
// left. It knows nothing of most, which is no error.
func (e *Executor) forceDelete(id string) {
	ctx, cancel := context.WithTimeout(context.Background(), startPatience)
	defer cancel()
	driver, err := e.driver("")
	if err == nil {
		err = driver.Delete(ctx, id, &runc.DeleteOpts{Force: true})
	}
	if err != nil {
		e.log.Warn("could not delete a container", "container", id, "error", err)
	}
}

// cgroupParent is where a container's group goes, within the hierarchy.
func (e *Executor) cgroupParent(s executor.Spec) string {
	if s.CgroupParent != "" {
		return path.Clean("/" + s.CgroupParent)
	}
	return path.Clean("/" + e.cfg.CgroupParent)
}
