package files

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/moby/patternmatcher"
)

// Filter says which of a tree's files are wanted (as in tonistiigi/fsutil).
type Filter struct {
	// Include are patterns, in patternmatcher's syntax; without any, and without
	// FollowPaths, all is included.
	Include []string
	// Exclude are patterns in the manner of .dockerignore: the last match wins,
	// and a leading "!" takes back an exclusion.
	Exclude []string
	// FollowPaths are paths, with wildcards, that are included together with
	// what their symlinks lead to.
	FollowPaths []string
}

// withoutLinks is the filter of a tree in which no symlink is followed: what is to
// be followed is included.
func (f Filter) withoutLinks() Filter {
	f.Include = slices.Concat(f.Include, f.FollowPaths)
	return f
}

// matcher decides on paths from the top of a tree to its leaves.
type matcher struct {
	include, exclude *patternmatcher.PatternMatcher // nil matches nothing
	followed         *followed
	all              bool       // there is neither include nor followed
	included         [][]string // include's patterns by component
	negated          [][]string // exclude's negations by component
}

// newMatcher returns the matcher of f, whose follow-paths lead to followed.
func newMatcher(f Filter, followed *followed) (*matcher, error) {
	m := &matcher{followed: followed, all: len(f.Include) == 0 && followed == nil}
	include := f.Include
	if followed != nil {
		include = slices.Concat(include, slices.Sorted(maps.Keys(followed.patterns)))
	}
	var err error
	if len(include) > 0 {
		if m.include, err = patternmatcher.New(include); err != nil {
			return nil, fmt.Errorf("include patterns %q: %w", include, err)
		}
		for _, p := range m.include.Patterns() {
			m.included = append(m.included, strings.Split(p.String(), "/"))
		}
	}
	if len(f.Exclude) > 0 {
		if m.exclude, err = patternmatcher.New(f.Exclude); err != nil {
			return nil, fmt.Errorf("exclude patterns %q: %w", f.Exclude, err)
		}
		for _, p := range m.exclude.Patterns() {
			if p.Exclusion() {
				m.negated = append(m.negated, strings.Split(p.String(), "/"))
			}
		}
	}
	return m, nil
}

// verdict is what a matcher says of a path. A directory's is handed on to what
// lies in it.
type verdict struct {
	send             bool // send the entry
	descend          bool // something below it may be sent, if it is a directory
	followed         bool // the path or one above is what a follow-path leads to
	include, exclude patternmatcher.MatchInfo
}

// match decides on a path whose directory got the verdict parent.
func (m *matcher) match(p string, parent verdict) (verdict, error) {
	v := verdict{followed: parent.followed || m.followed.wants(p)}
	included, excluded := m.all, false
	var err error
	if m.include != nil {
		if included, v.include, err = m.include.MatchesUsingParentResults(p, parent.include); err != nil {
			return v, fmt.Errorf("match %q: %w", p, err)
		}
	}
	if m.exclude != nil {
		if excluded, v.exclude, err = m.exclude.MatchesUsingParentResults(p, parent.exclude); err != nil {
			return v, fmt.Errorf("match %q: %w", p, err)
		}
	}
	included = included || v.followed
	v.send = included && !excluded
	v.descend = (included || m.followed.leads(p) || anyBelow(m.included, p)) && (!excluded || anyBelow(m.negated, p))
	return v, nil
}

// anyBelow tells whether a pattern might match something below dir. It may say
// so in vain, which costs time only.
func anyBelow(patterns [][]string, dir string) bool {
	parts := strings.Split(dir, "/")
	for _, p := range patterns {
		if mayReach(p, parts) {
			return true
		}
	}
	return false
}

func mayReach(pattern, dir []string) bool {
	for i, part := range dir {
		if i == len(pattern) {
			return true // it matches a parent, and so all below
		}
		if strings.Contains(pattern[i], "**") {
			return true
		}
		if ok, err := path.Match(pattern[i], part); err == nil && !ok {
			return false
		}
	}
	return true
}

// escapePattern returns the pattern that matches p alone.
func escapePattern(p string) string {
	if !strings.ContainsAny(p, `*?[]\!`) {
		return p
	}
	var b strings.Builder
	for i := range len(p) {
		if strings.IndexByte(`*?[]\`, p[i]) >= 0 || i == 0 && p[i] == '!' {
			b.WriteByte('\\')
		}
		b.WriteByte(p[i])
	}
	return b.String()
}
