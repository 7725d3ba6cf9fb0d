package snapshot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"
)

// probe finds out whether and how overlay can be mounted below the root, by
// doing so.
func (s *Store) probe() error {
	dir, err := os.MkdirTemp(s.root, "probe-")
	if err != nil {
		return err
	}
	err = s.probeIn(dir)
	return errors.Join(err, os.RemoveAll(dir))
}

func (s *Store) probeIn(dir string) error {
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "lower", "file"), nil, 0o644); err != nil {
		return err
	}
	common := plainOptions()
	trusted := s.tryMount(dir, "trusted.overlay.", common)
	if trusted == nil {
		s.Options = common
		return nil
	}
	inUserNamespace := append([]string{"userxattr"}, common...)
	user := s.tryMount(dir, "user.overlay.", inUserNamespace)
	if user == nil {
		s.Options, s.UserXattr = inUserNamespace, true
		return nil
	}
	return fmt.Errorf("%w (with userxattr: %w)", trusted, user)
}

// tryMount mounts and does the two things that fail where overlay half works:
// a whiteout and an opaque directory.
func (s *Store) tryMount(dir, xattrPrefix string, options []string) error {
	path := func(name string) string { return filepath.Join(dir, name) }
	m := mount.Mount{Type: "overlay", Source: "overlay", Options: append([]string{
		"lowerdir=" + path("lower"), "upperdir=" + path("upper"), "workdir=" + path("work"),
	}, options...)}
	if err := m.Mount(path("merged")); err != nil {
		return err
	}
	err := func() error {
		if err := os.Remove(path("merged/file")); err != nil {
			return err
		}
		if err := os.Mkdir(path("merged/file"), 0o755); err != nil {
			return err
		}
		var value [1]byte
		if _, err := unix.Lgetxattr(path("upper/file"), xattrPrefix+"opaque", value[:]); err != nil {
			return fmt.Errorf("opaque directories are not marked: %w", err)
		}
		return os.Remove(path("merged/file"))
	}()
	err = errors.Join(err, unix.Unmount(path("merged"), unix.MNT_DETACH))
	return errors.Join(err, os.RemoveAll(path("upper/file")))
}

// plainOptions switch off what would make an upper directory mean more than
// its files, where the kernel's defaults switch it on.
func plainOptions() []string {
	var options []string
	for _, o := range []struct{ parameter, option string }{
		{"index", "index=off"},
		{"metacopy", "metacopy=off"},
		{"redirect_dir", "redirect_dir=nofollow"},
	} {
		on, err := os.ReadFile("/sys/module/overlay/parameters/" + o.parameter)
		if err == nil && (o.parameter == "index" || strings.TrimSpace(string(on)) == "Y") {
			options = append(options, o.option)
		}
	}
	return options
}
