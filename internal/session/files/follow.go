package files

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/kiln-build/kiln/internal/safepath"
)

// maxLinks is how many symlinks a follow-path may lead through, as in Linux.
const maxLinks = 40

// followed is what follow-paths lead to. A wildcard may match a million files: it
// stays a pattern, and only what the links among them lead to is named.
type followed struct {
	all      bool            // the root itself is wanted, and so all
	paths    map[string]bool // wanted with what lies below; false only leads to one
	patterns map[string]bool // of paths with wildcards, in patternmatcher's syntax
}

// add takes a path, and what leads to it.
func (f *followed) add(p string) {
	f.paths[p] = true
	for dir := path.Dir(p); dir != "."; dir = path.Dir(dir) {
		if _, known := f.paths[dir]; known {
			return
		}
		f.paths[dir] = false
	}
}

// wants tells whether p itself is wanted. A nil followed wants nothing.
func (f *followed) wants(p string) bool { return f != nil && (f.all || f.paths[p]) }

// leads tells whether p is wanted or something below it is.
func (f *followed) leads(p string) bool {
	if f == nil {
		return false
	}
	_, known := f.paths[p]
	return f.all || known
}

// follow returns what follow-paths lead to: the paths, each symlink met on the
// way and what it leads to. Links that leave the root are taken as links from the
// root, as in a container.
func follow(root *safepath.Root, paths []string) (*followed, error) {
	if len(paths) == 0 {
		return nil, nil
	}
	f := &follower{root: root, found: &followed{paths: map[string]bool{}, patterns: map[string]bool{}}}
	for _, p := range paths {
		if err := f.walk(way{dir: ".", rest: strings.Split(path.Clean("/" + p)[1:], "/")}); err != nil {
			return nil, fmt.Errorf("follow %q: %w", p, err)
		}
	}
	return f.found, nil
}

type follower struct {
	root  *safepath.Root
	found *followed
}

// way is where a follower is: at dir, which holds no symlink, with rest to go.
type way struct {
	dir     string
	rest    []string
	links   int  // gone through
	matched bool // by a pattern that is in found
}

func (f *follower) walk(w way) error {
	for len(w.rest) > 0 && (w.rest[0] == "" || w.rest[0] == ".") {
		w.rest = w.rest[1:]
	}
	switch {
	case len(w.rest) == 0 && w.matched:
		return nil
	case len(w.rest) == 0 && w.dir == ".":
		f.found.all = true
		return nil
	case len(w.rest) == 0:
		f.found.add(w.dir)
		return nil
	case w.rest[0] == "..":
		return f.walk(way{path.Dir(w.dir), w.rest[1:], w.links, false})
	case strings.ContainsAny(w.rest[0], `*?[\`):
		return f.wildcard(w)
	}
	return f.step(w)
}

// namesAtOnce is how many entries of a directory are held at a time.
const namesAtOnce = 1000

// wildcard goes on with each name in dir that matches a pattern.
func (f *follower) wildcard(w way) error {
	if !w.matched {
		pattern := path.Join(append([]string{escapePattern(w.dir)}, w.rest...)...)
		if strings.HasPrefix(pattern, "!") { // which patternmatcher would take for an exception
			pattern = `\` + pattern
		}
		f.found.patterns[pattern] = true
		w.matched = true
	}
	d, err := f.root.Open(w.dir)
	if err != nil {
		return nil // nothing matches
	}
	for err == nil {
		var some []fs.DirEntry
		some, err = d.ReadDir(namesAtOnce)
		if matchErr := f.matching(w, some); matchErr != nil {
			err = matchErr
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return errors.Join(err, d.Close())
}

func (f *follower) matching(w way, some []fs.DirEntry) error {
	pattern := w.rest[0]
	for _, e := range some {
		ok, err := path.Match(pattern, e.Name())
		if err != nil {
			return err
		}
		if !ok || e.Type().IsRegular() { // which leads nowhere
			continue
		}
		if err := f.step(way{w.dir, append([]string{e.Name()}, w.rest[1:]...), w.links, true}); err != nil {
			return err
		}
	}
	return nil
}

// step goes on below the first name of rest.
func (f *follower) step(w way) error {
	p, rest := path.Join(w.dir, w.rest[0]), w.rest[1:]
	info, err := f.root.Lstat(p)
	switch {
	case err != nil: // a path that is not there includes nothing
		if !w.matched {
			f.found.add(p)
		}
		return nil
	case info.Mode()&fs.ModeSymlink == 0:
		return f.walk(way{p, rest, w.links, w.matched})
	case w.links == maxLinks:
		return fmt.Errorf("%q: more than %d symlinks", p, maxLinks)
	}
	f.found.add(p)
	target, err := f.root.Readlink(p)
	if err != nil {
		return err
	}
	dir := w.dir
	if path.IsAbs(target) {
		dir = "."
	}
	return f.walk(way{dir, append(strings.Split(target, "/"), rest...), w.links + 1, false})
}
