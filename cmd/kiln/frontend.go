package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/client"
	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/llb/pb"
)

const frontendRunDescription = `Builds with a frontend that is a program of this machine, as a daemon would with
its image. PROGRAM is a folder with a Go program, which is compiled, or an
executable; what stands behind it is a command line of kiln build.

Examples:
   kiln frontend run ./cmd/myfrontend -- -f Buildfile -o out .
   kiln debug frontend ./cmd/myfrontend -- -f Buildfile .`

func frontendCommand(e *env) *cli.Command {
	return &cli.Command{
		Name:     "frontend",
		Usage:    "try out a frontend that you write",
		Commands: []*cli.Command{programCommand(e, "run", "build with a program of this machine as the frontend", nil)},
	}
}

// debugFrontendCommand is "kiln debug frontend".
func debugFrontendCommand(e *env) *cli.Command {
	t := &tracer{out: e.stdout, began: time.Now()}
	return programCommand(e, "frontend", "the same as kiln frontend run, and print what the frontend asks the daemon for, LLB as text", t.message)
}

func programCommand(e *env, name, usage string, observe client.Observer) *cli.Command {
	return &cli.Command{
		Name: name, Usage: usage, ArgsUsage: "PROGRAM [--] [BUILD FLAGS] [PATH]", Description: frontendRunDescription,
		SkipFlagParsing: true, // they are those of the build
		Action: func(ctx context.Context, cmd *cli.Command) error {
			args := cmd.Args().Slice()
			if len(args) > 0 && (args[0] == "--help" || args[0] == "-h") {
				return cli.ShowSubcommandHelp(cmd)
			}
			if len(args) == 0 || strings.HasPrefix(args[0], "-") {
				return usagef(cmd, "want a PROGRAM first, such as: kiln %s ./cmd/myfrontend -- .", strings.TrimPrefix(cmd.FullName(), "kiln "))
			}
			program, remove, err := frontendProgram(ctx, args[0])
			if err != nil {
				return err
			}
			defer remove()
			args = args[1:]
			if len(args) > 0 && args[0] == "--" {
				args = args[1:]
			}
			own := *e
			own.drive = func(ctx context.Context, g *client.Gateway) (*client.BuildResult, error) {
				return runProgram(ctx, program, e.stderr, g, observe)
			}
			line := []string{"kiln"}
			for _, global := range []string{"host", "tlsdir"} {
				if v := cmd.Root().String(global); v != "" {
					line = append(line, "--"+global, v)
				}
			}
			return rootCommand(&own).Run(ctx, slices.Concat(line, []string{"build"}, args))
		},
	}
}

// frontendProgram returns the executable that a user means, and what removes it if
// it was compiled for this.
func frontendProgram(ctx context.Context, name string) (string, func(), error) {
	st, err := os.Stat(name)
	if err != nil {
		return "", nil, fmt.Errorf("find frontend: %w: expected a folder with a Go program, or an executable", err)
	}
	path, err := filepath.Abs(name)
	if err != nil || !st.IsDir() {
		return path, func() {}, err
	}
	dir, err := os.MkdirTemp("", "kiln-frontend-")
	if err != nil {
		return "", nil, err
	}
	remove := func() { os.RemoveAll(dir) }
	cmd := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(dir, "frontend"), ".")
	cmd.Dir = path
	if out, err := cmd.CombinedOutput(); err != nil {
		remove()
		return "", nil, fmt.Errorf("compile frontend %s: %w\n%s", name, err, bytes.TrimSpace(out))
	}
	return filepath.Join(dir, "frontend"), remove, nil
}

