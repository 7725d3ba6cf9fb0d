package oci

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/internal/executor"
	"github.com/kiln-build/kiln/internal/executor/executortest"
)

func openTest(t *testing.T, cfg Config) *Executor {
	t.Helper()
	if cfg.StateDir == "" {
		cfg.StateDir = t.TempDir()
	}
	cfg.Binary = executortest.Runtime(t)
	e, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return e
}

// sandboxed runs a script with a network and gives its first line.
func sandboxed(t *testing.T, e *Executor, script string) string {
	t.Helper()
	spec := executortest.Spec(t, script)
	spec.Network = executor.NetworkSandbox
	stdout, stderr, err := executortest.Finish(t, e, spec)
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr)
	}
	return strings.TrimSpace(stdout)
}

const printGateway = "ip route | awk '/default/ {print $3}'"

// TestNamespacesAreReused: and not those in which a container had all rights.
func TestNamespacesAreReused(t *testing.T) {
	e := openTest(t, Config{Network: NetworkConfig{Ready: 1}})
	seen := map[string]bool{}
	for range 6 {
		seen[sandboxed(t, e, "readlink /proc/self/ns/net")] = true
	}
	if len(seen) > 3 {
		t.Errorf("6 runs used %d network namespaces", len(seen))
	}
	spec := executortest.Spec(t, "ip addr add 1.2.3.4/32 dev lo; readlink /proc/self/ns/net")
	spec.Network, spec.Insecure = executor.NetworkSandbox, true
	changed, _, err := executortest.Finish(t, e, spec)
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		if got := sandboxed(t, e, "readlink /proc/self/ns/net; ip addr | grep 1.2.3.4 || true"); got == strings.TrimSpace(changed) || strings.Contains(got, "1.2.3.4") {
			t.Fatalf("a network that a container changed is used again: %s", got)
		}
	}
}

// TestRuntimeKilled: the container of a runtime that was killed ends too.
func TestRuntimeKilled(t *testing.T) {
	e := openTest(t, Config{})
	var out executortest.Output
	c, err := e.Start(t.Context(), executortest.Spec(t, "echo up; sleep 1000"), executor.IO{Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	for out.String() == "" {
		time.Sleep(time.Millisecond)
	}
	own := c.(*container)
	if err := own.signal(t.Context(), 0); err != nil { // opens the first process
		t.Fatal(err)
	}
	init, err := unix.Dup(own.init)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(init)
	if err := own.signalRuntime(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(t.Context()); err == nil || !strings.Contains(err.Error(), "runtime was killed") {
		t.Errorf("ended with %v", err)
	}
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(init), Events: unix.POLLIN}}, 0); n != 1 {
		t.Errorf("the first process has not ended: %v", err)
	}
	groups, err := filepath.Glob("/sys/fs/cgroup/*/" + e.cgroups.own + "/" + own.spec.ID)
	if err != nil || len(groups) > 0 {
		t.Errorf("cgroups are left: %v (%v)", groups, err)
	}
}

// TestLeftovers: what a killed daemon left is ended and removed by the next.
func TestLeftovers(t *testing.T) {
	dir := t.TempDir()
	first := openTest(t, Config{StateDir: dir})
	var out executortest.Output
	spec := executortest.Spec(t, "echo up; sleep 1000")
	c, err := first.Start(t.Context(), spec, executor.IO{Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	for out.String() == "" {
		time.Sleep(time.Millisecond)
	}
	openTest(t, Config{StateDir: dir})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var exit *executor.ExitError
	if err := c.Wait(ctx); !errors.As(err, &exit) && (err == nil || errors.Is(err, context.DeadlineExceeded)) {
		t.Errorf("the left container ended with %v, want it killed", err)
	}
}

// TestHandleAsSource: a mount's source may be an open file of this process,
// which can not be exchanged for another on its way (CVE-2024-23651).
func TestHandleAsSource(t *testing.T) {
	e := openTest(t, Config{})
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "in"), []byte("by handle\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Rename(dir, dir+".moved"); err != nil {
		t.Fatal(err)
	}
	spec := executortest.Spec(t, "cat /data/in")
	spec.Mounts = []executor.Mount{{Type: "bind", Source: fmt.Sprintf("/proc/self/fd/%d", f.Fd()), Dest: "/data"}}
	executortest.MustPrint(t, e, spec, "by handle\n")
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), e.cfg.StateDir) {
		t.Errorf("a mount is left in the state directory (%v)", err)
	}

	// One that a killed daemon left is not emptied with the state directory.
	staged := filepath.Join(e.cfg.StateDir, "run/left/mounts/0")
	if err := os.MkdirAll(staged, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(dir+".moved", staged, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := e.clearState(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir+".moved", "in")); err != nil {
		t.Errorf("the source of a left mount was emptied: %v", err)
	}
}

