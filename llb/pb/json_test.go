package pb

import (
	"encoding/json"
	"testing"

	"google.golang.org/protobuf/proto"
)

// TestJSON compares with what buildctl v0.33.1 prints of the same operations.
func TestJSON(t *testing.T) {
	on := func(op *Op) *Op { op.Constraints = &WorkerConstraints{}; return op }
	owner := &ChownOpt{User: &UserOpt{User: &UserOpt_ByName{&NamedUserOpt{Name: "bob"}}}, Group: &UserOpt{User: &UserOpt_ByID{7}}}
	root := &ChownOpt{User: &UserOpt{User: &UserOpt_ByID{0}}}
	file := func(a *FileAction) *Op {
		return on(&Op{Op: &Op_File{&FileOp{Actions: []*FileAction{a}}}})
	}
	for want, op := range map[string]*Op{
		`{"Op":{"source":{"identifier":"local://a","attrs":{"local.unique":"u"}}},"constraints":{}}`: on(&Op{Op: &Op_Source{&SourceOp{Identifier: "local://a", Attrs: map[string]string{"local.unique": "u"}}}}),
		`{"inputs":[{"digest":"d","index":2}],"Op":{}}`:                                              {Inputs: []*Input{{Digest: "d", Index: 2}}},
		`{"Op":{"exec":{"meta":{"args":["x"],"proxy_env":{"http_proxy":"h"}},"mounts":[{"input":-1,"dest":"/t","output":-1,"mountType":4,"TmpfsOpt":{}}]}},"platform":{"Architecture":"amd64","OS":"linux"}}`: {
			Op: &Op_Exec{&ExecOp{
				Meta:   &Meta{Args: []string{"x"}, ProxyEnv: &ProxyEnv{HttpProxy: "h"}},
				Mounts: []*Mount{{Input: -1, Dest: "/t", Output: -1, MountType: MountType_TMPFS, TmpfsOpt: &TmpfsOpt{}}},
			}},
			Platform: &Platform{OS: "linux", Architecture: "amd64"},
		},
		`{"Op":{"file":{"actions":[{"input":0,"secondaryInput":1,"output":-1,"Action":{"copy":{"src":"/s","owner":{"user":{"User":{"byName":{"name":"bob"}}},"group":{"User":{"byId":7}}},"timestamp":-1}}}]}},"constraints":{}}`: file(&FileAction{
			SecondaryInput: 1, Output: -1, Action: &FileAction_Copy{&FileActionCopy{Src: "/s", Owner: owner, Timestamp: -1}}}),
		`{"Op":{"file":{"actions":[{"input":0,"secondaryInput":0,"output":0,"Action":{"mkfile":{"path":"/f","data":"AP8="}}}]}},"constraints":{}}`:               file(&FileAction{Action: &FileAction_Mkfile{&FileActionMkFile{Path: "/f", Data: []byte{0, 255}}}}),
		`{"Op":{"file":{"actions":[{"input":0,"secondaryInput":0,"output":0,"Action":{"mkdir":{"path":"/f","owner":{"user":{"User":{}}}}}}]}},"constraints":{}}`: file(&FileAction{Action: &FileAction_Mkdir{&FileActionMkDir{Path: "/f", Owner: root}}}),
		`{"Op":{"file":{"actions":[{"input":0,"secondaryInput":0,"output":0,"Action":{"rm":{"path":"/f"}}}]}},"constraints":{}}`:                                 file(&FileAction{Action: &FileAction_Rm{&FileActionRm{Path: "/f"}}}),
		`{"Op":{"file":{"actions":[{"input":0,"secondaryInput":0,"output":0,"Action":{"symlink":{"oldpath":"/o"}}}]}},"constraints":{}}`:                         file(&FileAction{Action: &FileAction_Symlink{&FileActionSymlink{Oldpath: "/o"}}}),
		`{"Op":{"build":{"builder":-1}}}`:                   {Op: &Op_Build{&BuildOp{Builder: -1}}},
		`{"Op":{"merge":{"inputs":[{},{"input":1}]}}}`:      {Op: &Op_Merge{&MergeOp{Inputs: []*MergeInput{{}, {Input: 1}}}}},
		`{"Op":{"diff":{"lower":{},"upper":{"input":-1}}}}`: {Op: &Op_Diff{&DiffOp{Lower: &LowerDiffInput{}, Upper: &UpperDiffInput{Input: -1}}}},
		`{"Op":{"passthrough":{"id":"p","outputs":[0]}}}`:   {Op: &Op_Passthrough{&PassthroughOp{Id: "p", Outputs: []int64{0}}}},
	} {
		data, err := json.Marshal(op)
		if err != nil {
			t.Fatal(err)
		}
		if string(data) != want {
			t.Errorf("got  %s\nwant %s", data, want)
		}
		var back Op
		if err := json.Unmarshal(data, &back); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(&back, op) {
			t.Errorf("%s is read as %v", data, &back)
		}
	}
}
