package op

import (
	"encoding/json"
	"path"
	"slices"
	"strings"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/llb"
)

// This file holds the op digests of BuildKit's solver/llbsolver/ops: sha256 over
// compact JSON whose fields stand in the order of BuildKit's messages, under their
// declared names, zero values left out. The structs below have that order and
// those names; nothing else may change them.

type execJSON struct {
	Meta       *metaJSON       `json:"meta,omitempty"`
	Mounts     []mountJSON     `json:"mounts,omitempty"`
	Network    int             `json:"network,omitempty"`
	Security   int             `json:"security,omitempty"`
	SecretEnv  []secretEnvJSON `json:"secretenv,omitempty"`
	CDIDevices []deviceJSON    `json:"cdiDevices,omitempty"`
}

type metaJSON struct {
	Args           []string     `json:"args,omitempty"`
	Env            []string     `json:"env,omitempty"`
	Cwd            string       `json:"cwd,omitempty"`
	User           string       `json:"user,omitempty"`
	ExtraHosts     []hostJSON   `json:"extraHosts,omitempty"`
	Hostname       string       `json:"hostname,omitempty"`
	Ulimit         []ulimitJSON `json:"ulimit,omitempty"`
	CgroupParent   string       `json:"cgroupParent,omitempty"`
	RemoveStubs    bool         `json:"removeMountStubsRecursive,omitempty"`
	ValidExitCodes []int        `json:"validExitCodes,omitempty"`
}

type hostJSON struct {
	Host string `json:"Host,omitempty"`
	IP   string `json:"IP,omitempty"`
}

type ulimitJSON struct {
	Name string `json:"Name,omitempty"`
	Soft int64  `json:"Soft,omitempty"`
	Hard int64  `json:"Hard,omitempty"`
}

type secretEnvJSON struct {
	ID       string `json:"ID,omitempty"`
	Name     string `json:"name,omitempty"`
	Optional bool   `json:"optional,omitempty"`
}

type deviceJSON struct {
	Name     string `json:"name,omitempty"`
	Optional bool   `json:"optional,omitempty"`
}

type mountJSON struct {
	Input        int         `json:"input,omitempty"`
	Selector     string      `json:"selector,omitempty"`
	Dest         string      `json:"dest,omitempty"`
	Output       int         `json:"output,omitempty"`
	ReadOnly     bool        `json:"readonly,omitempty"`
	MountType    int         `json:"mountType,omitempty"`
	TmpfsOpt     *tmpfsJSON  `json:"TmpfsOpt,omitempty"`
	CacheOpt     *cacheJSON  `json:"cacheOpt,omitempty"`
	SecretOpt    *secretJSON `json:"secretOpt,omitempty"`
	SSHOpt       *secretJSON `json:"SSHOpt,omitempty"`
	ResultID     string      `json:"resultID,omitempty"`
	ContentCache int         `json:"contentCache,omitempty"`
}

type tmpfsJSON struct {
	Size int64 `json:"size,omitempty"`
}

type cacheJSON struct {
	ID      string `json:"ID,omitempty"`
	Sharing int    `json:"sharing,omitempty"`
}

type secretJSON struct {
	ID       string `json:"ID,omitempty"`
	UID      uint32 `json:"uid,omitempty"`
	GID      uint32 `json:"gid,omitempty"`
	Mode     uint32 `json:"mode,omitempty"`
	Optional bool   `json:"optional,omitempty"`
}

// execDigest is the part of an exec's key that its inputs don't give.
func execDigest(o *llb.ExecOp, p ocispecs.Platform) (string, error) {
	return digestJSON(struct {
		Type       string
		Exec       execJSON
		OS         string
		Arch       string
		Variant    string   `json:",omitempty"`
		OSVersion  string   `json:",omitempty"`
		OSFeatures []string `json:",omitempty"`
	}{"buildkit.exec.v0", newExecJSON(o), p.OS, p.Architecture, p.Variant, p.OSVersion, p.OSFeatures})
}

func newExecJSON(o *llb.ExecOp) execJSON {
	m := &metaJSON{
		Args: o.Args, Env: o.Env, Cwd: o.Cwd, User: o.User, Hostname: o.Hostname,
		CgroupParent: o.CgroupParent, RemoveStubs: o.RemoveStubs, ValidExitCodes: o.ValidExitCodes,
	}
	for _, h := range o.ExtraHosts { // an address is of the moment, a name is what a build relies on
		m.ExtraHosts = append(m.ExtraHosts, hostJSON{Host: h.Host})
	}
	for _, u := range o.Ulimits {
		m.Ulimit = append(m.Ulimit, ulimitJSON(u))
	}
	e := execJSON{Meta: m, Network: int(o.Network), Security: int(o.Security)}
	for _, s := range o.SecretEnv {
		e.SecretEnv = append(e.SecretEnv, secretEnvJSON(s))
	}
	for _, d := range o.Devices {
		e.CDIDevices = append(e.CDIDevices, deviceJSON(d))
	}
	if !onlyPlainRoot(o.Mounts) {
		for _, mt := range o.Mounts {
			e.Mounts = append(e.Mounts, newMountJSON(mt))
		}
	}
	return e
}

