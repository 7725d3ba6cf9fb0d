package op

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	digest "github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/contenthash"
	"github.com/kiln-build/kiln/internal/fileop"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/safepath"
	"github.com/kiln-build/kiln/internal/solver"
	"github.com/kiln-build/kiln/llb"
)

// fileOp changes files without a container.
type fileOp struct {
	base
	op *llb.FileOp
}

func (o *fileOp) CacheMap(context.Context) (solver.CacheMap, error) {
	n := len(o.vertex.Inputs)
	d, err := fileDigest(o.op, n)
	if err != nil {
		return solver.CacheMap{}, err
	}
	cm := solver.CacheMap{Digest: d, Deps: make([]solver.Dep, n)}
	for i := range cm.Deps {
		cm.Deps[i] = o.dep(i)
	}
	return cm, nil
}

// dep says how input i decides the result: by the content that is read of it,
// unless it is also what is written to.
func (o *fileOp) dep(i int) solver.Dep {
	var sels []contenthash.Selector
	var paths []string
	for _, a := range o.op.Actions {
		if a.Input == i {
			return solver.Dep{}
		}
		read := reads(a, i)
		sels = append(sels, read...)
		for _, r := range read {
			paths = append(paths, r.Path)
		}
		if d, ok := a.Do.(*llb.DoCopy); ok && len(read) > 0 && a.Secondary == i {
			paths[len(paths)-len(read)] = d.Src // as it is written, for BuildKit
		}
	}
	if len(sels) == 0 {
		return solver.Dep{}
	}
	return solver.Dep{
		// The memo of a content digest is found by all that selects the content.
		Selector: string(digest.FromString(fmt.Sprintf("%#v", sels))),
		Link:     linkSelector(paths),
		Digest: func(ctx context.Context, r solver.Result) (string, error) {
			ref, _ := r.(*layer.Ref)
			if err := o.required(ctx, i, ref); err != nil {
				return "", err
			}
			return o.checksum(ctx, i, ref, sels)
		},
	}
}

// required fails if a path is missing from input i that must be among what is
// copied, before anything is.
func (o *fileOp) required(ctx context.Context, i int, ref *layer.Ref) error {
	for _, a := range o.op.Actions {
		d, ok := a.Do.(*llb.DoCopy)
		if !ok || a.Secondary != i {
			continue
		}
		for _, name := range d.Required {
			sel := []contenthash.Selector{{Path: path.Join("/", name), FollowLinks: true}}
			if _, err := o.checksum(ctx, i, ref, sel); err != nil {
				return err
			}
		}
	}
	return nil
}

// reads is what an action reads of input i.
func reads(a llb.FileStep, i int) (sels []contenthash.Selector) {
	if d, ok := a.Do.(*llb.DoCopy); ok && a.Secondary == i {
		sels = append(sels, contenthash.Selector{
			Path: path.Join("/", d.Src), FollowLinks: d.FollowSymlink, Include: d.Include, Exclude: d.Exclude,
			Wildcard: d.Wildcard && strings.ContainsAny(d.Src, `*?[\\`),
		})
	}
	owner := llb.OwnerOf(a.Do)
	if owner == nil {
		return sels
	}
	names := func(o *llb.Owner, file string) {
		if o != nil && o.Name != "" && o.Input == i {
			sels = append(sels, contenthash.Selector{Path: file, FollowLinks: true})
		}
	}
	names(owner.User, "/etc/passwd")
	names(owner.Group, "/etc/group")
	return sels
}

func (o *fileOp) Exec(ctx context.Context, inputs []solver.Result) (_ []solver.Result, err error) {
	release, err := o.worker.slot(ctx, o.vertex)
	if err != nil {
		return nil, err
	}
	defer release()
	r := &fileRun{op: o, ctx: withSessions(ctx)}
	for _, ref := range refs(inputs) {
		r.states = append(r.states, &fileState{ref: ref, committed: true})
	}
	defer func() { err = errors.Join(err, r.discard()) }()
	for i := range o.op.Actions {
		if err := r.act(i); err != nil {
			return nil, r.failure(err, i)
		}
	}
	return r.results()
}

// failure adds to the error of action i the file systems that it had. What it
// was writing to is no longer the run's to discard.
func (r *fileRun) failure(err error, i int) error {
	first := len(r.op.vertex.Inputs)
	f := &Failure{Err: err, Mounts: make([]*State, len(r.op.op.Actions)), Action: i, Input: llb.None}
	for _, s := range r.states[:first] {
		f.Inputs = append(f.Inputs, known(s.ref))
	}
	ctx := context.WithoutCancel(r.ctx)
	keep := func(n int) {
		if n < first || n >= len(r.states) || f.Mounts[n-first] != nil {
			return
		}
		s := r.states[n]
		if s.committed {
			f.Mounts[n-first] = known(s.ref)
			return
		}
		if s.moved {
			return
		}
		kept, kerr := (*State)(nil), s.unmount()
		if kerr == nil {
			kept, kerr = r.op.worker.keep(ctx, s.mutable)
			s.committed = true // as good as: it is another's now
		}
		f.Err = errors.Join(f.Err, kerr)
		f.Mounts[n-first] = kept
	}
	keep(first + i)
	keep(r.op.op.Actions[i].Secondary)
	return f
}

// fileRun carries a file op's actions out. Its states are the op's inputs
// followed by the results of the actions, as actions number them.
type fileRun struct {
	op     *fileOp
	ctx    context.Context
	states []*fileState
	loose  []*fileState // further ones that are mounted: the empty file system
}

