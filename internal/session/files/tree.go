package files

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/internal/api/fsutil"
)

// Memory is a tree of files without directories, held in memory. All are as old
// as the tree, so that no receiver takes them for ones that it has.
type Memory struct {
	files map[string][]byte
	match *matcher
	made  time.Time
}

// NewMemory returns those of files, by name, that f wants.
func NewMemory(files map[string][]byte, f Filter) (*Memory, error) {
	m, err := newMatcher(f.withoutLinks(), nil)
	if err != nil {
		return nil, err
	}
	return &Memory{files, m, time.Now()}, nil
}

// Walk lists the wanted files.
func (m *Memory) Walk(_ context.Context, f func(*fsutil.Stat) error) error {
	names := make([]string, 0, len(m.files))
	for name := range m.files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		v, err := m.match.match(name, verdict{})
		if err != nil {
			return err
		}
		if !v.send {
			continue
		}
		st := &fsutil.Stat{Path: name, Mode: 0o644, Size: int64(len(m.files[name])), ModTime: m.made.UnixNano()}
		if err := f(st); err != nil {
			return err
		}
	}
	return nil
}

// Open returns a file's content.
func (m *Memory) Open(name string) (io.ReadCloser, error) {
	b, ok := m.files[name]
	if !ok {
		return nil, fmt.Errorf("open %q: %w", name, fs.ErrNotExist)
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// Sub is a tree in a directory of its own.
type Sub struct {
	Name string // of the directory: no slash
	Tree Tree
}

// Join returns the tree of directories that hold one tree each.
func Join(subs ...Sub) (Tree, error) {
	j := joined(slices.Clone(subs))
	slices.SortFunc(j, func(a, b Sub) int { return strings.Compare(a.Name, b.Name) })
	for i, s := range j {
		if err := checkPath(s.Name); err != nil || strings.Contains(s.Name, "/") {
			return nil, fmt.Errorf("directory name %q: want a plain name", s.Name)
		}
		if i > 0 && j[i-1].Name == s.Name {
			return nil, fmt.Errorf("two directories are called %q", s.Name)
		}
	}
	return j, nil
}

type joined []Sub

func (j joined) Walk(ctx context.Context, f func(*fsutil.Stat) error) error {
	for _, s := range j {
		if err := f(&fsutil.Stat{Path: s.Name, Mode: uint32(fs.ModeDir | 0o755)}); err != nil {
			return err
		}
		err := s.Tree.Walk(ctx, func(st *fsutil.Stat) error {
			moved := proto.Clone(st).(*fsutil.Stat)
			moved.Path = s.Name + "/" + st.GetPath()
			if st.GetLinkname() != "" && fs.FileMode(st.GetMode())&fs.ModeType == 0 {
				moved.Linkname = s.Name + "/" + st.GetLinkname()
			}
			return f(moved)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (j joined) Open(name string) (io.ReadCloser, error) {
	top, rest, _ := strings.Cut(name, "/")
	for _, s := range j {
		if s.Name == top {
			return s.Tree.Open(rest)
		}
	}
	return nil, fmt.Errorf("open %q: %w", name, fs.ErrNotExist)
}
