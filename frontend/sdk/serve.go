package sdk

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/platforms"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/client"
	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
)

// Func makes a function a [frontend.Frontend].
type Func func(context.Context, frontend.Request, frontend.Gateway) (*frontend.Result, error)

// Build calls the function.
func (f Func) Build(ctx context.Context, req frontend.Request, gw frontend.Gateway) (*frontend.Result, error) {
	return f(ctx, req, gw)
}

// Main is the whole of a program that is a frontend: it serves the daemon that
// runs it in a container, and does not return. The program's standard output
// belongs to the daemon; what it prints goes to its standard error.
func Main(f frontend.Frontend) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if isTerminal(os.Stdin) {
		fmt.Fprintln(os.Stderr, "this is a frontend: a daemon runs it, for a file whose first line is \"# syntax=\" and the name of its image,\n"+
			"or, while it is being written, kiln frontend run")
		os.Exit(2)
	}
	conn := stdio{interruptible(os.Stdin), interruptible(os.Stdout)}
	os.Stdout = os.Stderr
	if err := Serve(ctx, conn, os.Environ(), f); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// interruptible is a stream as a file of its own, whose reads end when it is
// closed, as those of a connection do. A standard stream's do not, since whoever
// has started this program may have made it a blocking one.
func interruptible(f *os.File) *os.File {
	fd, err := syscall.Dup(int(f.Fd()))
	if err != nil {
		return f // it works, but for a clean end
	}
	syscall.CloseOnExec(fd)
	_ = syscall.SetNonblock(fd, true) // as above
	return os.NewFile(uintptr(fd), f.Name())
}

// isTerminal tells whether somebody has started the program by hand.
func isTerminal(f *os.File) bool {
	st, err := f.Stat()
	return err == nil && st.Mode()&(os.ModeCharDevice|os.ModeDevice) == os.ModeCharDevice|os.ModeDevice
}

// Serve serves one request of the daemon at the other end of conn. environ is
// what the daemon says to the frontend, as [os.Environ] has it. What f fails
// with, the daemon is told; the error is that it could not be.
func Serve(ctx context.Context, conn net.Conn, environ []string, f frontend.Frontend) error {
	opts, err := readEnviron(environ)
	if err != nil {
		return err
	}
	return client.ServeFrontend(ctx, conn, opts, BuildFunc(f))
}

// BuildFunc has f drive a build from the client's side; see [client.Client.Build].
func BuildFunc(f frontend.Frontend) client.BuildFunc {
	return func(ctx context.Context, g *client.Gateway) (*client.BuildResult, error) {
		opts := g.BuildOpts()
		req := frontend.Request{Opts: opts.Opts, Inputs: map[string]*llb.Graph{}, Worker: platforms.DefaultSpec()}
		if len(opts.Workers) > 0 && len(opts.Workers[0].Platforms) > 0 {
			req.Worker = opts.Workers[0].Platforms[0]
		}
		if opts.Caps["frontend.inputs"] {
			inputs, err := g.Inputs(ctx)
			if err != nil {
				return nil, fmt.Errorf("ask for inputs: %w", err)
			}
			for name, st := range inputs {
				if req.Inputs[name], err = st.Graph(ctx); err != nil {
					return nil, fmt.Errorf("read input %q: %w", name, err)
				}
			}
		}
		gw := &gateway{client: g}
		res, err := f.Build(ctx, req, gw)
		if err != nil {
			return nil, err
		}
		return gw.result(ctx, res)
	}
}

// What a daemon's environment says (BuildKit's frontend/gateway).
const (
	envOpt     = "BUILDKIT_FRONTEND_OPT_"
	envSession = "BUILDKIT_SESSION_ID"
	envWorkers = "BUILDKIT_WORKERS"
)

// readEnviron reads the options of a request.
func readEnviron(environ []string) (client.BuildOpts, error) {
	opts := client.BuildOpts{Opts: map[string]string{}}
	for _, kv := range environ {
		key, value, _ := strings.Cut(kv, "=")
		switch {
		case strings.HasPrefix(key, envOpt):
			name, v, ok := strings.Cut(value, "=")
			if !ok {
				return opts, fmt.Errorf("read %s: %q has no value: expected NAME=VALUE", key, value)
			}
			opts.Opts[name] = v
		case key == envSession:
			opts.SessionID = value
		case key == envWorkers:
			var workers []struct {
				ID        string
				Labels    map[string]string
				Platforms []ocispecs.Platform
			}
			if err := json.Unmarshal([]byte(value), &workers); err != nil {
				return opts, fmt.Errorf("read %s: %w", key, err)
			}
			for _, w := range workers {
				opts.Workers = append(opts.Workers, client.Worker{ID: w.ID, Labels: w.Labels, Platforms: w.Platforms})
			}
		}
	}
	return opts, nil
}

// stdio is the connection of a frontend in a container.
type stdio struct{ in, out *os.File }

func (s stdio) Read(p []byte) (int, error)  { return s.in.Read(p) }
func (s stdio) Write(p []byte) (int, error) { return s.out.Write(p) }

// Close ends both directions.
func (s stdio) Close() error {
	err := s.in.Close()
	if outErr := s.out.Close(); err == nil {
		err = outErr
	}
	return err
}

func (stdio) LocalAddr() net.Addr              { return stdioAddr{} }
func (stdio) RemoteAddr() net.Addr             { return stdioAddr{} }
func (stdio) SetDeadline(time.Time) error      { return nil }
func (stdio) SetReadDeadline(time.Time) error  { return nil }
func (stdio) SetWriteDeadline(time.Time) error { return nil }

type stdioAddr struct{}

func (stdioAddr) Network() string { return "stdio" }
func (stdioAddr) String() string  { return "daemon" }