func onlyPlainRoot(ms []llb.Mount) bool {
	return len(ms) == 1 && ms[0].Kind == llb.MountBind && ms[0].Dest == "/" &&
		ms[0].Input == 0 && ms[0].Output == 0 && !ms[0].ReadOnly && ms[0].ContentCache == llb.ContentDefault
}

func newMountJSON(m llb.Mount) mountJSON {
	j := mountJSON{
		Input: m.Input, Dest: m.Dest, Output: m.Output, ReadOnly: m.ReadOnly,
		MountType: int(m.Kind), ResultID: m.ResultID, ContentCache: int(m.ContentCache),
	}
	switch m.Kind {
	case llb.MountTmpfs:
		j.TmpfsOpt = &tmpfsJSON{m.TmpfsSize}
	case llb.MountCache:
		j.CacheOpt = &cacheJSON{}
		if m.CacheSharing == llb.CacheShared && (m.CacheID == m.Dest || strings.HasSuffix(m.CacheID, "/"+m.Dest)) {
			j.CacheOpt.ID = m.CacheID
		}
	case llb.MountSecret:
		j.SecretOpt = (*secretJSON)(m.Secret)
	case llb.MountSSH:
		j.SSHOpt = (*secretJSON)(m.Secret)
	}
	return j
}

type copyJSON struct {
	Src                string     `json:"src,omitempty"`
	Dest               string     `json:"dest,omitempty"`
	Owner              *ownerJSON `json:"owner,omitempty"`
	Mode               int        `json:"mode,omitempty"`
	FollowSymlink      bool       `json:"followSymlink,omitempty"`
	DirCopyContents    bool       `json:"dirCopyContents,omitempty"`
	Unpack             bool       `json:"attemptUnpackDockerCompatibility,omitempty"`
	CreateDestPath     bool       `json:"createDestPath,omitempty"`
	AllowWildcard      bool       `json:"allowWildcard,omitempty"`
	AllowEmptyWildcard bool       `json:"allowEmptyWildcard,omitempty"`
	Timestamp          int64      `json:"timestamp,omitempty"`
	IncludePatterns    []string   `json:"include_patterns,omitempty"`
	ExcludePatterns    []string   `json:"exclude_patterns,omitempty"`
	AlwaysReplace      bool       `json:"alwaysReplaceExistingDestPaths,omitempty"`
	ModeStr            string     `json:"modeStr,omitempty"`
	RequiredPaths      []string   `json:"required_paths,omitempty"`
}

type ownerJSON struct {
	User  *userJSON `json:"user,omitempty"`
	Group *userJSON `json:"group,omitempty"`
}

// userJSON is a oneof, wrapped in "User".
type userJSON struct{ User oneUserJSON }

type oneUserJSON struct {
	ByName *namedJSON `json:"byName,omitempty"`
	ByID   uint32     `json:"byId,omitempty"`
}

type namedJSON struct {
	Name  string `json:"name,omitempty"`
	Input int    `json:"input,omitempty"`
}

type mkfileJSON struct {
	Path      string     `json:"path,omitempty"`
	Mode      int        `json:"mode,omitempty"`
	Data      []byte     `json:"data,omitempty"`
	Owner     *ownerJSON `json:"owner,omitempty"`
	Timestamp int64      `json:"timestamp,omitempty"`
}

type mkdirJSON struct {
	Path        string     `json:"path,omitempty"`
	Mode        int        `json:"mode,omitempty"`
	MakeParents bool       `json:"makeParents,omitempty"`
	Owner       *ownerJSON `json:"owner,omitempty"`
	Timestamp   int64      `json:"timestamp,omitempty"`
}

type rmJSON struct {
	Path          string `json:"path,omitempty"`
	AllowNotFound bool   `json:"allowNotFound,omitempty"`
	AllowWildcard bool   `json:"allowWildcard,omitempty"`
}

type symlinkJSON struct {
	Oldpath   string     `json:"oldpath,omitempty"`
	Newpath   string     `json:"newpath,omitempty"`
	Owner     *ownerJSON `json:"owner,omitempty"`
	Timestamp int64      `json:"timestamp,omitempty"`
}

func newOwnerJSON(c *llb.Ownership) *ownerJSON {
	if c == nil {
		return nil
	}
	user := func(o *llb.Owner) *userJSON {
		switch {
		case o == nil:
			return nil
		case o.Name != "":
			return &userJSON{oneUserJSON{ByName: &namedJSON{o.Name, o.Input}}}
		default:
			return &userJSON{oneUserJSON{ByID: o.ID}}
		}
	}
	return &ownerJSON{user(c.User), user(c.Group)}
}

