package layer

import (
	"context"
	"os"
	"slices"
	"strings"
)

// Links are the files of a state as they are kept, for a new layer to have
// further names of them in place of copies: layers do not change.
//
// Two names of one file look like hard links of each other where both are seen.
// Record.Links says which snapshots may have files in common, and those never
// lie in one state: here, no links are given then, and a merge copies.
type Links struct{ below *below }

// LinksOf gives the files of r to m, which a commit notes. It is nil if they
// must be copied: if m has something below it, which only overlay can write
// over, or has got files of the same origin before.
func (m *Mutable) LinksOf(ctx context.Context, r *Ref) (*Links, error) {
	s := m.store
	if r == nil || s.native || !m.plain() {
		return nil, nil
	}
	lowers, err := s.lowers(ctx, r)
	if err != nil {
		return nil, err
	}
	origins := s.origins(r)
	m.mu.Lock()
	defer m.mu.Unlock()
	if overlap(origins, m.links) {
		return nil, nil
	}
	b, err := openBelow(lowers, s.marks)
	if err != nil {
		return nil, err
	}
	m.links = append(m.links, origins...)
	return &Links{b}, nil
}

// Close lets the files go.
func (l *Links) Close() { l.below.Close() }

// Folders opens the directories that make up a folder of the state, the topmost
// first; the caller closes them. The path has no symlinks. What a name is,
// the first one that has it tells.
func (l *Links) Folders(name string) (open []*os.File, err error) {
	parts := strings.FieldsFunc(name, func(c rune) bool { return c == '/' })
	for _, root := range l.below.dirs {
		dir, covers, err := l.below.descend(root, parts)
		if err != nil {
			for _, d := range open {
				d.Close()
			}
			return nil, err
		}
		if dir != nil {
			open = append(open, dir)
		}
		if covers {
			break
		}
	}
	return open, nil
}

// origins are the snapshots that the files of r may be links of, its own included.
func (s *Store) origins(r *Ref) (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ; r != nil; r = r.parent {
		names = append(names, r.rec.origins()...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (r Record) origins() []string {
	if r.Snapshot == "" {
		return r.Links
	}
	return append([]string{r.Snapshot}, r.Links...)
}

func overlap(a, b []string) bool {
	return slices.ContainsFunc(a, func(s string) bool { return slices.Contains(b, s) })
}

// clash tells whether l, on top of parent, would show further names of files
// that parent has under others.
func (s *Store) clash(l, parent *Ref) bool {
	if s.native || parent == nil {
		return false
	}
	rec := l.Record()
	for _, p := range parent.chain() {
		if p.Record().Snapshot == rec.Snapshot {
			return false // the very directory, of which a state has one
		}
	}
	return overlap(rec.origins(), s.origins(parent))
}
