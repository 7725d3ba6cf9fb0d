package daemon

import (
	"encoding/json"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/kiln-build/kiln/internal/api/errdefs"
	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/llb/pb"
)

func initMessage(container string, fds []uint32, args ...string) *gateway.ExecMessage {
	return &gateway.ExecMessage{ProcessID: "p", Input: &gateway.ExecMessage_Init{Init: &gateway.InitMessage{
		ContainerID: container, Meta: &pb.Meta{Args: args}, Fds: fds,
	}}}
}

// What is told of a process comes in one order; what comes too late for it
// does no harm.
func TestExecProcessOrder(t *testing.T) {
	b := begin(t, serveGateway(t).conn, "order")
	stream := b.container(t, "c")
	send := func(m *gateway.ExecMessage) {
		t.Helper()
		if err := stream.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	file := func(f *gateway.FdMessage) *gateway.ExecMessage {
		return &gateway.ExecMessage{ProcessID: "p", Input: &gateway.ExecMessage_File{File: f}}
	}
	send(initMessage("c", []uint32{0, 1, 2}, "sh", "-c", "cat; echo problem >&2; exit 3"))
	send(file(&gateway.FdMessage{Fd: 0, Data: []byte("typed")}))
	send(file(&gateway.FdMessage{Fd: 0, EOF: true}))
	var order []string
	for {
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		switch in := m.Input.(type) {
		case *gateway.ExecMessage_Started:
			order = append(order, "started")
		case *gateway.ExecMessage_File:
			if in.File.EOF {
				order = append(order, "eof")
			} else if text := strings.TrimSpace(string(in.File.Data)); text != "" {
				order = append(order, text)
			}
		case *gateway.ExecMessage_Exit:
			if in.Exit.Code != 3 || in.Exit.Error.GetMessage() != "exit code: 3" {
				t.Errorf("exit: %v", in.Exit)
			}
			order = append(order, "exit")
		case *gateway.ExecMessage_Done:
			order = append(order, "done")
		}
		if order[len(order)-1] == "done" {
			break
		}
	}
	if got := strings.Join(order, " "); got != "started typed problem eof eof exit done" {
		t.Errorf("told %s", got)
	}
	send(file(&gateway.FdMessage{Fd: 0, Data: []byte("late")}))
	send(file(&gateway.FdMessage{Fd: 0, EOF: true}))
	send(&gateway.ExecMessage{ProcessID: "p", Input: &gateway.ExecMessage_Signal{Signal: &gateway.SignalMessage{Name: "KILL"}}})
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if m, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v %v", m, err)
	}
	if _, err := b.ReleaseContainer(b.ctx, &gateway.ReleaseContainerRequest{ContainerID: "c"}); err == nil || !strings.Contains(err.Error(), "exit code: 3") {
		t.Errorf("release: %v", err)
	}
	b.end(t)
}

