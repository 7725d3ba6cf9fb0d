package llb

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/kiln-build/kiln/llb/pb"
)

// FileOp changes files without running a process. Its actions run in order.
type FileOp struct{ Actions []FileStep }

// FileStep is one step of a FileOp. Numbers below the count of the vertex's inputs
// name inputs, numbers from there on name the results of earlier actions, and None
// is the empty file system (BuildKit's solver/pb/ops.proto).
type FileStep struct {
	Input     int
	Secondary int // what a copy reads from
	Output    int // number of the vertex's output, or None
	// Do is one of *[DoCopy], *[DoMkfile], *[DoMkdir], *[DoRm], *[DoSymlink].
	Do FileDo
}

// FileDo is what a file action does.
type FileDo interface{ fileDo() }

// DoCopy copies files from the secondary input.
type DoCopy struct {
	Src, Dest           string
	Owner               *Ownership
	Mode                int    // permission bits, -1 keeps the source's
	ModeStr             string // symbolic, such as "u+x,go-w"
	FollowSymlink       bool   // of Src itself
	DirContents         bool   // copy what is in a directory, not the directory
	Unpack              bool   // extract archives, as Docker's ADD does
	CreateDest          bool   // make missing parents of Dest
	Wildcard            bool   // Src is a pattern
	AllowEmptyWildcard  bool
	Timestamp           int64 // Unix nanoseconds, -1 keeps the source's
	Include, Exclude    []string
	ReplaceExistingDest bool
	Required            []string
}

// DoMkfile writes a file.
type DoMkfile struct {
	Path      string
	Mode      int
	Data      []byte
	Owner     *Ownership
	Timestamp int64 // Unix nanoseconds, -1 is the time of the run
}

// DoMkdir makes a directory.
type DoMkdir struct {
	Path      string
	Mode      int
	Parents   bool
	Owner     *Ownership
	Timestamp int64
}

// DoRm removes a file or tree. It never follows the last symlink.
type DoRm struct {
	Path          string
	AllowNotFound bool
	Wildcard      bool
}

// DoSymlink makes New a symbolic link to Old.
type DoSymlink struct {
	Old, New  string
	Owner     *Ownership
	Timestamp int64
}

// Ownership sets the owner of files. Either side may be nil to leave it at 0.
type Ownership struct{ User, Group *Owner }

// Owner is a user or group: a number, or a name looked up in Input's
// /etc/passwd or /etc/group.
type Owner struct {
	ID    uint32
	Name  string // if set, ID does not count
	Input int
}

// KeepTime as a timestamp keeps the time of the source, or takes the present.
const KeepTime = int64(-1)

// UnixNano converts t for the Timestamp fields of file actions; nil keeps the time.
func UnixNano(t *time.Time) int64 {
	if t == nil {
		return KeepTime
	}
	return t.UnixNano()
}

func (*DoCopy) fileDo()    {}
func (*DoMkfile) fileDo()  {}
func (*DoMkdir) fileDo()   {}
func (*DoRm) fileDo()      {}
func (*DoSymlink) fileDo() {}

// Kind returns "file".
func (*FileOp) Kind() string { return "file" }

// Name lists the actions.
func (o *FileOp) Name() string {
	names := make([]string, len(o.Actions))
	for i, a := range o.Actions {
		switch do := a.Do.(type) {
		case *DoCopy:
			names[i] = "copy " + do.Src + " " + do.Dest
		case *DoMkfile:
			names[i] = "mkfile " + do.Path
		case *DoMkdir:
			names[i] = "mkdir " + do.Path
		case *DoRm:
			names[i] = "rm " + do.Path
		case *DoSymlink:
			names[i] = "symlink " + do.New + " -> " + do.Old
		}
	}
	return strings.Join(names, ", ")
}

// Outputs returns how many actions have an output.
func (o *FileOp) Outputs() int {
	n := 0
	for _, a := range o.Actions {
		if a.Output != None {
			n++
		}
	}
	return n
}

// FileStepFrom is an action that says by edge what it reads.
type FileStepFrom struct {
	Do   FileDo
	From Edge // what a DoCopy copies from; without a vertex, an empty file system
}

// BuildFile makes a vertex that applies steps to base, each to the result of
// the one before, as BuildKit's client library does it. Its only output is the
// last result. Equal sources are one input. Users and groups are looked up by
// name in base, whatever the steps' owners say.
func BuildFile(base Edge, steps ...FileStepFrom) *Vertex {
	var inputs inputList
	first := None
	if base.Vertex != nil {
		first = inputs.add(base)
	}
	op := &FileOp{}
	for _, s := range steps {
		step := FileStep{Input: first, Secondary: None, Output: None, Do: WithOwnerInputs(s.Do, func(int) int { return first })}
		if s.From.Vertex != nil {
			step.Secondary = inputs.add(s.From)
		}
		op.Actions = append(op.Actions, step)
	}
	for i := range op.Actions {
		if i > 0 {
			op.Actions[i].Input = len(inputs.edges) + i - 1
		}
	}
	if last := len(op.Actions) - 1; last >= 0 {
		op.Actions[last].Output = 0
	}
	return &Vertex{Op: op, Inputs: inputs.edges}
}

