package executortest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kiln-build/kiln/internal/executor"
)

// Containers says what the machine and the way the executor was opened allow.
type Containers struct {
	Rootless bool // no cgroups, no other user than root, the host's network
}

// RunContainers runs what executors of real containers pass.
func RunContainers(t *testing.T, open Open, has Containers) {
	tests := map[string]func(*testing.T, executor.Executor){
		"System":        testSystem,
		"Stubs":         testStubs,
		"StubEscape":    testStubEscape,
		"DanglingLink":  testDanglingLink,
		"TmpfsMount":    testTmpfsMount,
		"MountOptions":  testMountOptions,
		"Signals":       testSignals,
		"Terminal":      testTerminal,
		"ExecTerminal":  testExecTerminal,
		"Capabilities":  testCapabilities,
		"Seccomp":       testSeccomp,
		"Hosts":         testHosts,
		"Hostname":      testHostname,
		"Rlimits":       testRlimits,
		"NetworkNone":   testNetworkNone,
		"LeakedHandles": testLeakedHandles,
		"Background":    testBackground,
		"Proxy":         func(t *testing.T, e executor.Executor) { testProxy(t, e, has.Rootless) },
		"ProxyExec":     testProxyExec,
	}
	if !has.Rootless {
		tests["User"] = testUser
		tests["NetworkSandbox"] = testNetworkSandbox
		tests["NetworkHost"] = testNetworkHost
		tests["ResolvConf"] = testResolvConf
		tests["OutOfMemory"] = testOutOfMemory
		tests["Limits"] = testLimits
		tests["CgroupParent"] = testCgroupParent
		tests["Insecure"] = testInsecure
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

func testSystem(t *testing.T, e executor.Executor) {
	MustPrint(t, e, Spec(t, `
set -e
test "$(cat /proc/1/comm)" = sh
test -c /dev/null && test -c /dev/urandom && test -d /dev/pts && test -d /dev/shm && test -d /dev/mqueue
echo x > /dev/null; echo x > /dev/shm/x; echo x > /dev/stdout
test -d /sys/class
! (echo x > /sys/x) 2>/dev/null
! (echo 1 > /proc/sys/kernel/sysrq) 2>/dev/null
test -z "$(head -c 10 /proc/kcore)"
echo ok`), "x\nok\n")
}

// testStubs: a run in an empty root leaves what BuildKit leaves.
func testStubs(t *testing.T, e executor.Executor) {
	spec := Spec(t, "cat /etc/hosts > /dev/null")
	past := time.Unix(1e9, 0)
	for _, name := range []string{"tmp", "."} {
		if err := os.Chtimes(filepath.Join(spec.Root, name), past, past); err != nil {
			t.Fatal(err)
		}
	}
	source := t.TempDir()
	spec.Mounts = []executor.Mount{{Type: "bind", Source: source, Dest: "/tmp/a/b"}}
	MustPrint(t, e, spec, "")
	var names []string
	entries, err := os.ReadDir(spec.Root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if got := strings.Join(names, " "); got != "bin dev proc sys tmp" {
		t.Errorf("the root file system holds %s", got)
	}
	if info, err := os.Stat(filepath.Join(spec.Root, "tmp")); err != nil || !info.ModTime().Equal(past) {
		t.Errorf("/tmp counts as changed: %v %v", info.ModTime(), err)
	}

	kept := SpecIn(spec.Root, "echo mine > /etc/other; echo mine > /tmp/c/file")
	kept.Mounts = []executor.Mount{{Type: "tmpfs", Dest: "/tmp/c/d"}}
	MustPrint(t, e, kept, "")
	mustRead(t, filepath.Join(spec.Root, "etc/other"), "mine\n")
	mustRead(t, filepath.Join(spec.Root, "tmp/c/file"), "mine\n")
	for _, gone := range []string{"etc/hosts", "etc/resolv.conf", "tmp/c/d"} {
		if _, err := os.Lstat(filepath.Join(spec.Root, gone)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", gone, err)
		}
	}
}

// testStubEscape is CVE-2024-23652: a run replaces the folder of a mount point
// by a link to the outside, where an empty file has the mount point's name.
func testStubEscape(t *testing.T, e executor.Executor) {
	outside := t.TempDir()
	mustWrite(t, filepath.Join(outside, "b"), "")
	spec := Spec(t, "mv /a /moved && ln -s "+outside+" /a")
	secret := filepath.Join(t.TempDir(), "secret")
	mustWrite(t, secret, "x")
	spec.Mounts = []executor.Mount{{Type: "bind", Source: secret, Dest: "/a/b"}}
	if _, stderr, err := Finish(t, e, spec); err != nil {
		t.Fatalf("%v %s", err, stderr)
	}
	mustRead(t, filepath.Join(outside, "b"), "")
	if _, err := os.Lstat(filepath.Join(spec.Root, "moved/b")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the mount point is left where it was moved to: %v", err)
	}
}

// testDanglingLink: images of some distributions have resolv.conf as a link to
// a file that only a running system has; others may point it anywhere.
func testDanglingLink(t *testing.T, e executor.Executor) {
	spec := Spec(t, "cat /etc/resolv.conf >/dev/null && readlink /etc/resolv.conf")
	if err := os.Mkdir(filepath.Join(spec.Root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	link := "../../../run/systemd/stub-resolv.conf"
	if err := os.Symlink(link, filepath.Join(spec.Root, "etc/resolv.conf")); err != nil {
		t.Fatal(err)
	}
	MustPrint(t, e, spec, link+"\n")
	if _, err := os.Lstat(filepath.Join(spec.Root, "run")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the mount point's folder is left: %v", err)
	}
}

func testTmpfsMount(t *testing.T, e executor.Executor) {
	spec := Spec(t, "echo x > /scratch/x; df -k /scratch | tail -1 | awk '{print $1, $2}'; df -k /dev/shm | tail -1 | awk '{print $2}'")
	spec.Mounts = []executor.Mount{
		{Type: "tmpfs", Dest: "/scratch", Options: []string{"size=1048576"}},
		{Type: "tmpfs", Dest: "/dev/shm", Options: []string{"size=2097152"}},
	}
	MustPrint(t, e, spec, "tmpfs 1024\n2048\n")
}

func testMountOptions(t *testing.T, e executor.Executor) {
	spec := Spec(t, "true")
	for _, option := range []string{"rshared", "size=1", "ro,rw", "idmap", "bind-propagation=shared", "mode=777"} {
		spec.Mounts = []executor.Mount{{Type: "bind", Source: t.TempDir(), Dest: "/x", Options: []string{option}}}
		if _, _, err := Finish(t, e, spec); err == nil || !strings.Contains(err.Error(), "option") {
			t.Errorf("a bind mount with option %q: %v, want it refused", option, err)
		}
	}
}

func testSignals(t *testing.T, e executor.Executor) {
	c, out := started(t, e, context.Background(), Spec(t, `trap 'echo got; exit 9' TERM; echo up; while :; do sleep 0.05; done`), nil)
	if err := c.Signal(context.Background(), 15); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(context.Background()); exitCode(err) != 9 || out.String() != "up\ngot\n" {
		t.Errorf("ended with %v and printed %q", err, out.String())
	}
	_, _, err := Finish(t, e, Spec(t, "sh -c 'kill -9 $$'; exit $?"))
	if exitCode(err) != 137 {
		t.Errorf("a child that was killed: %v, want exit code 137", err)
	}
	c, _ = started(t, e, context.Background(), Spec(t, "echo up; sleep 1000"), nil)
	if err := c.Signal(context.Background(), 9); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(context.Background()); exitCode(err) != 137 {
		t.Errorf("a first process that was killed: %v, want exit code 137", err)
	}
}

// awaitSize prints a terminal's size once it has been set: it passes through the
// runtime, which may take its time.
const awaitSize = `until size=$(stty size 2>/dev/null) && [ "$size" = "33 77" ]; do sleep 0.02; done; echo "$size"`

func testTerminal(t *testing.T, e executor.Executor) {
	spec := Spec(t, "echo up; read line; tty; "+awaitSize+"; echo \"read $line\"")
	spec.Process.Tty = true
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, out := started(t, e, ctx, spec, r)
	if err := c.Resize(ctx, 33, 77); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(w, "typed")
	if err := c.Wait(ctx); err != nil {
		t.Fatalf("%v %s", err, out.String())
	}
	for _, want := range []string{"/dev/", "33 77", "read typed"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("printed %q, want %q in it", out.String(), want)
		}
	}
}

// testExecTerminal: a further process has a terminal of its own.
func testExecTerminal(t *testing.T, e executor.Executor) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, _ := started(t, e, ctx, Spec(t, "echo up; sleep 1000"), nil)
	r, w := io.Pipe()
	var out Output
	process := executor.Process{
		Args: []string{"/bin/sh", "-c", "echo ready; read line; " + awaitSize + "; tty >/dev/null && echo \"read $line\"; exit 3"},
		Env:  []string{"PATH=/bin"}, Cwd: "/", Tty: true,
	}
	task, err := c.Exec(ctx, process, executor.IO{Stdin: r, Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the process to print", func() bool { return strings.Contains(out.String(), "ready") })
	if err := task.Resize(ctx, 33, 77); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(w, "typed")
	if err := task.Wait(ctx); exitCode(err) != 3 {
		t.Fatalf("ended with %v: %s", err, out.String())
	}
	for _, want := range []string{"33 77", "read typed"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("printed %q, want %q in it", out.String(), want)
		}
	}
}

func testCapabilities(t *testing.T, e executor.Executor) {
	MustPrint(t, e, Spec(t, "grep -E 'Cap(Inh|Eff|Bnd|Amb)|NoNewPrivs' /proc/self/status"),
		"CapInh:\t0000000000000000\nCapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\nCapAmb:\t0000000000000000\nNoNewPrivs:\t0\n")
}

func testSeccomp(t *testing.T, e executor.Executor) {
	spec := Spec(t, "grep Seccomp: /proc/self/status; unshare -m true; echo $?; unshare -U true; echo $?; mount -t tmpfs x /tmp; echo $?")
	stdout, stderr, err := Finish(t, e, spec)
	if err != nil || stdout != "Seccomp:\t2\n1\n1\n1\n" && stdout != "Seccomp:\t2\n1\n1\n255\n" {
		t.Errorf("ended with %v, printed %q and %q", err, stdout, stderr)
	}
	if strings.Count(stderr, "ermitted")+strings.Count(stderr, "denied") < 3 {
		t.Errorf("want three refusals, got %q", stderr)
	}
}

func testHosts(t *testing.T, e executor.Executor) {
	spec := Spec(t, "cat /etc/hosts")
	plain, _, err := Finish(t, e, spec)
	if err != nil {
		t.Fatal(err)
	}
	want := "127.0.0.1\tlocalhost buildkitsandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	if plain != want {
		t.Errorf("hosts: %q, want %q", plain, want)
	}
	spec = Spec(t, "cat /etc/hosts")
	spec.Hosts = []executor.Host{{Name: "some.where", IP: "1.2.3.4"}}
	MustPrint(t, e, spec, want+"1.2.3.4\tsome.where\n")
	MustPrint(t, e, Spec(t, "cat /etc/hosts"), want)
	_, _, err = Finish(t, e, Spec(t, "echo x >> /etc/hosts"))
	if exitCode(err) != 1 {
		t.Errorf("a write to /etc/hosts: %v, want it refused: it would be lost", err)
	}
	spec.Hosts = []executor.Host{{Name: "a\n6.6.6.6 registry", IP: "1.2.3.4"}}
	if _, _, err := Finish(t, e, spec); exitCode(err) != -1 {
		t.Errorf("a host name with a line in it: %v, want it refused", err)
	}
}

func testHostname(t *testing.T, e executor.Executor) {
	MustPrint(t, e, Spec(t, "hostname"), "buildkitsandbox\n")
	spec := Spec(t, "hostname; head -1 /etc/hosts")
	spec.Hostname = "named"
	MustPrint(t, e, spec, "named\n127.0.0.1\tlocalhost named\n")
}

func testRlimits(t *testing.T, e executor.Executor) {
	spec := Spec(t, "ulimit -Sn; ulimit -Hn")
	spec.Process.Rlimits = []executor.Rlimit{{Name: "nofile", Soft: 100, Hard: 200}}
	MustPrint(t, e, spec, "100\n200\n")
	spec = Spec(t, "echo ran") // more than may be given is clamped, not refused
	spec.Process.Rlimits = []executor.Rlimit{{Name: "nofile", Soft: 1 << 30, Hard: 1 << 30}}
	MustPrint(t, e, spec, "ran\n")
	spec.Process.Rlimits = []executor.Rlimit{{Name: "nonsense"}}
	if _, _, err := Finish(t, e, spec); exitCode(err) != -1 {
		t.Errorf("an unknown limit: %v, want it refused", err)
	}
}

func testNetworkNone(t *testing.T, e executor.Executor) {
	MustPrint(t, e, Spec(t, "ip -o addr | awk '{print $2, $4}' | grep -v :: ; (echo reply | nc -l -p 90 >/dev/null &); sleep 0.2; nc 127.0.0.1 90 </dev/null"),
		"lo 127.0.0.1/8\nreply\n")
}

// testLeakedHandles is CVE-2024-21626: a working directory that is a handle of
// the runtime's on the machine's file system.
func testLeakedHandles(t *testing.T, e executor.Executor) {
	root := Root(t)
	marker := filepath.Join(t.TempDir(), "marker")
	mustWrite(t, marker, "machine")
	for n := 3; n < 21; n++ {
		spec := SpecIn(root, "cat ../../../../../../../../.."+marker)
		spec.Process.Cwd = fmt.Sprintf("/proc/self/fd/%d", n)
		if stdout, _, err := Finish(t, e, spec); err == nil || strings.Contains(stdout, "machine") {
			t.Fatalf("handle %d: ended with %v and printed %q", n, err, stdout)
		}
	}
}

// testBackground: processes that a run leaves behind end with it.
func testBackground(t *testing.T, e executor.Executor) {
	begin := time.Now()
	MustPrint(t, e, Spec(t, "sleep 1000 & echo left"), "left\n")
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
}

func testUser(t *testing.T, e executor.Executor) {
	spec := Spec(t, "id -u; id -g; id -G; grep CapEff /proc/self/status; echo x > /dev/stdout; touch /bin/x || echo denied")
	spec.Process.UID, spec.Process.GID, spec.Process.Groups = 1234, 2345, []uint32{2345, 3456}
	MustPrint(t, e, spec, "1234\n2345\n2345 3456\nCapEff:\t0000000000000000\nx\ndenied\n")
}

func testNetworkHost(t *testing.T, e executor.Executor) {
	spec := Spec(t, "readlink /proc/self/ns/net")
	spec.Network = executor.NetworkHost
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	MustPrint(t, e, spec, own+"\n")
}

// testNetworkSandbox: a container with a sandbox reaches the bridge's address,
// where a server listens; one without a network does not.
func testNetworkSandbox(t *testing.T, e executor.Executor) {
	spec := Spec(t, "ip route | awk '/default/ {print $3}'; ip -o -4 addr show eth0 | awk '{print $4}'; readlink /proc/self/ns/net")
	spec.Network = executor.NetworkSandbox
	stdout, stderr, err := Finish(t, e, spec)
	lines := strings.Fields(stdout)
	if err != nil || len(lines) != 3 {
		t.Fatalf("ended with %v, printed %q and %q", err, stdout, stderr)
	}
	if own, _ := os.Readlink("/proc/self/ns/net"); lines[2] == own {
		t.Error("a sandboxed container is in the daemon's network namespace")
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(lines[0], "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(conn, "hello")
			conn.Close()
		}
	}()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("nc -w 5 %s %s </dev/null", lines[0], port)
	for range 4 { // new ones and one that was used
		spec = Spec(t, script)
		spec.Network = executor.NetworkSandbox
		MustPrint(t, e, spec, "hello\n")
	}
	if stdout, _, err := Finish(t, e, Spec(t, script)); err == nil {
		t.Errorf("a container without a network reached %s: %q", lines[0], stdout)
	}
}

func testResolvConf(t *testing.T, e executor.Executor) {
	spec := Spec(t, "cat /etc/resolv.conf")
	spec.Network = executor.NetworkSandbox
	stdout, _, err := Finish(t, e, spec)
	if err != nil || !strings.HasPrefix(stdout, "nameserver ") || strings.Contains(stdout, "nameserver 127.") {
		t.Errorf("ended with %v and printed %q, want name servers that are not on loopback", err, stdout)
	}
}

func testOutOfMemory(t *testing.T, e executor.Executor) {
	const eat = "head -c 200000000 /dev/zero | tail -c 200000000 > /dev/null"
	spec := Spec(t, eat+"; echo survived")
	spec.Limits.Memory = 16 << 20
	spec.Limits.MemorySwap = 16 << 20
	spec.Process.Args = []string{"/bin/tail", "-c", "200000000", "/dev/zero"}
	_, _, err := Finish(t, e, spec)
	var exit *executor.ExitError
	if !errors.As(err, &exit) || exit.Code != 137 || !exit.OOM {
		t.Errorf("the first process ate too much: %v, want exit code 137 out of memory", err)
	}
	spec = Spec(t, "(tail -c 200000000 /dev/zero); exit 5")
	spec.Limits.Memory = 16 << 20
	spec.Limits.MemorySwap = 16 << 20
	_, _, err = Finish(t, e, spec)
	if !errors.As(err, &exit) || exit.Code != 5 || !exit.OOM {
		t.Errorf("a child ate too much: %v, want exit code 5 out of memory", err)
	}
	spec = Spec(t, "exit 5")
	spec.Limits.Memory = 64 << 20
	_, _, err = Finish(t, e, spec)
	if !errors.As(err, &exit) || exit.Code != 5 || exit.OOM {
		t.Errorf("a plain failure: %v, want exit code 5", err)
	}
}

// testLimits: a container sees the limits that it was given, in either version
// of cgroups.
func testLimits(t *testing.T, e executor.Executor) {
	spec := Spec(t, `cd /sys/fs/cgroup
cat memory/memory.limit_in_bytes 2>/dev/null || cat memory.max
cat cpu/cpu.cfs_quota_us 2>/dev/null || cut -d' ' -f1 cpu.max
cat cpu/cpu.cfs_period_us 2>/dev/null || cut -d' ' -f2 cpu.max
cat cpuset/cpuset.cpus 2>/dev/null || cat cpuset.cpus`)
	spec.Limits = executor.Limits{Memory: 64 << 20, CPUPeriod: 100000, CPUQuota: 50000, CPUSetCPUs: "0"}
	MustPrint(t, e, spec, "67108864\n50000\n100000\n0\n")
}

// testCgroupParent: a container's group is below the one asked for, and leaves
// nothing there. No name leads out of the hierarchy.
func testCgroupParent(t *testing.T, e executor.Executor) {
	for _, parent := range []string{"kiln-suite-parent", "../../kiln-suite-parent"} {
		spec := Spec(t, "echo up; sleep 1000")
		spec.CgroupParent = parent
		c, _ := started(t, e, context.Background(), spec, nil)
		find := func() (found []string) {
			for _, pattern := range []string{"/sys/fs/cgroup/*/kiln-suite-parent/*/" + spec.ID, "/sys/fs/cgroup/kiln-suite-parent/*/" + spec.ID} {
				matches, err := filepath.Glob(pattern)
				if err != nil {
					t.Fatal(err)
				}
				found = append(found, matches...)
			}
			return found
		}
		if len(find()) == 0 {
			t.Errorf("no group of the container is below %s", parent)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if left := find(); len(left) > 0 {
			t.Errorf("groups are left: %q", left)
		}
	}
	parents, err := filepath.Glob("/sys/fs/cgroup/*/kiln-suite-parent")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range append(parents, "/sys/fs/cgroup/kiln-suite-parent") {
		if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the parent holds something: %v", err)
		}
	}
	spec := Spec(t, "true")
	spec.CgroupParent = "a:b"
	if _, _, err := Finish(t, e, spec); exitCode(err) != -1 {
		t.Errorf("a parent that is no path: %v", err)
	}
}

func testInsecure(t *testing.T, e executor.Executor) {
	spec := Spec(t, "grep Seccomp: /proc/self/status; mount -t tmpfs x /tmp && echo mounted; echo 1 > /proc/sys/net/ipv4/ip_forward && echo set")
	spec.Insecure = true
	MustPrint(t, e, spec, "Seccomp:\t0\nmounted\nset\n")
}
