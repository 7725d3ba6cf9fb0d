package conformance

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/llbbuild"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/grpcerrors"
	"google.golang.org/grpc/codes"
)

func gatewayMounts(t *testing.T, ctx context.Context, c gateway.Client) {
	files := llb.Scratch().File(llb.Mkdir("/sub", 0o755).Mkfile("/sub/file", 0o644, []byte("content")))
	ctr := container(t, ctx, c,
		gateway.Mount{Dest: "/whole", MountType: pb.MountType_BIND, Ref: solve(t, ctx, c, files)},
		gateway.Mount{Dest: "/part", MountType: pb.MountType_BIND, Ref: solve(t, ctx, c, files), Selector: "/sub", Readonly: true},
		gateway.Mount{Dest: "/cache", MountType: pb.MountType_CACHE, CacheOpt: &pb.CacheOpt{ID: t.Name()}},
		gateway.Mount{Dest: "/tmpfs", MountType: pb.MountType_TMPFS},
		gateway.Mount{Dest: "/run/token", MountType: pb.MountType_SECRET, SecretOpt: &pb.SecretOpt{ID: "token", Mode: 0o400}},
		gateway.Mount{Dest: "/run/none", MountType: pb.MountType_SECRET, SecretOpt: &pb.SecretOpt{ID: "none", Optional: true}},
	)
	defer ctr.Release(context.WithoutCancel(ctx))
	start(t, ctx, ctr, gateway.StartRequest{Args: []string{"sleep", "50"}})
	mustOutput(t, ctx, ctr, "content", "cat", "/whole/sub/file")
	mustOutput(t, ctx, ctr, "content", "cat", "/part/file")
	mustOutput(t, ctx, ctr, "hush", "cat", "/run/token")
	mustOutput(t, ctx, ctr, "", "sh", "-c", "echo x > /whole/new; echo cached > /cache/kept; echo x > /tmpfs/x; ! (echo x > /part/x) 2>/dev/null; ! [ -e /run/none ]")
	again := container(t, ctx, c,
		gateway.Mount{Dest: "/whole", MountType: pb.MountType_BIND, Ref: solve(t, ctx, c, files)},
		gateway.Mount{Dest: "/cache", MountType: pb.MountType_CACHE, CacheOpt: &pb.CacheOpt{ID: t.Name()}},
	)
	defer again.Release(context.WithoutCancel(ctx))
	mustOutput(t, ctx, again, "cached\nsub\n", "sh", "-c", "cat /cache/kept; ls /whole")
	_, err := c.NewContainer(ctx, gateway.NewContainerRequest{Mounts: []gateway.Mount{{Dest: "/elsewhere", MountType: pb.MountType_BIND}}})
	if grpcerrors.Code(err) != codes.InvalidArgument {
		t.Errorf("a container without a root: %v, want an invalid argument", err)
	}
}

// gatewayFiles: files of a container's mounts, as they are at the moment.
func gatewayFiles(t *testing.T, ctx context.Context, c gateway.Client) {
	files := llb.Scratch().File(llb.Mkfile("/a.txt", 0o640, []byte("0123456789")).Mkfile("/b.md", 0o600, nil).Symlink("a.txt", "/link"))
	ctr := container(t, ctx, c, gateway.Mount{Dest: "/data", MountType: pb.MountType_BIND, Ref: solve(t, ctx, c, files)})
	defer ctr.Release(context.WithoutCancel(ctx))
	mustOutput(t, ctx, ctr, "", "sh", "-c", "echo live > /live; mkdir /dir; echo more >> /data/a.txt")
	read := func(mount int, name string, part *gateway.FileRange) (string, error) {
		dt, err := ctr.ReadFile(ctx, gateway.ReadContainerRequest{MountIndex: mount, ReadRequest: gateway.ReadRequest{Filename: name, Range: part}})
		return string(dt), err
	}
	if got, err := read(0, "/live", nil); err != nil || got != "live\n" {
		t.Errorf("read: %q %v", got, err)
	}
	if got, err := read(1, "/a.txt", &gateway.FileRange{Offset: 8, Length: 4}); err != nil || got != "89mo" {
		t.Errorf("read a part: %q %v", got, err)
	}
	if got, err := read(1, "/missing", nil); err == nil || !strings.Contains(err.Error(), "/missing") {
		t.Errorf("read what is missing: %q %v", got, err)
	}
	if _, err := read(7, "/a.txt", nil); err == nil || !strings.Contains(err.Error(), "out of bounds") {
		t.Errorf("read of a mount that is none: %v", err)
	}
	entries, err := ctr.ReadDir(ctx, gateway.ReadDirContainerRequest{MountIndex: 1, ReadDirRequest: gateway.ReadDirRequest{Path: "/"}})
	if err != nil || len(entries) != 3 || entries[0].Path != "a.txt" || entries[2].Linkname != "a.txt" {
		t.Errorf("list: %v %v", entries, err)
	}
	st, err := ctr.StatFile(ctx, gateway.StatContainerRequest{MountIndex: 1, StatRequest: gateway.StatRequest{Path: "/link"}})
	if err != nil || st.Size != 15 || st.Mode != 0o640 || st.Path != "link" {
		t.Errorf("stat of a link: %v %v", st, err)
	}
	st, err = ctr.StatFile(ctx, gateway.StatContainerRequest{MountIndex: 0, StatRequest: gateway.StatRequest{Path: "/dir"}})
	if err != nil || !st.IsDir() || st.Size != 0 {
		t.Errorf("stat of a directory: %v %v", st, err)
	}
}

