// Command kilnclient goes through what Kiln's client library can do, with one daemon,
// and prints what came of each case as JSON. The conformance tests run it with Kiln's
// daemon and with BuildKit's, and compare.
//
// Usage: kilnclient ADDRESS LAYOUT DIGEST [CASE...]
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing/fstest"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/client"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/llb/pb"
)

// suite is what all cases share.
type suite struct {
	*client.Client
	layout string
	digest string
	dir    string // of the case
}

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) (err error) {
	if len(args) < 3 {
		return errors.New("usage: kilnclient ADDRESS LAYOUT DIGEST [CASE...]")
	}
	c, err := client.New(args[0], client.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := c.Wait(ctx); err != nil {
		return err
	}
	out := map[string]any{}
	for name, f := range cases {
		if len(args) > 3 && !slices.Contains(args[3:], name) {
			continue
		}
		dir, err := os.MkdirTemp("", "kilnclient-")
		if err != nil {
			return err
		}
		caseCtx, cancel := context.WithTimeout(ctx, 2*time.Minute)
		result, err := f(caseCtx, &suite{c, args[1], args[2], dir})
		cancel()
		if err != nil {
			result = "error: " + err.Error()
		}
		out[name] = result
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

var cases = map[string]func(context.Context, *suite) (any, error){
	"definition": definition, "drive": drive, "container": container, "inputs": inputs, "failure": failure,
	"ownFailure": ownFailure, "attached": attached, "localCache": localCache, "layoutOutput": layoutOutput,
	"denied": denied, "verified": verified, "history": history, "usage": usage, "manyFiles": manyFiles,
	"sourceMeta": sourceMeta, "canceled": canceled,
}

// base is the base image.
func (s *suite) base() llb.State {
	return llb.OCILayout("not/real@"+s.digest, llb.OCIStore("", "base"))
}

func (s *suite) attach() client.Attach {
	return client.Attach{Layouts: map[string]string{"base": s.layout}}
}

// names collects the names of a build's steps.
type names struct {
	mu   sync.Mutex
	list []string
	logs string
}

func (n *names) Emit(e client.Event) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if e.Vertex != nil && e.Vertex.Completed != nil && !slices.Contains(n.list, e.Vertex.Name) {
		n.list = append(n.list, e.Vertex.Name)
	}
	if e.Log != nil {
		n.logs += string(e.Log.Data)
	}
}

func marshal(ctx context.Context, st llb.State) (*pb.Definition, error) {
	def, err := st.Marshal(ctx)
	if err != nil {
		return nil, err
	}
	return def.ToPB(), nil
}

// definition builds LLB into a directory.
func definition(ctx context.Context, s *suite) (any, error) {
	def, err := marshal(ctx, s.base().Run(llb.Shlex(`sh -c "echo made; echo made > /out"`), llb.IgnoreCache).Root())
	if err != nil {
		return nil, err
	}
	var seen names
	_, err = s.Solve(ctx, client.SolveOpt{
		Definition: def, Attach: s.attach(), Exports: []client.Export{{Type: "local", Dir: s.dir}},
	}, &seen)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(s.dir, "out"))
	return []string{string(text), seen.logs}, err
}

// build drives a build that makes nothing but what f tells.
func (s *suite) build(ctx context.Context, opt client.SolveOpt, f func(*client.Gateway, context.Context) error) error {
	_, err := s.Build(ctx, opt, func(ctx context.Context, g *client.Gateway) (*client.BuildResult, error) {
		return nil, f(g, ctx)
	}, &names{})
	return err
}

// solve solves a State.
func solve(ctx context.Context, g *client.Gateway, st llb.State) (*client.Reference, error) {
	def, err := marshal(ctx, st)
	if err != nil {
		return nil, err
	}
	r, err := g.Solve(ctx, client.SolveRequest{Definition: def})
	if err != nil {
		return nil, err
	}
	return r.SingleRef()
}

// drive is a build that looks at one step's files, makes another of them, and gives
// that to an exporter.
func drive(ctx context.Context, s *suite) (any, error) {
	var told []string
	var archive bytes.Buffer
	opt := client.SolveOpt{Attach: s.attach(), Exports: []client.Export{{Type: "tar", Writer: &archive}}}
	result, err := s.Build(ctx, opt, func(ctx context.Context, g *client.Gateway) (*client.BuildResult, error) {
		first, err := solve(ctx, g, s.base().Run(llb.Shlex(`sh -c "mkdir /d; echo hello > /d/f; ln -s f /d/l"`)).Root())
		if err != nil {
			return nil, err
		}
		if err := first.Evaluate(ctx); err != nil {
			return nil, err
		}
		part, err := first.ReadFile(ctx, "/d/l", &client.FileRange{Offset: 1, Length: 3})
		if err != nil {
			return nil, err
		}
		list, err := first.ReadDir(ctx, "/d", "")
		if err != nil {
			return nil, err
		}
		for _, st := range list {
			told = append(told, fmt.Sprint(st.Path, st.Mode, st.Size, st.Linkname))
		}
		st, err := first.StatFile(ctx, "/d/f")
		if err != nil {
			return nil, err
		}
		_, missing := first.ReadFile(ctx, "/d/none", nil)
		told = append(told, string(part), fmt.Sprint(st.Path, st.Mode, st.Size), fmt.Sprint(missing != nil))
		state, err := first.ToState()
		if err != nil {
			return nil, err
		}
		second, err := solve(ctx, g, llb.Scratch().File(llb.Copy(state, "/d/f", "/copied")))
		if err != nil {
			return nil, err
		}
		made := &client.BuildResult{Ref: second}
		made.AddMeta("some.key", []byte("value"))
		return made, g.Warn(ctx, digest.FromString("none"), "short", client.WarnOpts{Level: 1})
	}, &names{})
	if err != nil {
		return nil, err
	}
	return append(told, result.Response["some.key"], result.Response["frontend.some.key"], fmt.Sprint(bytes.Contains(archive.Bytes(), []byte("copied")))), nil
}

// container runs processes in containers of a build.
func container(ctx context.Context, s *suite) (any, error) {
	var told []string
	err := s.build(ctx, client.SolveOpt{Attach: s.attach()}, func(g *client.Gateway, ctx context.Context) error {
		root, err := solve(ctx, g, s.base())
		if err != nil {
			return err
		}
		for _, f := range []func(context.Context, *client.Container) ([]string, error){twoProcesses, exitCode, signaled} {
			c, err := g.NewContainer(ctx, client.ContainerRequest{Mounts: []client.ContainerMount{{Dest: "/", Ref: root, Type: pb.MountType_BIND}}})
			if err != nil {
				return err
			}
			lines, err := f(ctx, c)
			if err != nil {
				return err
			}
			// BuildKit's answer is the error of the first process that failed.
			_ = c.Release(ctx)
			told = append(told, lines...)
		}
		return nil
	})
	return told, err
}

func start(ctx context.Context, c *client.Container, r client.ProcessRequest, args ...string) (*client.Process, error) {
	r.Args, r.Cwd, r.Env = args, "/", append(r.Env, "PATH=/bin")
	return c.Start(ctx, r)
}

// twoProcesses runs one process beside another.
func twoProcesses(ctx context.Context, c *client.Container) ([]string, error) {
	in, feed := io.Pipe()
	init, err := start(ctx, c, client.ProcessRequest{Stdin: in}, "cat")
	if err != nil {
		return nil, err
	}
	var stdout, stderr bytes.Buffer
	p, err := start(ctx, c, client.ProcessRequest{Env: []string{"X=err"}, Stdin: strings.NewReader("fed"), Stdout: &stdout, Stderr: &stderr},
		"sh", "-c", "cat; echo $X >&2; echo kept > /kept")
	if err != nil {
		return nil, err
	}
	if err := p.Wait(); err != nil {
		return nil, err
	}
	kept, err := c.ReadFile(ctx, 0, "/kept", nil)
	if err != nil {
		return nil, err
	}
	st, err := c.StatFile(ctx, 0, "/kept")
	if err != nil {
		return nil, err
	}
	list, err := c.ReadDir(ctx, 0, "/", "")
	if err != nil {
		return nil, err
	}
	if err := feed.Close(); err != nil {
		return nil, err
	}
	return []string{stdout.String(), stderr.String(), string(kept), fmt.Sprint(st.Size, len(list)), fmt.Sprint(init.Wait())}, nil
}

// exitCode is a process that fails.
func exitCode(ctx context.Context, c *client.Container) ([]string, error) {
	p, err := start(ctx, c, client.ProcessRequest{}, "sh", "-c", "exit 3")
	if err != nil {
		return nil, err
	}
	var exit *client.ExitError
	if err := p.Wait(); !errors.As(err, &exit) {
		return nil, fmt.Errorf("got %w, want an exit code", err)
	}
	return []string{fmt.Sprint(exit.Code), exit.Error()}, nil
}

// signaled is a process that gets a signal, once it says that it waits for it.
func signaled(ctx context.Context, c *client.Container) ([]string, error) {
	out, ready := io.Pipe()
	p, err := start(ctx, c, client.ProcessRequest{Stdout: ready}, "sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done")
	if err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		return nil, err
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return nil, err
	}
	var exit *client.ExitError
	if err := p.Wait(); !errors.As(err, &exit) {
		return nil, fmt.Errorf("got %w, want an exit code", err)
	}
	return []string{fmt.Sprint(exit.Code)}, nil
}

