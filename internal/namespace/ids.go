package namespace

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// maxIDFile bounds what is read of /etc/subuid and the like.
const maxIDFile = 1 << 20

// idPlan is how the ids of a user namespace come to be.
type idPlan struct {
	user   bool // there is a user namespace
	helper bool // ids are mapped by newuidmap and newgidmap
	uid    int  // outside
	gid    int
	// uids and gids are the subordinate ids, mapped from 1 on.
	uids, gids []idRange
}

type idRange struct{ first, count int }

// chooseIDs decides for whom the namespaces are, and notes what is limited.
func chooseIDs(info *Info, opts Options) (idPlan, error) {
	if os.Geteuid() == 0 {
		mapped, err := inUserNamespace()
		info.Rootless = mapped
		return idPlan{}, err
	}
	info.Rootless = true
	plan := idPlan{user: true, uid: info.UID, gid: info.GID}
	missing := "it was asked for"
	if !opts.SingleID {
		missing = plan.findSubordinate()
	}
	if missing != "" {
		info.limitIDs(missing)
	}
	return plan, nil
}

// limitIDs notes that there is one user id only, and why.
func (i *Info) limitIDs(reason string) {
	i.SingleID = true
	i.Notices = append(i.Notices, fmt.Sprintf("Builds have one user id, root (%s): "+
		"steps that change owners or run as another user fail, as package installers often do.", reason))
}

// inUserNamespace says whether this process's ids are not the machine's.
func inUserNamespace() (bool, error) {
	text, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false, fmt.Errorf("read own id map: %w", err)
	}
	return strings.Join(strings.Fields(string(text)), " ") != "0 0 4294967295", nil
}

// findSubordinate finds the user's subordinate ids and the programs to map
// them. What it returns says why it can not be done, or is empty.
func (p *idPlan) findSubordinate() (missing string) {
	for _, program := range []string{"newuidmap", "newgidmap"} {
		if _, err := exec.LookPath(program); err != nil {
			return "the program " + program + " is not installed, it is in the package uidmap"
		}
	}
	names := []string{strconv.Itoa(p.uid)}
	if u, err := user.LookupId(names[0]); err == nil {
		names = append(names, u.Username)
	}
	var err error
	if p.uids, err = readSubordinate("/etc/subuid", names); err != nil {
		return err.Error()
	}
	if p.gids, err = readSubordinate("/etc/subgid", names); err != nil {
		return err.Error()
	}
	p.helper = true
	return ""
}

func readSubordinate(path string, names []string) ([]idRange, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	ranges, err := parseSubordinate(f, names)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(ranges) == 0 {
		return nil, fmt.Errorf("%s has no line for user %s", path, names[len(names)-1])
	}
	return ranges, nil
}

// parseSubordinate reads lines of "user:first:count", subuid(5).
func parseSubordinate(r io.Reader, names []string) ([]idRange, error) {
	var ranges []idRange
	lines := bufio.NewScanner(io.LimitReader(r, maxIDFile))
	for lines.Scan() {
		fields := strings.Split(strings.TrimSpace(lines.Text()), ":")
		if len(fields) != 3 || !slices.Contains(names, fields[0]) {
			continue
		}
		first, err := strconv.ParseUint(fields[1], 10, 32)
		if err != nil {
			return nil, fmt.Errorf("line %q: want user:first:count", lines.Text())
		}
		count, err := strconv.ParseUint(fields[2], 10, 32)
		if err != nil || count == 0 {
			return nil, fmt.Errorf("line %q: want user:first:count", lines.Text())
		}
		ranges = append(ranges, idRange{int(first), int(count)})
	}
	return ranges, lines.Err()
}

// apply adds the user namespace to a process to be started. The map of one id
// is written by Go itself, before the program starts.
func (p idPlan) apply(attr *syscall.SysProcAttr) {
	if !p.user {
		return
	}
	attr.Cloneflags |= syscall.CLONE_NEWUSER
	if p.helper {
		return
	}
	attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: p.uid, Size: 1}}
	attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: p.gid, Size: 1}}
}

// write maps the ids of a process: the user as root, the subordinate ids above.
func (p idPlan) write(pid int) error {
	for _, m := range []struct {
		program string
		own     int
		ranges  []idRange
	}{{"newuidmap", p.uid, p.uids}, {"newgidmap", p.gid, p.gids}} {
		args := []string{strconv.Itoa(pid), "0", strconv.Itoa(m.own), "1"}
		next := 1
		for _, r := range m.ranges {
			args = append(args, strconv.Itoa(next), strconv.Itoa(r.first), strconv.Itoa(r.count))
			next += r.count
		}
		out, err := exec.Command(m.program, args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s: %w: %s", errNoMap, m.program, err, strings.TrimSpace(string(out[:min(len(out), 1024)])))
		}
	}
	return nil
}
