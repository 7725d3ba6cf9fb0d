package layer

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// Inside a user namespace there are no trusted attributes: overlay keeps its
// marks in others, and all must come to the same.
func TestInsideUserNamespace(t *testing.T) {
	const inside = "KILN_TEST_INSIDE"
	if os.Getenv(inside) != "" {
		w := newWorld(t, "overlayfs")
		if !w.snaps.UserXattr {
			t.Error("overlay uses trusted attributes in a user namespace")
		}
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.v", "-test.run",
		"^(TestInsideUserNamespace|TestStepsStack|TestMerge.*|TestDiff.*|TestBlobsTellOpaqueDirectories|TestWhiteoutsMeanBelow|TestMutableLife|TestMountIsReadOnlyAndShared)$")
	cmd.Env = append(os.Environ(), inside+"=1")
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 65536}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS, UidMappings: ids, GidMappings: ids,
	}
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Count(string(out), "--- PASS: Test") < 10 {
		t.Errorf("%v:\n%s", err, out)
	}
}
