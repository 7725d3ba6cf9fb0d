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
	"syscall"
	"time"

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
	llb []byte // a marshaled definition, in place of a context
}

// measured is what a build took.
type measured struct {
	wall                   time.Duration
	daemonPeak, clientPeak int64 // bytes
}

// build runs a build to its end, or gives errHang after limit.
func (e *engine) build(ctx context.Context, limit time.Duration, s buildSpec) (measured, error) {
	args := e.BuildArgs(s.Build)
	if s.llb != nil {
		args = []string{e.buildctl, "--addr", e.Addr(), "build", "--progress=plain"}
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
	began := time.Now()
	err = cmd.Run()
	m := measured{wall: time.Since(began)}
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
	m.clientPeak = cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10
	return m, nil
}

// resetPeak makes the kernel forget the daemon's peak of memory.
func (e *engine) resetPeak() error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", e.PID()), []byte("5"), 0)
}

// memory returns a size from the daemon's /proc status, in bytes.
func (e *engine) memory(field string) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", e.PID()))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			n, err := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("no %s for %s", field, e.Name)
}