// fileState is a file system that an action reads or made.
type fileState struct {
	mutable   *layer.Mutable
	ref       *layer.Ref // once committed
	committed bool
	moved     bool // a later action went on with it

	dir     string // where it is mounted
	release func() error
}

func (r *fileRun) state(i int) *fileState {
	if i == llb.None {
		return &fileState{committed: true}
	}
	return r.states[i]
}

// act carries out action i.
func (r *fileRun) act(i int) error {
	a := r.op.op.Actions[i]
	dst, err := r.writable(i)
	if err != nil {
		return err
	}
	r.states = append(r.states, dst)
	var src string
	if _, reads := a.Do.(*llb.DoCopy); reads { // of None, it copies from an empty directory
		if src, err = r.readable(r.state(a.Secondary)); err != nil {
			return err
		}
	}
	return r.do(a, dst.dir, src)
}

// do carries an action out on directories; src is "" where it reads nothing.
func (r *fileRun) do(a llb.FileStep, dst, src string) error {
	to, err := safepath.Open(dst)
	if err != nil {
		return err
	}
	defer to.Close()
	var from *safepath.Root
	if src != "" {
		if from, err = safepath.Open(src); err != nil {
			return err
		}
		defer from.Close()
	}
	owner, err := r.owner(a, to)
	if err != nil {
		return err
	}
	return fileop.Do(r.ctx, to, from, a.Do, owner)
}

// owner looks up whom the action's files are to belong to; nil leaves that open.
func (r *fileRun) owner(a llb.FileStep, dst *safepath.Root) (*fileop.Owner, error) {
	return fileop.ResolveOwner(llb.OwnerOf(a.Do), func(input int) (*safepath.Root, error) {
		if input == a.Input {
			return dst.Sub("/")
		}
		dir, err := r.readable(r.state(input))
		if err != nil {
			return nil, err
		}
		return safepath.Open(dir)
	})
}

// writable is the state that action i changes: its input's own, if that is the
// result of an action that nobody else needs, else a new one on top of it.
func (r *fileRun) writable(i int) (*fileState, error) {
	a := r.op.op.Actions[i]
	in := r.state(a.Input)
	if !in.committed && !r.needed(a.Input, i) {
		in.moved = true
		next := *in
		next.moved = false
		return &next, nil
	}
	if err := r.freeze(in); err != nil {
		return nil, err
	}
	m, err := r.op.worker.Layers.New(r.ctx, in.ref, layer.NewOptions{Description: r.op.vertex.Name()})
	if err != nil {
		return nil, err
	}
	s := &fileState{mutable: m}
	if s.dir, s.release, err = m.Mount(r.ctx); err != nil {
		return nil, errors.Join(err, m.Discard())
	}
	return s, nil
}

// needed tells whether state n is a result, or is read by another action than i.
func (r *fileRun) needed(n, i int) bool {
	first := len(r.op.vertex.Inputs)
	if n >= first && r.op.op.Actions[n-first].Output != llb.None {
		return true
	}
	for j, a := range r.op.op.Actions {
		if a.Secondary == n || j != i && a.Input == n || len(reads(a, n)) > 0 {
			return true
		}
	}
	return false
}

// readable mounts a state to be read.
func (r *fileRun) readable(s *fileState) (string, error) {
	if err := r.freeze(s); err != nil {
		return "", err
	}
	if s.dir == "" {
		var err error
		if s.dir, s.release, err = r.op.worker.Layers.Mount(r.ctx, s.ref); err != nil {
			return "", err
		}
		if !slices.Contains(r.states, s) {
			r.loose = append(r.loose, s)
		}
	}
	return s.dir, nil
}

// freeze commits a state that an action made.
func (r *fileRun) freeze(s *fileState) error {
	if s.committed {
		return nil
	}
	if err := s.unmount(); err != nil {
		return err
	}
	ref, err := s.mutable.Commit(r.ctx)
	if err != nil {
		return fmt.Errorf("keep result: %w", err)
	}
	s.ref, s.committed = ref, true
	return nil
}

func (s *fileState) unmount() error {
	if s.release == nil {
		return nil
	}
	release := s.release
	s.release, s.dir = nil, ""
	return release()
}

// results commits what the actions made. Meanwhile what they read is let go of,
// for which the kernel has to forget each file that it was shown.
func (r *fileRun) results() (_ []solver.Result, err error) {
	released := make(chan error, 1)
	go func() { released <- r.unmountRead() }()
	defer func() { err = errors.Join(err, <-released) }()
	out := make([]solver.Result, r.op.op.Outputs())
	first := len(r.op.vertex.Inputs)
	for i, a := range r.op.op.Actions {
		if a.Output == llb.None {
			continue
		}
		s := r.states[first+i]
		if err := r.freeze(s); err != nil {
			return nil, err
		}
		out[a.Output] = s.ref
	}
	return out, nil
}

// unmountRead unmounts what is only read.
func (r *fileRun) unmountRead() error {
	var errs []error
	for _, s := range slices.Concat(r.states, r.loose) {
		if s.mutable == nil {
			errs = append(errs, s.unmount())
		}
	}
	return errors.Join(errs...)
}

func (r *fileRun) discard() error {
	var errs []error
	for _, s := range slices.Concat(r.states, r.loose) {
		if s.moved {
			continue
		}
		errs = append(errs, s.unmount())
		if !s.committed {
			errs = append(errs, s.mutable.Discard())
		}
	}
	return errors.Join(errs...)
}
