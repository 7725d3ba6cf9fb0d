package oci

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// capabilitySets are what containers get, each within what the daemon has: the
// runtime can not give what it was not given.
type capabilitySets struct {
	normal   []string
	insecure []string
}

// defaultCapabilities are Docker's for a container without --privileged.
func defaultCapabilities() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD",
		"CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP",
		"CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
	}
}

// capabilityNames are the names by number, capabilities(7).
func capabilityNames() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID",
		"CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE",
		"CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK",
		"CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE",
		"CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
		"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE",
		"CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG",
		"CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF",
		"CAP_CHECKPOINT_RESTORE",
	}
}

func readCapabilities() (capabilitySets, error) {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return capabilitySets{}, fmt.Errorf("read own capabilities: %w", err)
	}
	defer f.Close()
	own, err := parseCapabilities(f)
	if err != nil {
		return capabilitySets{}, err
	}
	var sets capabilitySets
	for n, name := range capabilityNames() {
		if own&(1<<n) == 0 {
			continue
		}
		sets.insecure = append(sets.insecure, name)
		if slices.Contains(defaultCapabilities(), name) {
			sets.normal = append(sets.normal, name)
		}
	}
	return sets, nil
}

// parseCapabilities reads the effective set within the bounding set from a
// process's status file, proc_pid_status(5).
func parseCapabilities(r io.Reader) (uint64, error) {
	set, seen := ^uint64(0), 0
	lines := bufio.NewScanner(io.LimitReader(r, maxProcFile))
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), ":")
		if key != "CapEff" && key != "CapBnd" {
			continue
		}
		bits, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err != nil {
			return 0, fmt.Errorf("parse own capabilities: %s: %w", key, err)
		}
		set &= bits
		seen++
	}
	if seen != 2 {
		return 0, fmt.Errorf("parse own capabilities: found %d of CapEff and CapBnd", seen)
	}
	return set, lines.Err()
}

// processCapabilities are a process's sets. Nothing is inheritable or ambient
// in a normal container, so that a program run by another user than root gets
// none (CVE-2022-27651).
func processCapabilities(sets capabilitySets, insecure bool) *specs.LinuxCapabilities {
	if insecure {
		all := sets.insecure
		return &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all, Inheritable: all, Ambient: all}
	}
	some := sets.normal
	return &specs.LinuxCapabilities{Bounding: some, Effective: some, Permitted: some}
}

// defaultSeccomp is Docker's profile for the capabilities given. It is made
// once: the runtime compiles it at every start, and that is the largest single
// cost of one. x86's third architecture, x32, is left out for it (few kernels
// run it at all); 32-bit programs are kept.
func defaultSeccomp(caps []string) (*specs.LinuxSeccomp, error) {
	profile, err := seccomp.GetDefaultProfile(&specs.Spec{
		Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}},
	})
	if err != nil {
		return nil, fmt.Errorf("make seccomp profile: %w", err)
	}
	if slices.Contains(profile.Architectures, specs.ArchX86_64) {
		profile.Architectures = slices.DeleteFunc(profile.Architectures, func(a specs.Arch) bool {
			return a == specs.ArchX32
		})
	}
	return profile, nil
}

// maskedPaths are what Docker hides of the kernel in containers.
func maskedPaths() []string {
	paths := []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
		"/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
		"/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	}
	// One processor's timing tells of what others do.
	throttle, err := filepath.Glob("/sys/devices/system/cpu/cpu*/thermal_throttle")
	if err != nil {
		return paths
	}
	return append(paths, throttle...)
}

// readonlyPaths are what Docker makes read-only of /proc in containers.
func readonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}