// gatewaySpecialFiles: a fifo or a device that a process made is not opened.
func gatewaySpecialFiles(t *testing.T, ctx context.Context, c gateway.Client) {
	ctr := container(t, ctx, c)
	defer ctr.Release(context.WithoutCancel(ctx))
	mustOutput(t, ctx, ctr, "", "sh", "-c", "busybox mkfifo /fifo; busybox mknod /device c 5 0")
	for _, name := range []string{"/fifo", "/device"} {
		_, err := ctr.ReadFile(ctx, gateway.ReadContainerRequest{ReadRequest: gateway.ReadRequest{Filename: name}})
		if err == nil || !strings.Contains(err.Error(), "not a regular file") {
			t.Errorf("read %s: %v", name, err)
		}
	}
	for _, part := range []gateway.FileRange{{Offset: -1, Length: 3}, {Length: -1}} {
		_, err := ctr.ReadFile(ctx, gateway.ReadContainerRequest{ReadRequest: gateway.ReadRequest{Filename: "/bin/busybox", Range: &part}})
		if err == nil || !strings.Contains(err.Error(), "invalid range") {
			t.Errorf("read %+v: %v", part, err)
		}
	}
}

// gatewayRefFiles: files of results.
func gatewayRefFiles(t *testing.T, ctx context.Context, c gateway.Client) {
	ref := solve(t, ctx, c, llb.Scratch().File(llb.Mkdir("/dir", 0o755).Mkfile("/dir/a.txt", 0o640, []byte("0123456789")).
		Mkfile("/dir/b.md", 0o600, nil).Symlink("dir/a.txt", "/link")))
	got, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/link", Range: &gateway.FileRange{Offset: 3, Length: 2}})
	if err != nil || string(got) != "34" {
		t.Errorf("read: %q %v", got, err)
	}
	if _, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/dir"}); err == nil {
		t.Error("a directory was read")
	}
	if _, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/none"}); err == nil || !strings.Contains(err.Error(), "no such file") || !strings.Contains(err.Error(), "/none") {
		t.Errorf("read what is missing: %v", err)
	}
	if _, err := ref.StatFile(ctx, gateway.StatRequest{Path: "/none"}); err == nil || grpcerrors.Code(err) != codes.Unknown {
		t.Errorf("what is missing has code %v, want the one that clients do not show", grpcerrors.Code(err))
	}
	entries, err := ref.ReadDir(ctx, gateway.ReadDirRequest{Path: "/dir", IncludePattern: "*.txt"})
	if err != nil || len(entries) != 1 || entries[0].Path != "a.txt" || entries[0].Size != 10 {
		t.Errorf("list: %v %v", entries, err)
	}
	st, err := ref.StatFile(ctx, gateway.StatRequest{Path: "/link"})
	if err != nil || st.Path != "a.txt" || st.Mode != 0o640 || st.Size != 10 {
		t.Errorf("stat of a link: %v %v", st, err)
	}
	if err := ref.Evaluate(ctx); err != nil {
		t.Errorf("evaluate: %v", err)
	}
}

// gatewayEmpty: results without files.
func gatewayEmpty(t *testing.T, ctx context.Context, c gateway.Client) {
	res, err := c.Solve(ctx, gateway.SolveRequest{})
	if err != nil || res.Ref != nil || res.Refs != nil {
		t.Errorf("nothing solved: %+v %v", res, err)
	}
	ref := solve(t, ctx, c, llb.Diff(base(), base()))
	entries, err := ref.ReadDir(ctx, gateway.ReadDirRequest{Path: "/"})
	if err != nil || len(entries) != 0 {
		t.Errorf("no difference: %v %v", entries, err)
	}
}

