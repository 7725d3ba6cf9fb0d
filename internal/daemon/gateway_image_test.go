package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/control"
	gatewaypb "github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/internal/executor"
	"github.com/kiln-build/kiln/internal/executor/fake"
	"github.com/kiln-build/kiln/internal/gateway"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/llb/pb"
)

// program is a frontend as a function of this process.
type program func(ctx context.Context, f *inContainer) error

// programs is an executor for which "/run" is a program, by the option "mode";
// everything else is a script.
type programs struct {
	*fake.Executor
	byMode map[string]program
}

// inContainer is a frontend's view.
type inContainer struct {
	gatewaypb.LLBBridgeClient
	conn *grpc.ClientConn
	raw  net.Conn // for who does not use conn
	spec executor.Spec
	opts map[string]string
	log  io.Writer
}

// finished is a frontend that runs or has run.
type finished struct {
	done chan struct{}
	kill context.CancelFunc
	err  error
}

func (p *programs) Start(ctx context.Context, spec executor.Spec, stdio executor.IO) (executor.Container, error) {
	if spec.Process.Args[0] != "/run" {
		return p.Executor.Start(ctx, spec, stdio)
	}
	f := &inContainer{spec: spec, opts: map[string]string{}, log: stdio.Stderr}
	for _, e := range spec.Process.Env {
		if _, kv, ok := strings.Cut(e, "="); ok && strings.HasPrefix(e, "BUILDKIT_FRONTEND_OPT_") {
			k, v, _ := strings.Cut(kv, "=")
			f.opts[k] = v
		}
	}
	f.raw = processConn{stdio.Stdin, stdio.Stdout}
	var err error
	f.conn, err = grpc.NewClient("passthrough:///daemon", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStaticStreamWindowSize(256<<10), grpc.WithStaticConnWindowSize(1<<20), // so that the daemon keeps what is not read
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return f.raw, nil }))
	if err != nil {
		return nil, err
	}
	f.LLBBridgeClient = gatewaypb.NewLLBBridgeClient(f.conn)
	ctx, cancel := context.WithCancel(ctx)
	c := &finished{done: make(chan struct{}), kill: cancel}
	go func() {
		defer close(c.done)
		c.err = p.byMode[f.opts["mode"]](ctx, f)
		f.conn.Close()
		stdio.Stdin.Close()
	}()
	return c, nil
}

func (c *finished) Wait(context.Context) error { <-c.done; return c.err }
func (c *finished) Close() error               { c.kill(); <-c.done; return nil }
func (c *finished) Signal(context.Context, int) error {
	return errors.New("a frontend takes no signals here")
}

func (c *finished) Resize(context.Context, uint32, uint32) error {
	return errors.New("a frontend has no terminal")
}

func (c *finished) Exec(context.Context, executor.Process, executor.IO) (executor.Task, error) {
	return nil, errors.New("nothing is run beside a frontend")
}

// processConn is a connection by a process's input and output.
type processConn struct {
	io.ReadCloser
	w io.Writer
}

func (c processConn) Write(p []byte) (int, error)      { return c.w.Write(p) }
func (c processConn) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (c processConn) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (c processConn) SetDeadline(time.Time) error      { return nil }
func (c processConn) SetReadDeadline(time.Time) error  { return nil }
func (c processConn) SetWriteDeadline(time.Time) error { return nil }

