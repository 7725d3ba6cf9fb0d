package op

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/solver"
	"github.com/kiln-build/kiln/llb"
)

// explained is a vertex's operation without a worker behind it.
func explained(o llb.Op) base {
	return base{
		worker: &Worker{Platforms: []ocispecs.Platform{{OS: "linux", Architecture: "amd64"}}},
		vertex: &llb.Vertex{Op: o},
	}
}

// TestParts changes what is part of a digest, and finds the part that tells it.
func TestParts(t *testing.T) {
	run := func(change func(*llb.ExecOp)) *execOp {
		o := &llb.ExecOp{
			Args: []string{"/bin/sh", "-c", "make"}, Env: []string{"A=1", "B=2"}, Cwd: "/",
			Mounts: []llb.Mount{{Dest: "/", Input: 0, Output: 0}, {Kind: llb.MountCache, Dest: "/cache", Input: llb.None, Output: llb.None}},
		}
		change(o)
		return &execOp{base: explained(o), op: o}
	}
	before := run(func(*llb.ExecOp) {})
	was := before.Parts()
	for name, tc := range map[string]struct {
		change func(*llb.ExecOp)
		want   solver.Part
	}{
		"instruction": {func(o *llb.ExecOp) { o.Args = []string{"make", "all"} }, solver.Part{Kind: PartInstruction, Value: `["make","all"]`}},
		"variable":    {func(o *llb.ExecOp) { o.Env[1] = "B=3" }, solver.Part{Kind: PartEnv, Name: "B", Value: "3"}},
		"folder":      {func(o *llb.ExecOp) { o.Cwd = "/src" }, solver.Part{Kind: PartSetting, Name: "working directory", Value: "/src"}},
		"user":        {func(o *llb.ExecOp) { o.User = "app" }, solver.Part{Kind: PartSetting, Name: "user", Value: "app"}},
		"network":     {func(o *llb.ExecOp) { o.Network = llb.NetNone }, solver.Part{Kind: PartSetting, Name: "network", Value: "none"}},
		"security":    {func(o *llb.ExecOp) { o.Security = llb.SecurityInsecure }, solver.Part{Kind: PartSetting, Name: "security", Value: "insecure"}},
		"host":        {func(o *llb.ExecOp) { o.ExtraHosts = []llb.HostIP{{Host: "h"}} }, solver.Part{Kind: PartSetting, Name: "host h", Value: "known"}},
		"hostname":    {func(o *llb.ExecOp) { o.Hostname = "h" }, solver.Part{Kind: PartSetting, Name: "hostname", Value: "h"}},
		"ulimit":      {func(o *llb.ExecOp) { o.Ulimits = []llb.Ulimit{{Name: "nofile", Soft: 1, Hard: 2}} }, solver.Part{Kind: PartSetting, Name: "ulimit nofile", Value: "1:2"}},
		"cgroup":      {func(o *llb.ExecOp) { o.CgroupParent = "/x" }, solver.Part{Kind: PartSetting, Name: "cgroup parent", Value: "/x"}},
		"exit codes":  {func(o *llb.ExecOp) { o.ValidExitCodes = []int{3} }, solver.Part{Kind: PartSetting, Name: "exit codes", Value: "[3]"}},
		"stubs":       {func(o *llb.ExecOp) { o.RemoveStubs = true }, solver.Part{Kind: PartSetting, Name: "mount points", Value: "removed"}},
		"device":      {func(o *llb.ExecOp) { o.Devices = []llb.CDIDevice{{Name: "d"}} }, solver.Part{Kind: PartSetting, Name: "device d", Value: "given"}},
		"mount":       {func(o *llb.ExecOp) { o.Mounts[1].ReadOnly = true }, solver.Part{Kind: PartMount, Name: "/cache", Value: "cache, read only"}},
		"root":        {func(o *llb.ExecOp) { o.Mounts[0].ReadOnly = true }, solver.Part{Kind: PartMount, Name: "/", Value: "bind, of input 0, as result 0, read only"}},
		"secret": {func(o *llb.ExecOp) {
			o.Mounts[1] = llb.Mount{Kind: llb.MountSecret, Dest: "/cache", Input: llb.None, Output: llb.None, Secret: &llb.SecretMount{ID: "s", Mode: 0o400}}
		}, solver.Part{Kind: PartMount, Name: "/cache", Value: "secret, id s, owner 0:0, mode 0400"}},
		"secret variable": {func(o *llb.ExecOp) { o.SecretEnv = []llb.SecretEnv{{ID: "s", Name: "S"}} }, solver.Part{Kind: PartMount, Name: "S", Value: "secret s as a variable"}},
	} {
		now := run(tc.change)
		a, errA := execDigest(before.op, before.platform())
		b, errB := execDigest(now.op, now.platform())
		if errA != nil || errB != nil || a == b {
			t.Errorf("%s: is no part of the digest (%v, %v)", name, errA, errB)
		}
		parts := now.Parts()
		if !slices.Contains(parts, tc.want) || slices.Contains(was, tc.want) {
			t.Errorf("%s: parts are %+v, want %+v among them, and not before", name, parts, tc.want)
		}
	}
	long := part(PartEnv, "L", strings.Repeat("x", 5000))
	if len(long.Value) > longestPart+100 || !strings.Contains(long.Value, "sha256:") {
		t.Errorf("a long value is shown as %s", long.Value)
	}
}

