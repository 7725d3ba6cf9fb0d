package files

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/kiln-build/kiln/internal/safepath"
)

// maxLinks is how many symlinks a follow-path may lead through, as in Linux.
const maxLinks = 40

// follow returns the include patterns of the follow-paths: the paths, each
// symlink met on the way and what it leads to. Links that leave the root are
// taken as links from the root, as in a container.
func follow(root *safepath.Root, paths []string) ([]string, error) {
	f := &follower{root: root, seen: map[string]bool{}}
	for _, p := range paths {
		if err := f.walk(".", strings.Split(path.Clean("/" + p)[1:], "/"), 0); err != nil {
			return nil, fmt.Errorf("follow %q: %w", p, err)
		}
	}
	slices.Sort(f.found)
	return f.found, nil
}

type follower struct {
	root  *safepath.Root
	seen  map[string]bool
	found []string // patterns
}

func (f *follower) add(pattern string) {
	if !f.seen[pattern] {
		f.seen[pattern] = true
		f.found = append(f.found, pattern)
	}
}

// walk resolves rest below dir, which holds no symlink.
func (f *follower) walk(dir string, rest []string, links int) error {
	for len(rest) > 0 && (rest[0] == "" || rest[0] == ".") {
		rest = rest[1:]
	}
	if len(rest) == 0 {
		if dir == "." {
			f.add("**")
		} else {
			f.add(escapePattern(dir))
		}
		return nil
	}
	name, rest := rest[0], rest[1:]
	if name == ".." {
		return f.walk(path.Dir(dir), rest, links)
	}
	if strings.ContainsAny(name, `*?[\`) {
		return f.wildcard(dir, name, rest, links)
	}
	return f.step(dir, name, rest, links)
}

// wildcard goes on with each name in dir that matches a pattern.
func (f *follower) wildcard(dir, pattern string, rest []string, links int) error {
	d, err := f.root.Open(dir)
	if err != nil {
		return nil // nothing matches
	}
	names, err := d.Readdirnames(-1)
	if closeErr := d.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		ok, err := path.Match(pattern, name)
		if err != nil {
			return err
		}
		if ok {
			if err := f.step(dir, name, rest, links); err != nil {
				return err
			}
		}
	}
	return nil
}

// step goes on below dir/name.
func (f *follower) step(dir, name string, rest []string, links int) error {
	p := path.Join(dir, name)
	info, err := f.root.Lstat(p)
	if err != nil || info.Mode()&fs.ModeSymlink == 0 {
		// A path that is not there includes nothing; the rest stays a pattern.
		if err != nil {
			f.add(escapePattern(p))
			return nil
		}
		return f.walk(p, rest, links)
	}
	if links == maxLinks {
		return fmt.Errorf("%q: more than %d symlinks", p, maxLinks)
	}
	f.add(escapePattern(p))
	target, err := f.root.Readlink(p)
	if err != nil {
		return err
	}
	if path.IsAbs(target) {
		dir = "."
	}
	return f.walk(dir, append(strings.Split(target, "/"), rest...), links+1)
}
