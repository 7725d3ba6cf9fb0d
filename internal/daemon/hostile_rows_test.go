package daemon

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/llb/pb"
)

// hostileGraph is the result of an operation on the file of another graph.
func hostileGraph(t *testing.T, on *pb.Definition, op *pb.Op, index int64) *pb.Definition {
	t.Helper()
	below := &pb.Op{}
	if err := proto.Unmarshal(on.Def[len(on.Def)-1], below); err != nil {
		t.Fatal(err)
	}
	def := &pb.Definition{Def: append([][]byte(nil), on.Def[:len(on.Def)-1]...)}
	op.Inputs = append(op.Inputs, &pb.Input{Digest: below.Inputs[0].Digest, Index: index})
	for _, o := range []*pb.Op{op, nil} {
		if o == nil { // the last one names the result
			o = &pb.Op{Inputs: []*pb.Input{{Digest: digest.FromBytes(def.Def[len(def.Def)-1]).String()}}}
		}
		data, err := proto.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		def.Def = append(def.Def, data)
	}
	return def
}

func execOp(security pb.SecurityMode, network pb.NetMode) *pb.Op {
	return &pb.Op{Platform: &pb.Platform{OS: "linux", Architecture: "amd64"}, Op: &pb.Op_Exec{Exec: &pb.ExecOp{
		Meta: &pb.Meta{Args: []string{"true"}, Cwd: "/"}, Security: security, Network: network,
		Mounts: []*pb.Mount{{Dest: "/", Input: 0, Output: 0}},
	}}}
}

// manyMounts is a step of more mounts than one may have.
func manyMounts() *pb.Op {
	op := execOp(0, 0)
	for i := range 1_000 {
		op.GetExec().Mounts = append(op.GetExec().Mounts, &pb.Mount{Dest: fmt.Sprint("/tmp/", i), Input: -1, Output: -1, MountType: pb.MountType_TMPFS})
	}
	return op
}

// TestFrontendWalksKnownBreaks has a frontend in a container ask for what broke
// builders by their graphs; docs/security.md lists the rows.
func TestFrontendWalksKnownBreaks(t *testing.T) {
	text := textGraph(t, "result")
	file := func(a *pb.FileAction) *pb.Op {
		return &pb.Op{Op: &pb.Op_File{File: &pb.FileOp{Actions: []*pb.FileAction{a}}}}
	}
	rows := map[string]struct {
		graph *pb.Definition
		want  string // in the error
	}{
		"CVE-2026-15792, an output below none": {hostileGraph(t, text, execOp(0, 0), -1), "output number -1"},
		"CVE-2026-15792, an input of none": {hostileGraph(t, text, file(&pb.FileAction{
			Input: 7, SecondaryInput: -1, Action: &pb.FileAction_Rm{Rm: &pb.FileActionRm{Path: "../.."}},
		}), 0), "input"},
		"CVE-2026-15792, a diff of nothing": {hostileGraph(t, text, &pb.Op{Op: &pb.Op_Diff{Diff: &pb.DiffOp{}}}, 0), "diff"},
		"GHSA-7236-3392-c5c6":               {hostileGraph(t, text, execOp(2, 0), 0), "security mode"},
		"GHSA-7236-3392-c5c6, network":      {hostileGraph(t, text, execOp(0, 9), 0), "network"},
		"more mounts than a step may have":  {hostileGraph(t, text, manyMounts(), 0), "1001 mounts: expected at most 1000"},
		"CVE-2024-23653":                    {hostileGraph(t, text, execOp(pb.SecurityMode_INSECURE, 0), 0), "security.insecure is not allowed"},
		"CVE-2024-23653, network":           {hostileGraph(t, text, execOp(0, pb.NetMode_HOST), 0), "network.host is not allowed"},
	}
	g := serveFrontends(t, map[string]program{"walk": func(ctx context.Context, f *inContainer) error {
		for row, c := range rows {
			_, err := f.Solve(ctx, &gateway.SolveRequest{Definition: c.graph, Evaluate: true, AllowResultReturn: true, AllowResultArrayRef: true})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: got %v, want %q", row, err, c.want)
			}
		}
		for _, id := range []string{"../../x", "a/b"} { // CVE-2026-33747: the name of nothing but this
			res, err := f.solve(ctx, text)
			if err != nil {
				return err
			}
			if _, err := f.NewContainer(ctx, &gateway.NewContainerRequest{
				ContainerID: id, Mounts: []*pb.Mount{{Dest: "/", ResultID: res.GetRef().GetId()}},
			}); err != nil {
				return fmt.Errorf("container %q: %w", id, err)
			}
		}
		for _, platforms := range []string{"null", `{"Platforms":[{}]}`} { // CVE-2024-23650
			if _, err := f.Return(ctx, &gateway.ReturnRequest{Result: &gateway.Result{
				Metadata: map[string][]byte{"refs.platforms": []byte(platforms)},
			}}); err == nil {
				t.Errorf("platforms %s are taken", platforms)
			}
		}
		return f.give(ctx, text)
	}})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := g.runFrontend(ctx, t, "walk"); err != nil {
		t.Errorf("the build after it all: %v", err)
	}
	eventually(t, "mounts are left", func() string { return mountsBelow(t, g.root) })
}
