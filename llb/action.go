package llb

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
)

// FileAction changes files, for [State.File]. Actions are chained:
// Mkdir("/a", 0o755).Mkfile("/a/b", 0o644, data). Relative paths are below the
// working directory of the State that the action is applied to.
type FileAction struct {
	before *FileAction
	make   func(dir string, base int) FileDo
	copy   *copySource // for copies
	err    error
	state  *State // that it is applied to, once it is
}

// copySource is what a copy reads: a State, or the result of actions.
type copySource struct {
	state  *State
	action *FileAction
}

// CopyInput is what can be copied from: a State, or [FileAction.WithState].
type CopyInput interface{ copySource() *copySource }

func (s State) copySource() *copySource { return &copySource{state: &s} }

func (c *copySource) copySource() *copySource { return c }

// WithState applies the actions to s, to copy from the result.
func (a *FileAction) WithState(s State) CopyInput { return &copySource{action: a.bind(s)} }

// bind returns the chain of actions as applied to s.
func (a *FileAction) bind(s State) *FileAction {
	if a == nil {
		return nil
	}
	bound := *a
	bound.before, bound.state = a.before.bind(s), &s
	return &bound
}

// File applies actions to the State, in one step.
func (s State) File(a *FileAction, opts ...ConstraintsOpt) State {
	own := applied(opts)
	bound := a.bind(s)
	n := &node{own: own, make: func(b *builder) (*Vertex, error) {
		if bound == nil {
			return nil, errors.New("file has no action")
		}
		f := fileBuilder{builder: b, number: map[*FileAction]int{}}
		if _, err := f.add(bound); err != nil {
			return nil, err
		}
		return b.finish(f.vertex(), own, nil), nil
	}}
	return s.WithOutput(&nodeOutput{node: n})
}

// fileBuilder collects the actions of a step, each once.
type fileBuilder struct {
	*builder
	inputs inputList
	steps  []FileStep
	number map[*FileAction]int // of actions that are in steps
}

// input returns the number of an input, or None for the empty file system.
func (f *fileBuilder) input(o Output) (int, error) {
	e, err := f.edge(o)
	if err != nil || e.Vertex == nil {
		return None, err
	}
	return f.inputs.add(e), nil
}

// add adds an action after those that it needs, and returns its number.
// Numbers of results count from results until all inputs are known.
func (f *fileBuilder) add(a *FileAction) (int, error) {
	if n, ok := f.number[a]; ok {
		return n, nil
	}
	if a.err != nil {
		return 0, a.err
	}
	step := FileStep{Secondary: None, Output: None}
	before := None
	if a.before != nil {
		n, err := f.add(a.before)
		if err != nil {
			return 0, err
		}
		before = results + n
	}
	base, err := f.input(a.state.out)
	if err != nil {
		return 0, err
	}
	step.Input = base
	if a.before != nil {
		step.Input = before
	}
	if a.copy != nil {
		if step.Secondary, err = f.from(a.copy); err != nil {
			return 0, err
		}
	}
	dir, err := a.state.GetDir(f.ctx)
	if err != nil {
		return 0, err
	}
	step.Do = a.make(dir, base)
	if do, ok := step.Do.(*DoCopy); ok {
		if do.Src, err = f.sourcePath(a.copy, do.Src); err != nil {
			return 0, err
		}
	}
	f.number[a] = len(f.steps)
	f.steps = append(f.steps, step)
	return f.number[a], nil
}

func (f *fileBuilder) from(c *copySource) (int, error) {
	if c.action != nil {
		n, err := f.add(c.action)
		return results + n, err
	}
	return f.input(c.state.out)
}

// sourcePath makes src absolute in what is copied from.
func (f *fileBuilder) sourcePath(c *copySource, src string) (string, error) {
	src = path.Clean(src)
	if path.IsAbs(src) {
		return src, nil
	}
	state := c.state
	if c.action != nil {
		state = c.action.state
	}
	dir, err := state.GetDir(f.ctx)
	return path.Join(dir, src), err
}

func (f *fileBuilder) vertex() *Vertex {
	settle := func(n *int) {
		if *n >= results {
			*n += len(f.inputs.edges) - results
		}
	}
	for i := range f.steps {
		settle(&f.steps[i].Input)
		settle(&f.steps[i].Secondary)
	}
	f.steps[len(f.steps)-1].Output = 0
	return &Vertex{Op: &FileOp{Actions: f.steps}, Inputs: f.inputs.edges}
}

// absolute makes p a path below dir, if it is not one from the root.
func absolute(dir, p string) string {
	p = path.Clean(p)
	if !path.IsAbs(p) {
		p = path.Join("/", dir, p)
	}
	return p
}