// serveFrontends is a daemon with frontends by mode.
func serveFrontends(t *testing.T, byMode map[string]program) *gatewayServer {
	t.Helper()
	images, err := gateway.NewImageFrontend(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return serveGatewayOn(t, &programs{fake.New(), byMode}, images)
}

// textGraph is a graph of one file.
func textGraph(t *testing.T, text string) *pb.Definition {
	t.Helper()
	g := &llb.Graph{Root: llb.Edge{Vertex: &llb.Vertex{Op: &llb.FileOp{Actions: []llb.FileStep{{
		Input: llb.None, Secondary: llb.None, Output: 0,
		Do: &llb.DoMkfile{Path: "/file", Mode: 0o644, Data: []byte(text), Timestamp: -1},
	}}}}}}
	def, err := g.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return def
}

// imageOpts ask for the frontend of a mode. Its image is an input of the request.
func imageOpts(mode string) map[string]string {
	return map[string]string{
		"source": "example.com/frontend", "mode": mode, "context:example.com/frontend": "input:image",
		"input-metadata:image": `{"containerimage.config":"` + inputsLabel + `"}`,
	}
}

// inputsLabel is the image config {"config":{"Labels":{"moby.buildkit.frontend.caps":"moby.buildkit.frontend.inputs"}}}.
const inputsLabel = "eyJjb25maWciOnsiTGFiZWxzIjp7Im1vYnkuYnVpbGRraXQuZnJvbnRlbmQuY2FwcyI6Im1vYnkuYnVpbGRraXQuZnJvbnRlbmQuaW5wdXRzIn19fQ=="

func (g *gatewayServer) runFrontend(ctx context.Context, t *testing.T, mode string) error {
	t.Helper()
	_, err := control.NewControlClient(g.conn).Solve(ctx, &control.SolveRequest{
		Ref: "build-" + mode, Frontend: "gateway.v0", FrontendAttrs: imageOpts(mode),
		FrontendInputs: map[string]*pb.Definition{"image": textGraph(t, "program"), "other": textGraph(t, "other")},
	})
	return err
}

// solve makes a result of one file.
func (f *inContainer) solve(ctx context.Context, def *pb.Definition) (*gatewaypb.Result, error) {
	resp, err := f.Solve(ctx, &gatewaypb.SolveRequest{Definition: def, AllowResultReturn: true, AllowResultArrayRef: true})
	if err != nil {
		return nil, err
	}
	return resp.Result, nil
}

// give solves and returns a result.
func (f *inContainer) give(ctx context.Context, def *pb.Definition) error {
	res, err := f.solve(ctx, def)
	if err != nil {
		return err
	}
	_, err = f.Return(ctx, &gatewaypb.ReturnRequest{Result: res})
	return err
}

func TestFrontendInContainer(t *testing.T) {
	text := textGraph(t, "result")
	g := serveFrontends(t, map[string]program{
		"result": func(ctx context.Context, f *inContainer) error {
			if h, err := healthpb.NewHealthClient(f.conn).Check(ctx, &healthpb.HealthCheckRequest{}); err != nil || h.Status != healthpb.HealthCheckResponse_SERVING {
				return fmt.Errorf("health: %v, %w", h, err)
			}
			pong, err := f.Ping(ctx, &gatewaypb.PingRequest{})
			if err != nil || len(pong.Workers) != 1 || len(pong.LLBCaps) == 0 || len(pong.FrontendAPICaps) == 0 {
				return fmt.Errorf("ping: %v, %w", pong, err)
			}
			in, err := f.Inputs(ctx, &gatewaypb.InputsRequest{})
			if err != nil || len(in.Definitions) != 2 || in.Definitions["other"] == nil {
				return fmt.Errorf("inputs: %v, %w", in, err)
			}
			i := slices.IndexFunc(f.spec.Mounts, func(m executor.Mount) bool { return m.Dest == "/run/config/buildkit/metadata" })
			if i < 0 || !f.spec.Mounts[i].ReadOnly || !slices.Contains(f.spec.Mounts[i].Options, "noexec") {
				return fmt.Errorf("mounts: %v", f.spec.Mounts)
			}
			return f.give(ctx, text)
		},
		"error": func(ctx context.Context, f *inContainer) error {
			_, err := f.Return(ctx, &gatewaypb.ReturnRequest{Error: &rpcstatus.Status{Code: int32(codes.OutOfRange), Message: "its own words"}})
			return errors.Join(err, &executor.ExitError{Code: 3})
		},
		"late crash": func(ctx context.Context, f *inContainer) error {
			return errors.Join(f.give(ctx, text), &executor.ExitError{Code: 4})
		},
		"crash": func(context.Context, *inContainer) error { return &executor.ExitError{Code: 5} },
		"leave": func(context.Context, *inContainer) error { return nil },
		"hang up": func(ctx context.Context, f *inContainer) error {
			_, err := f.Ping(ctx, &gatewaypb.PingRequest{})
			f.conn.Close() // closes its input, which the daemon notices when it writes
			return errors.Join(err, &executor.ExitError{Code: 6})
		},
		"twice": func(ctx context.Context, f *inContainer) error {
			err := f.give(ctx, text)
			if again := f.give(ctx, text); again == nil || !strings.Contains(again.Error(), "gateway result is already set") {
				return fmt.Errorf("returned twice: %w", again)
			}
			return err
		},
		"foreign": func(ctx context.Context, f *inContainer) error {
			ctx = metadata.AppendToOutgoingContext(ctx, gateway.BuildIDKey, "build-result") // says nothing on this connection
			return f.give(ctx, text)
		},
		"outer": func(ctx context.Context, f *inContainer) error {
			res, err := f.solve(ctx, text)
			if err != nil {
				return err
			}
			opts := imageOpts("thief")
			opts["ref"] = res.GetRef().GetId()
			_, err = f.Solve(ctx, &gatewaypb.SolveRequest{
				Frontend: "gateway.v0", FrontendOpt: opts, AllowResultReturn: true, AllowResultArrayRef: true,
				FrontendInputs: map[string]*pb.Definition{"image": text},
			})
			if err != nil {
				return err
			}
			_, err = f.Return(ctx, &gatewaypb.ReturnRequest{Result: res})
			return err
		},
		"thief": func(ctx context.Context, f *inContainer) error {
			if _, err := f.StatFile(ctx, &gatewaypb.StatFileRequest{Ref: f.opts["ref"], Path: "file"}); status.Code(err) == codes.OK {
				return errors.New("it reads what is another's")
			}
			in, err := f.Inputs(ctx, &gatewaypb.InputsRequest{})
			if err != nil || len(in.Definitions) != 1 {
				return fmt.Errorf("inputs of another: %v, %w", in, err)
			}
			return f.give(ctx, text)
		},
	})
	for mode, want := range map[string]string{
		"result": "", "error": "its own words", "late crash": "exit code: 4", "crash": "exit code: 5", "leave": "no result for incomplete build",
		"hang up": "exit code: 6", "twice": "", "foreign": "", "outer": "",
	} {
		t.Run(mode, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			err := g.runFrontend(ctx, t, mode)
			if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("got %v, want %q", err, want)
			}
			if mode == "error" && status.Code(err) != codes.OutOfRange {
				t.Errorf("the code is %v", status.Code(err))
			}
		})
	}
	eventually(t, "mounts are left", func() string { return mountsBelow(t, g.root) })
}

