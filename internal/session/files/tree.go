package files

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/internal/api/fsutil"
)

// Memory is a tree of files without directories, held in memory. All have one
// time, which is made of their names and contents: a receiver takes them for ones
// that it has if they are the same, and not otherwise.
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
	return &Memory{files, m, timeOf(files)}, nil
}

// timeOf is some moment between 2001 and 2009, to the nanosecond.
func timeOf(files map[string][]byte) time.Time {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(h, "%q %d\n", name, len(files[name]))
		h.Write(files[name])
	}
	const first, span = 1e18, 250e15 // nanoseconds since 1970
	return time.Unix(0, int64(first+binary.BigEndian.Uint64(h.Sum(nil))%span))
}

// Walk lists the wanted files.
func (m *Memory) Walk(_ context.Context, f func(*fsutil.Stat) error) error {
	for _, name := range slices.Sorted(maps.Keys(m.files)) {
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
