package executortest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kiln-build/kiln/internal/executor"
)

func testExitCodes(t *testing.T, e executor.Executor) {
	root := Root(t)
	for script, want := range map[string]int{"true": 0, "false": 1, "exit 3": 3, "exit 255": 255, "true; false": 1, "false; true": 0} {
		_, _, err := Finish(t, e, SpecIn(root, script))
		if got := exitCode(err); got != want {
			t.Errorf("%q ended with %d (%v), want %d", script, got, err, want)
		}
	}
}

func testOutput(t *testing.T, e executor.Executor) {
	stdout, stderr, err := Finish(t, e, Spec(t, "echo one; echo two >&2; echo three"))
	if err != nil {
		t.Fatal(err)
	}
	if stdout != "one\nthree\n" || stderr != "two\n" {
		t.Errorf("stdout %q, stderr %q", stdout, stderr)
	}
}

func testStdin(t *testing.T, e executor.Executor) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var out Output
	stdin := io.NopCloser(strings.NewReader("from the client\n"))
	c, err := e.Start(ctx, Spec(t, "cat"), executor.IO{Stdin: stdin, Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); got != "from the client\n" {
		t.Errorf("printed %q", got)
	}
	MustPrint(t, e, Spec(t, "cat; echo end"), "end\n") // nothing to read is an end, not a wait
}

func testEnvironment(t *testing.T, e executor.Executor) {
	spec := Spec(t, `echo "$A-$B-${DAEMON:-none}"`)
	spec.Process.Env = append(spec.Process.Env, "A=1", "B=two words")
	t.Setenv("DAEMON", "leaked") // CVE-2021-3602
	MustPrint(t, e, spec, "1-two words-none\n")
}

func testCwd(t *testing.T, e executor.Executor) {
	spec := Spec(t, "pwd; echo here > file")
	spec.Process.Cwd = "/tmp"
	MustPrint(t, e, spec, "/tmp\n")
	mustRead(t, filepath.Join(spec.Root, "tmp/file"), "here\n")
}

func testCwdIsMade(t *testing.T, e executor.Executor) {
	spec := Spec(t, "pwd")
	spec.Process.Cwd = "/srv/app"
	MustPrint(t, e, spec, "/srv/app\n")
	if info, err := os.Stat(filepath.Join(spec.Root, "srv/app")); err != nil || !info.IsDir() {
		t.Errorf("the working directory is not there afterwards: %v", err)
	}
}

func testWritesToRoot(t *testing.T, e executor.Executor) {
	spec := Spec(t, "mkdir -p /a/b; echo text > /a/b/file; chmod 600 /a/b/file; ln -s file /a/b/link; cp /a/b/file /a/copy; mv /a/copy /a/moved; rm /a/b/link")
	MustPrint(t, e, spec, "")
	mustRead(t, filepath.Join(spec.Root, "a/b/file"), "text\n")
	mustRead(t, filepath.Join(spec.Root, "a/moved"), "text\n")
	if info, err := os.Stat(filepath.Join(spec.Root, "a/b/file")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode: %v %v", info, err)
	}
	if _, err := os.Lstat(filepath.Join(spec.Root, "a/b/link")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the removed link: %v", err)
	}
}

func testBindMounts(t *testing.T, e executor.Executor) {
	spec := Spec(t, "cat /data/in; echo out > /data/out; cat /data/inner/deep")
	outer, inner := t.TempDir(), t.TempDir()
	mustWrite(t, filepath.Join(outer, "in"), "in\n")
	mustWrite(t, filepath.Join(inner, "deep"), "deep\n")
	spec.Mounts = []executor.Mount{
		{Type: "bind", Source: outer, Dest: "/data"},
		{Type: "bind", Source: inner, Dest: "/data/inner"},
	}
	MustPrint(t, e, spec, "in\ndeep\n")
	mustRead(t, filepath.Join(outer, "out"), "out\n")
	if _, err := os.Lstat(filepath.Join(spec.Root, "data")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the mount point is left in the root file system: %v", err)
	}
}

func testReadOnlyMount(t *testing.T, e executor.Executor) {
	spec := Spec(t, "cat /data/in; echo out > /data/out")
	source := t.TempDir()
	mustWrite(t, filepath.Join(source, "in"), "in\n")
	spec.Mounts = []executor.Mount{{Type: "bind", Source: source, Dest: "/data", ReadOnly: true}}
	stdout, stderr, err := Finish(t, e, spec)
	if exitCode(err) != 1 || stdout != "in\n" || !strings.Contains(strings.ToLower(stderr), "read-only") {
		t.Errorf("ended with %v, printed %q and %q; want exit code 1 for a read-only file system", err, stdout, stderr)
	}
	if entries, err := os.ReadDir(source); err != nil || len(entries) != 1 {
		t.Errorf("the source holds %v (%v)", entries, err)
	}
}