// TestFrontendCancelled checks that nothing is left of a frontend that hangs,
// nor of the containers that it has.
func TestFrontendCancelled(t *testing.T) {
	hangs := make(chan struct{})
	g := serveFrontends(t, map[string]program{"hang": func(ctx context.Context, f *inContainer) error {
		res, err := f.solve(ctx, textGraph(t, "root"))
		if err != nil {
			return err
		}
		if _, err := f.NewContainer(ctx, &gatewaypb.NewContainerRequest{
			ContainerID: "c", Mounts: []*pb.Mount{{Dest: "/", ResultID: res.GetRef().GetId()}},
		}); err != nil {
			return err
		}
		close(hangs)
		<-ctx.Done()
		return ctx.Err()
	}})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- g.runFrontend(ctx, t, "hang") }()
	select {
	case <-hangs:
	case err := <-ended:
		t.Fatalf("the frontend did not hang: %v", err)
	}
	cancel()
	if err := <-ended; status.Code(err) != codes.Canceled {
		t.Errorf("got %v, want a cancelled build", err)
	}
	eventually(t, "mounts are left", func() string { return mountsBelow(t, g.root) })
	eventually(t, "goroutines are left", func() string {
		return strings.Join(slices.DeleteFunc(strings.Split(workers(), "\n\n"), func(s string) bool { return !strings.Contains(s, "ImageFrontend") }), "\n\n")
	})
}