// Bad messages end the stream that they come on, with a reason, and nothing else.
func TestExecProcessBadInput(t *testing.T) {
	b := begin(t, serveGateway(t).conn, "bad")
	b.container(t, "c")
	sleep := initMessage("c", []uint32{1, 7}, "sleep", "1000")
	for name, c := range map[string]struct {
		sent []*gateway.ExecMessage
		code codes.Code
	}{
		"no process id": {[]*gateway.ExecMessage{{Input: sleep.Input}}, codes.InvalidArgument},
		"no meta": {[]*gateway.ExecMessage{{ProcessID: "p", Input: &gateway.ExecMessage_Init{
			Init: &gateway.InitMessage{ContainerID: "c"}}}}, codes.InvalidArgument},
		"no container":   {[]*gateway.ExecMessage{initMessage("../../x", nil, "true")}, codes.NotFound},
		"twice one id":   {[]*gateway.ExecMessage{sleep, sleep}, codes.AlreadyExists},
		"unknown signal": {[]*gateway.ExecMessage{sleep, {ProcessID: "p", Input: &gateway.ExecMessage_Signal{Signal: &gateway.SignalMessage{Name: "NONSENSE"}}}}, codes.InvalidArgument},
		"signal to none": {[]*gateway.ExecMessage{{ProcessID: "p", Input: &gateway.ExecMessage_Signal{Signal: &gateway.SignalMessage{Name: "KILL"}}}}, codes.NotFound},
		"resize of none": {[]*gateway.ExecMessage{{ProcessID: "p", Input: &gateway.ExecMessage_Resize{}}}, codes.NotFound},
		"input for none": {[]*gateway.ExecMessage{{ProcessID: "p", Input: &gateway.ExecMessage_File{}}}, codes.NotFound},
		"unknown file":   {[]*gateway.ExecMessage{sleep, {ProcessID: "p", Input: &gateway.ExecMessage_File{File: &gateway.FdMessage{Fd: 9}}}}, codes.OutOfRange},
		"file not asked": {[]*gateway.ExecMessage{sleep, {ProcessID: "p", Input: &gateway.ExecMessage_File{File: &gateway.FdMessage{Fd: 0}}}}, codes.OutOfRange},
		"empty file":     {[]*gateway.ExecMessage{sleep, {ProcessID: "p", Input: &gateway.ExecMessage_File{}}}, codes.OutOfRange},
		"server's part":  {[]*gateway.ExecMessage{sleep, {ProcessID: "p", Input: &gateway.ExecMessage_Done{}}}, codes.InvalidArgument},
		"nothing":        {[]*gateway.ExecMessage{{ProcessID: "p"}}, codes.NotFound},
	} {
		if c.sent[0] == sleep { // it ends its container
			b.container(t, name)
			own := initMessage(name, []uint32{1, 7}, "sleep", "1000")
			for i, m := range c.sent {
				if m == sleep {
					c.sent[i] = own
				}
			}
		}
		stream, err := b.ExecProcess(b.ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range c.sent {
			if err := stream.Send(m); err != nil {
				t.Fatal(err)
			}
		}
		for err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != c.code {
			t.Errorf("%s: %v, want %v", name, err, c.code)
		}
	}
	b.end(t)
}

func TestNewContainerBadInput(t *testing.T) {
	b := begin(t, serveGateway(t).conn, "bad")
	root := &pb.Mount{Dest: "/", ResultID: b.solve(t)}
	b.container(t, "taken")
	for name, c := range map[string]struct {
		req  *gateway.NewContainerRequest
		code codes.Code
	}{
		"no root":         {&gateway.NewContainerRequest{Mounts: []*pb.Mount{{Dest: "/x"}}}, codes.InvalidArgument},
		"host's address":  {&gateway.NewContainerRequest{Mounts: []*pb.Mount{root}, ExtraHosts: []*pb.HostIP{{Host: "h"}}}, codes.InvalidArgument},
		"no destination":  {&gateway.NewContainerRequest{Mounts: []*pb.Mount{root, {}}}, codes.InvalidArgument},
		"unknown network": {&gateway.NewContainerRequest{Mounts: []*pb.Mount{root}, Network: 9}, codes.InvalidArgument},
		"unknown mount":   {&gateway.NewContainerRequest{Mounts: []*pb.Mount{root, {Dest: "/x", MountType: 9}}}, codes.InvalidArgument},
		"unknown sharing": {&gateway.NewContainerRequest{Mounts: []*pb.Mount{root, {Dest: "/x", MountType: pb.MountType_CACHE, CacheOpt: &pb.CacheOpt{Sharing: 9}}}}, codes.InvalidArgument},
		"nil secret":      {&gateway.NewContainerRequest{Mounts: []*pb.Mount{root, {Dest: "/x", MountType: pb.MountType_SECRET}}}, codes.InvalidArgument},
		"nil ssh":         {&gateway.NewContainerRequest{Mounts: []*pb.Mount{root, {Dest: "/x", MountType: pb.MountType_SSH}}}, codes.InvalidArgument},
		"root of memory":  {&gateway.NewContainerRequest{Mounts: []*pb.Mount{{Dest: "/", MountType: pb.MountType_TMPFS}}}, codes.InvalidArgument},
		"unknown result":  {&gateway.NewContainerRequest{Mounts: []*pb.Mount{{Dest: "/", ResultID: "none"}}}, codes.NotFound},
		"id twice":        {&gateway.NewContainerRequest{ContainerID: "taken", Mounts: []*pb.Mount{root}}, codes.AlreadyExists},
		"missing part":    {&gateway.NewContainerRequest{Mounts: []*pb.Mount{root, {Dest: "/x", ResultID: root.ResultID, Selector: "../../none"}}}, codes.Unknown},
	} {
		if _, err := b.NewContainer(b.ctx, c.req); status.Code(err) != c.code {
			t.Errorf("%s: %v, want %v", name, err, c.code)
		}
	}
	for _, id := range []string{"", "a/b", "../../x", "a-b"} { // an id is but a name of the client's
		req := &gateway.NewContainerRequest{ContainerID: id, Mounts: []*pb.Mount{root}}
		if _, err := b.NewContainer(b.ctx, req); err != nil {
			t.Errorf("id %q: %v", id, err)
		}
	}
	if _, err := b.ReleaseContainer(b.ctx, &gateway.ReleaseContainerRequest{ContainerID: "none"}); status.Code(err) != codes.NotFound {
		t.Errorf("release of none: %v", err)
	}
	if _, err := b.ReadFileContainer(b.ctx, &gateway.ReadFileRequest{Ref: "none", FilePath: "/x"}); status.Code(err) != codes.NotFound {
		t.Errorf("read of none: %v", err)
	}
	b.end(t)
}

func TestReturnBadInput(t *testing.T) {
	g := serveGateway(t)
	b := begin(t, g.conn, "bad")
	if _, err := gateway.NewLLBBridgeClient(g.conn).Ping(t.Context(), &gateway.PingRequest{}); err == nil || !strings.Contains(err.Error(), "no buildid found in context") {
		t.Errorf("ping of no build: %v", err)
	}
	for name, r := range map[string]*gateway.ReturnRequest{
		"nothing":                 {},
		"unknown ref":             {Result: &gateway.Result{Result: &gateway.Result_Ref{Ref: &gateway.Ref{Id: "none"}}}},
		"null platforms":          {Result: &gateway.Result{Metadata: map[string][]byte{"refs.platforms": []byte(`{"Platforms":[{}]}`)}}},
		"attestation of none":     {Result: &gateway.Result{Attestations: map[string]*gateway.Attestations{"x": nil}}},
		"unknown kind":            {Result: oneAttestation(&gateway.Attestation{Kind: 9})},
		"unknown kind of subject": {Result: oneAttestation(&gateway.Attestation{InTotoSubjects: []*gateway.InTotoSubject{{Kind: 9}}})},
		"subject's digest": {Result: oneAttestation(&gateway.Attestation{
			InTotoSubjects: []*gateway.InTotoSubject{{Kind: gateway.InTotoSubjectKind_Raw, Digest: []string{"nonsense"}}}})},
		"attestation's ref": {Result: oneAttestation(&gateway.Attestation{Ref: &gateway.Ref{Id: "none"}})},
	} {
		if _, err := b.Return(b.ctx, r); status.Code(err) != codes.InvalidArgument && status.Code(err) != codes.NotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
	b.end(t)
	if _, err := b.Ping(b.ctx, &gateway.PingRequest{}); status.Code(err) != codes.NotFound {
		t.Errorf("a call after the result: %v", err)
	}
}

func oneAttestation(a *gateway.Attestation) *gateway.Result {
	return &gateway.Result{
		Result:       &gateway.Result_Ref{Ref: &gateway.Ref{}},
		Attestations: map[string]*gateway.Attestations{"linux/" + runtime.GOARCH: {Attestation: []*gateway.Attestation{a}}},
	}
}

// A failure says what the client needs to look into it; what the failed step
// left is gone with the build.
func TestFailedStep(t *testing.T) {
	g := serveGateway(t)
	b := begin(t, g.conn, "failed")
	graph := &llb.Graph{Root: llb.Edge{Vertex: &llb.Vertex{Op: &llb.FileOp{Actions: []llb.FileStep{
		{Input: llb.None, Secondary: llb.None, Output: llb.None, Do: &llb.DoMkfile{Path: "/left", Mode: 0o644, Data: []byte("here"), Timestamp: -1}},
		{Input: 0, Secondary: llb.None, Output: 0, Do: &llb.DoMkfile{Path: "/none/file", Mode: 0o644, Timestamp: -1}},
	}}}}}
	def, err := graph.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.Solve(b.ctx, &gateway.SolveRequest{Definition: def, AllowResultReturn: true, AllowResultArrayRef: true, Evaluate: true})
	failed, vertex := &errdefs.Solve{}, &errdefs.Vertex{}
	for _, d := range status.Convert(err).Proto().GetDetails() {
		switch d.TypeUrl {
		case "github.com/moby/buildkit/errdefs.Solve+json":
			if err := protojson.Unmarshal(d.Value, failed); err != nil {
				t.Error(err)
			}
		case "github.com/moby/buildkit/errdefs.Vertex+json":
			if err := json.Unmarshal(d.Value, vertex); err != nil {
				t.Error(err)
			}
		}
	}
	if failed.GetFile().GetIndex() != 1 || len(failed.MountIDs) != 2 || failed.MountIDs[0] != "" || failed.Op.GetFile() == nil ||
		vertex.Digest != string(graph.Root.Vertex.Digest()) {
		t.Fatalf("the failure says %v and %v", failed, vertex)
	}
	if _, err := b.NewContainer(b.ctx, &gateway.NewContainerRequest{
		ContainerID: "c", Mounts: []*pb.Mount{{Dest: "/", ResultID: failed.MountIDs[1]}},
	}); err != nil {
		t.Fatal(err)
	}
	got, err := b.ReadFileContainer(b.ctx, &gateway.ReadFileRequest{Ref: "c", FilePath: "/left"})
	if err != nil || string(got.GetData()) != "here" {
		t.Errorf("what the step left: %q %v", got.GetData(), err)
	}
	if _, err := b.Return(b.ctx, &gateway.ReturnRequest{Result: &gateway.Result{
		Result: &gateway.Result_RefDeprecated{RefDeprecated: failed.MountIDs[1]}}}); status.Code(err) != codes.NotFound {
		t.Errorf("what a failed step left was returned as a result: %v", err)
	}
	b.end(t)
	eventually(t, "layers are left", func() (left string) {
		all, err := g.layers.DiskUsage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range all {
			left += u.ID + " " + u.Description + "\n"
		}
		return left
	})
}

// Frontends of before Return, and of before results, are served.
func TestOldFrontends(t *testing.T) {
	b := begin(t, serveGateway(t).conn, "old")
	g := &llb.Graph{Root: llb.Edge{Vertex: &llb.Vertex{Op: &llb.FileOp{Actions: []llb.FileStep{{
		Input: llb.None, Secondary: llb.None, Output: 0, Do: &llb.DoMkdir{Path: "/dir", Mode: 0o755, Timestamp: -1},
	}}}}}}
	def, err := g.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	resp, err := b.Solve(b.ctx, &gateway.SolveRequest{Definition: def})
	if err != nil || resp.Ref == "" {
		t.Fatalf("solve: %v %v", resp, err)
	}
	if st, err := b.StatFile(b.ctx, &gateway.StatFileRequest{Ref: resp.Ref, Path: "dir"}); err != nil || st.Stat.Path != "dir" {
		t.Errorf("stat: %v %v", st, err)
	}
	if _, err := b.Solve(b.ctx, &gateway.SolveRequest{Definition: def, Final: true, ExporterAttr: []byte("{nonsense")}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a final solve with bad attributes: %v", err)
	}
	if _, err := b.Solve(b.ctx, &gateway.SolveRequest{Definition: def, Final: true, ExporterAttr: []byte("{}")}); err != nil {
		t.Errorf("a final solve: %v", err)
	}
	if err := <-b.done; err != nil {
		t.Errorf("the build: %v", err)
	}
}

// Whatever a client holds when it vanishes is given back: containers,
// processes, mounts, and all who work for them.
func TestVanishedClientLeavesNothing(t *testing.T) {
	g := serveGateway(t)
	idle := begin(t, g.conn, "before") // the daemon is warm
	idle.end(t)
	mounts := mountsBelow(t, g.root)
	for name, vanish := range map[string]func(*grpc.ClientConn, *clientBuild){
		"connection": func(conn *grpc.ClientConn, _ *clientBuild) { conn.Close() },
		"result": func(_ *grpc.ClientConn, b *clientBuild) {
			if _, err := b.Return(b.ctx, &gateway.ReturnRequest{Result: &gateway.Result{}}); err != nil {
				t.Error(err)
			}
		},
	} {
		conn := g.dial(t)
		b := begin(t, conn, name)
		stream := b.container(t, "c")
		loud := initMessage("c", []uint32{0, 1}, "sh", "-c", "while true; do echo noise noise noise; done")
		quiet := initMessage("c", []uint32{0, 1}, "cat")
		quiet.ProcessID = "q"
		for _, m := range []*gateway.ExecMessage{loud, quiet} {
			if err := stream.Send(m); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := stream.Recv(); err != nil { // and nothing further is read
			t.Fatal(err)
		}
		vanish(conn, b)
		if err := <-b.done; (err == nil) != (name == "result") {
			t.Errorf("%s: the build ended with %v", name, err)
		}
		if name == "result" {
			conn.Close()
		}
		eventually(t, name+": mounts are left", func() string {
			if now := mountsBelow(t, g.root); now != mounts {
				return now
			}
			return ""
		})
		eventually(t, name+": goroutines are left", workers)
	}
}
