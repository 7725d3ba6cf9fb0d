package daemon

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/internal/build"
	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/content"
	"github.com/kiln-build/kiln/internal/executor/fake"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/op"
	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/internal/snapshot"
	"github.com/kiln-build/kiln/internal/solver"
	"github.com/kiln-build/kiln/internal/store"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/llb/pb"
)

// gatewayServer is a daemon with an executor that interprets scripts.
type gatewayServer struct {
	root   string
	conn   *grpc.ClientConn
	socket string
}

func serveGateway(t *testing.T) *gatewayServer {
	t.Helper()
	root := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	closing := func(f func() error) {
		t.Cleanup(func() {
			if err := f(); err != nil {
				t.Error(err)
			}
		})
	}
	db, err := store.Open(root)
	must(err)
	closing(db.Close)
	snapshots, err := snapshot.Open(filepath.Join(root, "snapshots"), "auto")
	must(err)
	closing(snapshots.Close)
	blobs, err := content.Open(t.Context(), filepath.Join(root, "content"))
	must(err)
	layers, err := layer.NewStore(t.Context(), layer.Config{
		Dir: filepath.Join(root, "layers"), Snapshots: snapshots, Content: blobs, Records: db,
	})
	must(err)
	closing(layers.Close)
	mounts, err := op.NewCacheMounts(filepath.Join(root, "cachemounts"))
	must(err)
	scratch := filepath.Join(root, "runs")
	must(os.Mkdir(scratch, 0o700))
	platform := []ocispecs.Platform{{OS: "linux", Architecture: runtime.GOARCH}}
	s := New(Config{
		Builder: &build.Builder{
			Solver: solver.New(cache.New(db, layers)), Caps: Caps(),
			Worker: &op.Worker{Platforms: platform, Executor: fake.New(), Layers: layers, CacheMounts: mounts, Scratch: scratch},
		},
		Sessions: session.NewManager(), History: openHistory(t), Platforms: platform,
	})
	socket := filepath.Join(root, "sock")
	l, err := net.Listen("unix", socket)
	must(err)
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	closing(func() error { stop(); return <-served })
	g := &gatewayServer{root: root, socket: socket}
	g.conn = g.dial(t)
	return g
}

func (g *gatewayServer) dial(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+g.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// build is a build whose client acts as its frontend.
type clientBuild struct {
	gateway.LLBBridgeClient
	ctx  context.Context
	done chan error // what Solve answered
}

func begin(t *testing.T, conn *grpc.ClientConn, ref string) *clientBuild {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	b := &clientBuild{
		gateway.NewLLBBridgeClient(conn), metadata.AppendToOutgoingContext(ctx, buildIDKey, ref), make(chan error, 1),
	}
	go func() {
		_, err := control.NewControlClient(conn).Solve(ctx, &control.SolveRequest{Ref: ref})
		b.done <- err
	}()
	if _, err := b.Ping(b.ctx, &gateway.PingRequest{}); err != nil {
		t.Fatal(err)
	}
	return b
}

// end returns nothing and waits for the end of the build.
func (b *clientBuild) end(t *testing.T) {
	t.Helper()
	if _, err := b.Return(b.ctx, &gateway.ReturnRequest{Result: &gateway.Result{}}); err != nil {
		t.Errorf("return: %v", err)
	}
	if err := <-b.done; err != nil {
		t.Errorf("solve: %v", err)
	}
}

// solve makes a file system of one file and returns its id.
func (b *clientBuild) solve(t *testing.T) string {
	t.Helper()
	g := &llb.Graph{Root: llb.Edge{Vertex: &llb.Vertex{Op: &llb.FileOp{Actions: []llb.FileStep{{
		Input: llb.None, Secondary: llb.None, Output: 0,
		Do: &llb.DoMkfile{Path: "/file", Mode: 0o644, Data: []byte("text"), Timestamp: -1},
	}}}}}}
	def, err := g.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	resp, err := b.Solve(b.ctx, &gateway.SolveRequest{Definition: def, AllowResultReturn: true, AllowResultArrayRef: true, Evaluate: true})
	if err != nil {
		t.Fatal(err)
	}
	return resp.Result.GetRef().GetId()
}

// container makes a container and a stream for its processes.
func (b *clientBuild) container(t *testing.T, id string) gateway.LLBBridge_ExecProcessClient {
	t.Helper()
	if _, err := b.NewContainer(b.ctx, &gateway.NewContainerRequest{
		ContainerID: id, Mounts: []*pb.Mount{{Dest: "/", ResultID: b.solve(t)}},
	}); err != nil {
		t.Fatal(err)
	}
	stream, err := b.ExecProcess(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

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
		<-b.done
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

// eventually waits until there is nothing left to tell.
func eventually(t *testing.T, what string, left func() string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		text := left()
		if text == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s:\n%s", what, text)
		}
	}
}

// workers are the goroutines that work for a build.
func workers() string {
	buf := make([]byte, 1<<20)
	var found []string
	for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		for _, name := range []string{"internal/build.", "internal/op.", "internal/executor", "ExecProcess", "execStream", "execProcess"} {
			if strings.Contains(g, name) && !strings.Contains(g, "TestVanished") {
				found = append(found, g)
				break
			}
		}
	}
	return strings.Join(found, "\n\n")
}

func mountsBelow(t *testing.T, dir string) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			found = append(found, fields[4])
		}
	}
	return strings.Join(found, "\n")
}
