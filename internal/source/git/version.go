package git

import (
	"context"
	"fmt"
	"strings"
)

// The oldest git that takes its configuration from the environment. An older one
// would not heed what keeps repositories in check.
const (
	oldestMajor = 2
	oldestMinor = 31
)

// checkVersion refuses a git that is too old. It asks until one is good enough.
func (s *Source) checkVersion(ctx context.Context, run *runner) error {
	if s.checked.Load() {
		return nil
	}
	out, err := run.text(ctx, command{args: []string{"version"}})
	if err != nil {
		return err
	}
	if err := recent(out); err != nil {
		return err
	}
	s.checked.Store(true)
	return nil
}

// recent tells whether "git version 2.39.5 (some vendor)" is recent enough.
func recent(version string) error {
	var major, minor int
	rest := strings.TrimPrefix(version, "git version ")
	if _, err := fmt.Sscanf(rest, "%d.%d", &major, &minor); err != nil {
		return fmt.Errorf("read version of git from %q: %w", clip(version), err)
	}
	if major < oldestMajor || major == oldestMajor && minor < oldestMinor {
		return fmt.Errorf("the daemon's machine has git %d.%d, git sources need %d.%d or newer: update git there", major, minor, oldestMajor, oldestMinor)
	}
	return nil
}