func TestFileParts(t *testing.T) {
	o := &llb.FileOp{Actions: []llb.FileStep{{Input: 0, Secondary: 1, Do: &llb.DoCopy{Src: "/a/b", Dest: "/d", Mode: 0o600, CreateDest: true}}}}
	f := &fileOp{explained(o), o}
	f.vertex.Inputs = make([]llb.Edge, 2)
	want := []solver.Part{
		{Kind: PartInstruction, Value: "copy b to /d"}, {Kind: PartSetting, Name: "createDestPath", Value: "true"}, {Kind: PartSetting, Name: "mode", Value: "0600"},
	}
	if got := f.Parts(); !slices.Equal(got, want) {
		t.Errorf("parts are %+v", got)
	}
	o.Actions[0].Do = &llb.DoMkfile{Path: "/f", Mode: 0o644, Data: []byte("secret text")}
	parts := f.Parts()
	for _, p := range parts {
		if strings.Contains(p.Value, "secret text") {
			t.Errorf("the file's content is shown: %+v", p)
		}
	}
	if parts[0].Kind != PartData || parts[1].Value != "write /f" {
		t.Errorf("parts are %+v", parts)
	}
}

// box has secrets.
type box map[string]string

func (b box) Secret(_ context.Context, id string) ([]byte, error) {
	v, ok := b[id]
	if !ok {
		return nil, fs.ErrNotExist
	}
	if v == "broken" {
		return nil, errors.New("the client is gone")
	}
	return []byte(v), nil
}

// TestSecretKeys has values of secrets count only where that was asked for.
func TestSecretKeys(t *testing.T) {
	digestOf := func(b box, keyed ...string) (string, error) {
		o := &llb.ExecOp{
			Args:      []string{"true"},
			Mounts:    []llb.Mount{{Dest: "/"}, {Kind: llb.MountSecret, Dest: "/s", Input: llb.None, Output: llb.None, Secret: &llb.SecretMount{ID: "file"}}},
			SecretEnv: []llb.SecretEnv{{ID: "env", Name: "E"}},
		}
		e := &execOp{base: explained(o), op: o, keyed: keyed}
		e.worker.Secrets = b
		e.worker.SecretHash = func(id string, v []byte) string { return "hash of " + id + string(v) }
		cm, err := e.CacheMap(t.Context())
		return cm.Digest, err
	}
	plain, err := digestOf(box{"file": "1", "env": "1"})
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		a, b  box
		keyed []string
		same  bool
	}{
		"no value counts":          {box{"file": "1"}, box{"file": "2"}, nil, true},
		"another's value":          {box{"file": "1", "x": "1"}, box{"file": "1", "x": "2"}, []string{"x"}, true},
		"a file":                   {box{"file": "1"}, box{"file": "2"}, []string{"file"}, false},
		"a variable":               {box{"env": "1"}, box{"env": "2"}, []string{"env"}, false},
		"the same value":           {box{"env": "1"}, box{"env": "1"}, []string{"env"}, true},
		"one that is not there":    {box{"env": "1"}, box{}, []string{"env"}, false},
		"that of the other counts": {box{"file": "1", "env": "1"}, box{"file": "2", "env": "1"}, []string{"env"}, true},
	} {
		a, errA := digestOf(tc.a, tc.keyed...)
		b, errB := digestOf(tc.b, tc.keyed...)
		if errA != nil || errB != nil || (a == b) != tc.same {
			t.Errorf("%s: digests are %s and %s (%v, %v)", name, a, b, errA, errB)
		}
		if used := slices.Contains(tc.keyed, "env") || slices.Contains(tc.keyed, "file"); (a == plain) == used {
			t.Errorf("%s: the digest is BuildKit's: %v", name, a == plain)
		}
	}
	if _, err := digestOf(box{"env": "broken"}, "env"); err == nil || !strings.Contains(err.Error(), `hash secret "env"`) {
		t.Errorf("error is %v", err)
	}
}