// WithOwnerInputs returns do with other inputs to look its owners' names up in: to
// is called with each that it has.
func WithOwnerInputs(do FileDo, to func(input int) int) FileDo {
	switch d := do.(type) {
	case *DoCopy:
		changed := *d
		changed.Owner = d.Owner.withInputs(to)
		return &changed
	case *DoMkfile:
		changed := *d
		changed.Owner = d.Owner.withInputs(to)
		return &changed
	case *DoMkdir:
		changed := *d
		changed.Owner = d.Owner.withInputs(to)
		return &changed
	case *DoSymlink:
		changed := *d
		changed.Owner = d.Owner.withInputs(to)
		return &changed
	}
	return do
}

func (o *Ownership) withInputs(to func(int) int) *Ownership {
	if o == nil {
		return nil
	}
	return &Ownership{User: o.User.withInput(to), Group: o.Group.withInput(to)}
}

func (o *Owner) withInput(to func(int) int) *Owner {
	if o == nil || o.Name == "" {
		return o
	}
	return &Owner{Name: o.Name, Input: to(o.Input)}
}

func (o *FileOp) verify(inputs int) error {
	if len(o.Actions) == 0 {
		return errors.New("file has no actions")
	}
	var outputs numbering
	for i := range o.Actions {
		a := &o.Actions[i]
		if err := a.verify(inputs + i); err != nil {
			return fmt.Errorf("file action %d: %w", i, err)
		}
		if a.Output != None {
			outputs = append(outputs, a.Output)
		}
	}
	if err := outputs.verify(); err != nil {
		return fmt.Errorf("file actions: %w", err)
	}
	return nil
}

// verify checks an action that may read the first of the inputs and results.
func (a *FileStep) verify(readable int) error {
	inRange := func(what string, n int) error {
		if n != None && (n < 0 || n >= readable) {
			return fmt.Errorf("%s is number %d of %d inputs and earlier results", what, n, readable)
		}
		return nil
	}
	err := errors.Join(inRange("input", a.Input), inRange("secondary input", a.Secondary))
	if a.Do == nil {
		return errors.Join(err, errors.New("does nothing"))
	}
	if owner := OwnerOf(a.Do); owner != nil {
		for _, o := range []*Owner{owner.User, owner.Group} {
			if o != nil && o.Name != "" {
				err = errors.Join(err, inRange(fmt.Sprintf("input to look up %q in", o.Name), o.Input))
			}
		}
	}
	return err
}

// OwnerOf returns whom the files that do makes are to belong to; nil leaves that open.
func OwnerOf(do FileDo) *Ownership {
	switch d := do.(type) {
	case *DoCopy:
		return d.Owner
	case *DoMkfile:
		return d.Owner
	case *DoMkdir:
		return d.Owner
	case *DoSymlink:
		return d.Owner
	}
	return nil
}

// caps lists only the base capability, as that is all that BuildKit's client
// library ever sends for file operations.
func (*FileOp) caps(need func(string)) { need(CapFileBase) }

func (o *FileOp) encode(op *pb.Op) {
	m := &pb.FileOp{}
	for _, a := range o.Actions {
		w := &pb.FileAction{Input: int64(a.Input), SecondaryInput: int64(a.Secondary), Output: int64(a.Output)}
		switch do := a.Do.(type) {
		case *DoCopy:
			w.Action = &pb.FileAction_Copy{Copy: do.encode()}
		case *DoMkfile:
			w.Action = &pb.FileAction_Mkfile{Mkfile: &pb.FileActionMkFile{
				Path: do.Path, Mode: int32(do.Mode), Data: do.Data, Owner: do.Owner.encode(), Timestamp: do.Timestamp,
			}}
		case *DoMkdir:
			w.Action = &pb.FileAction_Mkdir{Mkdir: &pb.FileActionMkDir{
				Path: do.Path, Mode: int32(do.Mode), MakeParents: do.Parents, Owner: do.Owner.encode(), Timestamp: do.Timestamp,
			}}
		case *DoRm:
			w.Action = &pb.FileAction_Rm{Rm: &pb.FileActionRm{
				Path: do.Path, AllowNotFound: do.AllowNotFound, AllowWildcard: do.Wildcard,
			}}
		case *DoSymlink:
			w.Action = &pb.FileAction_Symlink{Symlink: &pb.FileActionSymlink{
				Oldpath: do.Old, Newpath: do.New, Owner: do.Owner.encode(), Timestamp: do.Timestamp,
			}}
		}
		m.Actions = append(m.Actions, w)
	}
	op.Op = &pb.Op_File{File: m}
}

