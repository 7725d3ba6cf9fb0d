package op

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/kiln-build/kiln/internal/executor"
)

// GivenFolder is a folder of files that come from outside the graph.
type GivenFolder struct {
	Dest  string            // where it is mounted: absolute, not the root
	Files map[string][]byte // by names without a slash
}

// given shows a folder in the container: in memory, not to be changed, and
// nothing in it to be run.
func (s *mountSet) given(f GivenFolder) error {
	dir, err := s.memory("mode=0700", 0)
	if err != nil {
		return err
	}
	for name, data := range f.Files {
		if name != filepath.Base(name) {
			return fmt.Errorf("mount %s: file %q: expected a name without slashes", f.Dest, name)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o400); err != nil {
			return fmt.Errorf("mount %s: write %s: %w", f.Dest, name, err)
		}
	}
	s.binds = append(s.binds, executor.Mount{
		Type: "bind", Source: dir, Dest: f.Dest, ReadOnly: true, Options: []string{"bind", "nosuid", "nodev", "noexec"},
	})
	return nil
}
