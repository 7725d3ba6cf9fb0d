package namespace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// unifiedCgroups is where version 2 of cgroups is mounted, if it stands alone.
const unifiedCgroups = "/sys/fs/cgroup"

// initGroup is where processes go that are in the way of groups with limits;
// BuildKit's daemon has the same name for it (executor/resources).
const initGroup = "init"

// shareCgroups makes the root of version 2's hierarchy one below which groups
// can have limits. In a container that root is a group like any other, and
// one with processes of its own gives no controllers to others, cgroups(7), "no
// internal processes": its processes, this one first of all, go one group down.
// Which processes are in a group is seen only from outside of a PID namespace, so
// this comes before there is one.
func shareCgroups(root string) error {
	var s unix.Statfs_t
	if err := unix.Statfs(root, &s); err != nil || s.Type != unix.CGROUP2_SUPER_MAGIC {
		return nil // version 1 knows no such rule
	}
	if _, err := os.Stat(filepath.Join(root, "cgroup.type")); errors.Is(err, fs.ErrNotExist) {
		return nil // the machine's own root, for which there are no rules
	}
	missing, err := missingControllers(root)
	if err != nil || len(missing) == 0 {
		return err
	}
	if err := emptyGroup(root); err != nil {
		return err
	}
	return enableControllers(root, missing)
}

// missingControllers are those that a group has and does not pass on.
func missingControllers(group string) ([]string, error) {
	has, err := os.ReadFile(filepath.Join(group, "cgroup.controllers"))
	if err != nil {
		return nil, fmt.Errorf("read what cgroups can limit: %w", err)
	}
	passes, err := os.ReadFile(filepath.Join(group, "cgroup.subtree_control"))
	if err != nil {
		return nil, fmt.Errorf("read what cgroups can limit: %w", err)
	}
	passed := strings.Fields(string(passes))
	return slices.DeleteFunc(strings.Fields(string(has)), func(c string) bool { return slices.Contains(passed, c) }), nil
}

// enableControllers has a group pass controllers on to those below it. Each is
// asked for by itself: one that is refused keeps no other.
func enableControllers(group string, controllers []string) error {
	var errs []error
	for _, c := range controllers {
		if err := os.WriteFile(filepath.Join(group, "cgroup.subtree_control"), []byte("+"+c), 0); err != nil {
			errs = append(errs, fmt.Errorf("have cgroups limit %s: %w", c, err))
		}
	}
	return errors.Join(errs...)
}

// emptyGroup moves the processes of a group into one below it. They may make
// others meanwhile, so it looks again.
func emptyGroup(group string) error {
	below := filepath.Join(group, initGroup)
	for range 10 {
		text, err := os.ReadFile(filepath.Join(group, "cgroup.procs"))
		if err != nil {
			return fmt.Errorf("list the processes of a cgroup: %w", err)
		}
		pids := strings.Fields(string(text))
		if len(pids) == 0 {
			return nil
		}
		if err := os.Mkdir(below, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make cgroup: %w", err)
		}
		for _, pid := range pids {
			err := os.WriteFile(filepath.Join(below, "cgroup.procs"), []byte(pid), 0)
			if err != nil && !errors.Is(err, unix.ESRCH) { // it has ended
				return fmt.Errorf("move process %s to cgroup %s: %w", pid, below, err)
			}
		}
	}
	return fmt.Errorf("move processes to cgroup %s: more come all the time", below)
}
