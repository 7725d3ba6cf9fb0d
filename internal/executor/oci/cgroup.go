package oci

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupRoot is where the machine's cgroups are mounted. Containers go below
// one group of this executor's own, named by its state directory, so that what
// is left of a killed daemon can be told from what others made.
type cgroupRoot struct {
	unified   bool     // version 2
	mounts    []string // the hierarchy, or in version 1 one of each controller
	memory    string   // the one of mounts that accounts for memory; "" if none does
	own       string   // the name of this executor's group
	namespace bool     // the kernel has cgroup namespaces
}

// usable says whether containers can be put into cgroups.
func (r cgroupRoot) usable() bool { return len(r.mounts) > 0 }

// findCgroupRoot finds the mounted hierarchies; it fails where this process
// can not make groups in them.
func findCgroupRoot(stateDir string) (cgroupRoot, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return cgroupRoot{}, fmt.Errorf("find cgroups: %w", err)
	}
	defer f.Close()
	r, err := parseCgroupMounts(f)
	if err != nil {
		return cgroupRoot{}, err
	}
	for _, m := range r.mounts {
		if err := unix.Access(m, unix.W_OK); err != nil {
			return cgroupRoot{}, fmt.Errorf("use cgroups at %s: %w", m, err)
		}
		if r.unified && crowded(m) {
			return cgroupRoot{}, fmt.Errorf("use cgroups at %s: there are processes in it, so groups below it can have no limits", m)
		}
	}
	sum := sha256.Sum256([]byte(stateDir))
	r.own = fmt.Sprintf("kiln-%x", sum[:4])
	_, err = os.Stat("/proc/self/ns/cgroup")
	r.namespace = err == nil
	return r, nil
}

// crowded says whether a group of version 2 has processes that keep it from
// passing controllers on, cgroups(7). The machine's root, which has no type, may.
func crowded(group string) bool {
	if _, err := os.Stat(filepath.Join(group, "cgroup.type")); err != nil {
		return false
	}
	passed, err := os.ReadFile(filepath.Join(group, "cgroup.subtree_control"))
	if err != nil || slices.Contains(strings.Fields(string(passed)), "memory") {
		return false
	}
	processes, err := os.ReadFile(filepath.Join(group, "cgroup.procs"))
	return err == nil && len(processes) > 0
}

// parseCgroupMounts reads the cgroup mounts of a mountinfo, proc_pid_mountinfo(5).
// Where version 1 controllers are mounted, those are what the runtime uses.
func parseCgroupMounts(mountinfo io.Reader) (cgroupRoot, error) {
	var v1, v2 []string
	var memory string
	lines := bufio.NewScanner(io.LimitReader(mountinfo, 16<<20))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		before, after, _ := strings.Cut(lines.Text(), " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if len(fields) < 5 || len(kind) < 3 {
			continue
		}
		switch kind[0] {
		case "cgroup":
			v1 = append(v1, fields[4])
			for option := range strings.SplitSeq(kind[2], ",") {
				if option == "memory" {
					memory = fields[4]
				}
			}
		case "cgroup2":
			v2 = append(v2, fields[4])
		}
	}
	if err := lines.Err(); err != nil {
		return cgroupRoot{}, fmt.Errorf("find cgroups: %w", err)
	}
	switch {
	case len(v1) > 0:
		return cgroupRoot{mounts: append(v1, v2...), memory: memory}, nil
	case len(v2) > 0:
		return cgroupRoot{unified: true, mounts: v2[:1], memory: v2[0]}, nil
	}
	return cgroupRoot{}, errors.New("find cgroups: none are mounted")
}

// containerPath is a container's group, relative to a hierarchy's root. In
// version 2 it is one level deeper: the group above outlives the container and
// has the counts of both, see oomWatch.
func (r cgroupRoot) containerPath(parent, id string) string {
	p := path.Join("/", parent, r.own, id)
	if r.unified {
		p = path.Join(p, "run")
	}
	return p
}

// removeAll removes the executor's own group at the root and all left below
// it. Groups below other parents are removed with their container only.
func (r cgroupRoot) removeAll() {
	for _, m := range r.mounts {
		removeGroup(filepath.Join(m, r.own))
	}
}