// Test32Bit: the seccomp profile lets programs of the older architecture run.
func Test32Bit(t *testing.T) {
	e := openTest(t, Config{})
	if !slices.Contains(e.seccomp.Architectures, specs.ArchX86) {
		t.Fatalf("the profile is for %v: this test's program is for x86", e.seccomp.Architectures)
	}
	header := "\x7fELF\x01\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00" +
		"\x02\x00\x03\x00\x01\x00\x00\x00\x54\x80\x04\x08\x34\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" +
		"\x34\x00\x20\x00\x01\x00\x00\x00\x00\x00\x00\x00"
	segment := "\x01\x00\x00\x00\x00\x00\x00\x00\x00\x80\x04\x08\x00\x80\x04\x08\x60\x00\x00\x00\x60\x00\x00\x00\x05\x00\x00\x00\x00\x10\x00\x00"
	exit7 := "\xb8\x01\x00\x00\x00\xbb\x07\x00\x00\x00\xcd\x80" // exit(7)
	spec := executortest.Spec(t, "/exit7")
	if err := os.WriteFile(filepath.Join(spec.Root, "exit7"), []byte(header+segment+exit7), 0o755); err != nil {
		t.Fatal(err)
	}
	_, stderr, err := executortest.Finish(t, e, spec)
	var exit *executor.ExitError
	if !errors.As(err, &exit) || exit.Code != 7 {
		t.Errorf("ended with %v, want exit code 7\n%s", err, stderr)
	}
}

func TestFindRuntime(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "runc")
	if err := os.WriteFile(bad, []byte("#!/bin/sh\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := FindRuntime(bad); err == nil || !strings.Contains(err.Error(), bad) {
		t.Errorf("a runtime that fails: %v", err)
	}
	t.Setenv("PATH", filepath.Dir(bad))
	if _, err := FindRuntime(""); err == nil || !strings.Contains(err.Error(), BundledName) {
		t.Errorf("no runtime: %v, want an error that says what to install", err)
	}
	if err := os.WriteFile(bad, []byte("#!/bin/sh\necho runc version 9.9.9\necho more\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if r, err := FindRuntime(""); err != nil || r.Path != bad || r.Version != "runc version 9.9.9" {
		t.Errorf("%+v %v", r, err)
	}
}

func TestResolvText(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"plain":    "# local\nnameserver 127.0.0.1\nnameserver 10.0.0.1\nnameserver ::1\nsearch a b\noptions ndots:2\n",
		"stub":     "nameserver 127.0.0.53\noptions edns0\n",
		"resolved": "nameserver 192.168.1.1\nsearch lan\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		file string
		dns  DNS
		host bool
		want string
	}{
		{"plain", DNS{}, false, "nameserver 10.0.0.1\nsearch a b\noptions ndots:2\n"},
		{"plain", DNS{}, true, "nameserver 127.0.0.1\nnameserver 10.0.0.1\nnameserver ::1\nsearch a b\noptions ndots:2\n"},
		{"stub", DNS{}, false, "nameserver 192.168.1.1\nsearch lan\n"},
		{"stub", DNS{}, true, "nameserver 127.0.0.53\noptions edns0\n"},
		{"none", DNS{}, false, "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"},
		{"none", DNS{}, true, ""},
		{"plain", DNS{Nameservers: []string{"1.1.1.1"}, Search: []string{"x"}}, false, "nameserver 1.1.1.1\nsearch x\noptions ndots:2\n"},
	} {
		got, err := resolvText([]string{filepath.Join(dir, c.file), filepath.Join(dir, "resolved")}, c.dns, c.host)
		if err != nil || string(got) != c.want {
			t.Errorf("%s, host %v: %q (%v), want %q", c.file, c.host, got, err, c.want)
		}
	}
}

