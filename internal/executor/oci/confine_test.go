package oci

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/internal/executor/executortest"
)

// TestSharedProcesses: a container without process ids of its own is in the
// test's namespace, and sees the test.
func TestSharedProcesses(t *testing.T) {
	own, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	for shared, want := range map[bool]bool{true: true, false: false} {
		e := openTest(t, Config{SharedProcesses: shared})
		stdout, stderr, err := executortest.Finish(t, e, executortest.Spec(t, "readlink /proc/self/ns/pid"))
		if err != nil {
			t.Fatalf("shared %v: %v\n%s", shared, err, stderr)
		}
		if got := strings.TrimSpace(stdout) == own; got != want {
			t.Errorf("shared %v: the container is in %s, the test in %s", shared, stdout, own)
		}
	}
}

// TestProfile: a profile holds all but those that are granted everything.
func TestProfile(t *testing.T) {
	e := openTest(t, Config{AppArmor: "some-profile", SharedProcesses: true})
	for insecure, want := range map[bool]string{false: "some-profile", true: ""} {
		spec := executortest.Spec(t, "true")
		spec.Insecure = insecure
		out, err := e.ociSpec(spec, etcPaths{}, "")
		if err != nil {
			t.Fatal(err)
		}
		if out.Process.ApparmorProfile != want {
			t.Errorf("insecure %v: the profile is %q, want %q", insecure, out.Process.ApparmorProfile, want)
		}
		hidden := slices.Concat(out.Linux.MaskedPaths, out.Linux.ReadonlyPaths)
		if slices.ContainsFunc(hidden, func(p string) bool { return strings.HasPrefix(p, "/proc/") }) {
			t.Errorf("insecure %v: parts of a shared /proc are hidden: %v", insecure, hidden)
		}
	}
}
