package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	runc "github.com/containerd/go-runc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/internal/executor"
)

// task is one "runc exec": a further process of a container. The runtime stays
// in the foreground, as the process's parent.
type task struct {
	stdio            *stdio
	pidFile, logFile string
	runtimePID       int

	done chan struct{} // closed when the process has ended and its output was passed on
	err  error         // how it ended; read after done

	mu   sync.Mutex
	gone bool // the runtime has ended: its number may be another process's
}

// Exec starts a further process in the container. Ending ctx kills it; what it
// started itself ends with the container.
func (c *container) Exec(ctx context.Context, p executor.Process, io executor.IO) (executor.Task, error) {
	t, err := c.exec(ctx, p, io)
	if err != nil {
		return nil, fmt.Errorf("run in container: %w", err)
	}
	return t, nil
}

func (c *container) exec(ctx context.Context, p executor.Process, io executor.IO) (_ *task, err error) {
	if err := c.e.checkProcess(p); err != nil {
		return nil, err
	}
	if c.proxy != nil {
		p.Env = c.proxy.environment(p.Env)
	}
	process, err := c.e.ociProcess(p, c.spec.Insecure)
	if err != nil {
		return nil, err
	}
	if err := c.signal(ctx, 0); err != nil { // waits for the container to run
		if errors.Is(err, unix.ESRCH) {
			err = errors.New("the container's first process has ended")
		}
		return nil, err
	}
	if err := c.enter(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			c.execs.Done()
		}
	}()
	dir, err := os.MkdirTemp(c.bundle, "exec")
	if err != nil {
		return nil, err
	}
	stdio, err := newStdio(io, p.Tty)
	if err != nil {
		return nil, err
	}
	t := &task{
		stdio: stdio, done: make(chan struct{}),
		pidFile: filepath.Join(dir, "pid"), logFile: filepath.Join(dir, "log"),
	}
	if err := c.launch(ctx, t, process); err != nil {
		stdio.ended()
		return nil, err
	}
	return t, nil
}

// enter counts a further process, unless the container is being removed.
func (c *container) enter() error {
	c.execMu.Lock()
	defer c.execMu.Unlock()
	if c.noExecs {
		return errors.New("the container has ended")
	}
	c.execs.Add(1)
	return nil
}

// awaitExecs waits for the further processes, which end with the first, and
// lets in no more.
func (c *container) awaitExecs() {
	c.execMu.Lock()
	c.noExecs = true
	c.execMu.Unlock()
	c.execs.Wait()
}

// launch starts the runtime; a process that it could not start is Wait's to tell.
func (c *container) launch(ctx context.Context, t *task, process *specs.Process) error {
	driver, err := c.e.driver("")
	if err != nil {
		return err
	}
	launched, ended := make(chan int, 1), make(chan error, 1)
	go func() {
		ended <- driver.Exec(context.WithoutCancel(ctx), c.spec.ID, *process, &runc.ExecOpts{
			IO: t.stdio, LogFile: t.logFile, PidFile: t.pidFile, Started: launched,
		})
	}()
	pid, ok := <-launched
	if !ok {
		return <-ended
	}
	t.runtimePID = pid
	t.stdio.started()
	go func() {
		defer c.execs.Done()
		defer close(t.done)
		c.finish(ctx, t, ended)
	}()
	return nil
}

// finish waits for the process, or kills it when ctx ends first.
func (c *container) finish(ctx context.Context, t *task, ended <-chan error) {
	var result error
	select {
	case result = <-ended:
		t.forget()
	case <-ctx.Done():
		result = t.kill(ended)
		t.forget()
	}
	t.stdio.ended()
	if ctx.Err() != nil {
		t.err = fmt.Errorf("run in container: %w", context.Cause(ctx))
		return
	}
	t.err = t.outcome(result)
	var start *executor.StartError
	var exit *executor.ExitError
	if t.err != nil && (errors.As(t.err, &start) || !errors.As(t.err, &exit)) && c.endsSoon(ctx) {
		// The container ended while the runtime was about to enter it.
		t.err = &executor.ExitError{Code: 128 + int(unix.SIGKILL)}
	}
}

// endsSoon tells whether the first process has ended, or does within a moment: a
// runtime that finds it on its way out fails before all see its end.
func (c *container) endsSoon(ctx context.Context) bool {
	if errors.Is(c.signal(ctx, 0), unix.ESRCH) {
		return true
	}
	c.initMu.Lock()
	defer c.initMu.Unlock()
	if c.init <= 0 {
		return c.init < 0
	}
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(c.init), Events: unix.POLLIN}}, int(endMoment.Milliseconds()))
	return err == nil && n > 0
}

const endMoment = time.Second

func (t *task) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.gone = true
}

// kill kills the process and waits for its end. What the process started in
// its turn may still write; that is not waited for long.
func (t *task) kill(ended <-chan error) error {
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	patience := time.After(startPatience)
	for killed := false; ; {
		if !killed {
			err := t.send(unix.SIGKILL)
			if killed = !errors.Is(err, os.ErrNotExist); killed {
				patience = time.After(time.Second)
			}
		}
		select {
		case err := <-ended:
			return err
		case <-poll.C:
		case <-patience:
			if !killed {
				_ = t.signalRuntime(unix.SIGKILL)
			}
			return nil
		}
	}
}

// send sends a signal to the process. It gives os.ErrNotExist where the
// process does not run yet.
func (t *task) send(sig unix.Signal) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gone {
		return unix.ESRCH
	}
	fd, err := openChild(t.pidFile, t.runtimePID)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.PidfdSendSignal(fd, sig, nil, 0)
}

func (t *task) signalRuntime(sig unix.Signal) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gone {
		return unix.ESRCH
	}
	return unix.Kill(t.runtimePID, sig)
}

// Wait waits for the process to end.
func (t *task) Wait(ctx context.Context) error {
	select {
	case <-t.done:
		return t.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Signal sends a signal to the process, once that runs. One that has ended is
// no error.
func (t *task) Signal(ctx context.Context, sig int) error {
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for {
		err := t.send(unix.Signal(sig))
		switch {
		case err == nil || errors.Is(err, unix.ESRCH):
			return nil
		case !errors.Is(err, os.ErrNotExist):
			return fmt.Errorf("send signal %d: %w", sig, err)
		}
		select {
		case <-poll.C:
		case <-t.done:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Resize sets the size of the terminal; the runtime passes it on.
func (t *task) Resize(_ context.Context, rows, cols uint32) error {
	select {
	case <-t.done:
		return nil
	default:
	}
	if err := t.stdio.resize(rows, cols); err != nil {
		return err
	}
	if err := t.signalRuntime(unix.SIGWINCH); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("resize terminal: %w", err)
	}
	return nil
}

// outcome says how the process ended. The runtime writes the pid file once it
// runs, which tells the runtime's own failures from the process's.
func (t *task) outcome(err error) error {
	if err == nil {
		return nil
	}
	code := 0
	var exit *runc.ExitError
	if errors.As(err, &exit) {
		code = exit.Status
	}
	if _, started := os.Stat(t.pidFile); started == nil && code > 0 {
		return &executor.ExitError{Code: code}
	}
	if reason := runtimeError(t.logFile); reason != "" {
		return startError(code, false, reason)
	}
	return fmt.Errorf("run in container: %w", err)
}