// gatewayState: a result is the input of further steps.
func gatewayState(t *testing.T, ctx context.Context, c gateway.Client) {
	ref := solve(t, ctx, c, base().File(llb.Mkfile("/one", 0o644, []byte("1"))))
	st, err := ref.ToState()
	if err != nil {
		t.Fatalf("result as a state: %v", err)
	}
	ref = solve(t, ctx, c, st.Run(llb.Args([]string{"/bin/sh", "-c", "cat /one /one > /two"})).Root())
	got, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/two"})
	if err != nil || string(got) != "11" {
		t.Errorf("read: %q %v", got, err)
	}
}

// gatewayFailedRun: a debugger looks into what a failed command left.
func gatewayFailedRun(t *testing.T, ctx context.Context, c gateway.Client) {
	input := llb.Scratch().File(llb.Mkfile("/foo", 0o644, []byte("input")))
	run := base().Run(llb.Args([]string{"/bin/sh", "-c", "echo left > /data; echo changed > /rw/data; exit 7"}),
		llb.AddMount("/rw", input), llb.AddMount("/gone", input, llb.ForceNoOutput), llb.AddMount("/ro", input, llb.Readonly))
	_, err := trySolve(t, ctx, c, run.Root())
	var failed *errdefs.SolveError
	if !errors.As(err, &failed) {
		t.Fatalf("the failure has no state: %v", err)
	}
	if exitCode(err) != 7 {
		t.Errorf("the failure has exit code %d", exitCode(err))
	}
	exec := failed.Op.GetExec()
	if exec == nil || len(exec.Mounts) != 4 || len(failed.MountIDs) != 4 || len(failed.InputIDs) != 4 {
		t.Fatalf("the failure's op is %v, of %d inputs and %d mounts", failed.Op, len(failed.InputIDs), len(failed.MountIDs))
	}
	req := gateway.NewContainerRequest{NetMode: exec.Network, Platform: failed.Op.Platform}
	before := gateway.NewContainerRequest{}
	for i, m := range exec.Mounts {
		mount := gateway.Mount{Selector: m.Selector, Dest: m.Dest, Readonly: m.Readonly, MountType: m.MountType, ResultID: failed.MountIDs[i]}
		req.Mounts = append(req.Mounts, mount)
		mount.ResultID = failed.InputIDs[i]
		before.Mounts = append(before.Mounts, mount)
	}
	ctr := containerOf(t, ctx, c, req)
	defer ctr.Release(context.WithoutCancel(ctx))
	mustOutput(t, ctx, ctr, "left\nchanged\ninputinputinput", "sh", "-c", "cat /data /rw/data /rw/foo /gone/foo /ro/foo")
	ctr = containerOf(t, ctx, c, before)
	defer ctr.Release(context.WithoutCancel(ctx))
	mustOutput(t, ctx, ctr, "input", "sh", "-c", "[ ! -e /data ] && [ ! -e /rw/data ] && cat /rw/foo")
}

func gatewayFailedFile(t *testing.T, ctx context.Context, c gateway.Client) {
	_, err := trySolve(t, ctx, c, llb.Scratch().File(
		llb.Mkdir("/found", 0o700).Mkfile("/found/foo", 0o600, []byte("made")).Mkfile("/notfound/foo", 0o600, nil)))
	var failed *errdefs.SolveError
	if !errors.As(err, &failed) {
		t.Fatalf("the failure has no state: %v", err)
	}
	subject, ok := failed.Subject.(*errdefs.Solve_File)
	if !ok || subject.File.Index != 2 || len(failed.InputIDs) != 0 || len(failed.MountIDs) != 3 {
		t.Fatalf("the failure is of %+v, inputs %q, mounts %q", failed.Subject, failed.InputIDs, failed.MountIDs)
	}
	ctr := container(t, ctx, c, gateway.Mount{Dest: "/input", MountType: pb.MountType_BIND, ResultID: failed.MountIDs[2]})
	defer ctr.Release(context.WithoutCancel(ctx))
	mustOutput(t, ctx, ctr, "made", "cat", "/input/found/foo")

	_, err = trySolve(t, ctx, c, base().File(llb.Copy(
		llb.Mkdir("/foo", 0o600).Mkfile("/foo/bar", 0o700, []byte("copied")).WithState(llb.Scratch()), "/foo/bar", "/notfound/baz")))
	if !errors.As(err, &failed) {
		t.Fatalf("the failure has no state: %v", err)
	}
	if subject, ok = failed.Subject.(*errdefs.Solve_File); !ok || len(failed.InputIDs) != 1 || len(failed.MountIDs) != 3 {
		t.Fatalf("the failure is of %+v, inputs %q, mounts %q", failed.Subject, failed.InputIDs, failed.MountIDs)
	}
	action := failed.Op.GetFile().Actions[subject.File.Index]
	read := failed.MountIDs[int(action.SecondaryInput)-len(failed.InputIDs)]
	ctr = container(t, ctx, c, gateway.Mount{Dest: "/secondary", MountType: pb.MountType_BIND, ResultID: read})
	defer ctr.Release(context.WithoutCancel(ctx))
	mustOutput(t, ctx, ctr, "copied", "cat", "/secondary/foo/bar")
}

