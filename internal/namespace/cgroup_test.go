package namespace

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// group makes a cgroup of version 2, which can be mounted beside version 1.
func group(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	if err := unix.Mount("cgroup2", root, "cgroup2", 0, ""); err != nil {
		t.Fatalf("mount cgroup2: %v", err)
	}
	dir := filepath.Join(root, fmt.Sprintf("kiln-test-%d", os.Getpid()))
	t.Cleanup(func() {
		for _, d := range []string{filepath.Join(dir, initGroup), dir} {
			if err := os.Remove(d); err != nil && !os.IsNotExist(err) {
				t.Error(err)
			}
		}
		if err := unix.Unmount(root, 0); err != nil {
			t.Error(err)
		}
	})
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// member starts a process in a cgroup.
func member(t *testing.T, dir string) string {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	})
	pid := fmt.Sprint(cmd.Process.Pid)
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(pid), 0); err != nil {
		t.Fatal(err)
	}
	return pid
}

func members(t *testing.T, dir string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(text))
}

// A group whose processes went one down may have limits for others.
func TestProcessesLeaveGroup(t *testing.T) {
	dir := group(t)
	if err := emptyGroup(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, initGroup)); !os.IsNotExist(err) {
		t.Errorf("a group for no process: %v", err)
	}
	want := []string{member(t, dir), member(t, dir)}
	slices.Sort(want)
	if err := emptyGroup(dir); err != nil {
		t.Fatal(err)
	}
	got := members(t, filepath.Join(dir, initGroup))
	if slices.Sort(got); len(members(t, dir)) > 0 || !slices.Equal(got, want) {
		t.Errorf("processes %q are left and %q moved, want %q moved", members(t, dir), got, want)
	}
}

// Where there is nothing to share out, processes stay where they are.
func TestGroupsThatNeedNoRoom(t *testing.T) {
	dir := group(t)
	pid := member(t, dir)
	if missing, err := missingControllers(dir); err != nil || len(missing) > 0 {
		t.Fatalf("a group below one that passes nothing on: %q %v", missing, err)
	}
	for _, root := range []string{dir, filepath.Dir(dir), t.TempDir(), filepath.Join(t.TempDir(), "none")} {
		if err := shareCgroups(root); err != nil {
			t.Errorf("%s: %v", root, err)
		}
	}
	if got := members(t, dir); !slices.Equal(got, []string{pid}) {
		t.Errorf("processes %q, want %s", got, pid)
	}
}

func TestControllers(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"cgroup.controllers": "cpuset cpu io memory pids\n", "cgroup.subtree_control": "cpu pids\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	missing, err := missingControllers(dir)
	if err != nil || !slices.Equal(missing, []string{"cpuset", "io", "memory"}) {
		t.Errorf("missing %q %v", missing, err)
	}
	real := group(t)
	if err := enableControllers(real, []string{"nonsense", "neither"}); err == nil || !strings.Contains(err.Error(), "limit nonsense") ||
		!strings.Contains(err.Error(), "limit neither") {
		t.Errorf("controllers that there are not: %v", err)
	}
}
