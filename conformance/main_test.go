package conformance

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kiln-build/kiln/conformance/peer"
)

// suite is what all tests share: programs, a base image and two daemons.
type suite struct {
	tools          peer.Tools
	base           peer.Base
	kiln, buildkit *peer.Daemon
}

var shared suite

func TestMain(m *testing.M) {
	code, err := setUp(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		code = 1
	}
	os.Exit(code)
}

func setUp(m *testing.M) (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	bin, err := filepath.Abs(filepath.Join("..", "bin"))
	if err != nil {
		return 0, err
	}
	program, runtime := filepath.Join(bin, "kiln"), filepath.Join(bin, "kiln-runc")
	for _, p := range []string{program, runtime} {
		if _, err := os.Stat(p); err != nil {
			return 0, fmt.Errorf("the suite tests the programs of `make build`: %w", err)
		}
	}
	dir, err := os.MkdirTemp("", "kiln-conformance-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if shared.tools, err = peer.BuildTools(ctx, ".", filepath.Join(bin, "peer")); err != nil {
		return 0, err
	}
	if shared.base, err = peer.MakeBase(filepath.Join(dir, "base")); err != nil {
		return 0, err
	}
	shared.kiln = peer.NewKiln(program, shared.base, filepath.Join(dir, "kiln"))
	shared.buildkit = peer.NewBuildKit(shared.tools, runtime, shared.base, filepath.Join(dir, "buildkit"))
	for _, d := range []*peer.Daemon{shared.kiln, shared.buildkit} {
		if err := d.Start(ctx); err != nil {
			return 0, err
		}
		defer d.Stop()
	}
	return m.Run(), nil
}

// command runs a client of d and returns what it printed.
func command(t *testing.T, d *peer.Daemon, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.WaitDelay = 5 * time.Second
	cmd.Env = d.Env()
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s\n%s\ndaemon: %s", strings.Join(args, " "), err, stdout.String(), stderr.String(), d.Log())
	}
	return stdout.String()
}

// buildctl runs the real buildctl on Kiln's daemon.
func buildctl(t *testing.T, args ...string) string {
	t.Helper()
	return command(t, shared.kiln, append([]string{shared.tools.Buildctl, "--addr", shared.kiln.Addr()}, args...)...)
}
