package local

import (
	"fmt"
	"io/fs"
	"os"
	"path"

	"github.com/moby/patternmatcher"

	"github.com/kiln-build/kiln/internal/contenthash"
	"github.com/kiln-build/kiln/internal/session/files"
)

// metadataName is the file that lists all entries of a directory of which only
// few came over.
const metadataName = ".fsutil-metadata"

// maxMetadata bounds that file, bytes.
const maxMetadata = 1 << 30

// metadataOnly is a files.Destination that takes a whole listing but hands on
// only what patterns name, and the directories that lead there.
type metadataOnly struct {
	*intake
	only    *patternmatcher.PatternMatcher // nil names nothing
	parents []*files.Stat                  // directories not handed on, the last one's parents first
	list    []byte
}

func newMetadataOnly(in *intake, patterns []string) (*metadataOnly, error) {
	m := &metadataOnly{intake: in}
	if len(patterns) == 0 {
		return m, nil
	}
	var err error
	if m.only, err = patternmatcher.New(patterns); err != nil {
		return nil, fmt.Errorf("attribute local.metadatatransferexclude: %w", err)
	}
	return m, nil
}

// Stat notes an entry, and hands it on if its content is wanted.
func (m *metadataOnly) Stat(st *files.Stat) (bool, error) {
	if st.GetPath() == metadataName {
		return false, nil
	}
	var err error
	if m.list, err = files.AppendRecord(m.list, st); err != nil {
		return false, err
	}
	if len(m.list) > maxMetadata {
		return false, fmt.Errorf("the list of files has more than the %d bytes that are allowed", maxMetadata)
	}
	parent := path.Dir(st.GetPath())
	for len(m.parents) > 0 && m.parents[len(m.parents)-1].GetPath() != parent {
		m.parents = m.parents[:len(m.parents)-1]
	}
	if !m.wanted(st.GetPath()) {
		if fs.FileMode(st.GetMode()).IsDir() {
			m.parents = append(m.parents, st)
		}
		return false, nil
	}
	for _, p := range m.parents {
		if _, err := m.intake.Stat(p); err != nil {
			return false, err
		}
	}
	m.parents = nil
	return m.intake.Stat(st)
}

func (m *metadataOnly) wanted(name string) bool {
	if m.only == nil {
		return false
	}
	ok, err := m.only.MatchesOrParentMatches(name)
	return err == nil && ok
}

// finish adds the list to what came over.
func (m *metadataOnly) finish() (*state, error) {
	st := &files.Stat{Path: metadataName, Mode: 0o644, Size: int64(len(m.list))}
	hash := contenthash.NewHash(hashStat(st))
	hash.Write(m.list)
	list := newEntry(st)
	list.Sum = contenthash.Sum(hash)
	m.list, m.content = nil, m.list
	m.extra = &list
	return m.intake.finish()
}

// writeExtra writes the list of files, where there is one, and reports whether
// the new state needs it written.
func (in *intake) writeExtra() error {
	if in.extra == nil || in.mutable == nil && in.old.hasExtra(in.extra) {
		return nil
	}
	if err := in.begin(); err != nil {
		return err
	}
	in.touched["."] = true
	if err := in.root.RemoveAll(metadataName); err != nil {
		return fmt.Errorf("replace %q: %w", metadataName, err)
	}
	f, err := in.root.OpenFile(metadataName, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("make file %q: %w", metadataName, err)
	}
	c := &received{in: in, f: f, st: in.extra.stat(), n: in.extra.Size}
	if _, err := f.Write(in.content); err != nil {
		c.Abort()
		return fmt.Errorf("write file %q: %w", metadataName, err)
	}
	return c.Commit()
}

// hasExtra tells whether a state has the same list of files.
func (s *state) hasExtra(e *entry) bool { return s.extra != nil && s.extra.Sum == e.Sum }
