package oci_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/kiln-build/kiln/internal/executor"
	"github.com/kiln-build/kiln/internal/executor/executortest"
	"github.com/kiln-build/kiln/internal/executor/oci"
	"github.com/kiln-build/kiln/internal/namespace"
)

// insideVariable says that this test program is to run as a plain user's.
const insideVariable = "KILN_TEST_ROOTLESS"

// plainID is a user that the machine knows nothing of, so one without
// subordinate ids: the least that a build can have.
const plainID = 54321

// TestMain enters namespaces first where it is a plain user's, as a daemon does.
func TestMain(m *testing.M) {
	if os.Getenv(insideVariable) != "" {
		info, err := namespace.Enter(namespace.Options{})
		if err != nil || !info.Rootless || !info.SingleID {
			fmt.Fprintf(os.Stderr, "enter namespaces: %+v %v\n", info, err)
			os.Exit(99)
		}
	}
	os.Exit(m.Run())
}

// TestRootless runs the suites again as a plain user with a single id.
func TestRootless(t *testing.T) {
	if os.Getenv(insideVariable) != "" {
		rootless := func(t *testing.T) executor.Executor { return openWith(t, oci.Config{Rootless: true}) }
		t.Run("Executor", func(t *testing.T) { executortest.Run(t, rootless) })
		t.Run("Containers", func(t *testing.T) {
			executortest.RunContainers(t, rootless, executortest.Containers{Rootless: true})
		})
		t.Run("OtherUser", func(t *testing.T) { testUnmappedUser(t, rootless(t)) })
		return
	}
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // only its maker can enter it
		t.Fatal(err)
	}
	if err := os.Chown(dir, plainID, plainID); err != nil {
		t.Fatalf("this test runs as another user: run it as root: %v", err)
	}
	program, runtime := filepath.Join(dir, "program"), filepath.Join(dir, "runtime")
	copyProgram(t, "/proc/self/exe", program)
	copyProgram(t, executortest.Runtime(t), runtime)
	cmd := exec.Command(program, "-test.run=^TestRootless$", "-test.timeout=5m")
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir, "KILN_RUNTIME=" + runtime, insideVariable + "=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: plainID, Gid: plainID}}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.HasPrefix(out, []byte("PASS")) {
		t.Errorf("as a plain user: %v\n%s", err, out)
	}
}

func copyProgram(t *testing.T, from, to string) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, text, 0o755); err != nil {
		t.Fatal(err)
	}
}

// testUnmappedUser: a user that can not be had is named in the error.
func testUnmappedUser(t *testing.T, e executor.Executor) {
	spec := executortest.Spec(t, "id -u")
	spec.Process.UID = 33
	_, _, err := executortest.Finish(t, e, spec)
	if err == nil || !bytes.Contains([]byte(err.Error()), []byte("/etc/subuid")) {
		t.Errorf("ended with %v, want an error that says where ids are given", err)
	}
	spec = executortest.Spec(t, "id -u")
	spec.Limits.Memory = 1 << 30
	if _, _, err := executortest.Finish(t, e, spec); err == nil || !bytes.Contains([]byte(err.Error()), []byte("cgroups")) {
		t.Errorf("a limit without cgroups: %v, want an error that says so", err)
	}
}
