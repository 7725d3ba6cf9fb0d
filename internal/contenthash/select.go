package contenthash

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"github.com/moby/patternmatcher"
	"github.com/opencontainers/go-digest"
)

// NotFoundError tells that what a selector names does not exist. It is an
// [fs.ErrNotExist].
type NotFoundError struct{ Path string }

// Error is the message that users of Docker know.
func (e *NotFoundError) Error() string { return strconv.Quote(e.Path) + ": not found" }

// Is makes errors.Is find fs.ErrNotExist.
func (e *NotFoundError) Is(target error) bool { return target == fs.ErrNotExist }

// Checksum is the digest of what sels select; none selects everything. root is
// a directory where the tree can be read, should anything not be known yet. As
// in BuildKit it is the digest of the selectors' digests joined by NUL, also
// of a single one; [Tree.Digest] is the digest of one selector.
//
// A path that does not exist is a [NotFoundError]; a pattern that matches
// nothing is not.
func (t *Tree) Checksum(ctx context.Context, root string, sels []Selector) (digest.Digest, error) {
	return join(sels, func(s Selector) (digest.Digest, error) { return t.Digest(ctx, root, s) })
}

func join(sels []Selector, one func(Selector) (digest.Digest, error)) (digest.Digest, error) {
	if len(sels) == 0 {
		sels = []Selector{{}}
	}
	parts := make([]string, len(sels))
	for i, s := range sels {
		d, err := one(s)
		if err != nil {
			return "", err
		}
		parts[i] = string(d)
	}
	return digest.FromString(strings.Join(parts, "\x00")), nil
}

// Digest is the digest of what one selector selects; see [Tree.Checksum].
func (t *Tree) Digest(ctx context.Context, root string, s Selector) (digest.Digest, error) {
	t.family.mu.Lock()
	defer t.family.mu.Unlock()
	l := &lookup{ctx: ctx, family: t.family, root: t.root, dir: root}
	defer l.close()
	p := path.Join("/", s.Path)
	if !s.Wildcard && len(s.Include) == 0 && len(s.Exclude) == 0 {
		return l.whole(p, s.FollowLinks)
	}
	return l.selected(p, s)
}

// whole is the digest of the file or tree at p.
func (l *lookup) whole(p string, follow bool) (digest.Digest, error) {
	at, err := l.resolve(p, follow)
	if err != nil {
		return "", err
	}
	if at.node == nil {
		return "", &NotFoundError{p}
	}
	for {
		todo, err := l.unknown(at, nil)
		if err != nil {
			return "", err
		}
		if len(todo) == 0 {
			return total(at.node), nil
		}
		if err := l.fill(todo); err != nil {
			return "", err
		}
	}
}

// selected is the digest of a list of paths and the headers of what is there.
func (l *lookup) selected(p string, sel Selector) (digest.Digest, error) {
	s := &selection{lookup: l, sel: sel, pattern: p, skipTop: p == "/"}
	if p == "/" {
		s.pattern = ""
	}
	if err := s.run(); err != nil {
		return "", err
	}
	var todo []place
	for _, e := range s.found {
		todo = append(todo, e.at)
	}
	if err := l.fill(todo); err != nil {
		return "", err
	}
	digests := make([]digest.Digest, len(s.found))
	for i, e := range s.found {
		digests[i] = e.at.node.header
		if e.follow && e.at.node.kind == kindLink {
			var err error
			if digests[i], err = l.whole(e.path, true); err != nil {
				return "", err
			}
		}
	}
	if len(s.found) == 1 && path.Base(s.pattern) == path.Base(s.found[0].path) {
		return digests[0], nil
	}
	h := sha256.New()
	for i, e := range s.found {
		key := strings.ReplaceAll(strings.TrimPrefix(e.path, s.prefix), "/", "\x00")
		if key == "" {
			key = "\x00"
		}
		h.Write([]byte(key + string(digests[i])))
	}
	return Sum(h), nil
}

// selection evaluates a selector with a pattern or filters: it goes through
// the tree in the order of names and finds what is meant, as BuildKit does.
type selection struct {
	*lookup
	sel     Selector
	pattern string // cleaned; "" is the root
	prefix  string // what of pattern has no wildcards
	skipTop bool   // the header of pattern itself does not count

	include, exclude *patternmatcher.PatternMatcher
	parents          []*found // headers of the directories being gone through
	matched          string   // the last path that pattern matched
	found            []*found
}

