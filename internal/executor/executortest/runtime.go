package executortest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Runtime finds the container runtime for a test: KILN_RUNTIME, else the one
// that the Makefile builds into bin, else runc on PATH.
func Runtime(t testing.TB) string {
	t.Helper()
	if named := os.Getenv("KILN_RUNTIME"); named != "" {
		return named
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for dir != filepath.Dir(dir) {
		built := filepath.Join(dir, "bin/kiln-runc")
		if _, err := os.Stat(built); err == nil {
			return built
		}
		dir = filepath.Dir(dir)
	}
	path, err := exec.LookPath("runc")
	if err != nil {
		t.Fatal("these tests run containers: build bin/kiln-runc with make, install runc, or name a runtime in KILN_RUNTIME")
	}
	return path
}
