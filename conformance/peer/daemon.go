package peer

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Daemon is a Kiln daemon or a buildkitd, with a folder of its own.
type Daemon struct {
	Name string // "kiln" or "buildkit"
	Dir  string // root, socket and log
	// Config is the text of its buildkitd.toml.
	Config string
	args   []string
	// client returns the command line that builds, with the client of its own kind.
	client func(Build) []string
	cmd    *exec.Cmd
	done   chan struct{}
}

// Build says what to build.
type Build struct {
	Context string   // a folder with a Dockerfile, which may name the image "base"
	Output  string   // as for -o; "" makes nothing
	Args    []string // build arguments, "K=V"
	// CacheTo and CacheFrom are caches for others, and of others.
	CacheTo, CacheFrom []string
}

// NewKiln describes a Kiln daemon, to be started.
func NewKiln(program string, base Base, dir string) *Daemon {
	d := &Daemon{Name: "kiln", Dir: dir}
	d.args = []string{program, "daemon", "--root", filepath.Join(dir, "root"), "--addr", d.Addr(), "--config", filepath.Join(dir, "buildkitd.toml")}
	d.client = func(b Build) []string {
		args := []string{program, "build", "--progress=plain", "--build-context", "base=oci-layout://" + base.Dir}
		for _, a := range b.Args {
			args = append(args, "--build-arg", a)
		}
		for _, c := range b.CacheTo {
			args = append(args, "--cache-to", c)
		}
		for _, c := range b.CacheFrom {
			args = append(args, "--cache-from", c)
		}
		output := b.Output
		if output == "" {
			output = "type=cacheonly" // else it makes an image, which buildctl does not
		}
		return append(args, "-o", output, b.Context)
	}
	return d
}

// NewBuildKit describes a buildkitd, to be started. The machine's own
// configuration of BuildKit does not bear on it.
func NewBuildKit(t Tools, runtime string, base Base, dir string) *Daemon {
	d := &Daemon{Name: "buildkit", Dir: dir}
	d.args = []string{
		t.Buildkitd, "--root", filepath.Join(dir, "root"), "--addr", d.Addr(),
		"--config", filepath.Join(dir, "buildkitd.toml"),
		"--oci-worker=true", "--containerd-worker=false", "--oci-worker-gc=false",
		"--oci-worker-snapshotter=overlayfs", "--oci-worker-binary=" + runtime,
	}
	d.client = func(b Build) []string { return t.BuildArgs(d, base, b) }
	return d
}

// BuildArgs is the command line by which buildctl builds on a daemon of either kind.
func (t Tools) BuildArgs(d *Daemon, base Base, b Build) []string {
	args := []string{
		t.Buildctl, "--addr", d.Addr(), "build", "--progress=plain", "--frontend=dockerfile.v0",
		"--local", "context=" + b.Context, "--local", "dockerfile=" + b.Context,
		"--oci-layout", "base=" + base.Dir, "--opt", "context:base=oci-layout://base@" + base.Digest,
	}
	for _, a := range b.Args {
		args = append(args, "--opt", "build-arg:"+a)
	}
	for _, c := range b.CacheTo {
		args = append(args, "--export-cache", c)
	}
	for _, c := range b.CacheFrom {
		args = append(args, "--import-cache", c)
	}
	if b.Output != "" {
		args = append(args, "--output", b.Output)
	}
	return args
}

// BuildArgs is the command line that builds on the daemon.
func (d *Daemon) BuildArgs(b Build) []string { return d.client(b) }

// Env is the environment of the daemon's clients.
func (d *Daemon) Env() []string {
	return append(os.Environ(), "KILN_HOST="+d.Addr(), "BUILDKIT_HOST="+d.Addr())
}

// Addr is where the daemon listens.
func (d *Daemon) Addr() string { return "unix://" + filepath.Join(d.Dir, "sock") }

// PID is the process id of the running daemon.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// Log is the end of what the daemon said.
func (d *Daemon) Log() string {
	text, err := os.ReadFile(filepath.Join(d.Dir, "log"))
	if err != nil {
		return err.Error()
	}
	return Tail(text)
}

// Start starts the daemon and waits for its first answer.
func (d *Daemon) Start(ctx context.Context) error {
	if err := os.MkdirAll(d.Dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(d.Dir, "buildkitd.toml"), []byte(d.Config), 0o644); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(d.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	d.cmd = exec.Command(d.args[0], d.args[1:]...)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := d.cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", d.Name, err)
	}
	d.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) {
		_ = cmd.Wait() // its end is what matters
		close(done)
	}(d.cmd, d.done)
	return d.awaitAnswer(ctx)
}

// awaitAnswer asks for the workers until they are told.
func (d *Daemon) awaitAnswer(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	socket := strings.TrimPrefix(d.Addr(), "unix://")
	for {
		select {
		case <-d.done:
			return fmt.Errorf("%s ended at its start: %s", d.Name, d.Log())
		case <-ctx.Done():
			return fmt.Errorf("%s did not answer: %w", d.Name, ctx.Err())
		case <-time.After(time.Millisecond):
		}
		if _, err := os.Stat(socket); err != nil {
			continue
		}
		conn, err := grpc.NewClient(d.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
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

// Stop ends the daemon, at first politely.
func (d *Daemon) Stop() {
	if d.cmd == nil {
		return
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.done:
	case <-time.After(time.Minute):
		_ = d.cmd.Process.Kill()
		<-d.done
	}
	d.cmd = nil
}

// Tail is the end of a log.
func Tail(text []byte) string {
	return string(text[max(0, len(text)-2000):])
}