func (c *DoCopy) encode() *pb.FileActionCopy {
	return &pb.FileActionCopy{
		Src: c.Src, Dest: c.Dest, Owner: c.Owner.encode(), Mode: int32(c.Mode), ModeStr: c.ModeStr,
		FollowSymlink: c.FollowSymlink, DirCopyContents: c.DirContents,
		AttemptUnpackDockerCompatibility: c.Unpack, CreateDestPath: c.CreateDest,
		AllowWildcard: c.Wildcard, AllowEmptyWildcard: c.AllowEmptyWildcard, Timestamp: c.Timestamp,
		IncludePatterns: c.Include, ExcludePatterns: c.Exclude,
		AlwaysReplaceExistingDestPaths: c.ReplaceExistingDest, RequiredPaths: c.Required,
	}
}

func (o *Ownership) encode() *pb.ChownOpt {
	if o == nil {
		return nil
	}
	return &pb.ChownOpt{User: o.User.encode(), Group: o.Group.encode()}
}

func (o *Owner) encode() *pb.UserOpt {
	switch {
	case o == nil:
		return nil
	case o.Name != "":
		return &pb.UserOpt{User: &pb.UserOpt_ByName{ByName: &pb.NamedUserOpt{Name: o.Name, Input: int64(o.Input)}}}
	default:
		return &pb.UserOpt{User: &pb.UserOpt_ByID{ByID: o.ID}}
	}
}

func decodeFile(m *pb.FileOp) (*FileOp, error) {
	o := &FileOp{}
	for i, w := range m.GetActions() {
		a := FileStep{Input: number(w.GetInput()), Secondary: number(w.GetSecondaryInput()), Output: number(w.GetOutput())}
		var err error
		switch do := w.GetAction().(type) {
		case *pb.FileAction_Copy:
			a.Do, err = decodeCopy(do.Copy)
		case *pb.FileAction_Mkfile:
			d := &DoMkfile{Path: do.Mkfile.GetPath(), Mode: int(do.Mkfile.GetMode()), Data: do.Mkfile.GetData(), Timestamp: do.Mkfile.GetTimestamp()}
			d.Owner, err = decodeOwnership(do.Mkfile.GetOwner())
			a.Do = d
		case *pb.FileAction_Mkdir:
			d := &DoMkdir{Path: do.Mkdir.GetPath(), Mode: int(do.Mkdir.GetMode()), Parents: do.Mkdir.GetMakeParents(), Timestamp: do.Mkdir.GetTimestamp()}
			d.Owner, err = decodeOwnership(do.Mkdir.GetOwner())
			a.Do = d
		case *pb.FileAction_Rm:
			a.Do = &DoRm{Path: do.Rm.GetPath(), AllowNotFound: do.Rm.GetAllowNotFound(), Wildcard: do.Rm.GetAllowWildcard()}
		case *pb.FileAction_Symlink:
			d := &DoSymlink{Old: do.Symlink.GetOldpath(), New: do.Symlink.GetNewpath(), Timestamp: do.Symlink.GetTimestamp()}
			d.Owner, err = decodeOwnership(do.Symlink.GetOwner())
			a.Do = d
		default:
			err = errors.New("is of an unknown kind")
		}
		if err != nil {
			return nil, fmt.Errorf("file action %d: %w", i, err)
		}
		o.Actions = append(o.Actions, a)
	}
	return o, nil
}

func decodeCopy(m *pb.FileActionCopy) (*DoCopy, error) {
	owner, err := decodeOwnership(m.GetOwner())
	return &DoCopy{
		Src: m.GetSrc(), Dest: m.GetDest(), Owner: owner, Mode: int(m.GetMode()), ModeStr: m.GetModeStr(),
		FollowSymlink: m.GetFollowSymlink(), DirContents: m.GetDirCopyContents(),
		Unpack: m.GetAttemptUnpackDockerCompatibility(), CreateDest: m.GetCreateDestPath(),
		Wildcard: m.GetAllowWildcard(), AllowEmptyWildcard: m.GetAllowEmptyWildcard(), Timestamp: m.GetTimestamp(),
		Include: m.GetIncludePatterns(), Exclude: m.GetExcludePatterns(),
		ReplaceExistingDest: m.GetAlwaysReplaceExistingDestPaths(), Required: m.GetRequiredPaths(),
	}, err
}

func decodeOwnership(m *pb.ChownOpt) (*Ownership, error) {
	if m == nil {
		return nil, nil
	}
	user, err1 := decodeOwner(m.GetUser())
	group, err2 := decodeOwner(m.GetGroup())
	return &Ownership{User: user, Group: group}, errors.Join(err1, err2)
}

func decodeOwner(m *pb.UserOpt) (*Owner, error) {
	switch u := m.GetUser().(type) {
	case nil:
		return nil, nil
	case *pb.UserOpt_ByID:
		return &Owner{ID: u.ByID}, nil
	case *pb.UserOpt_ByName:
		if u.ByName.GetName() == "" {
			return nil, errors.New("owner has an empty name")
		}
		return &Owner{Name: u.ByName.GetName(), Input: number(u.ByName.GetInput())}, nil
	default:
		return nil, fmt.Errorf("owner of type %T is unknown", u)
	}
}