// removeGroup removes a group with those below it, as far as they are empty of
// processes. A group's files go with it.
func removeGroup(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if e.IsDir() {
			removeGroup(filepath.Join(dir, e.Name()))
		}
	}
	_ = unix.Rmdir(dir) // a group that is in use stays
}

// oomWatch tells whether the kernel killed a process of a container for want
// of memory. The runtime removes the container's group the moment it ends, so
// the watch is set before it starts.
type oomWatch struct {
	group string // version 2: the group above the container's
	event int    // version 1: an eventfd that counts out-of-memory events and the group's removal; -1 if none
	kills uint64 // but in version 2: the machine's count at the start
}

func (r cgroupRoot) watchOOM(containerPath string) (oomWatch, error) {
	w := oomWatch{event: -1, kills: machineOOMKills()}
	if r.memory == "" {
		return w, nil
	}
	group := filepath.Join(r.memory, containerPath)
	if r.unified {
		w.group = filepath.Dir(group)
		return w, nil
	}
	if err := os.MkdirAll(group, 0o755); err != nil {
		return w, fmt.Errorf("make cgroup: %w", err)
	}
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return w, fmt.Errorf("watch memory: %w", err)
	}
	control, err := os.Open(filepath.Join(group, "memory.oom_control"))
	if err == nil {
		line := fmt.Sprintf("%d %d", event, control.Fd())
		err = os.WriteFile(filepath.Join(group, "cgroup.event_control"), []byte(line), 0)
		control.Close()
	}
	if err != nil {
		unix.Close(event)
		if errors.Is(err, os.ErrNotExist) { // a kernel built without these events
			return w, nil
		}
		return w, fmt.Errorf("watch memory: %w", err)
	}
	w.event = event
	return w, nil
}

// ended tells the outcome of a process that ended with a code, once the
// runtime has ended, and gives the watch up.
func (w oomWatch) ended(code int) (oom bool) {
	switch {
	case w.group != "":
		text, err := os.ReadFile(filepath.Join(w.group, "memory.events"))
		return err == nil && counter(string(text), "oom_kill") > 0
	case w.event >= 0:
		defer unix.Close(w.event)
		// Of what the kernel killed, this may be somebody else's.
		return code != 0 && machineOOMKills() > w.kills && w.events(removalNotice) >= 2
	default:
		return code == 128+int(unix.SIGKILL) && machineOOMKills() > w.kills
	}
}

// removalNotice is how long the kernel may take to tell of a group's removal: it has
// more of them to do than this one, and does them when it has time.
const removalNotice = 2 * time.Second

// events counts the events of version 1. The removal of the group is one, of which
// the kernel tells later.
func (w oomWatch) events(patience time.Duration) uint64 {
	var total uint64
	for end := time.Now().Add(patience); total < 2; {
		var buf [8]byte
		if n, err := unix.Read(w.event, buf[:]); err == nil && n == len(buf) {
			total += binary.NativeEndian.Uint64(buf[:])
			continue
		}
		left := time.Until(end)
		if left <= 0 {
			break
		}
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(w.event), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
	}
	return total
}

// machineOOMKills is how many processes the kernel has killed for want of
// memory since it started, proc_vmstat(5).
func machineOOMKills() uint64 {
	text, err := os.ReadFile("/proc/vmstat")
	if err != nil {
		return 0
	}
	return counter(string(text), "oom_kill")
}

// counter finds "name number" among lines.
func counter(text, name string) uint64 {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 64)
			if err == nil {
				return n
			}
		}
	}
	return 0
}

// removeContainer removes what is left of a container's group: in version 1
// the one made for the watch, had the runtime not come so far; in version 2
// the one above. A parent that was asked for is left without our group.
func (r cgroupRoot) removeContainer(parent, id string) {
	for _, m := range r.mounts {
		own := filepath.Join(m, path.Join("/", parent, r.own))
		removeGroup(filepath.Join(own, id))
		if parent != "/" {
			_ = unix.Rmdir(own) // stays while other containers are in it
		}
	}
}