// absoluteDest is absolute, but keeps the ending that asks for the content of a
// directory or for a file in it.
func absoluteDest(dir, p string) string {
	abs := absolute(dir, p)
	slash := strings.HasSuffix(abs, "/")
	switch {
	case strings.HasSuffix(p, "/") && !slash:
		return abs + "/"
	case strings.HasSuffix(p, "/.") && slash:
		return abs + "."
	case strings.HasSuffix(p, "/."):
		return abs + "/."
	}
	return abs
}

// Mkdir makes a directory.
func Mkdir(p string, m os.FileMode, opts ...MkdirOption) *FileAction {
	info := &MkdirInfo{}
	for _, o := range opts {
		o.SetMkdirOption(info)
	}
	return &FileAction{make: func(dir string, base int) FileDo {
		return &DoMkdir{
			Path: absolute(dir, p), Mode: int(m & 0o777), Parents: info.MakeParents,
			Owner: info.ChownOpt.owner(base), Timestamp: UnixNano(info.CreatedTime),
		}
	}}
}

// Mkfile writes a file.
func Mkfile(p string, m os.FileMode, data []byte, opts ...MkfileOption) *FileAction {
	info := &MkfileInfo{}
	for _, o := range opts {
		o.SetMkfileOption(info)
	}
	return &FileAction{make: func(dir string, base int) FileDo {
		return &DoMkfile{
			Path: absolute(dir, p), Mode: int(m & 0o777), Data: data,
			Owner: info.ChownOpt.owner(base), Timestamp: UnixNano(info.CreatedTime),
		}
	}}
}

// Rm removes a file or tree.
func Rm(p string, opts ...RmOption) *FileAction {
	info := &RmInfo{}
	for _, o := range opts {
		o.SetRmOption(info)
	}
	return &FileAction{make: func(dir string, _ int) FileDo {
		return &DoRm{Path: absolute(dir, p), AllowNotFound: info.AllowNotFound, Wildcard: info.AllowWildcard}
	}}
}

// Symlink makes newpath a link to oldpath. Both are taken as they are.
func Symlink(oldpath, newpath string, opts ...SymlinkOption) *FileAction {
	info := &SymlinkInfo{}
	for _, o := range opts {
		o.SetSymlinkOption(info)
	}
	return &FileAction{make: func(_ string, base int) FileDo {
		return &DoSymlink{Old: oldpath, New: newpath, Owner: info.ChownOpt.owner(base), Timestamp: UnixNano(info.CreatedTime)}
	}}
}

// Copy copies files from a State, or from the result of other actions.
func Copy(input CopyInput, src, dest string, opts ...CopyOption) *FileAction {
	info := &CopyInfo{}
	for _, o := range opts {
		o.SetCopyOption(info)
	}
	if input == nil {
		return &FileAction{err: fmt.Errorf("copy %s %s has nothing to copy from", src, dest)}
	}
	return &FileAction{copy: input.copySource(), make: func(dir string, base int) FileDo {
		do := info.action(base)
		do.Src, do.Dest = src, absoluteDest(dir, dest)
		return do
	}}
}

func (i *CopyInfo) action(base int) *DoCopy {
	do := &DoCopy{
		Owner: i.ChownOpt.owner(base), Mode: -1, FollowSymlink: i.FollowSymlinks, DirContents: i.CopyDirContentsOnly,
		Unpack: i.AttemptUnpack, CreateDest: i.CreateDestPath, Wildcard: i.AllowWildcard,
		AllowEmptyWildcard: i.AllowEmptyWildcard, Timestamp: UnixNano(i.CreatedTime),
		Include: i.IncludePatterns, Exclude: i.ExcludePatterns, Required: i.RequiredPaths,
		ReplaceExistingDest: i.AlwaysReplaceExistingDestPaths,
	}
	if i.Mode != nil && i.Mode.ModeStr != "" {
		do.Mode, do.ModeStr = 0, i.Mode.ModeStr
	} else if i.Mode != nil {
		do.Mode = int(int32(i.Mode.Mode))
	}
	return do
}

func (a *FileAction) then(next *FileAction) *FileAction {
	next.before = a
	return next
}

// Mkdir makes a directory after a.
func (a *FileAction) Mkdir(p string, m os.FileMode, opts ...MkdirOption) *FileAction {
	return a.then(Mkdir(p, m, opts...))
}

// Mkfile writes a file after a.
func (a *FileAction) Mkfile(p string, m os.FileMode, data []byte, opts ...MkfileOption) *FileAction {
	return a.then(Mkfile(p, m, data, opts...))
}

// Rm removes a file or tree after a.
func (a *FileAction) Rm(p string, opts ...RmOption) *FileAction { return a.then(Rm(p, opts...)) }

// Symlink makes a link after a.
func (a *FileAction) Symlink(oldpath, newpath string, opts ...SymlinkOption) *FileAction {
	return a.then(Symlink(oldpath, newpath, opts...))
}

// Copy copies files after a.
func (a *FileAction) Copy(input CopyInput, src, dest string, opts ...CopyOption) *FileAction {
	return a.then(Copy(input, src, dest, opts...))
}
