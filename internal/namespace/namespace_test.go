package namespace

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// state is what a helper process tells of where it is.
type state struct {
	Info    Info
	PID     int
	UID     int
	UIDMap  string
	CapEff  string
	Home    string
	Message string // the variable, which must be gone
	Chown   string // error of giving a file to user 5
}

// TestMain makes the test program its own helper: started with "helper" it
// enters namespaces, as a daemon's main does.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "helper" {
		if err := helper(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(99)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func helper(args []string) error {
	options := Options{SingleID: os.Getenv("SINGLE_ID") != "", SharedPIDs: os.Getenv("SHARED_PIDS") != ""}
	info, err := Enter(options)
	if err != nil {
		return err
	}
	switch args[0] {
	case "state":
		return printState(info)
	case "exit":
		code, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		os.Exit(code)
	case "serve": // with a child that holds stdout open
		terminate := make(chan os.Signal, 1)
		signal.Notify(terminate, unix.SIGTERM)
		child := exec.Command("sleep", "1000")
		child.Stdout = os.Stdout
		if err := child.Start(); err != nil {
			return err
		}
		if args[1] != "" {
			if err := unix.Mount("tmpfs", args[1], "tmpfs", 0, ""); err != nil {
				return err
			}
		}
		fmt.Println("up")
		<-terminate
		os.Exit(42)
	}
	return errors.New("unknown helper")
}

func printState(info Info) error {
	uids, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return err
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	_, caps, _ := strings.Cut(string(status), "CapEff:\t")
	s := state{
		Info: info, PID: os.Getpid(), UID: os.Getuid(), Home: os.Getenv("HOME"), Message: os.Getenv(variable),
		UIDMap: strings.Join(strings.Fields(string(uids)), " "), CapEff: caps[:16],
	}
	f, err := os.CreateTemp("", "owner")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if err := f.Chown(5, 5); err != nil {
		s.Chown = err.Error()
	}
	return json.NewEncoder(os.Stdout).Encode(s)
}

// program copies this test program to where every user may run it.
func program(t *testing.T) string {
	t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(openDir(t, 0), "helper")
	if err := os.WriteFile(name, self, 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

// openDir is a folder that every user can reach, owned by one of them.
func openDir(t *testing.T, uid int) string {
	t.Helper()
	dir := t.TempDir()
	// Only its maker can enter the folder above.
	if err := errors.Join(os.Chmod(filepath.Dir(dir), 0o755), os.Chown(dir, uid, uid)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// plainUser makes a user, with subordinate ids or without, and removes it.
func plainUser(t *testing.T, name string, subordinate bool) *user.User {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test makes a user: run it as root")
	}
	mustRun(t, "useradd", "--no-create-home", "--user-group", "--key", "SUB_UID_COUNT=0", "--key", "SUB_GID_COUNT=0", name)
	t.Cleanup(func() { mustRun(t, "userdel", name) })
	if subordinate {
		mustRun(t, "usermod", "--add-subuids", "700000-765535", "--add-subgids", "700000-765535", name)
	}
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func mustRun(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s\nthese tests need the packages passwd and uidmap", name, args, err, out)
	}
}

// as makes a command run as a user.
func as(t *testing.T, u *user.User, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "HOME=/home/kept", "XDG_RUNTIME_DIR=")
	cmd.Dir = "/"
	if u == nil {
		return cmd
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	return cmd
}

func stateOf(t *testing.T, cmd *exec.Cmd) state {
	t.Helper()
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, errOut.String())
	}
	var s state
	if err := json.Unmarshal(out, &s); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if s.Message != "" {
		t.Errorf("%s is left in the environment", variable)
	}
	if s.Home != "/home/kept" {
		t.Errorf("HOME is %q", s.Home)
	}
	if s.UID != 0 {
		t.Errorf("the inner user id is %d", s.UID)
	}
	return s
}

func TestRoot(t *testing.T) {
	s := stateOf(t, as(t, nil, program(t), "helper", "state"))
	if s.Info.Rootless || s.Info.SingleID || !s.Info.OwnPIDs || s.PID != 1 || len(s.Info.Notices) > 0 {
		t.Errorf("%+v", s)
	}
	cmd := as(t, nil, program(t), "helper", "state")
	cmd.Env = append(cmd.Env, "SHARED_PIDS=1")
	if s := stateOf(t, cmd); s.Info.OwnPIDs || s.PID == 1 {
		t.Errorf("with shared PIDs: %+v", s)
	}
}

func TestPlainUserWithSubordinateIDs(t *testing.T) {
	u := plainUser(t, "kilntestsub", true)
	s := stateOf(t, as(t, u, program(t), "helper", "state"))
	if want := "0 " + u.Uid + " 1 1 700000 65536"; s.UIDMap != want {
		t.Errorf("ids are mapped %s, want %s", s.UIDMap, want)
	}
	if !s.Info.Rootless || s.Info.SingleID || s.PID != 1 || strconv.Itoa(s.Info.UID) != u.Uid || len(s.Info.Notices) > 0 {
		t.Errorf("%+v", s)
	}
	if caps, err := strconv.ParseUint(s.CapEff, 16, 64); err != nil || caps&(1<<unix.CAP_SYS_ADMIN) == 0 || caps&(1<<unix.CAP_SYS_RESOURCE) == 0 {
		t.Errorf("capabilities %s (%v), want all", s.CapEff, err)
	}
	if s.Chown != "" {
		t.Errorf("chown: %s", s.Chown)
	}
	cmd := as(t, u, program(t), "helper", "state")
	cmd.Env = append(cmd.Env, "SINGLE_ID=1")
	if s := stateOf(t, cmd); !s.Info.SingleID || s.UIDMap != "0 "+u.Uid+" 1" {
		t.Errorf("with one id: %+v", s)
	}
}

func TestPlainUserWithOneID(t *testing.T) {
	u := plainUser(t, "kilntestone", false)
	s := stateOf(t, as(t, u, program(t), "helper", "state"))
	if want := "0 " + u.Uid + " 1"; s.UIDMap != want {
		t.Errorf("ids are mapped %s, want %s", s.UIDMap, want)
	}
	if !s.Info.Rootless || !s.Info.SingleID || s.PID != 1 {
		t.Errorf("%+v", s)
	}
	if len(s.Info.Notices) != 1 || !strings.Contains(s.Info.Notices[0], "/etc/subuid") || !strings.Contains(s.Info.Notices[0], "kilntestone") {
		t.Errorf("notices: %q, want one that names the file and the user", s.Info.Notices)
	}
	if s.Chown == "" {
		t.Error("a file was given to a user that is not mapped")
	}
}

func TestExitCode(t *testing.T) {
	helper := program(t)
	for _, code := range []int{0, 1, 17, 255} {
		cmd := as(t, nil, helper, "helper", "exit", strconv.Itoa(code))
		if err := cmd.Run(); cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != code {
			t.Errorf("exit %d: %v", code, err)
		}
	}
}

// serve starts a helper that goes on, and gives the rest of its output.
func serve(t *testing.T, u *user.User, mount string) (*exec.Cmd, io.Reader) {
	t.Helper()
	cmd := as(t, u, program(t), "helper", "serve", mount)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	cmd.Stdout, cmd.Stderr = w, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	up := make([]byte, 3)
	if _, err := io.ReadFull(r, up); err != nil || string(up) != "up\n" {
		t.Fatalf("the helper did not come up: %q %v", up, err)
	}
	return cmd, r
}

// allGone checks that nobody holds a helper's output any more: not the outer
// process, the inner one or its child.
func allGone(t *testing.T, out io.Reader) {
	t.Helper()
	end := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, out)
		end <- err
	}()
	select {
	case err := <-end:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(2 * time.Minute):
		t.Error("a process is left")
	}
}

