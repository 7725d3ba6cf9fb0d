package pb

import (
	"encoding/json"
	"fmt"
)

// The generated code has no JSON form for a oneof. This file gives the three
// messages that have one the form that BuildKit prints, and makes cache keys of.

type jsonOp struct {
	Inputs []*Input `json:"inputs,omitempty"`
	Op     struct {
		Exec        *ExecOp        `json:"exec,omitempty"`
		Source      *SourceOp      `json:"source,omitempty"`
		File        *FileOp        `json:"file,omitempty"`
		Build       *BuildOp       `json:"build,omitempty"`
		Merge       *MergeOp       `json:"merge,omitempty"`
		Diff        *DiffOp        `json:"diff,omitempty"`
		Passthrough *PassthroughOp `json:"passthrough,omitempty"`
	}
	Platform    *Platform          `json:"platform,omitempty"`
	Constraints *WorkerConstraints `json:"constraints,omitempty"`
}

// MarshalJSON writes {"inputs":[…],"Op":{"exec":{…}},"platform":{…},"constraints":{}}.
func (x *Op) MarshalJSON() ([]byte, error) {
	j := jsonOp{Inputs: x.GetInputs(), Platform: x.GetPlatform(), Constraints: x.GetConstraints()}
	j.Op.Exec, j.Op.Source, j.Op.File = x.GetExec(), x.GetSource(), x.GetFile()
	j.Op.Build, j.Op.Merge, j.Op.Diff = x.GetBuild(), x.GetMerge(), x.GetDiff()
	j.Op.Passthrough = x.GetPassthrough()
	return json.Marshal(j)
}

// UnmarshalJSON reads what MarshalJSON writes.
func (x *Op) UnmarshalJSON(data []byte) error {
	var j jsonOp
	if err := json.Unmarshal(data, &j); err != nil {
		return fmt.Errorf("decode op: %w", err)
	}
	x.Inputs, x.Platform, x.Constraints, x.Op = j.Inputs, j.Platform, j.Constraints, nil
	switch {
	case j.Op.Exec != nil:
		x.Op = &Op_Exec{j.Op.Exec}
	case j.Op.Source != nil:
		x.Op = &Op_Source{j.Op.Source}
	case j.Op.File != nil:
		x.Op = &Op_File{j.Op.File}
	case j.Op.Build != nil:
		x.Op = &Op_Build{j.Op.Build}
	case j.Op.Merge != nil:
		x.Op = &Op_Merge{j.Op.Merge}
	case j.Op.Diff != nil:
		x.Op = &Op_Diff{j.Op.Diff}
	case j.Op.Passthrough != nil:
		x.Op = &Op_Passthrough{j.Op.Passthrough}
	}
	return nil
}

type jsonFileAction struct {
	Input          int64 `json:"input"`
	SecondaryInput int64 `json:"secondaryInput"`
	Output         int64 `json:"output"`
	Action         struct {
		Copy    *FileActionCopy    `json:"copy,omitempty"`
		Mkfile  *FileActionMkFile  `json:"mkfile,omitempty"`
		Mkdir   *FileActionMkDir   `json:"mkdir,omitempty"`
		Rm      *FileActionRm      `json:"rm,omitempty"`
		Symlink *FileActionSymlink `json:"symlink,omitempty"` // BuildKit leaves it out
	}
}

// MarshalJSON writes {"input":0,"secondaryInput":-1,"output":0,"Action":{"rm":{…}}}.
func (x *FileAction) MarshalJSON() ([]byte, error) {
	j := jsonFileAction{Input: x.GetInput(), SecondaryInput: x.GetSecondaryInput(), Output: x.GetOutput()}
	j.Action.Copy, j.Action.Mkfile, j.Action.Mkdir = x.GetCopy(), x.GetMkfile(), x.GetMkdir()
	j.Action.Rm, j.Action.Symlink = x.GetRm(), x.GetSymlink()
	return json.Marshal(j)
}

// UnmarshalJSON reads what MarshalJSON writes.
func (x *FileAction) UnmarshalJSON(data []byte) error {
	var j jsonFileAction
	if err := json.Unmarshal(data, &j); err != nil {
		return fmt.Errorf("decode file action: %w", err)
	}
	x.Input, x.SecondaryInput, x.Output, x.Action = j.Input, j.SecondaryInput, j.Output, nil
	switch {
	case j.Action.Copy != nil:
		x.Action = &FileAction_Copy{j.Action.Copy}
	case j.Action.Mkfile != nil:
		x.Action = &FileAction_Mkfile{j.Action.Mkfile}
	case j.Action.Mkdir != nil:
		x.Action = &FileAction_Mkdir{j.Action.Mkdir}
	case j.Action.Rm != nil:
		x.Action = &FileAction_Rm{j.Action.Rm}
	case j.Action.Symlink != nil:
		x.Action = &FileAction_Symlink{j.Action.Symlink}
	}
	return nil
}

type jsonUserOpt struct {
	User struct {
		ByName *NamedUserOpt `json:"byName,omitempty"`
		ByID   uint32        `json:"byId,omitempty"`
	}
}

// MarshalJSON writes {"User":{"byId":1}}; the id 0 is left out.
func (x *UserOpt) MarshalJSON() ([]byte, error) {
	var j jsonUserOpt
	j.User.ByName, j.User.ByID = x.GetByName(), x.GetByID()
	return json.Marshal(j)
}

// UnmarshalJSON reads what MarshalJSON writes.
func (x *UserOpt) UnmarshalJSON(data []byte) error {
	var j jsonUserOpt
	if err := json.Unmarshal(data, &j); err != nil {
		return fmt.Errorf("decode user: %w", err)
	}
	if j.User.ByName != nil {
		x.User = &UserOpt_ByName{j.User.ByName}
	} else {
		x.User = &UserOpt_ByID{j.User.ByID}
	}
	return nil
}