// runProgram has a program drive a build. What it writes to its errors is shown.
func runProgram(ctx context.Context, program string, stderr io.Writer, g *client.Gateway, observe client.Observer) (*client.BuildResult, error) {
	cmd := exec.CommandContext(ctx, program)
	cmd.Stderr, cmd.WaitDelay = stderr, 5*time.Second
	opts := g.BuildOpts()
	cmd.Env = append(os.Environ(), "BUILDKIT_SESSION_ID="+opts.SessionID, "BUILDKIT_EXPORTEDPRODUCT=buildkit")
	n := 0
	for k, v := range opts.Opts {
		cmd.Env = append(cmd.Env, fmt.Sprintf("BUILDKIT_FRONTEND_OPT_%d=%s=%s", n, k, v))
		n++
	}
	workers, err := workersJSON(opts.Workers)
	if err != nil {
		return nil, err
	}
	cmd.Env = append(cmd.Env, "BUILDKIT_WORKERS="+string(workers))
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("run frontend: %w", err)
	}
	res, err := g.Relay(ctx, programConn{out, in}, observe)
	_ = in.Close()
	if exit := cmd.Wait(); exit != nil && res == nil {
		var told *client.Error
		if !errors.As(err, &told) { // what it said counts more than how it ended
			err = fmt.Errorf("run frontend: %w", exit)
		}
	}
	return res, err
}

// workersJSON is the daemon's workers as frontends read them.
func workersJSON(workers []client.Worker) ([]byte, error) {
	type worker struct {
		ID        string            `json:"id"`
		Labels    map[string]string `json:"labels"`
		Platforms any               `json:"platforms"`
	}
	list := []worker{}
	for _, w := range workers {
		list = append(list, worker{w.ID, w.Labels, w.Platforms})
	}
	return json.Marshal(list)
}

// programConn is the connection to a program by its input and output.
type programConn struct {
	io.ReadCloser
	w io.WriteCloser
}

func (c programConn) Write(p []byte) (int, error) { return c.w.Write(p) }

// Close ends both directions.
func (c programConn) Close() error { return errors.Join(c.w.Close(), c.ReadCloser.Close()) }

func (programConn) LocalAddr() net.Addr              { return &net.UnixAddr{Name: "frontend", Net: "stdio"} }
func (programConn) RemoteAddr() net.Addr             { return &net.UnixAddr{Name: "frontend", Net: "stdio"} }
func (programConn) SetDeadline(time.Time) error      { return nil }
func (programConn) SetReadDeadline(time.Time) error  { return nil }
func (programConn) SetWriteDeadline(time.Time) error { return nil }

// forgetGraphs takes graphs out of a result, which were printed when they were solved.
func forgetGraphs(res *gateway.Result) {
	if ref := res.GetRef(); ref != nil {
		ref.Def = nil
	}
	for _, ref := range res.GetRefs().GetRefs() {
		if ref != nil {
			ref.Def = nil
		}
	}
}

// tracer prints what a frontend and the daemon say to each other.
type tracer struct {
	mu    sync.Mutex
	out   io.Writer
	began time.Time
}

// longestTrace is how much of a message is printed, in bytes.
const longestTrace = 4 << 10

func (t *tracer) message(call string, fromDaemon bool, m proto.Message) {
	sign := "->"
	if fromDaemon {
		sign = "<-"
		if call == "Ping" { // long, and the same for all
			m = &gateway.PongResponse{}
		}
	}
	var graphs []*pb.Definition
	if req, ok := m.(*gateway.SolveRequest); ok && req.GetDefinition() != nil {
		graphs = append(graphs, req.GetDefinition())
		req.Definition = nil
	}
	if resp, ok := m.(*gateway.SolveResponse); ok && resp.GetResult().GetRef() != nil {
		resp.GetResult().GetRef().Def = nil // that of the request
	}
	if req, ok := m.(*gateway.ReturnRequest); ok { // which goes on to the daemon as it is
		req = proto.CloneOf(req)
		forgetGraphs(req.GetResult())
		m = req
	}
	text := protojson.Format(m)
	if flat, err := (protojson.MarshalOptions{}).Marshal(m); err == nil {
		text = string(flat)
	}
	if len(text) > longestTrace {
		text = fmt.Sprintf("%s… (%d bytes)", text[:longestTrace], len(text))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Fprintf(t.out, "%.3fs %s %s %s\n", time.Since(t.began).Seconds(), sign, call, text)
	for _, def := range graphs {
		g, err := llb.Unmarshal(def)
		if err != nil {
			fmt.Fprintf(t.out, "    no valid graph: %v\n", err)
			continue
		}
		g.Sources = llb.SourceIndex{} // long, and known to who reads this
		for line := range strings.Lines(g.Text()) {
			fmt.Fprintf(t.out, "    %s", line)
		}
	}
}