// A group with processes of its own has no limits for those below it.
func TestCrowdedCgroup(t *testing.T) {
	for _, tc := range []struct {
		kind, passed, processes string
		want                    bool
	}{
		{"domain\n", "", "12\n", true},
		{"domain\n", "cpu pids\n", "0\n", true},
		{"domain\n", "cpu memory\n", "12\n", false},
		{"domain\n", "", "", false},
		{"", "", "12\n", false}, // the machine's root
	} {
		dir := t.TempDir()
		for name, text := range map[string]string{"cgroup.type": tc.kind, "cgroup.subtree_control": tc.passed, "cgroup.procs": tc.processes} {
			if name == "cgroup.type" && text == "" {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := crowded(dir); got != tc.want {
			t.Errorf("%+v: %v", tc, got)
		}
	}
}

func TestParseCgroupMounts(t *testing.T) {
	const (
		v1 = "30 25 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n31 25 0:27 / /sys/fs/cgroup/memory rw shared:5 - cgroup cgroup rw,memory\n"
		v2 = "36 25 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
	)
	hybrid, err := parseCgroupMounts(strings.NewReader("1 1 0:1 / / rw - ext4 /dev/sda rw\n" + v1 + v2))
	if err != nil || hybrid.unified || hybrid.memory != "/sys/fs/cgroup/memory" || len(hybrid.mounts) != 3 {
		t.Errorf("%+v %v", hybrid, err)
	}
	unified, err := parseCgroupMounts(strings.NewReader(v2))
	if err != nil || !unified.unified || unified.memory != "/sys/fs/cgroup/unified" {
		t.Errorf("%+v %v", unified, err)
	}
	unified.own = "kiln-x"
	if got := unified.containerPath("/some/../parent", "id"); got != "/parent/kiln-x/id/run" {
		t.Errorf("path %s", got)
	}
	if got := hybrid.containerPath("../../..", "id"); got != "/id" {
		t.Errorf("path %s", got)
	}
	if r, err := parseCgroupMounts(strings.NewReader("nonsense\n")); err == nil {
		t.Errorf("no cgroups: %+v", r)
	}
}

// TestOutOfMemoryUnified: version 2 counts in the group above the container's.
func TestOutOfMemoryUnified(t *testing.T) {
	dir := t.TempDir()
	r := cgroupRoot{unified: true, mounts: []string{dir}, memory: dir, own: "own"}
	w, err := r.watchOOM(r.containerPath("", "id"))
	if err != nil {
		t.Fatal(err)
	}
	group := filepath.Join(dir, "own/id")
	if err := os.MkdirAll(group, 0o755); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]bool{
		"low 0\nhigh 0\nmax 9\noom 1\noom_kill 0\noom_group_kill 0\n": false,
		"low 0\nhigh 0\nmax 9\noom 1\noom_kill 2\noom_group_kill 0\n": true,
	} {
		if err := os.WriteFile(filepath.Join(group, "memory.events"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := w.ended(1); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestIDMaps(t *testing.T) {
	ranges, err := parseIDMap(strings.NewReader("         0       1000          1\n         1     100000      65536\n"))
	if err != nil {
		t.Fatal(err)
	}
	m := idMaps{uids: ranges, gids: ranges[:1], setgroups: true}
	if m.check(0, 0) != nil || m.check(65536, 0) != nil || m.check(65537, 0) == nil || m.check(0, 1) == nil {
		t.Errorf("%+v lets the wrong ids through", m)
	}
	if got := m.groups([]uint32{0, 5}); !slices.Equal(got, []uint32{0}) {
		t.Errorf("groups %v", got)
	}
	if _, err := parseIDMap(strings.NewReader("0 x 1\n")); err == nil {
		t.Error("a broken map was read")
	}
}

func TestParseCapabilities(t *testing.T) {
	got, err := parseCapabilities(strings.NewReader("Name:\tx\nCapEff:\t000001fffeffffff\nCapBnd:\t00000000a80425fb\n"))
	if err != nil || got != 0xa80425fb {
		t.Errorf("%x %v", got, err)
	}
	for _, bad := range []string{"", "CapEff:\tzz\nCapBnd:\t1\n", "CapEff:\t1\n"} {
		if _, err := parseCapabilities(strings.NewReader(bad)); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

// TestWayOut: a container reaches an address that is not the bridge's, through
// the machine, which answers from a namespace of its own.
func TestWayOut(t *testing.T) {
	e := openTest(t, Config{})
	sandboxed(t, e, "true")
	ns, err := newNetNS()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() }) // last: the link goes with the namespace
	veth := netlink.NewVeth(netlink.NewLinkAttrs())
	veth.Name, veth.PeerName, veth.PeerNamespace = "kilntestout", "eth0", netlink.NsFd(int(ns.Fd()))
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeLink(t, veth) })
	if err := netlink.AddrAdd(veth, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("10.97.0.1/24"))}); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(veth); err != nil {
		t.Fatal(err)
	}
	far := &sandbox{ns: ns}
	if err := far.configure(netip.MustParsePrefix("10.97.0.2/24"), netip.MustParseAddr("10.97.0.1")); err != nil {
		t.Fatal(err)
	}
	from := make(chan string, 1)
	serve(t, ns, "10.97.0.2:90", from)
	if got := sandboxed(t, e, "nc -w 5 10.97.0.2 90 </dev/null"); got != "far" {
		t.Errorf("heard %q", got)
	}
	if host := <-from; host != "10.97.0.1" {
		t.Errorf("the far side saw %s, want the machine's own address", host)
	}
}

// serve answers one connection inside a network namespace.
func serve(t *testing.T, ns *os.File, address string, from chan<- string) {
	t.Helper()
	listening := make(chan error)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			listening <- err
			return
		}
		defer home.Close()
		defer func() {
			if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread()
			}
		}()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			listening <- err
			return
		}
		listener, err := net.Listen("tcp", address)
		listening <- err
		if err != nil {
			return
		}
		defer listener.Close()
		conn, err := listener.Accept()
		if err != nil {
			from <- err.Error()
			return
		}
		defer conn.Close()
		fmt.Fprintln(conn, "far")
		host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
		from <- host
	}()
	if err := <-listening; err != nil {
		t.Fatal(err)
	}
}

func TestIptablesIsThere(t *testing.T) {
	if _, err := exec.LookPath("iptables"); err != nil {
		t.Fatal("these tests check the way out of containers: install the package iptables")
	}
}
