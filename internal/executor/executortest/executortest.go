// Package executortest is what every executor must pass: one call of [Run] in
// a test of the implementation.
//
// What only a real container can show, like users, networks or denied system
// calls, is in [RunContainers].
package executortest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kiln-build/kiln/internal/executor"
)

// Open makes the executor under test, anew for each test.
type Open func(t *testing.T) executor.Executor

// Run runs the suite that any executor passes.
func Run(t *testing.T, open Open) {
	for name, test := range map[string]func(*testing.T, executor.Executor){
		"ExitCodes":      testExitCodes,
		"Output":         testOutput,
		"Stdin":          testStdin,
		"Environment":    testEnvironment,
		"Cwd":            testCwd,
		"CwdIsMade":      testCwdIsMade,
		"WritesToRoot":   testWritesToRoot,
		"BindMounts":     testBindMounts,
		"ReadOnlyMount":  testReadOnlyMount,
		"FileMount":      testFileMount,
		"ReadOnlyRoot":   testReadOnlyRoot,
		"Cancel":         testCancel,
		"CancelBefore":   testCancelBefore,
		"WaitAfterEnd":   testWaitAfterEnd,
		"WaitGivesUp":    testWaitGivesUp,
		"CloseKills":     testCloseKills,
		"Concurrent":     testConcurrent,
		"MissingProgram": testMissingProgram,
		"Exec":           testExec,
		"ExecSignal":     testExecSignal,
		"ExecEnds":       testExecEndsWithContainer,
		"BadSpec":        testBadSpec,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

// busybox is where the package busybox-static puts its program.
const busybox = "/bin/busybox"

// Root makes a root file system of a static busybox, with /bin and an empty
// /tmp and nothing else.
func Root(t testing.TB) string {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"bin", "tmp"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(root, "tmp"), 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatalf("these tests run a static busybox in containers: install the package busybox-static: %v", err)
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	list, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		t.Fatalf("list busybox's programs: %v", err)
	}
	for name := range strings.FieldsSeq(string(list)) {
		if name == "busybox" {
			continue
		}
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// Spec is a run of a shell script in a new root file system.
func Spec(t testing.TB, script string) executor.Spec {
	t.Helper()
	return SpecIn(Root(t), script)
}

// SpecIn is a run of a shell script in a root file system.
func SpecIn(root, script string) executor.Spec {
	return executor.Spec{
		ID:   "test" + strings.ToLower(rand.Text()),
		Root: root,
		Process: executor.Process{
			Args: []string{"/bin/sh", "-c", script},
			Env:  []string{"PATH=/bin"},
			Cwd:  "/",
		},
		Network: executor.NetworkNone,
	}
}

// Output is a writer that may be read while it is written to.
type Output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write appends p.
func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

// String is all that was written.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// Finish runs a spec to its end and gives its output and how it ended.
func Finish(t testing.TB, e executor.Executor, spec executor.Spec) (stdout, stderr string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var out, errOut Output
	c, err := e.Start(ctx, spec, executor.IO{Stdout: &out, Stderr: &errOut})
	if err != nil {
		return "", "", err
	}
	err = c.Wait(ctx)
	if closeErr := c.Close(); closeErr != nil {
		t.Errorf("close: %v", closeErr)
	}
	return out.String(), errOut.String(), err
}

// MustPrint runs a spec that must end well and print exactly this.
func MustPrint(t testing.TB, e executor.Executor, spec executor.Spec, want string) {
	t.Helper()
	stdout, stderr, err := Finish(t, e, spec)
	if err != nil {
		t.Fatalf("run: %v\nstderr: %s", err, stderr)
	}
	if stdout != want {
		t.Fatalf("printed %q, want %q\nstderr: %s", stdout, want, stderr)
	}
}

// exitCode is the code of an error of Wait, or -1 if it is another error.
func exitCode(err error) int {
	var exit *executor.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.Code
	}
	return -1
}

// waitFor waits for a condition that must come to be.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("waited 20 s for %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// started starts a spec and waits for it to print "up".
func started(t testing.TB, e executor.Executor, ctx context.Context, spec executor.Spec, stdin io.ReadCloser) (executor.Container, *Output) {
	t.Helper()
	out := &Output{}
	c, err := e.Start(ctx, spec, executor.IO{Stdin: stdin, Stdout: out, Stderr: out})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	waitFor(t, "the container to print", func() bool { return strings.HasPrefix(out.String(), "up") })
	return c, out
}
