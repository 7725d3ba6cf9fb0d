package oci

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/internal/executor"
)

// handlePrefix is how a mount's source names an open file of this process. The
// runtime is another process, and can not bind a file that it has no path in
// its own mount namespace for: the file is bound in the bundle first.
const handlePrefix = "/proc/self/fd/"

// stageHandles binds the sources that are handles into the bundle, and gives
// the mounts with those paths. A path could be led elsewhere between its check
// and its mount (CVE-2024-23651); a handle can not.
func (c *container) stageHandles() ([]executor.Mount, error) {
	mounts := slices.Clone(c.spec.Mounts)
	for i, m := range mounts {
		number, ok := strings.CutPrefix(m.Source, handlePrefix)
		if !ok || m.Type != "bind" {
			continue
		}
		if _, err := strconv.ParseUint(number, 10, 31); err != nil {
			return nil, fmt.Errorf("mount source %q: want the number of an open file", m.Source)
		}
		info, err := os.Stat(m.Source)
		if err != nil {
			return nil, fmt.Errorf("mount source of %s: %w", m.Dest, err)
		}
		staged := filepath.Join(c.bundle, "mounts", strconv.Itoa(i))
		if err := makeTarget(staged, info.IsDir()); err != nil {
			return nil, fmt.Errorf("make mount source of %s: %w", m.Dest, err)
		}
		if err := unix.Mount(m.Source, staged, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return nil, fmt.Errorf("bind mount source of %s: %w", m.Dest, err)
		}
		c.staged = append(c.staged, staged)
		mounts[i].Source = staged
	}
	return mounts, nil
}

func makeTarget(path string, dir bool) error {
	if dir {
		return os.MkdirAll(path, 0o700)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return os.WriteFile(path, nil, 0o600)
}

// unstage unmounts what stageHandles bound.
func (c *container) unstage() error {
	var errs []error
	for _, path := range c.staged {
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", path, err))
		}
	}
	return errors.Join(errs...)
}

// unmountBelow unmounts all that is mounted below a folder, so that removing
// it removes nothing else.
func unmountBelow(dir string) error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	defer f.Close()
	var found []string
	lines := bufio.NewScanner(io.LimitReader(f, 16<<20))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			continue
		}
		if path := unescape(fields[4]); strings.HasPrefix(path, dir+"/") {
			found = append(found, path)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	for _, path := range slices.Backward(found) {
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	return nil
}

// unescape undoes the octal escapes of blanks in mountinfo.
func unescape(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}

// makeStubs makes the mount points and the working directory. Those inside
// another mount are left to the runtime: they are not in the root file system.
func (c *container) makeStubs(more []executor.Mount) error {
	covers := []string{"/proc", "/dev", "/sys"}
	covered := func(p string) bool {
		return slices.ContainsFunc(covers, func(c string) bool { return p == c || strings.HasPrefix(p, c+"/") })
	}
	for _, dest := range []string{"/etc/hosts", "/etc/resolv.conf"} {
		if err := c.stubs.add(dest, false); err != nil && !errors.Is(err, unix.EROFS) {
			return err
		}
	}
	for _, m := range slices.Concat(c.spec.Mounts, more) {
		dest := path.Clean(m.Dest)
		if system := path.Join("/", strings.SplitN(dest, "/", 3)[1]); slices.Contains(covers[:3], system) {
			// BuildKit takes the folders of such mounts for its own stubs.
			if err := c.stubs.add(system, true); err != nil && !errors.Is(err, unix.EROFS) {
				return err
			}
			continue
		}
		if covered(dest) {
			continue
		}
		if m.Type == "tmpfs" {
			if err := c.stubs.addShared(dest); err != nil && !errors.Is(err, unix.EROFS) {
				return err
			}
			covers = append(covers, dest)
			continue
		}
		dir := true
		if m.Type == "bind" {
			info, err := os.Stat(m.Source)
			if err != nil {
				return fmt.Errorf("mount source of %s: %w", m.Dest, err)
			}
			dir = info.IsDir()
		}
		if err := c.stubs.add(dest, dir); err != nil && !errors.Is(err, unix.EROFS) {
			return err
		}
		covers = append(covers, dest)
	}
	if cwd := path.Clean(c.spec.Process.Cwd); !covered(cwd) {
		err := c.stubs.mkdir(cwd, c.spec.Process.UID, c.spec.Process.GID)
		if err != nil && !errors.Is(err, unix.EROFS) {
			return err
		}
	}
	return nil
}

// deviceMounts are the mounts that devices added to a description's own.
func deviceMounts(config *specs.Spec, own []specs.Mount) (out []executor.Mount) {
	for _, m := range config.Mounts {
		if slices.ContainsFunc(own, func(o specs.Mount) bool { return o.Destination == m.Destination }) {
			continue
		}
		kind := "tmpfs"
		if slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind") || m.Type == "bind" {
			kind = "bind"
		}
		out = append(out, executor.Mount{Type: kind, Source: m.Source, Dest: m.Destination})
	}
	return out
}