// inputs hands file systems to the driver through the daemon.
func inputs(ctx context.Context, s *suite) (any, error) {
	told := ""
	opt := client.SolveOpt{FrontendInputs: map[string]llb.State{"in": llb.Scratch().File(llb.Mkfile("/f", 0o644, []byte("from input")))}}
	err := s.build(ctx, opt, func(g *client.Gateway, ctx context.Context) error {
		all, err := g.Inputs(ctx)
		if err != nil {
			return err
		}
		ref, err := solve(ctx, g, all["in"])
		if err != nil {
			return err
		}
		text, err := ref.ReadFile(ctx, "/f", nil)
		told = fmt.Sprint(len(all), string(text))
		return err
	})
	return told, err
}

// failure is a step that fails: what the error holds.
func failure(ctx context.Context, s *suite) (any, error) {
	def, err := marshal(ctx, s.base().Run(llb.Shlex(`sh -c "echo reason >&2; exit 7"`)).Root())
	if err != nil {
		return nil, err
	}
	_, err = s.Solve(ctx, client.SolveOpt{Definition: def, Attach: s.attach()}, &names{})
	var e *client.Error
	if !errors.As(err, &e) {
		return nil, fmt.Errorf("got %w, want an error of the daemon", err)
	}
	said := strings.HasSuffix(e.Message, `process "sh -c echo reason >&2; exit 7" did not complete successfully: exit code: 7`)
	return []string{fmt.Sprint(said), fmt.Sprint(e.ExitCode), fmt.Sprint(e.Vertex != ""), e.Code.String()}, nil
}