func gatewayFailedContent(t *testing.T, ctx context.Context, c gateway.Client) {
	input := llb.Scratch().File(llb.Mkdir("/found", 0o700).Mkfile("/found/data", 0o600, []byte("there")))
	_, err := trySolve(t, ctx, c, base().Run(llb.Args([]string{"/bin/true"}),
		llb.AddMount("/src", input, llb.SourcePath("/notfound"), llb.Readonly)).Root())
	var failed *errdefs.SolveError
	if !errors.As(err, &failed) {
		t.Fatalf("the failure has no state: %v", err)
	}
	if _, ok := failed.Subject.(*errdefs.Solve_Cache); !ok || len(failed.InputIDs) != 1 || len(failed.MountIDs) != 0 || failed.Op.GetExec() == nil {
		t.Fatalf("the failure is of %+v, inputs %q, mounts %q, op %v", failed.Subject, failed.InputIDs, failed.MountIDs, failed.Op)
	}
	ctr := container(t, ctx, c, gateway.Mount{Dest: "/problem", MountType: pb.MountType_BIND, ResultID: failed.InputIDs[0]})
	defer ctr.Release(context.WithoutCancel(ctx))
	mustOutput(t, ctx, ctr, "there", "cat", "/problem/found/data")
}

// gatewayNested: a step writes a definition, and another evaluates it.
func gatewayNested(t *testing.T, ctx context.Context, c gateway.Client) {
	inner, err := base().Run(llb.Args([]string{"/bin/sh", "-c", "echo inner > /made"})).Root().Marshal(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if err := llb.WriteTo(inner, &text); err != nil {
		t.Fatal(err)
	}
	for name, opts := range map[string][]llbbuild.BuildOption{
		pb.LLBDefaultDefinitionFile: nil, "sub/other": {llbbuild.WithFilename("sub/other")},
	} {
		file := llb.Scratch().File(llb.Mkdir("/sub", 0o755).Mkfile("/"+name, 0o600, text.Bytes()))
		made := solve(t, ctx, c, file.With(llbbuild.Build(opts...)).Run(llb.Args([]string{"/bin/sh", "-c", "cat /made /made > /twice"})).Root())
		got, err := made.ReadFile(ctx, gateway.ReadRequest{Filename: "/twice"})
		if err != nil || string(got) != "inner\ninner\n" {
			t.Errorf("%s: read %q %v", name, got, err)
		}
	}
	for want, file := range map[string]llb.State{
		"no such file":       llb.Scratch().File(llb.Mkfile("/elsewhere", 0o600, nil)),
		"not a regular file": llb.Scratch().File(llb.Mkdir("/"+pb.LLBDefaultDefinitionFile, 0o755)),
	} {
		if _, err := trySolve(t, ctx, c, file.With(llbbuild.Build())); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestGatewayNestedInItself: a definition that evaluates the place where it is
// from ends with an error.
func TestGatewayNestedInItself(t *testing.T) {
	var text []byte
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"1"`)
		_, _ = w.Write(text)
	}))
	defer server.Close()
	st := llb.HTTP(server.URL, llb.Filename(pb.LLBDefaultDefinitionFile)).With(llbbuild.Build())
	def, err := st.Marshal(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if err := llb.WriteTo(def, &buf); err != nil {
		t.Fatal(err)
	}
	text = buf.Bytes()
	if err := asFrontend(t, shared.kiln, func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		_, err := c.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB(), Evaluate: true})
		return nil, err
	}); err == nil || !strings.Contains(err.Error(), "contains the build itself") {
		t.Errorf("%v", err)
	}
}