func testFileMount(t *testing.T, e executor.Executor) {
	spec := Spec(t, "cat /run/secrets/token")
	secret := filepath.Join(t.TempDir(), "secret")
	mustWrite(t, secret, "hush")
	spec.Mounts = []executor.Mount{{Type: "bind", Source: secret, Dest: "/run/secrets/token", ReadOnly: true}}
	MustPrint(t, e, spec, "hush")
	handle, err := os.Open(secret)
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	spec = SpecIn(spec.Root, "cat /run/secrets/token")
	spec.Mounts = []executor.Mount{{Type: "bind", Source: fmt.Sprintf("/proc/self/fd/%d", handle.Fd()), Dest: "/run/secrets/token"}}
	MustPrint(t, e, spec, "hush")
	if _, err := os.Lstat(filepath.Join(spec.Root, "run")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the mount point's folder is left: %v", err)
	}
}

func testReadOnlyRoot(t *testing.T, e executor.Executor) {
	spec := Spec(t, "echo text > /file")
	spec.ReadOnlyRoot = true
	_, stderr, err := Finish(t, e, spec)
	if exitCode(err) != 1 || !strings.Contains(strings.ToLower(stderr), "read-only") {
		t.Errorf("ended with %v and %q, want exit code 1 for a read-only file system", err, stderr)
	}
}

func testCancel(t *testing.T, e executor.Executor) {
	reason := errors.New("the client left")
	ctx, cancel := context.WithCancelCause(context.Background())
	c, _ := started(t, e, ctx, Spec(t, "echo up; sleep 1000; echo never"), nil)
	begin := time.Now()
	cancel(reason)
	if err := c.Wait(context.Background()); !errors.Is(err, reason) {
		t.Errorf("ended with %v, want the reason of the cancel", err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("took %v to end", took)
	}
	if err := c.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

func testCancelBefore(t *testing.T, e executor.Executor) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	c, err := e.Start(ctx, Spec(t, "sleep 1000"), executor.IO{})
	if err == nil {
		err = c.Wait(context.Background())
		c.Close()
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v, want %v", err, context.Canceled)
	}
}

func testWaitAfterEnd(t *testing.T, e executor.Executor) {
	ctx := context.Background()
	c, err := e.Start(ctx, Spec(t, "exit 7"), executor.IO{})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := c.Wait(ctx); exitCode(err) != 7 {
			t.Errorf("wait: %v, want exit code 7", err)
		}
	}
	for range 2 {
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	if err := c.Wait(ctx); exitCode(err) != 7 {
		t.Errorf("wait after close: %v, want exit code 7", err)
	}
	if err := c.Signal(ctx, 15); err != nil {
		t.Errorf("signal after the end: %v", err)
	}
}

func testWaitGivesUp(t *testing.T, e executor.Executor) {
	c, _ := started(t, e, context.Background(), Spec(t, "echo up; sleep 1000"), nil)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := c.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait: %v, want %v", err, context.DeadlineExceeded)
	}
}

func testCloseKills(t *testing.T, e executor.Executor) {
	spec := Spec(t, "echo up; sleep 1000")
	c, _ := started(t, e, context.Background(), spec, nil)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(context.Background()); err == nil {
		t.Error("a killed container ended well")
	}
	again := SpecIn(spec.Root, "echo again")
	again.ID = spec.ID
	MustPrint(t, e, again, "again\n")
}

func testConcurrent(t *testing.T, e executor.Executor) {
	root := Root(t)
	var runs sync.WaitGroup
	for n := range 8 {
		runs.Go(func() {
			stdout, stderr, err := Finish(t, e, SpecIn(root, fmt.Sprintf("echo %d; exit %d", n, n)))
			if exitCode(err) != n || stdout != fmt.Sprintf("%d\n", n) {
				t.Errorf("run %d ended with %v and printed %q, %q", n, err, stdout, stderr)
			}
		})
	}
	runs.Wait()
}

func testMissingProgram(t *testing.T, e executor.Executor) {
	spec := Spec(t, "")
	spec.Process.Args = []string{"/bin/no-such-program"}
	_, _, err := Finish(t, e, spec)
	var start *executor.StartError
	if !errors.As(err, &start) || !strings.Contains(start.Reason, "no-such-program") {
		t.Errorf("ended with %v, want an error of the start that names the program", err)
	}
	if exitCode(err) != 1 {
		t.Errorf("ended with %v, want exit code 1, which is the runtime's", err)
	}
	_, stderr, err := Finish(t, e, Spec(t, "no-such-program"))
	if exitCode(err) != 127 || !strings.Contains(stderr, "no-such-program") {
		t.Errorf("in a shell: ended with %v and %q, want exit code 127", err, stderr)
	}
}

