package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	runc "github.com/containerd/go-runc"
	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/internal/executor"
)

// Exec runs a further process in the container. Ending ctx kills it; what it
// started itself ends with the container.
func (c *container) Exec(ctx context.Context, p executor.Process, io executor.IO) error {
	if err := c.e.checkProcess(p); err != nil {
		return fmt.Errorf("run in container: %w", err)
	}
	process, err := c.e.ociProcess(p, c.spec.Insecure)
	if err != nil {
		return fmt.Errorf("run in container: %w", err)
	}
	if err := c.signal(ctx, 0); err != nil { // waits for the container to run
		return fmt.Errorf("run in container: %w", err)
	}
	dir, err := os.MkdirTemp(c.bundle, "exec")
	if err != nil {
		return fmt.Errorf("run in container: %w", err)
	}
	defer os.RemoveAll(dir)
	stdio, err := newStdio(io, p.Tty)
	if err != nil {
		return fmt.Errorf("run in container: %w", err)
	}
	defer stdio.ended()

	pidFile, logFile := filepath.Join(dir, "pid"), filepath.Join(dir, "log")
	driver, err := c.e.driver("")
	if err != nil {
		return fmt.Errorf("run in container: %w", err)
	}
	launched, done := make(chan int, 1), make(chan struct{})
	var result error // read after done
	go func() {
		defer close(done)
		result = driver.Exec(context.WithoutCancel(ctx), c.spec.ID, *process, &runc.ExecOpts{
			IO: stdio, LogFile: logFile, PidFile: pidFile, Started: launched,
		})
	}()
	pid, ok := <-launched
	if !ok {
		<-done
		return fmt.Errorf("run in container: %w", result)
	}
	stdio.started()
	select {
	case <-done:
	case <-ctx.Done():
		killExec(pidFile, pid, done)
		return fmt.Errorf("run in container: %w", context.Cause(ctx))
	}
	return execOutcome(result, pidFile, logFile)
}

// killExec kills the process that a "runc exec" runs, and waits for the end of
// both. What the process started in its turn may still write; that is not
// waited for long.
func killExec(pidFile string, runtimePID int, done <-chan struct{}) {
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	patience := time.After(startPatience)
	for killed := false; ; {
		if !killed {
			fd, err := openChild(pidFile, runtimePID)
			if err == nil {
				err = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
				unix.Close(fd)
			}
			killed = !errors.Is(err, os.ErrNotExist)
			if killed {
				patience = time.After(time.Second)
			}
		}
		select {
		case <-done:
			return
		case <-poll.C:
		case <-patience:
			if !killed {
				_ = unix.Kill(runtimePID, unix.SIGKILL)
			}
			return
		}
	}
}

func execOutcome(err error, pidFile, logFile string) error {
	if err == nil {
		return nil
	}
	var exit *runc.ExitError
	if _, started := os.Stat(pidFile); started == nil && errors.As(err, &exit) && exit.Status > 0 {
		return &executor.ExitError{Code: exit.Status}
	}
	if reason := runtimeError(logFile); reason != "" {
		return fmt.Errorf("run in container: %s", reason)
	}
	return fmt.Errorf("run in container: %w", err)
}
