package oci

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// maxProcFile bounds what is read of a file in /proc.
const maxProcFile = 1 << 20

// idMaps are the user and group ids that this process's user namespace has.
type idMaps struct {
	uids, gids []idRange
	setgroups  bool // setgroups(2) is allowed
}

type idRange struct{ first, count uint64 }

func readIDMaps() (idMaps, error) {
	var m idMaps
	var err error
	if m.uids, err = readIDMap("/proc/self/uid_map"); err != nil {
		return m, err
	}
	if m.gids, err = readIDMap("/proc/self/gid_map"); err != nil {
		return m, err
	}
	allow, err := os.ReadFile("/proc/self/setgroups")
	m.setgroups = strings.TrimSpace(string(allow)) != "deny"
	if errors.Is(err, os.ErrNotExist) { // a kernel without user namespaces
		err = nil
	}
	return m, err
}

func readIDMap(path string) ([]idRange, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read id map: %w", err)
	}
	defer f.Close()
	return parseIDMap(f)
}

// parseIDMap reads lines of "first-inside first-outside count", user_namespaces(7).
func parseIDMap(r io.Reader) ([]idRange, error) {
	var ranges []idRange
	lines := bufio.NewScanner(io.LimitReader(r, maxProcFile))
	for lines.Scan() {
		var inside, outside, count uint64
		if _, err := fmt.Sscan(lines.Text(), &inside, &outside, &count); err != nil {
			return nil, fmt.Errorf("parse id map line %q: want three numbers: %w", lines.Text(), err)
		}
		ranges = append(ranges, idRange{inside, count})
	}
	return ranges, lines.Err()
}

func mapped(ranges []idRange, id uint32) bool {
	for _, r := range ranges {
		if uint64(id) >= r.first && uint64(id) < r.first+r.count {
			return true
		}
	}
	return false
}

// check refuses a user that this namespace does not have. The runtime would
// say "invalid argument" of it.
func (m idMaps) check(uid, gid uint32) error {
	if !mapped(m.uids, uid) {
		return fmt.Errorf("user id %d is not mapped in the daemon's user namespace: "+
			"give the daemon's user a range in /etc/subuid, or run the daemon as root", uid)
	}
	if !mapped(m.gids, gid) {
		return fmt.Errorf("group id %d is not mapped in the daemon's user namespace: "+
			"give the daemon's user a range in /etc/subgid, or run the daemon as root", gid)
	}
	return nil
}

// groups keeps the supplementary groups that can be set. The others name
// files that can not exist here, so a process loses no access with them.
func (m idMaps) groups(gids []uint32) []uint32 {
	if !m.setgroups {
		return nil
	}
	var out []uint32
	for _, g := range gids {
		if mapped(m.gids, g) {
			out = append(out, g)
		}
	}
	return out
}
