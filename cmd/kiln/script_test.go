package main

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// programs is a folder with kiln, built from this package, and the container
// runtime beside it, as they are installed.
var programs = sync.OnceValues(buildPrograms)

// TestMain removes what the tests have built, and refuses to be a daemon.
func TestMain(m *testing.M) {
	// kiln starts its daemon as the program that it is itself. Here that is these
	// tests, all of them, and each such start would start more.
	if len(os.Args) > 1 && os.Args[1] == "daemon" {
		fmt.Fprintln(os.Stderr, "a test was to start no daemon, and did")
		os.Exit(1)
	}
	code := m.Run()
	if dir, err := programs(); err == nil {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

func buildPrograms() (string, error) {
	runtime, err := exec.LookPath("runc")
	if err != nil {
		if runtime, err = exec.LookPath(filepath.Join("..", "..", "bin", "kiln-runc")); err != nil {
			return "", fmt.Errorf("the tests need a container runtime, which `make build` builds: %w", err)
		}
	}
	if runtime, err = filepath.EvalSymlinks(runtime); err != nil {
		return "", err
	}
	text, err := os.ReadFile(runtime)
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "kiln-test-")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // other users run them too
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "kiln-runc"), text, 0o755); err != nil {
		return "", err
	}
	for _, name := range []string{"buildkitd", "buildctl"} {
		if err := os.Symlink("kiln", filepath.Join(dir, name)); err != nil {
			return "", err
		}
	}
	// The same flags as those of `make build`, for whatever they change is compiled anew.
	cmd := exec.Command("go", "build", "-trimpath", "-tags="+buildTags, "-ldflags=-s -w", "-o", filepath.Join(dir, "kiln"), ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build kiln: %w: %s", err, out)
	}
	return dir, nil
}

// TestScripts runs every script twice: with scripts interpreted in the daemon,
// which needs no rights, and with real containers.
func TestScripts(t *testing.T) {
	for _, executor := range []string{"fake", "oci"} {
		t.Run(executor, func(t *testing.T) {
			t.Parallel()
			testscript.Run(t, testscript.Params{
				Dir:                 "testdata",
				RequireUniqueNames:  true,
				RequireExplicitExec: true,
				Setup:               func(env *testscript.Env) error { return setUpScript(t, env, executor) },
				Cmds:                scriptCommands(),
				Condition: func(name string) (bool, error) {
					if name == "fake" || name == "oci" {
						return name == executor, nil
					}
					return false, fmt.Errorf("unknown condition %q", name)
				},
			})
		})
	}
}

// setUpScript gives a script a daemon's address and a base image. The daemon is
// started by the script's line "daemon".
func setUpScript(t *testing.T, env *testscript.Env, executor string) error {
	bin, err := programs()
	if err != nil {
		return err
	}
	layout, err := baseImage(t)
	if err != nil {
		return err
	}
	run, err := os.MkdirTemp("", "kiln-run-") // short, as a socket's path must be
	if err != nil {
		return err
	}
	for k, v := range map[string]string{
		"PATH": bin + ":" + os.Getenv("PATH"), "BASE": layout, "RUN": run, "ROOT": filepath.Join(run, "root"),
		"EXECUTOR": executor, "KILN_HOST": "unix://" + run + "/sock", "HOME": run, "TMPDIR": run,
		"XDG_RUNTIME_DIR": run, "DOCKER_CONFIG": run,
	} {
		env.Setenv(k, v)
	}
	s := &scriptState{run: run}
	env.Values[stateKey{}] = s
	env.Defer(func() { s.close(env.T()) })
	return nil
}

// stateKey finds a script's scriptState.
type stateKey struct{}

// scriptState is what a script has running.
type scriptState struct {
	run    string // a folder of its own
	dir    string // where its daemons start; "" for here
	flags  []string
	daemon *exec.Cmd
	undo   []func() error
	places map[string]*lossy // servers, by name
}

func state(ts *testscript.TestScript) *scriptState {
	return ts.Value(stateKey{}).(*scriptState)
}

// close ends a script's daemon and checks that nothing of it is left.
func (s *scriptState) close(t testscript.T) {
	if err := s.stop(); err != nil {
		t.Log("stop daemon:", err)
	}
	// A script that fails does not come to stop a daemon that it has had started.
	root := filepath.Join(s.run, "root")
	if len(daemonsOf(root)) > 0 {
		if err := stopDaemonsOf(root); err != nil {
			t.Log(err)
		}
	}
	if left := leftovers(s.run, nil); len(left) > 0 {
		t.Log("left behind after the daemon's end:", strings.Join(left, "\n"))
		defer t.FailNow()
	}
	for i := len(s.undo) - 1; i >= 0; i-- {
		if err := s.undo[i](); err != nil {
			t.Log(err)
			defer t.FailNow()
		}
	}
	if err := os.RemoveAll(s.run); err != nil {
		t.Log("remove the script's folder:", err)
		defer t.FailNow()
	}
}