func TestSignalIsPassedOn(t *testing.T) {
	dir := t.TempDir()
	cmd, out := serve(t, nil, dir)
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), dir) {
		t.Errorf("the inner mount is seen outside (%v)", err)
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 42 {
		t.Errorf("ended with %v, want the code of the inner handler, 42", err)
	}
	allGone(t, out)
}

func TestKillOuter(t *testing.T) {
	for name, u := range map[string]*user.User{"root": nil, "user": plainUser(t, "kilntestkill", true)} {
		t.Run(name, func(t *testing.T) {
			cmd, out := serve(t, u, "")
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err == nil {
				t.Error("a killed process ended well")
			}
			allGone(t, out)
		})
	}
}

func TestKillInner(t *testing.T) {
	cmd, out := serve(t, nil, "")
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(children)))
	if err != nil {
		t.Fatalf("the outer process has children %q: %v", children, err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 137 {
		t.Errorf("ended with %v, want 137", err)
	}
	allGone(t, out)
}

// TestContainer runs a real container in the namespaces of each kind of user.
func TestContainer(t *testing.T) {
	runtime := runtimeForTest(t)
	bin := filepath.Join(openDir(t, 0), "runcontainer")
	if out, err := exec.Command("go", "build", "-o", bin, "./testdata/runcontainer").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	shipped := filepath.Join(filepath.Dir(bin), "runtime")
	mustRun(t, "cp", runtime, shipped)
	mustRun(t, "chmod", "0755", shipped)
	const script = "busybox id -u; busybox cat /etc/hosts | busybox wc -l; busybox touch /made; busybox chown 5 /made || echo one id; exit 6"
	for name, c := range map[string]struct {
		user *user.User
		want string
	}{
		"root":   {nil, "0\n2\n"},
		"ids":    {plainUser(t, "kilntestids", true), "0\n2\n"},
		"one id": {plainUser(t, "kilntestalone", false), "0\n2\none id\n"},
	} {
		t.Run(name, func(t *testing.T) {
			uid := 0
			if c.user != nil {
				uid, _ = strconv.Atoi(c.user.Uid)
			}
			dir := openDir(t, uid)
			cmd := as(t, c.user, bin, dir, shipped, script)
			var errOut bytes.Buffer
			cmd.Stderr = &errOut
			out, err := cmd.Output()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 6 || string(out) != c.want {
				t.Errorf("ended with %v and printed %q, want exit code 6 and %q\n%s", err, out, c.want, errOut.String())
			}
			if hasHost := strings.Contains(errOut.String(), "host's network"); hasHost != (c.user != nil) {
				t.Errorf("said of the network: %q", errOut.String())
			}
			left, err := os.ReadDir(filepath.Join(dir, "state"))
			if err != nil || len(left) > 0 {
				t.Errorf("the state directory holds %v (%v)", left, err)
			}
		})
	}
}

// runtimeForTest finds a container runtime: KILN_RUNTIME, what make built, or
// runc on PATH.
func runtimeForTest(t *testing.T) string {
	t.Helper()
	if named := os.Getenv("KILN_RUNTIME"); named != "" {
		return named
	}
	if built, err := filepath.Abs("../../bin/kiln-runc"); err == nil {
		if _, err := os.Stat(built); err == nil {
			return built
		}
	}
	path, err := exec.LookPath("runc")
	if err != nil {
		t.Fatal("this test runs containers: build bin/kiln-runc with make, install runc, or name a runtime in KILN_RUNTIME")
	}
	return path
}

func TestEndedChildren(t *testing.T) {
	child := exec.Command("true")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	pid := child.Process.Pid
	end := time.Now().Add(2 * time.Minute)
	for !endedChildren("/proc", os.Getpid())[pid] {
		if time.Now().After(end) {
			t.Fatal("an ended child is not seen")
		}
		time.Sleep(time.Millisecond)
	}
	if err := child.Wait(); err != nil {
		t.Fatal(err)
	}
	if endedChildren("/proc", os.Getpid())[pid] {
		t.Error("a child that was waited for is seen")
	}
}

func TestParseSubordinate(t *testing.T) {
	const text = "other:1:2\nme:100000:65536\n# me:5:5\n1000:300000:10\n"
	got, err := parseSubordinate(strings.NewReader(text), []string{"1000", "me"})
	if err != nil || fmt.Sprint(got) != "[{100000 65536} {300000 10}]" {
		t.Errorf("%v %v", got, err)
	}
	for _, bad := range []string{"me:x:1", "me:1:0", "me:1:-4", "me:1:99999999999"} {
		if got, err := parseSubordinate(strings.NewReader(bad), []string{"me"}); err == nil {
			t.Errorf("%q was read as %v", bad, got)
		}
	}
}