// found is an entry that may be part of the selection. Its path is below the
// selector's path, even where that leads through symlinks.
type found struct {
	path             string
	at               place
	listed, follow   bool
	include, exclude patternmatcher.MatchInfo
}

func (s *selection) run() (err error) {
	if len(s.sel.Include) > 0 {
		if s.include, err = patternmatcher.New(s.sel.Include); err != nil {
			return fmt.Errorf("include patterns %q: %w", s.sel.Include, err)
		}
	}
	if len(s.sel.Exclude) > 0 {
		if s.exclude, err = patternmatcher.New(s.sel.Exclude); err != nil {
			return fmt.Errorf("exclude patterns %q: %w", s.sel.Exclude, err)
		}
	}
	follow := false
	s.prefix = s.pattern
	if s.sel.Wildcard {
		if _, err := path.Match(s.pattern, ""); err != nil {
			return fmt.Errorf("pattern %q: %w", s.pattern, err)
		}
		s.prefix, follow = literal(s.pattern)
	}
	at, err := s.resolve(s.prefix, follow)
	if err != nil || at.node == nil {
		return err
	}
	return s.visit(s.prefix, at)
}

// literal is the part of a pattern before the first component with wildcards,
// and whether there is such a component.
func literal(pattern string) (prefix string, wild bool) {
	parts := strings.Split(pattern, "/")
	for i, part := range parts {
		if hasWildcard(part) {
			return strings.Join(parts[:i], "/"), true
		}
	}
	return pattern, false
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

// visit goes through the tree at; name is what the selector would call it.
func (s *selection) visit(name string, at place) error {
	ok, err := s.entry(name, at, false)
	if err != nil || at.node.kind != kindDir {
		return err
	}
	if !ok && s.tooDeep(name) {
		return nil
	}
	if _, err := s.entry(name, at, true); err != nil {
		return err
	}
	if err := s.scan(at); err != nil {
		return err
	}
	for _, e := range at.node.entries {
		if err := s.visit(name+"/"+e.name, place{at.path + "/" + e.name, e.node}); err != nil {
			return err
		}
	}
	return nil
}

// tooDeep says that nothing below name, which did not match, can match either.
func (s *selection) tooDeep(name string) bool {
	// A class such as [^a] matches slashes, too, so that depth says nothing.
	return !strings.Contains(s.pattern, "[") && strings.Count(name, "/") >= strings.Count(s.pattern, "/")
}

// entry decides on a file, a directory, or a directory's header. It returns
// false for what the pattern leaves out.
func (s *selection) entry(name string, at place, header bool) (bool, error) {
	below := name
	if header {
		below += "/"
	}
	for len(s.parents) > 0 && !strings.HasPrefix(below, s.parents[len(s.parents)-1].path+"/") {
		s.parents = s.parents[:len(s.parents)-1]
	}
	if header && name == s.pattern && s.skipTop {
		return true, nil
	}
	base := s.pattern
	if s.sel.Wildcard {
		if s.pattern != "" && (s.matched == "" || !strings.HasPrefix(name, s.matched+"/")) {
			ok, err := path.Match(s.pattern, name)
			if err != nil || !ok {
				return false, err
			}
			s.matched = name
		}
		base = s.matched
	}
	e := &found{path: name, at: at}
	var parent *found
	if len(s.parents) > 0 {
		parent = s.parents[len(s.parents)-1]
	} else {
		e.follow = s.sel.FollowLinks
	}
	ok, err := s.filter(strings.TrimSuffix(strings.TrimPrefix(name+"/", base+"/"), "/"), e, parent)
	if err != nil {
		return false, err
	}
	if ok && (header || at.node.kind != kindDir) {
		for _, p := range append(s.parents, e) {
			if !p.listed {
				p.listed = true
				s.found = append(s.found, p)
			}
		}
	}
	if header {
		s.parents = append(s.parents, e)
	}
	return true, nil
}

func (s *selection) filter(candidate string, e, parent *found) (bool, error) {
	var up found
	if parent != nil {
		up = *parent
	}
	if s.include != nil {
		ok, info, err := s.include.MatchesUsingParentResults(candidate, up.include)
		if err != nil {
			return false, fmt.Errorf("match include patterns: %w", err)
		}
		e.include = info
		if !ok {
			return false, nil
		}
	}
	if s.exclude != nil {
		ok, info, err := s.exclude.MatchesUsingParentResults(candidate, up.exclude)
		if err != nil {
			return false, fmt.Errorf("match exclude patterns: %w", err)
		}
		e.exclude = info
		return !ok, nil
	}
	return true, nil
}
