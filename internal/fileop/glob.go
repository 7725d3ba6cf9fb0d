package fileop

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/internal/safepath"
)

// glob finds what matches a pattern as path.Match does, in the order of names.
// Nothing is looked for below a match. Symlinks are followed in the part of
// the pattern that has no wildcards, at its end only if asked to, and nowhere
// else. A pattern without
// wildcards matches itself, whether it exists or not; the part of a pattern
// that has none must exist.
func glob(root *safepath.Root, pattern string, follow bool) ([]string, error) {
	pattern = path.Join("/", pattern)
	base, rest := split(pattern)
	if rest == "" {
		return []string{base}, nil
	}
	if _, err := path.Match(rest, ""); err != nil {
		return nil, fmt.Errorf("pattern %q: %w", pattern, err)
	}
	open := root.LSub
	if follow {
		open = root.Sub
	}
	dir, err := open(base)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &notFoundError{base}
	}
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) && !follow {
		return nil, nil // a file, or a symlink, has nothing in it
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	g := globber{readDir: dir.ReadDir, base: base, pattern: rest, depth: strings.Count(rest, "/")}
	if strings.Contains(rest, "[") {
		g.depth = -1 // a class such as [^a] matches slashes, too
	}
	err = g.walk("")
	return g.found, err
}

type globber struct {
	readDir       func(dir string) ([]fs.DirEntry, error)
	base, pattern string
	depth         int // of the deepest directory to look into; -1 is without limit
	found         []string
}

func (g *globber) walk(dir string) error {
	entries, err := g.readDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		ok, err := path.Match(g.pattern, name)
		if err != nil {
			return err
		}
		switch {
		case ok:
			g.found = append(g.found, path.Join(g.base, name))
		case e.IsDir() && (g.depth < 0 || strings.Count(name, "/") < g.depth):
			if err := g.walk(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// split cuts a pattern before the first component that has a wildcard.
func split(pattern string) (base, rest string) {
	parts := strings.Split(strings.TrimPrefix(pattern, "/"), "/")
	for i, part := range parts {
		if hasWildcard(part) {
			return "/" + strings.Join(parts[:i], "/"), strings.Join(parts[i:], "/")
		}
	}
	return pattern, ""
}

func hasWildcard(name string) bool {
	for i := 0; i < len(name); i++ {
		switch name[i] {
		case '*', '?', '[':
			return true
		case '\\':
			i++
		}
	}
	return false
}
