package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// foreign is the beginning of a program of another processor, by the ELF
// specification: 64 bits, executable.
func foreign(machine uint16, big bool) []byte {
	h := make([]byte, 64)
	copy(h, "\x7fELF\x02\x01\x01")
	order := binary.ByteOrder(binary.LittleEndian)
	if big {
		h[5], order = 2, binary.BigEndian
	}
	order.PutUint16(h[16:], 2)
	order.PutUint16(h[18:], machine)
	order.PutUint32(h[20:], 1)
	return h
}

// registration is what the kernel is told of an emulator that it is to hold open.
func registration(name, emulator string, header []byte) string {
	magic := ""
	for _, b := range header[:20] {
		magic += fmt.Sprintf("\\x%02x", b)
	}
	return fmt.Sprintf(":%s:M::%s::%s:F", name, magic, emulator)
}

const emulatedDockerfile = `FROM scratch AS made
ARG TARGETARCH
COPY --chmod=0755 busybox-$TARGETARCH /bin/busybox
RUN ["/bin/busybox", "sh", "-c", "echo $TARGETARCH runs by ${EMULATOR:-itself} > /made"]
FROM scratch
COPY --from=made /made /
`

// TestEmulation has a daemon in a user namespace that has a register of emulators of
// its own. It says which platforms it has, runs the steps of each, and refuses those
// that nothing is registered for, until something is.
func TestEmulation(t *testing.T) {
	t.Parallel()
	if runtime.GOARCH != "amd64" {
		t.Fatalf("this test names the platforms that are foreign on amd64; on %s others are", runtime.GOARCH)
	}
	b := newBuilder(t)
	emulator := filepath.Join(b.state.run, "emulator")
	build := exec.Command("go", "build", "-o", emulator, "./testdata/emulator")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the emulator: %v: %s", err, out)
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatalf("the programs are made of busybox, which scripts/setup installs: %v", err)
	}
	own, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	arm64, s390x := foreign(183, false), foreign(22, true)
	b.write("busybox-amd64", string(own))
	b.write("busybox-arm64", string(arm64)+string(own))
	b.write("busybox-s390x", string(s390x)+string(own))
	b.write("Dockerfile", emulatedDockerfile)
	if err := os.WriteFile(filepath.Join(b.state.run, "kiln.toml"), []byte("[system]\nplatformsCacheMaxAge = \"0s\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.state.flags = []string{"--config", filepath.Join(b.state.run, "kiln.toml")}
	b.state.within = func(cmd *exec.Cmd) {
		cmd.Args = append([]string{emulator, "within", registration("arm64", emulator, arm64), cmd.Path}, cmd.Args[1:]...)
		cmd.Path = emulator
		ids := []syscall.SysProcIDMap{{Size: 65536}}
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS, UidMappings: ids, GidMappings: ids}
	}
	b.start()
	b.runsEmulated("amd64", "arm64")
	out, err := b.command("build", "--platform=linux/s390x", "--progress=plain", "-o", "type=cacheonly", b.dir).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "cannot run programs of platform linux/s390x here") || !strings.Contains(string(out), "set up emulation") {
		t.Errorf("a platform that nothing is registered for: %v\n%s", err, out)
	}
	register := fmt.Sprintf("/proc/%d/root/proc/sys/fs/binfmt_misc/register", b.state.daemon.Process.Pid)
	if err := os.WriteFile(register, []byte(registration("s390x", emulator, s390x)), 0); err != nil {
		t.Fatal(err)
	}
	b.runsEmulated("amd64", "arm64", "s390x")
}

// runsEmulated tells whether the daemon has these platforms, and no other of those
// that are tried, and runs steps of each of them in one build.
func (b *builder) runsEmulated(platforms ...string) {
	b.t.Helper()
	workers := b.command("--addr", "unix://"+filepath.Join(b.state.run, "sock"), "debug", "workers", "--format={{json .}}")
	workers.Path = filepath.Join(filepath.Dir(b.kiln), "buildctl")
	workers.Args[0] = workers.Path
	list, err := workers.CombinedOutput()
	if err != nil {
		b.t.Fatalf("list workers: %v: %s", err, list)
	}
	for _, arch := range []string{"amd64", "arm64", "s390x"} {
		if has, want := strings.Contains(string(list), `"architecture":"`+arch+`"`), strings.Contains(strings.Join(platforms, " "), arch); has != want {
			b.t.Errorf("the worker has %s: %v, want %v: %s", arch, has, want, list)
		}
	}
	dest := filepath.Join(b.state.run, "made-"+strings.Join(platforms, "-"))
	asked := "--platform=linux/" + strings.Join(platforms, ",linux/")
	if out, err := b.command("build", asked, "--progress=plain", "-o", "type=local,dest="+dest, b.dir).CombinedOutput(); err != nil {
		b.t.Fatalf("build for %v: %v\n%s", platforms, err, out)
	}
	for _, arch := range platforms {
		want := arch + " runs by an emulator\n"
		if arch == "amd64" {
			want = "amd64 runs by itself\n"
		}
		if made, err := os.ReadFile(filepath.Join(dest, "linux_"+arch, "made")); err != nil || string(made) != want {
			b.t.Errorf("a step for %s: %q (%v), want %q", arch, made, err, want)
		}
	}
}
