package layer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"time"
)

// flatten makes one directory of all files of r, by hard links.
func (s *Store) flatten(ctx context.Context, r *Ref) error {
	return s.flats.do(ctx, r.id, func(ctx context.Context) error {
		s.mu.Lock()
		dir, made := r.dir, r.flatDir != ""
		s.mu.Unlock()
		if made {
			return nil
		}
		lowers, err := s.lowers(ctx, r.parent)
		if err != nil {
			return err
		}
		flat, name, err := s.overlaid(ctx, append([]string{dir}, lowers...))
		if err != nil {
			return fmt.Errorf("flatten layer %s: %w", r.id, err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		r.flatDir, r.rec.Flat = flat, name
		return s.saveLocked(r)
	})
}

// overlaid makes a snapshot of directories with marks, the topmost first, as
// overlay would show them.
func (s *Store) overlaid(ctx context.Context, dirs []string) (dir, name string, err error) {
	key := newID()
	if dir, err = s.prepare(ctx, key, ""); err != nil {
		return "", "", err
	}
	err = s.overlayInto(ctx, dir, dirs)
	if err == nil {
		name, _, err = s.freeze(ctx, key, dir)
	}
	if err != nil {
		return "", "", errors.Join(err, s.removeSnapshots(context.WithoutCancel(ctx), []string{key}))
	}
	return dir, name, nil
}

func (s *Store) overlayInto(ctx context.Context, dir string, dirs []string) error {
	to, err := openRoot(dir)
	if err != nil {
		return err
	}
	defer to.Close()
	for _, d := range slices.Backward(dirs) {
		from, err := openRoot(d)
		if err != nil {
			return err
		}
		err = applier{marks: s.marks}.apply(ctx, from, to)
		from.Close()
		if err != nil {
			return err
		}
	}
	return likeRoot(dirs[0], dir)
}

// Merge lays refs over each other, later ones on top. What a later one deletes
// from its own base is deleted in the result, too.
func (s *Store) Merge(ctx context.Context, refs []*Ref) (*Ref, error) {
	var out *Ref
	for _, r := range refs {
		if out == nil && !anyLoose(r) {
			out = r
			continue
		}
		for _, l := range r.chain() {
			var err error
			if out, err = s.rebase(ctx, l, out, false); err != nil {
				return nil, fmt.Errorf("merge layers: %w", err)
			}
		}
	}
	return out, s.touchAll(out)
}

// touchAll makes sure that r is still kept.
func (s *Store) touchAll(r *Ref) error {
	if r == nil {
		return nil
	}
	_, err := s.Get(context.Background(), r.id)
	return err
}

func anyLoose(r *Ref) bool {
	return slices.ContainsFunc(r.chain(), func(l *Ref) bool { return l.Record().Loose })
}

// rebase returns the layer l put on another parent.
func (s *Store) rebase(ctx context.Context, l, parent *Ref, loose bool) (*Ref, error) {
	kind := "merge"
	if loose {
		kind = "diff"
	}
	id := derivedID(kind, parent.ID(), l.id)
	if r, err := s.Get(ctx, id); err == nil {
		return r, nil
	}
	var out *Ref
	err := s.merges.do(ctx, id, func(ctx context.Context) error {
		if _, err := s.Get(ctx, id); err == nil {
			return nil
		}
		for _, r := range []*Ref{l, parent} {
			if err := s.pin(r); err != nil {
				return err
			}
			defer s.unpin(r)
		}
		rec := l.Record()
		// A layer stays laid out as it is, also where those below are not, as
		// BuildKit's merges and diffs have it.
		moved := Record{
			ID: id, Parent: parent.ID(), Origin: rec.Origin, Description: rec.Description, Type: rec.Type, Windows: rec.Windows,
			DiffID: rec.DiffID, Blobs: rec.Blobs, Loose: loose, CreatedAt: time.Now(),
		}
		return s.rebaseAs(ctx, l, parent, moved)
	})
	if err == nil {
		out, err = s.Get(ctx, id)
	}
	return out, err
}

func (s *Store) rebaseAs(ctx context.Context, l, parent *Ref, rec Record) error {
	r := &Ref{store: s, id: rec.ID, parent: parent, depth: depthOf(parent) + 1, rec: rec}
	lazy := l.snapshotDir() == ""
	if lazy && s.restorable(ctx, r) {
		return s.add(r) // still as lazy as l
	}
	if lazy || s.native { // a native one is told from what is below
		if err := s.materialize(ctx, l); err != nil {
			return err
		}
	}
	replaces, err := s.replacesFolders(l)
	if err != nil {
		return err
	}
	if replaces {
		r.rec.DiffID, r.rec.Blobs = "", nil // they say it in another way
	} else {
		from := l.Record()
		if (l.parent == nil || from.Of != "") && !from.Loose && !rec.Loose { // it deletes nothing
			r.rec.Of = cmp.Or(from.Of, l.id)
		}
		if shared, err := s.share(l, r); shared || err != nil {
			return err
		}
	}
	key := newID()
	base := ""
	if s.native && parent != nil && !rec.Loose {
		if _, err := s.lowers(ctx, parent); err != nil {
			return err
		}
		base = s.nativeBase(parent)
	}
	dir, err := s.prepare(ctx, key, base)
	if err != nil {
		return err
	}
	if err = s.rewrite(ctx, l, r, dir); err == nil {
		r.rec.Snapshot, r.rec.Size, err = s.freeze(ctx, key, dir)
		key = r.rec.Snapshot
	}
	if err == nil {
		r.dir = dir
		err = s.add(r)
	}
	if err != nil {
		return errors.Join(err, s.removeSnapshots(context.WithoutCancel(ctx), []string{key}))
	}
	return nil
}

// share lets r have the very directory of l, if that says the same there: if
// r keeps marks for what is not below, or l has none. What is there but for later
// steps is no part of r.
func (s *Store) share(l, r *Ref) (bool, error) {
	s.mu.Lock()
	dir, name, size, loose := l.dir, l.rec.Snapshot, l.rec.Size, l.rec.Loose
	s.mu.Unlock()
	if s.native && !(loose && r.rec.Loose) {
		return false, nil // a copy of all, or of a part where all is wanted
	}
	marked, err := s.hasUnseen(dir)
	if err == nil && !marked && !r.rec.Loose {
		marked, err = s.hasMarks(dir)
	}
	if err != nil || marked {
		return false, err
	}
	r.dir, r.rec.Snapshot, r.rec.Size = dir, name, size
	return true, s.add(r)
}

// rewrite writes to dir what l has, as it must be to be r.
func (s *Store) rewrite(ctx context.Context, l, r *Ref, dir string) error {
	root, err := openRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	w := &treeWriter{root: root, marks: !s.native || r.rec.Loose, mode: s.marks}
	var to sink = w
	if w.marks && !r.rec.Loose {
		under, err := s.openUnder(ctx, r.parent)
		if err != nil {
			return err
		}
		defer under.Close()
		to = usefulMarks{w, under}
	}
	replaces, err := s.replacesFolders(l)
	if err != nil {
		return err
	}
	if replaces {
		had, err := s.openUnder(ctx, l.parent)
		if err != nil {
			return err
		}
		defer had.Close()
		own, err := openBelow([]string{l.snapshotDir()}, s.marks)
		if err != nil {
			return err
		}
		defer own.Close()
		to = namedMarks{to, had, own}
	}
	if err := s.changes(ctx, l, to); err != nil {
		return err
	}
	if err := likeRoot(l.snapshotDir(), dir); err != nil {
		return err
	}
	return w.finish()
}

// usefulMarks passes on only the marks that hide something.
type usefulMarks struct {
	sink
	below *below
}

func (u usefulMarks) remove(p string) error {
	return u.ifBelow(p, u.sink.remove)
}

func (u usefulMarks) opaque(p string) error {
	return u.ifBelow(p, u.sink.opaque)
}

func (u usefulMarks) ifBelow(p string, f func(string) error) error {
	parent, _, st, err := u.below.find(p)
	if err != nil || st == nil {
		return err
	}
	parent.Close()
	return f(p)
}

// replacesFolders tells whether l, which a step made, has folders in place of
// others. Put elsewhere, such a layer deletes what the step deleted and no
// more, as with BuildKit. A layer that came as a blob goes by what is in that,
// which may be all that there is of it.
func (s *Store) replacesFolders(l *Ref) (bool, error) {
	if rec := l.Record(); s.native || rec.Loose || rec.ChainID != "" || rec.Blobs[imageVariant].Digest != "" {
		return false, nil
	}
	d, err := openRoot(l.snapshotDir())
	if err != nil {
		return false, err
	}
	defer d.Close()
	err = s.marks.walk(context.Background(), d, "", opaqueFinder{})
	if errors.Is(err, errMarked) {
		return true, nil
	}
	return false, err
}

// namedMarks says of a folder that replaces another one by one what was in that.
type namedMarks struct {
	sink
	had *below // the layers under the one that is told
	own *below // the one that is told
}

func (n namedMarks) opaque(p string) error {
	names, err := n.had.list(p)
	if err != nil {
		return err
	}
	for _, name := range names {
		full := path.Join(p, name)
		parent, _, st, err := n.own.find(full)
		if err != nil {
			return err
		}
		if st != nil {
			parent.Close()
			continue
		}
		if err := n.sink.remove(full); err != nil {
			return err
		}
	}
	return nil
}

// errMarked ends a walk at the first mark.
var errMarked = errors.New("marked")

// hasUnseen tells whether an upper directory has what no layer tells.
func (s *Store) hasUnseen(dir string) (bool, error) {
	d, err := openRoot(dir)
	if err != nil {
		return false, err
	}
	defer d.Close()
	return unseen(fd(d)) != "", nil
}

func (s *Store) hasMarks(dir string) (bool, error) {
	d, err := openRoot(dir)
	if err != nil {
		return false, err
	}
	defer d.Close()
	err = s.marks.walk(context.Background(), d, "", markFinder{})
	if errors.Is(err, errMarked) {
		return true, nil
	}
	return false, err
}

// Diff returns what upper has that lower has not, deletions included.
func (s *Store) Diff(ctx context.Context, lower, upper *Ref) (*Ref, error) {
	switch {
	case lower == upper:
		return nil, nil
	case lower == nil:
		return upper, s.touchAll(upper)
	}
	if chain := upper.chain(); len(chain) > lower.depth && chain[lower.depth-1] == lower {
		var out *Ref
		for _, l := range chain[lower.depth:] {
			var err error
			if out, err = s.rebase(ctx, l, out, true); err != nil {
				return nil, fmt.Errorf("diff layers: %w", err)
			}
		}
		return out, nil
	}
	id := derivedID("compare", lower.ID(), upper.ID())
	err := s.merges.do(ctx, id, func(ctx context.Context) error {
		if _, err := s.Get(ctx, id); err == nil {
			return nil
		}
		return s.compareAs(ctx, id, lower, upper)
	})
	if err != nil {
		return nil, fmt.Errorf("diff layers: %w", err)
	}
	return s.Get(ctx, id)
}

// compareAs keeps as id what upper has that lower, which is none of its
// parents, has not.
func (s *Store) compareAs(ctx context.Context, id string, lower, upper *Ref) (err error) {
	m, err := s.New(ctx, nil, NewOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Discard()) }()
	if err := s.compareInto(ctx, m.dir, lower, upper); err != nil {
		return err
	}
	rec := upper.Record()
	_, err = m.commit(ctx, id, Record{Description: rec.Description, Type: "regular", Loose: true})
	return err
}

func (s *Store) compareInto(ctx context.Context, dir string, lower, upper *Ref) (err error) {
	var sides [2]*os.File
	for i, r := range []*Ref{lower, upper} {
		at, release, err := s.Mount(ctx, r)
		if err != nil {
			return err
		}
		defer func() { _ = release() }() // read-only: nothing can be lost
		if sides[i], err = openRoot(at); err != nil {
			return err
		}
		defer sides[i].Close()
	}
	root, err := openRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	w := &treeWriter{root: root, marks: true, mode: s.marks}
	if err := compare(ctx, sides[0], sides[1], w); err != nil {
		return err
	}
	return w.finish()
}
