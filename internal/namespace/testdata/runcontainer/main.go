// Runcontainer enters namespaces as a daemon does and runs a busybox container
// in them. It is built and run by this package's tests, as other users.
//
// Arguments: a folder of the user's own, the runtime, the script.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/kiln-build/kiln/internal/executor"
	"github.com/kiln-build/kiln/internal/executor/oci"
	"github.com/kiln-build/kiln/internal/namespace"
)

func main() {
	err := run(os.Args[1], os.Args[2], os.Args[3])
	var exit *executor.ExitError
	if errors.As(err, &exit) {
		os.Exit(exit.Code)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(99)
	}
}

func run(dir, runtime, script string) (err error) {
	info, err := namespace.Enter(namespace.Options{})
	if err != nil {
		return err
	}
	root := filepath.Join(dir, "root")
	if err := os.MkdirAll(filepath.Join(root, "bin"), 0o755); err != nil {
		return err
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return fmt.Errorf("install the package busybox-static: %w", err)
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), busybox, 0o755); err != nil {
		return err
	}
	e, err := oci.New(oci.Config{
		StateDir: filepath.Join(dir, "state"), Binary: runtime, Rootless: info.Rootless,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	c, err := e.Start(context.Background(), executor.Spec{
		ID: "one", Root: root,
		Process: executor.Process{Args: []string{"/bin/busybox", "sh", "-c", script}, Env: []string{"PATH=/bin"}, Cwd: "/", Groups: []uint32{0, 10}},
	}, executor.IO{Stdout: os.Stdout, Stderr: os.Stderr})
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Wait(context.Background())
}