// actionJSON is an action of an op with so many inputs.
func actionJSON(a llb.FileStep, inputs int) any {
	switch d := a.Do.(type) {
	case *llb.DoCopy:
		src := d.Src
		if a.Secondary != llb.None && a.Secondary < inputs {
			src = path.Base(src)
		}
		return copyJSON{
			Src: src, Dest: d.Dest, Owner: newOwnerJSON(d.Owner), Mode: d.Mode, FollowSymlink: d.FollowSymlink,
			DirCopyContents: d.DirContents, Unpack: d.Unpack, CreateDestPath: d.CreateDest,
			AllowWildcard: d.Wildcard, AllowEmptyWildcard: d.AllowEmptyWildcard, Timestamp: d.Timestamp,
			IncludePatterns: d.Include, ExcludePatterns: d.Exclude, AlwaysReplace: d.ReplaceExistingDest,
			ModeStr: d.ModeStr, RequiredPaths: d.Required,
		}
	case *llb.DoMkfile:
		return mkfileJSON{d.Path, d.Mode, d.Data, newOwnerJSON(d.Owner), d.Timestamp}
	case *llb.DoMkdir:
		return mkdirJSON{d.Path, d.Mode, d.Parents, newOwnerJSON(d.Owner), d.Timestamp}
	case *llb.DoRm:
		return rmJSON{d.Path, d.AllowNotFound, d.Wildcard}
	case *llb.DoSymlink:
		return symlinkJSON{d.Old, d.New, newOwnerJSON(d.Owner), d.Timestamp}
	}
	return nil
}

// fileDigest is the part of a file op's key that its inputs don't give.
func fileDigest(o *llb.FileOp, inputs int) (string, error) {
	key := struct {
		Type    string
		Actions [][]byte
		Indexes [][]int `json:"indexes,omitempty"`
	}{Type: "buildkit.file.v0"}
	usual := true
	for i, a := range o.Actions {
		b, err := json.Marshal(actionJSON(a, inputs))
		if err != nil {
			return "", err
		}
		key.Actions = append(key.Actions, b)
		key.Indexes = append(key.Indexes, []int{a.Input, a.Secondary, a.Output})
		usual = usual && usualShape(o.Actions, i)
	}
	if usual {
		key.Indexes = nil
	}
	return digestJSON(key)
}

// usualShape tells whether action i has the numbers that BuildKit leaves out of
// the key for the sake of old caches. That it counts from the number of actions,
// not of inputs, is a quirk of BuildKit's solver/llbsolver/ops.
func usualShape(as []llb.FileStep, i int) bool {
	input, output := 0, llb.None
	if i > 0 {
		input = len(as) + i - 1
	}
	if i == len(as)-1 {
		output = 0
	}
	a := as[i]
	return a.Input == input && a.Output == output && (a.Secondary == llb.None || a.Secondary == 1)
}

type inputJSON struct {
	Input int `json:"input,omitempty"`
}

func mergeDigest(o *llb.MergeOp) (string, error) {
	type merge struct {
		Inputs []inputJSON `json:"inputs,omitempty"`
	}
	var m merge
	for _, in := range o.Inputs {
		m.Inputs = append(m.Inputs, inputJSON{in})
	}
	return digestJSON(struct {
		Type  string
		Merge merge
	}{"buildkit.merge.v0", m})
}

func diffDigest(o *llb.DiffOp) (string, error) {
	type diff struct {
		Lower inputJSON `json:"lower"`
		Upper inputJSON `json:"upper"`
	}
	return digestJSON(struct {
		Type string
		Diff diff
	}{"buildkit.diff.v0", diff{inputJSON{o.Lower}, inputJSON{o.Upper}}})
}

func passthroughDigest(o *llb.PassthroughOp) (string, error) {
	type passthrough struct {
		ID      string `json:"id,omitempty"`
		Outputs []int  `json:"outputs,omitempty"`
	}
	return digestJSON(struct {
		Type        string
		Passthrough passthrough
	}{"buildkit.passthrough.v0", passthrough{o.ID, o.Output}})
}

func digestJSON(v any) (string, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	return string(digest.FromBytes(b)), nil
}

// selectorDigest names the paths of an input that an exec mounts.
func selectorDigest(paths []string) string {
	return linkSelector(slices.Compact(slices.Sorted(slices.Values(paths))))
}

// linkSelector names the paths of an input that a file operation reads, as
// BuildKit does (cache/contenthash): doubles count.
func linkSelector(paths []string) string {
	paths = slices.Clone(paths)
	slices.Sort(paths)
	slices.Reverse(paths)
	return string(digest.FromString(strings.Join(paths, "\x00")))
}
