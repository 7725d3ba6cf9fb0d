package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// BundledName is the file name of the runtime that is shipped beside Kiln's
// own program.
const BundledName = "kiln-runc"

// Runtime is a program with runc's command line.
type Runtime struct {
	Path    string // absolute
	Version string // the first line of what it says of itself, like "runc version 1.5.2"
}

// FindRuntime finds a runtime that works: the one named, else runc or crun on
// PATH, else the one beside this program. Each candidate is started once, which
// takes milliseconds.
func FindRuntime(name string) (Runtime, error) {
	if name != "" {
		r, err := probe(name)
		if err != nil {
			return Runtime{}, fmt.Errorf("use runtime %q: %w", name, err)
		}
		return r, nil
	}
	candidates := []string{"runc", "crun"}
	if self, err := os.Executable(); err == nil {
		candidates = append(candidates, filepath.Join(filepath.Dir(self), BundledName))
	}
	var errs []error
	for _, c := range candidates {
		r, err := probe(c)
		if err == nil {
			return r, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", c, err))
	}
	return Runtime{}, fmt.Errorf("find a container runtime: install runc, or put %s beside the program: %w",
		BundledName, errors.Join(errs...))
}

func probe(name string) (Runtime, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return Runtime{}, err
	}
	if path, err = filepath.Abs(path); err != nil {
		return Runtime{}, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return Runtime{}, fmt.Errorf("run %s --version: %w", path, err)
	}
	first, _, _ := strings.Cut(string(out[:min(len(out), 4096)]), "\n")
	if strings.HasPrefix(first, "crun") && hybridCgroups() {
		return Runtime{}, errors.New("crun does not run containers where cgroup v1 and v2 are mixed, as here")
	}
	return Runtime{Path: path, Version: first}, nil
}

// hybridCgroups says whether v1 controllers and an empty v2 hierarchy are
// mounted together, the layout that systemd calls hybrid.
func hybridCgroups() bool {
	_, err := os.Stat("/sys/fs/cgroup/unified/cgroup.procs")
	return err == nil
}
