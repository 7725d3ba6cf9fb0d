package daemon

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/api/control"
	gatewaypb "github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/internal/build"
	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/cachemount"
	"github.com/kiln-build/kiln/internal/content"
	"github.com/kiln-build/kiln/internal/executor"
	"github.com/kiln-build/kiln/internal/executor/fake"
	"github.com/kiln-build/kiln/internal/gateway"
	"github.com/kiln-build/kiln/internal/gc"
	"github.com/kiln-build/kiln/internal/history"
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
	layers *layer.Store
	blobs  *content.Store
	conn   *grpc.ClientConn
	socket string
	images *gateway.ImageFrontend
	server *Server
	// frontends and the worker's sources may be added to before the first build.
	frontends map[string]frontend.Frontend
	worker    *op.Worker
	served    chan struct{} // closed when the daemon has ended
}

func serveGateway(t *testing.T) *gatewayServer { return serveGatewayOn(t, fake.New(), nil) }

func serveGatewayOn(t *testing.T, ex executor.Executor, images *gateway.ImageFrontend) *gatewayServer {
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
	mounts, err := cachemount.Open(filepath.Join(root, "cachemounts"))
	must(err)
	scratch := filepath.Join(root, "runs")
	must(os.Mkdir(scratch, 0o700))
	platform := []ocispecs.Platform{{OS: "linux", Architecture: runtime.GOARCH}}
	frontends := map[string]frontend.Frontend{build.ImageFrontendName: images}
	worker := &op.Worker{Platforms: platform, Executor: ex, Layers: layers, CacheMounts: mounts, Scratch: scratch}
	s := New(Config{
		Builder:  &build.Builder{Solver: solver.New(cache.New(db, layers)), Caps: Caps(), Frontends: frontends, Worker: worker},
		Sessions: session.NewManager(), History: openHistory(t), Blobs: blobs, Ledger: history.NewLedger(db), Platforms: platform,
		Collector: &gc.Collector{Root: root, Layers: layers, Store: db},
		Version:   "v1", IdleTimeout: time.Hour,
	})
	if images != nil {
		images.Attach(s.Gateway())
	}
	socket := filepath.Join(root, "sock")
	l, err := net.Listen("unix", socket)
	must(err)
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan struct{})
	var ended error
	go func() {
		defer close(served)
		ended = s.Serve(ctx, l)
	}()
	closing(func() error { stop(); <-served; return ended })
	g := &gatewayServer{root: root, layers: layers, blobs: blobs, socket: socket, images: images, server: s, frontends: frontends, worker: worker, served: served}
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
	gatewaypb.LLBBridgeClient
	ctx  context.Context
	done chan error // what Solve answered
}

func begin(t *testing.T, conn *grpc.ClientConn, ref string) *clientBuild {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	b := &clientBuild{
		gatewaypb.NewLLBBridgeClient(conn), metadata.AppendToOutgoingContext(ctx, gateway.BuildIDKey, ref), make(chan error, 1),
	}
	go func() {
		_, err := control.NewControlClient(conn).Solve(ctx, &control.SolveRequest{Ref: ref})
		b.done <- err
	}()
	if _, err := b.Ping(b.ctx, &gatewaypb.PingRequest{}); err != nil {
		t.Fatal(err)
	}
	return b
}

// end returns nothing and waits for the end of the build.
func (b *clientBuild) end(t *testing.T) {
	t.Helper()
	if _, err := b.Return(b.ctx, &gatewaypb.ReturnRequest{Result: &gatewaypb.Result{}}); err != nil {
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
	resp, err := b.Solve(b.ctx, &gatewaypb.SolveRequest{Definition: def, AllowResultReturn: true, AllowResultArrayRef: true, Evaluate: true})
	if err != nil {
		t.Fatal(err)
	}
	return resp.Result.GetRef().GetId()
}

// container makes a container and a stream for its processes.
func (b *clientBuild) container(t *testing.T, id string) gatewaypb.LLBBridge_ExecProcessClient {
	t.Helper()
	if _, err := b.NewContainer(b.ctx, &gatewaypb.NewContainerRequest{
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

// eventually waits until there is nothing left to tell.
func eventually(t *testing.T, what string, left func() string) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
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
	for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
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