func testExec(t *testing.T, e executor.Executor) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, _ := started(t, e, ctx, Spec(t, "echo up; sleep 1000"), nil)
	var out Output
	process := executor.Process{Args: []string{"/bin/sh", "-c", `echo "second $X"; exit 4`}, Env: []string{"PATH=/bin", "X=y"}, Cwd: "/"}
	if err := execute(t, c, ctx, process, executor.IO{Stdout: &out}); exitCode(err) != 4 || out.String() != "second y\n" {
		t.Errorf("ended with %v and printed %q", err, out.String())
	}
	short, stop := context.WithTimeout(ctx, 100*time.Millisecond)
	defer stop()
	process.Args = []string{"/bin/sleep", "1000"}
	if err := execute(t, c, short, process, executor.IO{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a cancelled process ended with %v, want %v", err, context.DeadlineExceeded)
	}
	process.Args = []string{"/bin/cat"}
	stdin := io.NopCloser(strings.NewReader("typed\n"))
	var echo Output
	if err := execute(t, c, ctx, process, executor.IO{Stdin: stdin, Stdout: &echo}); err != nil || echo.String() != "typed\n" {
		t.Errorf("a process with input ended with %v and printed %q", err, echo.String())
	}
}

// testExecSignal: signals reach the process that they are for.
func testExecSignal(t *testing.T, e executor.Executor) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, _ := started(t, e, ctx, Spec(t, "echo up; sleep 1000"), nil)
	process := executor.Process{Args: []string{"/bin/sleep", "1000"}, Env: []string{"PATH=/bin"}, Cwd: "/"}
	task, err := c.Exec(ctx, process, executor.IO{})
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Signal(ctx, 9); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := task.Wait(ctx); exitCode(err) != 137 {
			t.Errorf("a killed process ended with %v, want exit code 137", err)
		}
	}
	if err := task.Signal(ctx, 9); err != nil {
		t.Errorf("signal after the end: %v", err)
	}
	process.Args = []string{"/bin/true"}
	if err := execute(t, c, ctx, process, executor.IO{}); err != nil {
		t.Errorf("the container has ended too: %v", err)
	}
}

// testExecEndsWithContainer: further processes are killed when the first ends,
// and none is started after it.
func testExecEndsWithContainer(t *testing.T, e executor.Executor) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, w := io.Pipe()
	c, _ := started(t, e, ctx, Spec(t, "echo up; read line"), r)
	process := executor.Process{Args: []string{"/bin/sleep", "1000"}, Env: []string{"PATH=/bin"}, Cwd: "/"}
	task, err := c.Exec(ctx, process, executor.IO{})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(w, "go")
	if err := task.Wait(ctx); exitCode(err) != 137 {
		t.Errorf("a process whose container ended: %v, want exit code 137", err)
	}
	if err := c.Wait(ctx); err != nil {
		t.Errorf("the first process: %v", err)
	}
	if _, err := c.Exec(ctx, process, executor.IO{}); err == nil {
		t.Error("a process was started in a container that has ended")
	}
}

// execute runs a further process to its end.
func execute(t testing.TB, c executor.Container, ctx context.Context, p executor.Process, stdio executor.IO) error {
	t.Helper()
	task, err := c.Exec(ctx, p, stdio)
	if err != nil {
		return err
	}
	return task.Wait(context.WithoutCancel(ctx))
}

func testBadSpec(t *testing.T, e executor.Executor) {
	root := Root(t)
	for name, change := range map[string]func(*executor.Spec){
		"identifier that leads elsewhere": func(s *executor.Spec) { s.ID = "../../x" },
		"empty identifier":                func(s *executor.Spec) { s.ID = "" },
		"no program":                      func(s *executor.Spec) { s.Process.Args = nil },
		"relative working directory":      func(s *executor.Spec) { s.Process.Cwd = "tmp" },
		"missing root":                    func(s *executor.Spec) { s.Root = filepath.Join(root, "none") },
		"unknown network":                 func(s *executor.Spec) { s.Network = 9 },
		"unknown kind of mount":           func(s *executor.Spec) { s.Mounts = []executor.Mount{{Type: "overlay", Dest: "/x"}} },
		"mount over the root":             func(s *executor.Spec) { s.Mounts = []executor.Mount{{Type: "bind", Source: root, Dest: "/"}} },
		"missing mount source": func(s *executor.Spec) {
			s.Mounts = []executor.Mount{{Type: "bind", Source: root + "/none", Dest: "/x"}}
		},
	} {
		spec := SpecIn(root, "echo ran")
		change(&spec)
		if stdout, _, err := Finish(t, e, spec); exitCode(err) != -1 || stdout != "" {
			t.Errorf("%s: ended with %v and printed %q, want an error before the start", name, err, stdout)
		}
	}
	if _, err := os.Lstat(filepath.Join(root, "x")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a mount point is left of what did not start: %v", err)
	}
}

func mustWrite(t testing.TB, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func mustRead(t testing.TB, name, want string) {
	t.Helper()
	if got, err := os.ReadFile(name); err != nil || string(got) != want {
		t.Errorf("%s: %q (%v), want %q", name, got, err, want)
	}
}
