package oci_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/internal/executor"
	"github.com/kiln-build/kiln/internal/executor/executortest"
	"github.com/kiln-build/kiln/internal/executor/oci"
)

// open makes an executor whose end must leave nothing.
func open(t *testing.T) executor.Executor {
	t.Helper()
	return openWith(t, oci.Config{})
}

func openWith(t *testing.T, cfg oci.Config) *oci.Executor {
	t.Helper()
	dir := t.TempDir()
	cfg.StateDir = dir
	cfg.Binary = executortest.Runtime(t)
	e, err := oci.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		left, err := os.ReadDir(dir)
		if err != nil || len(left) > 0 {
			t.Errorf("the state directory holds %v (%v)", left, err)
		}
		for _, groups := range []string{"/sys/fs/cgroup/*/kiln-*/test*", "/sys/fs/cgroup/kiln-*/test*"} { // of version 1 and 2
			left, err := filepath.Glob(groups)
			if err != nil || len(left) > 0 {
				t.Errorf("cgroups are left: %v (%v)", left, err)
			}
		}
		if left := mountsBelow(t, filepath.Dir(dir)); len(left) > 0 {
			t.Errorf("mounts are left: %q", left)
		}
	})
	return e
}

// mountsBelow are the mounts below a directory: elsewhere on the machine, others
// may mount meanwhile.
func mountsBelow(t *testing.T, dir string) (left []string) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, " "+dir+"/") {
			left = append(left, line)
		}
	}
	return left
}

func TestExecutor(t *testing.T) {
	executortest.Run(t, open)
}

func TestContainers(t *testing.T) {
	executortest.RunContainers(t, open, executortest.Containers{})
}

// TestNoRuntime: a machine without a runtime can open an executor; what can not
// be done is start a container, and the error says what to install.
func TestNoRuntime(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	e, err := oci.New(oci.Config{StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	spec := executortest.SpecIn(t.TempDir(), "true")
	if _, err := e.Start(t.Context(), spec, executor.IO{}); err == nil || !strings.Contains(err.Error(), "install runc") {
		t.Errorf("start: %v, want an error that says what to install", err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}
