package op

import (
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	digest "github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/solver"
	"github.com/kiln-build/kiln/llb"
)

// This file tells people what keys.go makes digests of. Two operations whose
// parts are all equal have equal digests, but for what no person would name,
// such as the numbers of inputs.

// Kinds of parts. People and programs see them: "kiln why --format json".
const (
	PartPlatform    = "platform"
	PartInstruction = "instruction"
	PartEnv         = "env"
	PartMount       = "mount"
	PartSecret      = "secret" // the keyed hash of its value
	PartImage       = "image"
	PartSource      = "source"
	PartData        = "data" // of a file that an instruction has in itself
	PartSetting     = "setting"
)

const longestPart = 400 // bytes of a value that are shown

// part is a part whose value, if it is long, ends with its digest.
func part(kind, name, value string) solver.Part {
	if len(value) > longestPart {
		value = strings.ToValidUTF8(value[:longestPart], "") + "… (" + string(digest.FromString(value)) + ")"
	}
	return solver.Part{Kind: kind, Name: name, Value: value}
}

// Parts tells what a run's digest is made of.
func (o *execOp) Parts() []solver.Part {
	e := newExecJSON(o.op)
	out := []solver.Part{
		part(PartPlatform, "", platforms.FormatAll(o.platform())),
		part(PartInstruction, "", commandText(e.Meta.Args)),
	}
	for _, kv := range e.Meta.Env {
		name, value, _ := strings.Cut(kv, "=")
		out = append(out, part(PartEnv, name, value))
	}
	for i, m := range e.Mounts {
		if onlyPlainRoot(o.op.Mounts[i : i+1]) {
			continue // as every step has it
		}
		out = append(out, part(PartMount, m.Dest, mountText(m)))
	}
	for _, s := range e.SecretEnv {
		out = append(out, part(PartMount, s.Name, fmt.Sprintf("secret %s as a variable%s", s.ID, optional(s.Optional))))
	}
	for _, s := range o.secrets {
		out = append(out, part(PartSecret, s.ID, s.Hash))
	}
	if o.proxied {
		out = append(out, part(PartSetting, "network", "proxy"))
	}
	return append(out, settings(e)...)
}

// settings are what else decides how a process runs.
func settings(e execJSON) (out []solver.Part) {
	add := func(name, value string) {
		if value != "" {
			out = append(out, part(PartSetting, name, value))
		}
	}
	add("working directory", e.Meta.Cwd)
	add("user", e.Meta.User)
	add("hostname", e.Meta.Hostname)
	for _, h := range e.Meta.ExtraHosts {
		add("host "+h.Host, "known")
	}
	for _, u := range e.Meta.Ulimit {
		add("ulimit "+u.Name, fmt.Sprintf("%d:%d", u.Soft, u.Hard))
	}
	add("cgroup parent", e.Meta.CgroupParent)
	if e.Meta.RemoveStubs {
		add("mount points", "removed")
	}
	if len(e.Meta.ValidExitCodes) > 0 {
		add("exit codes", fmt.Sprint(e.Meta.ValidExitCodes))
	}
	if e.Network != int(llb.NetSandbox) {
		add("network", map[int]string{int(llb.NetHost): "host", int(llb.NetNone): "none"}[e.Network])
	}
	if e.Security != int(llb.SecuritySandbox) {
		add("security", "insecure")
	}
	for _, d := range e.CDIDevices {
		add("device "+d.Name, "given"+optional(d.Optional))
	}
	return out
}

// commandText is a command as people write it.
func commandText(args []string) string {
	if len(args) == 3 && args[0] == "/bin/sh" && args[1] == "-c" {
		return args[2]
	}
	b, err := json.Marshal(args)
	if err != nil {
		return strings.Join(args, " ")
	}
	return string(b)
}

func optional(yes bool) string {
	if yes {
		return ", optional"
	}
	return ""
}

