package files

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"slices"
	"strings"

	"github.com/kiln-build/kiln/internal/api/fsutil"
)

// Static returns a tree of files without directories, held in memory. They are
// readable by their owner alone. modTime is in nanoseconds since 1970.
func Static(contents map[string][]byte, modTime int64) (Tree, error) {
	s := static{contents, modTime}
	for name := range contents {
		if err := checkPath(name); err != nil || strings.Contains(name, "/") {
			return nil, fmt.Errorf("file name %q: want a plain name", name)
		}
	}
	return s, nil
}

type static struct {
	contents map[string][]byte
	modTime  int64
}

// Walk lists the files.
func (s static) Walk(_ context.Context, f func(*fsutil.Stat) error) error {
	names := make([]string, 0, len(s.contents))
	for name := range s.contents {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := f(&fsutil.Stat{Path: name, Mode: 0o600, Size: int64(len(s.contents[name])), ModTime: s.modTime}); err != nil {
			return err
		}
	}
	return nil
}

// Open returns a file's content.
func (s static) Open(name string) (io.ReadCloser, error) {
	b, ok := s.contents[name]
	if !ok {
		return nil, fmt.Errorf("open %q: %w", name, fs.ErrNotExist)
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// Merge returns the tree of all that is in trees. Directories are joined. What
// else is in two of them at one path is an error of clash, which is told the
// path and the numbers of the trees; if it returns nil, the later tree's counts.
func Merge(clash func(path string, first, second int) error, trees ...Tree) Tree {
	if len(trees) == 1 {
		return trees[0]
	}
	return &merged{trees, clash}
}

type merged struct {
	trees []Tree
	clash func(string, int, int) error
}

// source is one of the trees while they are walked.
type source struct {
	next func() (*fsutil.Stat, bool)
	head *fsutil.Stat
	skip string // a directory that a later tree has something else for, with a slash
	err  error
}

func (s *source) advance() {
	for {
		st, ok := s.next()
		if !ok {
			s.head = nil
			return
		}
		if s.skip == "" || !strings.HasPrefix(st.GetPath(), s.skip) {
			s.head = st
			return
		}
	}
}

var errStopped = errors.New("walk was stopped")

// Walk lists the entries of all trees, which are read side by side.
func (m *merged) Walk(ctx context.Context, f func(*fsutil.Stat) error) error {
	sources := make([]*source, len(m.trees))
	for i, t := range m.trees {
		s := &source{}
		next, stop := iter.Pull(func(yield func(*fsutil.Stat) bool) {
			err := t.Walk(ctx, func(st *fsutil.Stat) error {
				if !yield(st) {
					return errStopped
				}
				return nil
			})
			if !errors.Is(err, errStopped) {
				s.err = err
			}
		})
		defer stop()
		s.next = next
		s.advance()
		sources[i] = s
	}
	for {
		st, err := m.next(sources)
		if err != nil || st == nil {
			return err
		}
		if err := f(st); err != nil {
			return err
		}
	}
}

// next takes the first entry of all sources, nil at the end.
func (m *merged) next(sources []*source) (*fsutil.Stat, error) {
	var first *fsutil.Stat
	from := -1
	for i, s := range sources {
		if s.err != nil {
			return nil, s.err
		}
		if s.head == nil {
			continue
		}
		order := -1
		if first != nil {
			order = ComparePaths(s.head.GetPath(), first.GetPath())
		}
		switch {
		case order < 0:
			first, from = s.head, i
		case order == 0 && isDir(first) && isDir(s.head):
		case order == 0:
			if err := m.clash(first.GetPath(), from, i); err != nil {
				return nil, err
			}
			first, from = s.head, i
		}
	}
	if first == nil {
		return nil, nil
	}
	for _, s := range sources {
		if s.head == nil || s.head.GetPath() != first.GetPath() {
			continue
		}
		if isDir(s.head) && !isDir(first) {
			s.skip = first.GetPath() + "/"
		}
		s.advance()
	}
	return first, nil
}

func isDir(st *fsutil.Stat) bool { return fs.FileMode(st.GetMode()).IsDir() }

// Open returns a file's content from the last tree that has it.
func (m *merged) Open(path string) (io.ReadCloser, error) {
	for _, t := range slices.Backward(m.trees) {
		r, err := t.Open(path)
		if !errors.Is(err, fs.ErrNotExist) {
			return r, err
		}
	}
	return nil, fmt.Errorf("open %q: %w", path, fs.ErrNotExist)
}

// Timed returns a tree whose entries all have one time, in nanoseconds since 1970.
func Timed(t Tree, modTime int64) Tree { return timed{t, modTime} }

type timed struct {
	Tree
	modTime int64
}

// Walk lists the tree.
func (t timed) Walk(ctx context.Context, f func(*fsutil.Stat) error) error {
	return t.Tree.Walk(ctx, func(st *fsutil.Stat) error {
		st.ModTime = t.modTime
		return f(st)
	})
}
