package contenthash

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
)

// Tree remembers the digests of one immutable directory tree. Its methods may
// be used from several goroutines.
type Tree struct {
	family *family
	root   *node
	edit   *edit // marks the nodes that nobody else shares
	// links are files put as hard links of a path that had no digest yet.
	links map[string][]string
}

// family is what trees derived from each other share: they share nodes, too.
type family struct {
	mu      sync.Mutex
	hashing map[*node]chan struct{} // closed when somebody is done with it
}

type edit struct{ _ byte } // not empty: each has an address of its own

type kind byte

const (
	kindFile kind = iota // and all that is neither of the others
	kindDir
	kindLink
)

// node is a file or directory. Facts about the content that were unknown
// (digests, and the entries of a directory) may be filled in at any time
// under the family's lock, for all trees that share it. Changes are made to
// nodes of the tree's own edit only.
type node struct {
	edit    *edit
	kind    kind
	scanned bool   // kindDir: entries holds all there is
	link    string // kindLink: the target
	header  digest.Digest
	sum     digest.Digest // kindDir: of header and entries
	entries []entry       // sorted by name
}

type entry struct {
	name string
	node *node
}

func (n *node) find(name string) (int, bool) {
	return slices.BinarySearchFunc(n.entries, name, func(e entry, name string) int { return strings.Compare(e.name, name) })
}

func (n *node) child(name string) *node {
	if i, ok := n.find(name); ok {
		return n.entries[i].node
	}
	return nil
}

func (n *node) set(name string, c *node) {
	i, ok := n.find(name)
	if ok {
		n.entries[i].node = c
		return
	}
	n.entries = slices.Insert(n.entries, i, entry{name, c})
}

// New returns a tree that knows nothing yet.
func New() *Tree {
	e := &edit{}
	return &Tree{
		family: &family{hashing: map[*node]chan struct{}{}},
		root:   &node{edit: e, kind: kindDir},
		edit:   e,
	}
}

// Derive returns a copy that can be changed without a change to t. It costs
// nothing, and each change copies only the directories above it.
func (t *Tree) Derive() *Tree {
	t.family.mu.Lock()
	defer t.family.mu.Unlock()
	t.edit = &edit{}
	return &Tree{family: t.family, root: t.root, edit: &edit{}}
}

// own returns n, or a copy of it if others share it, for the tree to change.
func (t *Tree) own(n *node) *node {
	if n.edit == t.edit {
		return n
	}
	c := *n
	c.edit = t.edit
	c.entries = slices.Clone(n.entries)
	return &c
}

// openParent makes the directories above p changeable and drops their sums.
func (t *Tree) openParent(p string, create bool) (dir *node, base string, err error) {
	t.root = t.own(t.root)
	t.root.sum = ""
	at := t.root
	parts := strings.Split(p, "/")
	for i, part := range parts[:len(parts)-1] {
		c := at.child(part)
		switch {
		case c == nil && !create:
			return nil, "", nil
		case c == nil:
			c = &node{edit: t.edit, kind: kindDir}
		case c.kind != kindDir:
			return nil, "", fmt.Errorf("put %q: %q is no directory", "/"+p, "/"+strings.Join(parts[:i+1], "/"))
		default:
			c = t.own(c)
		}
		c.sum = ""
		at.set(part, c)
		at = c
	}
	return at, parts[len(parts)-1], nil
}