// ownFailure is the driver's own error.
func ownFailure(ctx context.Context, s *suite) (any, error) {
	own := errors.New("the driver does not like it")
	err := s.build(ctx, client.SolveOpt{}, func(*client.Gateway, context.Context) error { return own })
	return []string{fmt.Sprint(err), fmt.Sprint(errors.Is(err, own))}, nil
}

// attached uses what a session serves: file systems, secrets.
func attached(ctx context.Context, s *suite) (any, error) {
	if err := os.WriteFile(filepath.Join(s.dir, "secret"), []byte("hidden"), 0o600); err != nil {
		return nil, err
	}
	opt := client.SolveOpt{Attach: s.attach()}
	opt.Attach.Trees = map[string]fs.FS{"tree": fsTree()}
	opt.Attach.Secrets = []client.Secret{{ID: "s", File: filepath.Join(s.dir, "secret")}}
	opt.Attach.Uploads = map[string]io.Reader{"up": strings.NewReader("uploaded")}
	told := ""
	err := s.build(ctx, opt, func(g *client.Gateway, ctx context.Context) error {
		step := s.base().Run(llb.Shlex(`sh -c "cat /run/s /src/a /src/d/b /up/up > /out"`), llb.AddSecret("/run/s", llb.SecretID("s")))
		step.AddMount("/src", llb.Local("tree"), llb.Readonly)
		step.AddMount("/up", llb.HTTP("http://buildkit-session/up", llb.Filename("up")), llb.Readonly)
		ref, err := solve(ctx, g, step.Root())
		if err != nil {
			return err
		}
		text, err := ref.ReadFile(ctx, "/out", nil)
		told = string(text)
		return err
	})
	return told, err
}

func fsTree() fstest.MapFS {
	return fstest.MapFS{"a": {Data: []byte("A"), Mode: 0o644}, "d/b": {Data: []byte("B"), Mode: 0o644}}
}
