package sdk_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/frontend/sdk"
	"github.com/kiln-build/kiln/internal/api/gateway"
)

// TestMain is the frontend itself where a test runs this program as one.
func TestMain(m *testing.M) {
	if os.Getenv("BUILDKIT_SESSION_ID") != "" {
		sdk.Main(sdk.Func(func(_ context.Context, req frontend.Request, _ frontend.Gateway) (*frontend.Result, error) {
			os.Stdout.WriteString("printed\n") // goes elsewhere
			runtime.GC()                       // closes what is not needed any more
			runtime.GC()
			if req.Opts["fail"] != "" {
				return nil, errors.New("it fails")
			}
			return &frontend.Result{Meta: map[string][]byte{"worker": []byte(req.Worker.Architecture)}}, nil
		}))
	}
	os.Exit(m.Run())
}

// bridge is a daemon that takes a result.
type bridge struct {
	gateway.UnimplementedLLBBridgeServer
	returned chan *gateway.ReturnRequest
}

func (b *bridge) Ping(context.Context, *gateway.PingRequest) (*gateway.PongResponse, error) {
	return &gateway.PongResponse{}, nil
}

func (b *bridge) Return(_ context.Context, r *gateway.ReturnRequest) (*gateway.ReturnResponse, error) {
	b.returned <- r
	return &gateway.ReturnResponse{}, nil
}

// pipes is a connection to a process.
type pipes struct {
	io.Reader
	io.WriteCloser
	net.Conn // for addresses and deadlines, which are not needed
}

func (p pipes) Read(b []byte) (int, error)         { return p.Reader.Read(b) }
func (p pipes) Write(b []byte) (int, error)        { return p.WriteCloser.Write(b) }
func (p pipes) Close() error                       { return p.WriteCloser.Close() }
func (p pipes) LocalAddr() net.Addr                { return &net.UnixAddr{} }
func (p pipes) RemoteAddr() net.Addr               { return &net.UnixAddr{} }
func (p pipes) SetDeadline(time.Time) error        { return nil }
func (p pipes) SetReadDeadline(time.Time) error    { return nil }
func (p pipes) SetWriteDeadline(t time.Time) error { return nil }

// listener has one connection.
type listener chan net.Conn

func (l listener) Accept() (net.Conn, error) {
	if c, ok := <-l; ok {
		return c, nil
	}
	return nil, io.EOF
}
func (l listener) Close() error   { return nil }
func (l listener) Addr() net.Addr { return &net.UnixAddr{} }

// TestProgram runs a program that is a frontend, as a daemon does: it ends by
// itself, although nobody closes its input.
func TestProgram(t *testing.T) {
	for _, c := range []struct {
		name, opt, message string
	}{{"result", "x=y", ""}, {"error", "fail=yes", "it fails"}} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, os.Args[0])
			cmd.Env = []string{"BUILDKIT_SESSION_ID=s", "BUILDKIT_FRONTEND_OPT_0=" + c.opt, `BUILDKIT_WORKERS=[{"platforms":[{"architecture":"s390x","os":"linux"}]}]`}
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			server := grpc.NewServer()
			b := &bridge{returned: make(chan *gateway.ReturnRequest, 1)}
			gateway.RegisterLLBBridgeServer(server, b)
			l := make(listener, 1)
			l <- pipes{Reader: stdout, WriteCloser: stdin}
			go func() { _ = server.Serve(l) }() // ends with the test
			defer server.Stop()
			defer close(l)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if state, err := cmd.Process.Wait(); err != nil || !state.Success() {
				t.Fatalf("the program ended with %v, %v", state, err)
			}
			got := <-b.returned
			if got.GetError().GetMessage() != c.message {
				t.Errorf("returned %v, want the error %q", got, c.message)
			}
			if c.message == "" && string(got.GetResult().GetMetadata()["worker"]) != "s390x" {
				t.Errorf("the worker is %s", got.GetResult().GetMetadata()["worker"])
			}
		})
	}
}
