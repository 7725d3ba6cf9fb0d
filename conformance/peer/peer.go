// Package peer runs Kiln's daemon and the real BuildKit side by side, for the
// conformance tests and the benchmarks: it builds BuildKit's programs from this
// module's pinned version, makes a base image without pulling anything, and
// starts and stops daemons with folders of their own.
package peer

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Tools are the paths of BuildKit's programs.
type Tools struct{ Buildkitd, Buildctl string }

// BuildTools builds BuildKit's programs into a folder, with the tags of its own
// releases. Module is the folder of this module.
func BuildTools(ctx context.Context, module, into string) (Tools, error) {
	dir, err := filepath.Abs(into)
	if err != nil {
		return Tools{}, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Tools{}, err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-C", module, "-trimpath", "-ldflags=-s -w",
		"-tags=osusergo,netgo,static_build,seccomp", "-o", dir,
		"github.com/moby/buildkit/cmd/buildkitd", "github.com/moby/buildkit/cmd/buildctl")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return Tools{}, fmt.Errorf("build buildkitd and buildctl: %w", err)
	}
	return Tools{filepath.Join(dir, "buildkitd"), filepath.Join(dir, "buildctl")}, nil
}
