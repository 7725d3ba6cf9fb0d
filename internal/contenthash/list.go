package contenthash

import (
	"cmp"
	"context"
	"errors"
	"path"
	"slices"
	"strings"
)

// Listed is a file or a folder itself of a selection.
type Listed struct {
	Path   string // without a leading slash; that of a folder ends with one
	Digest string // sha256 of a file's content, mode and owner, as BuildKit makes it
}

// List tells what sels select, by path, for those who tell people what has
// changed. It costs little after [Tree.Checksum] of the same.
func (t *Tree) List(ctx context.Context, root string, sels []Selector) ([]Listed, error) {
	if len(sels) == 0 {
		sels = []Selector{{}}
	}
	t.family.mu.Lock()
	defer t.family.mu.Unlock()
	l := &lookup{ctx: ctx, family: t.family, root: t.root, dir: root}
	defer l.close()
	seen := map[string]bool{}
	var all []Listed
	add := func(name string, n *node) {
		name = strings.TrimPrefix(name, "/")
		if n.kind == kindDir {
			name += "/"
		}
		if !seen[name] && name != "/" && n.header != "" {
			seen[name] = true
			all = append(all, Listed{Path: name, Digest: string(n.header)})
		}
	}
	for _, s := range sels {
		if err := l.list(s, add); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(all, func(a, b Listed) int { return cmp.Compare(a.Path, b.Path) })
	return all, nil
}

// list calls add with each node that s selects. The family is locked.
func (l *lookup) list(s Selector, add func(string, *node)) error {
	p := path.Join("/", s.Path)
	if s.Wildcard || len(s.Include) > 0 || len(s.Exclude) > 0 {
		sel := &selection{lookup: l, sel: s, pattern: p, skipTop: p == "/"}
		if p == "/" {
			sel.pattern = ""
		}
		if err := sel.run(); err != nil {
			return err
		}
		for _, e := range sel.found {
			add(e.path, e.at.node)
		}
		return nil
	}
	at, err := l.resolve(p, s.FollowLinks)
	if err != nil || at.node == nil {
		return errors.Join(err, l.ctx.Err())
	}
	var walk func(name string, n *node)
	walk = func(name string, n *node) {
		add(name, n)
		for _, e := range n.entries {
			walk(name+"/"+e.name, e.node)
		}
	}
	walk(strings.TrimSuffix(p, "/"), at.node)
	return nil
}