// Put sets or replaces one entry. Parents come before children. d is the
// file's digest by [NewHash]; it may be empty for what has no content
// (directories, symlinks, devices), and for a hard link, whose digest is that
// of the file it links to, whether that was put already or comes later. A
// regular file without digest is read from disk when it is asked for. A
// directory that is put again keeps its entries.
func (t *Tree) Put(name string, st Stat, d digest.Digest) error {
	if d != "" {
		if err := valid(d); err != nil {
			return fmt.Errorf("put %q: %w", name, err)
		}
	}
	t.family.mu.Lock()
	defer t.family.mu.Unlock()
	p := strings.Trim(path.Join("/", name), "/")
	n := &node{edit: t.edit, header: d}
	switch {
	case st.Mode.IsDir():
		n.kind = kindDir
	case st.Mode&fs.ModeSymlink != 0:
		n.kind, n.link = kindLink, st.Linkname
	}
	hardlink := st.Linkname != "" && n.kind == kindFile
	if d == "" && !st.Mode.IsRegular() && !hardlink {
		n.header = Sum(NewHash(st))
	}
	if p == "" {
		if n.kind != kindDir {
			return fmt.Errorf("put %q: the root is a directory", name)
		}
		t.root = t.own(t.root)
		t.root.header, t.root.sum = n.header, ""
		return nil
	}
	dir, base, err := t.openParent(p, true)
	if err != nil {
		return err
	}
	if old := dir.child(base); old != nil && old.kind == kindDir && n.kind == kindDir {
		old = t.own(old)
		old.header, old.sum = n.header, ""
		dir.set(base, old)
		return nil
	}
	if hardlink && d == "" {
		t.putLink(p, strings.Trim(path.Join("/", st.Linkname), "/"), n)
	}
	dir.set(base, n)
	return t.tellLinks(p, n)
}

// putLink gives n, at p, the digest of the file at target, now or later.
func (t *Tree) putLink(p, target string, n *node) {
	at := t.root
	for part := range strings.SplitSeq(target, "/") {
		if at = at.child(part); at == nil {
			break
		}
	}
	if at != nil && at.kind == kindFile && at.header != "" {
		n.header = at.header
		return
	}
	if t.links == nil {
		t.links = map[string][]string{}
	}
	t.links[target] = append(t.links[target], p)
}

// tellLinks gives the digest of the file just put to those that wait for it.
func (t *Tree) tellLinks(p string, n *node) error {
	if n.header == "" || len(t.links[p]) == 0 {
		return nil
	}
	waiting := t.links[p]
	delete(t.links, p)
	for _, l := range waiting {
		dir, base, err := t.openParent(l, false)
		if err != nil || dir == nil {
			continue // replaced or removed since
		}
		if c := dir.child(base); c != nil && c.kind == kindFile && c.header == "" {
			dir.set(base, &node{edit: t.edit, header: n.header})
		}
	}
	return nil
}

// Remove removes an entry and all below it. It is no error if there is none.
func (t *Tree) Remove(name string) {
	t.family.mu.Lock()
	defer t.family.mu.Unlock()
	p := strings.Trim(path.Join("/", name), "/")
	if p == "" {
		t.root = &node{edit: t.edit, kind: kindDir, header: t.root.header, scanned: t.root.scanned}
		return
	}
	dir, base, err := t.openParent(p, false)
	if err != nil || dir == nil {
		return
	}
	if i, ok := dir.find(base); ok {
		dir.entries = slices.Delete(dir.entries, i, i+1)
	}
}

// SetComplete says that all there is has been put, so that no directory is
// read for names. A root that was never put gets the digest of nothing for its
// header, as in BuildKit, whose transfers do not send the root.
func (t *Tree) SetComplete() {
	t.family.mu.Lock()
	defer t.family.mu.Unlock()
	t.root = t.complete(t.root)
	if t.root.header == "" {
		t.root = t.own(t.root)
		t.root.header, t.root.sum = digest.FromBytes(nil), ""
	}
}

func (t *Tree) complete(n *node) *node {
	if n.edit != t.edit && n.scanned {
		return n // as it was in the tree this one derives from
	}
	n = t.own(n)
	n.scanned = true
	for i, e := range n.entries {
		if e.node.kind == kindDir {
			n.entries[i].node = t.complete(e.node)
		}
	}
	return n
}

func valid(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", d, err)
	}
	if d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("digest %q is not of sha256", d)
	}
	return nil
}