// stop ends the daemon as a service manager does.
func (s *scriptState) stop() error {
	if s.daemon == nil {
		return nil
	}
	cmd := s.daemon
	s.daemon = nil
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		return err
	}
	timer := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() }) // its end shows in Wait
	defer timer.Stop()
	return cmd.Wait()
}

// leftovers lists what builds have left: mounts below dir/root, in whatever
// namespace, and processes that daemon has started. The daemon and its own
// double are none.
func leftovers(dir string, daemon *exec.Cmd) (left []string) {
	family := map[string]bool{}
	if daemon != nil {
		family[fmt.Sprint(daemon.Process.Pid)] = true
	}
	seen := map[string]bool{} // mount namespaces
	for _, p := range processes() {
		if family[p.parent] {
			family[p.pid] = true
			if !strings.Contains(p.command, "kiln daemon ") {
				left = append(left, "process "+p.pid+" "+p.command)
			}
		}
		namespace, err := os.Readlink(filepath.Join("/proc", p.pid, "ns/mnt"))
		if err != nil || seen[namespace] {
			continue
		}
		seen[namespace] = true
		mounts, err := os.ReadFile(filepath.Join("/proc", p.pid, "mountinfo"))
		if err != nil {
			continue // it has ended
		}
		for line := range strings.Lines(string(mounts)) {
			if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/root/") {
				left = append(left, "mount "+fields[4])
			}
		}
	}
	return left
}

type process struct{ pid, parent, command string }

// processes lists what runs on this machine, parents before their children.
func processes() (list []process) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || len(text) == 0 {
			continue // no process, one of the kernel's, or one that has ended
		}
		stat, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue
		}
		// The name, in parentheses, may hold blanks; the parent is the second field after it.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		list = append(list, process{e.Name(), fields[1], strings.TrimSpace(strings.ReplaceAll(string(text), "\x00", " "))})
	}
	slices.SortFunc(list, func(a, b process) int { return cmp.Or(cmp.Compare(len(a.pid), len(b.pid)), cmp.Compare(a.pid, b.pid)) })
	return list
}

var base struct {
	once   sync.Once
	layout string
	err    error
}

// baseImage returns an OCI layout of busybox, built once by kiln itself.
func baseImage(t *testing.T) (string, error) {
	base.once.Do(func() { base.layout, base.err = buildBase(t) })
	return base.layout, base.err
}

func buildBase(t *testing.T) (_ string, err error) {
	bin, err := programs()
	if err != nil {
		return "", err
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return "", fmt.Errorf("the base image is made of busybox, which scripts/setup installs: %w", err)
	}
	text, err := os.ReadFile(busybox)
	if err != nil {
		return "", err
	}
	context, layout := filepath.Join(bin, "context"), filepath.Join(bin, "base")
	dockerfile := "FROM scratch\nCOPY busybox /bin/busybox\nENV PATH=/bin\n" +
		"RUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\nRUN mkdir -m 1777 /tmp\n"
	for _, dir := range []string{context, layout} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", err
		}
	}
	if err := os.WriteFile(filepath.Join(context, "busybox"), text, 0o755); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(context, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
		return "", err
	}
	s := &scriptState{run: bin}
	env := append(os.Environ(), "KILN_HOST=unix://"+bin+"/sock")
	if err := s.start(filepath.Join(bin, "kiln"), env, "oci"); err != nil {
		return "", err
	}
	defer func() {
		if e := s.stop(); err == nil {
			err = e
		}
	}()
	archive := filepath.Join(bin, "base.tar")
	for _, args := range [][]string{
		{filepath.Join(bin, "kiln"), "build", "--progress=plain", "-o", "type=oci,dest=" + archive, context},
		{"tar", "-xf", archive, "-C", layout},
	} {
		cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
		cmd.Env = env
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build base image: %w: %s", err, out)
		}
	}
	return layout, nil
}

// start starts a daemon on the folder's root and waits for its socket.
func (s *scriptState) start(kiln string, env []string, executor string, flags ...string) error {
	socket := filepath.Join(s.run, "sock")
	args := append([]string{"daemon", "--root", filepath.Join(s.run, "root"), "--addr", "unix://" + socket, "--executor", executor, "--idle-timeout", "30m"}, slices.Concat(s.flags, flags)...) // none outlives a killed test for ever
	log, err := os.OpenFile(filepath.Join(s.run, "daemon.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(kiln, args...)
	cmd.Env, cmd.Dir = env, s.dir
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	s.daemon = cmd
	for range 1000 {
		probe := exec.Command(kiln, "du")
		probe.Env = env
		if probe.Run() == nil {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	text, _ := os.ReadFile(log.Name())
	return fmt.Errorf("the daemon did not answer: %s", text)
}