func mountText(m mountJSON) string {
	words := []string{map[int]string{
		int(llb.MountBind): "bind", int(llb.MountSecret): "secret", int(llb.MountSSH): "ssh",
		int(llb.MountCache): "cache", int(llb.MountTmpfs): "tmpfs",
	}[m.MountType]}
	add := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
	if m.Input != llb.None {
		add("of input %d", m.Input)
	}
	if m.Output != llb.None {
		add("as result %d", m.Output)
	}
	if m.ReadOnly {
		add("read only")
	}
	if m.TmpfsOpt != nil && m.TmpfsOpt.Size > 0 {
		add("of %d bytes", m.TmpfsOpt.Size)
	}
	if m.CacheOpt != nil && m.CacheOpt.ID != "" {
		add("id %s", m.CacheOpt.ID)
	}
	for _, s := range []*secretJSON{m.SecretOpt, m.SSHOpt} {
		if s != nil {
			add("id %s, owner %d:%d, mode %04o%s", s.ID, s.UID, s.GID, s.Mode, optional(s.Optional))
		}
	}
	if m.ContentCache != int(llb.ContentDefault) {
		add("content %s", map[int]string{int(llb.ContentOn): "counts", int(llb.ContentOff): "does not count"}[m.ContentCache])
	}
	if m.ResultID != "" {
		add("result id %s", m.ResultID)
	}
	return strings.Join(words, ", ")
}

// Parts tells what the digest of file operations is made of.
func (o *fileOp) Parts() (out []solver.Part) {
	for i, a := range o.op.Actions {
		name := ""
		if len(o.op.Actions) > 1 {
			name = strconv.Itoa(i + 1)
		}
		j := actionJSON(a, len(o.vertex.Inputs))
		if d, ok := j.(mkfileJSON); ok {
			out = append(out, part(PartData, d.Path, fmt.Sprintf("%s (%d bytes)", digest.FromBytes(d.Data), len(d.Data))))
			d.Data = nil
			j = d
		}
		out = append(out, part(PartInstruction, name, actionText(j)))
		out = append(out, options(name, j)...)
	}
	return out
}

// actionText is an action as a line, as far as its key goes.
func actionText(inKey any) string {
	switch d := inKey.(type) {
	case copyJSON:
		return fmt.Sprintf("copy %s to %s", d.Src, d.Dest)
	case mkfileJSON:
		return "write " + d.Path
	case mkdirJSON:
		return "make folder " + d.Path
	case rmJSON:
		return "remove " + d.Path
	case symlinkJSON:
		return fmt.Sprintf("link %s to %s", d.Newpath, d.Oldpath)
	}
	return ""
}

// options are the other fields of an action, where they are set.
func options(action string, inKey any) (out []solver.Part) {
	b, err := json.Marshal(inKey)
	if err != nil {
		return nil
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal(b, &fields) != nil {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		value := string(fields[name])
		if slices.Contains([]string{"src", "dest", "path", "oldpath", "newpath"}, name) || value == "-1" {
			continue // said, or the default
		}
		if n, err := strconv.Atoi(value); err == nil && name == "mode" {
			value = fmt.Sprintf("%04o", n)
		}
		out = append(out, part(PartSetting, strings.TrimSpace(name+" "+action), value))
	}
	return out
}

// Parts tells what a merge is made of.
func (o *mergeOp) Parts() []solver.Part {
	return []solver.Part{part(PartInstruction, "", fmt.Sprint("merge of inputs ", o.op.Inputs))}
}

// Parts tells what a difference is made of.
func (o *diffOp) Parts() []solver.Part {
	return []solver.Part{part(PartInstruction, "", fmt.Sprintf("difference of inputs %d and %d", o.op.Lower, o.op.Upper))}
}

// Parts tells what is handed on.
func (o *passthroughOp) Parts() []solver.Part {
	return []solver.Part{part(PartInstruction, o.op.ID, fmt.Sprint("hand on inputs ", o.op.Output))}
}

// Parts tells of the definition that the step evaluates.
func (o *buildOp) Parts() []solver.Part {
	return []solver.Part{part(PartInstruction, "", "build of the definition of another step")}
}

// Parts tells what a source turned out to be.
func (o *sourceOp) Parts() []solver.Part {
	if o.pin == nil {
		return nil
	}
	scheme, name, _ := strings.Cut(o.op.Identifier, "://")
	platform := part(PartPlatform, "", platforms.FormatAll(o.platform()))
	switch scheme {
	case "docker-image", "oci-layout":
		name, _, _ = strings.Cut(name, "@")
		return []solver.Part{platform, part(PartImage, name, string(o.pin.Digest))}
	case "local":
		return []solver.Part{part(PartSource, path.Clean(name), "as the client has it")}
	}
	value := o.pin.Key
	if o.pin.Digest != "" {
		value = string(o.pin.Digest)
	}
	return []solver.Part{part(PartSource, scheme+"://"+name, value)}
}
