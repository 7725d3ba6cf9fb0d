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

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"
)

const (
	kilnName     = "kiln"
	buildkitName = "buildkit"
)

// errHang says that a build did not end within its time.
var errHang = errors.New("hung")

// engine is a daemon and how to build with it.
type engine struct {
	name   string
	dir    string // root, socket and log of the daemon
	addr   string
	daemon []string // its command line
	// client returns the command line of a build.
	client func(buildSpec) []string
	env    []string
	// buildctl is BuildKit's client, which both daemons understand.
	buildctl string
	cmd      *exec.Cmd
	done     chan struct{}
}

// buildSpec says what to build.
type buildSpec struct {
	context string // a folder with a Dockerfile
	output  string // as for -o; "" makes nothing
	llb     []byte // a marshaled definition, in place of a context
}

// measured is what a build took.
type measured struct {
	wall                   time.Duration
	daemonPeak, clientPeak int64 // bytes
}

func (b *bench) newKiln(dir string) *engine {
	e := b.newEngine(kilnName, dir)
	e.daemon = []string{b.kiln, "daemon", "--root", filepath.Join(e.dir, "root"), "--addr", e.addr}
	e.env = []string{"KILN_HOST=" + e.addr}
	e.client = func(s buildSpec) []string {
		args := []string{b.kiln, "build", "--progress=plain", "--build-context", "base=oci-layout://" + b.base.dir}
		if s.output != "" {
			args = append(args, "-o", s.output)
		}
		return append(args, s.context)
	}
	return e
}

func (b *bench) newBuildKit(dir string) *engine {
	e := b.newEngine(buildkitName, dir)
	e.daemon = []string{
		b.tools.buildkitd, "--root", filepath.Join(e.dir, "root"), "--addr", e.addr,
		"--config", filepath.Join(e.dir, "buildkitd.toml"),
		"--oci-worker=true", "--containerd-worker=false", "--oci-worker-gc=false",
		"--oci-worker-snapshotter=overlayfs", "--oci-worker-binary=" + b.runtime,
	}
	e.client = func(s buildSpec) []string {
		args := []string{
			b.tools.buildctl, "--addr", e.addr, "build", "--progress=plain", "--frontend=dockerfile.v0",
			"--local", "context=" + s.context, "--local", "dockerfile=" + s.context,
			"--oci-layout", "base=" + b.base.dir, "--opt", "context:base=oci-layout://base@" + b.base.digest,
		}
		if s.output != "" {
			args = append(args, "--output", s.output)
		}
		return args
	}
	return e
}

func (b *bench) newEngine(name, dir string) *engine {
	e := &engine{name: name, dir: filepath.Join(dir, name), buildctl: b.tools.buildctl}
	e.addr = "unix://" + filepath.Join(e.dir, "sock")
	return e
}

// start starts the daemon and waits for its first answer.
func (e *engine) start(ctx context.Context) error {
	if err := os.MkdirAll(e.dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(e.dir, "buildkitd.toml"), nil, 0o644); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(e.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	e.cmd = exec.Command(e.daemon[0], e.daemon[1:]...)
	e.cmd.Stdout, e.cmd.Stderr = log, log
	if err := e.cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", e.name, err)
	}
	e.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) {
		_ = cmd.Wait() // its end is what matters
		close(done)
	}(e.cmd, e.done)
	return e.awaitAnswer(ctx)
}

// awaitAnswer asks for the workers until they are told.
func (e *engine) awaitAnswer(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	socket := strings.TrimPrefix(e.addr, "unix://")
	for {
		select {
		case <-e.done:
			text, _ := os.ReadFile(filepath.Join(e.dir, "log"))
			return fmt.Errorf("%s ended at its start: %s", e.name, tail(text))
		case <-ctx.Done():
			return fmt.Errorf("%s did not answer: %w", e.name, ctx.Err())
		case <-time.After(time.Millisecond):
		}
		if _, err := os.Stat(socket); err != nil {
			continue
		}
		conn, err := grpc.NewClient(e.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return err
		}
		// The request has no field that matters here, and neither has the answer.
		err = conn.Invoke(ctx, "/moby.buildkit.v1.Control/ListWorkers", &emptypb.Empty{}, &emptypb.Empty{})
		conn.Close()
		if err == nil {
			return nil
		}
	}
}

// stop ends the daemon, at first politely.
func (e *engine) stop() {
	if e.cmd == nil {
		return
	}
	_ = e.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-e.done:
	case <-time.After(20 * time.Second):
		_ = e.cmd.Process.Kill()
		<-e.done
	}
	e.cmd = nil
}

// build runs a build to its end, or gives errHang after limit.
func (e *engine) build(ctx context.Context, limit time.Duration, s buildSpec) (measured, error) {
	args := []string{e.buildctl, "--addr", e.addr, "build", "--progress=plain"}
	if s.llb == nil {
		args = e.client(s)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.WaitDelay = 5 * time.Second
	cmd.Env = append(os.Environ(), e.env...)
	if s.llb != nil {
		cmd.Stdin = bytes.NewReader(s.llb)
	}
	log, err := os.Create(filepath.Join(e.dir, "client.log"))
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
		return m, fmt.Errorf("%s %w", e.name, errHang)
	}
	if err != nil {
		text, _ := os.ReadFile(log.Name())
		return m, fmt.Errorf("%s: %w: %s", e.name, err, tail(text))
	}
	if m.daemonPeak, err = e.memory("VmHWM"); err != nil {
		return m, err
	}
	m.clientPeak = cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10
	return m, nil
}

// resetPeak makes the kernel forget the daemon's peak of memory.
func (e *engine) resetPeak() error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", e.cmd.Process.Pid), []byte("5"), 0)
}

// memory returns a size from the daemon's /proc status, in bytes.
func (e *engine) memory(field string) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", e.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			n, err := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("no %s for %s", field, e.name)
}

// tail is the end of a log.
func tail(text []byte) string {
	return string(text[max(0, len(text)-2000):])
}
