// Command asimage is a frontend for tests, on BuildKit's own library, to be put
// into an image. What it does is said by the option "mode".
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/frontend/gateway/grpcclient"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/appcontext"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

func main() {
	switch mode() {
	case "crash":
		fmt.Fprintln(os.Stderr, "the frontend gives up")
		os.Exit(3)
	case "leave":
		return
	case "garbage":
		fmt.Println("this is no HTTP/2, whatever it may be")
		time.Sleep(time.Hour)
	}
	if err := grpcclient.RunFromEnvironment(appcontext.Context(), build); err != nil {
		fmt.Fprintln(os.Stderr, "frontend:", err)
		os.Exit(1)
	}
	if mode() == "crash-late" {
		os.Exit(4)
	}
}

// mode is read from the environment, as it is needed before the first call.
func mode() string {
	for _, e := range os.Environ() {
		if _, v, _ := strings.Cut(e, "="); strings.HasPrefix(e, "BUILDKIT_FRONTEND_OPT_") && strings.HasPrefix(v, "mode=") {
			return strings.TrimPrefix(v, "mode=")
		}
	}
	return ""
}

func build(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
	modes := map[string]gateway.BuildFunc{
		"": options, "options": options, "surroundings": surroundings, "fail": fail, "fail-step": failStep, "platforms": platforms,
		"files": files, "inputs": inputs, "container": container, "hang": hang, "nested": nested, "endless": endless,
		"crash-late": options, "confined": confined,
	}
	f, ok := modes[mode()]
	if !ok {
		return nil, fmt.Errorf("no mode %q", mode())
	}
	return f(ctx, c)
}

// file is a result of one file.
func file(ctx context.Context, c gateway.Client, name, text string) (*gateway.Result, error) {
	return solve(ctx, c, llb.Scratch().File(llb.Mkfile(name, 0o644, []byte(text))))
}

func solve(ctx context.Context, c gateway.Client, st llb.State) (*gateway.Result, error) {
	def, err := st.Marshal(ctx)
	if err != nil {
		return nil, err
	}
	return c.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB()})
}

func base(c gateway.Client) llb.State {
	return llb.OCILayout("not/real@"+c.BuildOpts().Opts["base"], llb.OCIStore("", "base")).AddEnv("PATH", "/bin")
}

// options tells what the frontend was told.
func options(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
	o := c.BuildOpts()
	var b strings.Builder
	for _, name := range []string{"mode", "cmdline", "plain", "with=sign", "empty", "context:x"} {
		v, ok := o.Opts[name]
		fmt.Fprintf(&b, "%s %t %q\n", name, ok, v)
	}
	fmt.Fprintf(&b, "product %s, session %t, workers %d\n", o.Product, o.SessionID != "", len(o.Workers))
	for _, w := range o.Workers {
		fmt.Fprintf(&b, "id %t, platforms %t\n", w.ID != "", len(w.Platforms) > 0)
	}
	fmt.Fprintf(&b, "source of the image: %t\n", strings.Contains(o.Opts["source"], "/frontend"))
	return file(ctx, c, "/options", b.String())
}

// surroundings tells what is around the process.
func surroundings(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
	var b strings.Builder
	const name = "/run/config/buildkit/metadata/frontend.bin"
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var def pb.Definition
	if err := def.UnmarshalVT(data); err != nil {
		return nil, err
	}
	fmt.Fprintf(&b, "definition of %d\n", len(def.Def))
	fmt.Fprintf(&b, "metadata written: %t\n", os.WriteFile(name, nil, 0o600) == nil)
	fmt.Fprintf(&b, "root written: %t\n", os.WriteFile("/written", nil, 0o600) == nil)
	cwd, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(&b, "in %s as %d with %s and %q\n", cwd, os.Getuid(), os.Getenv("FROM_IMAGE"), os.Args[1:])
	links, err := os.ReadDir("/sys/class/net")
	if err != nil {
		return nil, err
	}
	outside := slices.ContainsFunc(links, func(e os.DirEntry) bool { return strings.HasPrefix(e.Name(), "eth") })
	fmt.Fprintf(&b, "network %t\n", outside)
	return file(ctx, c, "/surroundings", b.String())
}

// fail fails at a place of a build file.
func fail(context.Context, gateway.Client) (*gateway.Result, error) {
	return nil, errdefs.WithSource(errors.New("the second line is wrong"), &errdefs.Source{
		Info:   &pb.SourceInfo{Filename: "Buildfile", Data: []byte("one\ntwo\n"), Language: "Test"},
		Ranges: []*pb.Range{{Start: &pb.Position{Line: 2}, End: &pb.Position{Line: 2}}},
	})
}

// failStep returns the error of a step that failed.
func failStep(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
	st := base(c)
	sm := llb.NewSourceMap(&st, "Buildfile", "Test", []byte("one\ntwo\n"))
	run := st.Run(llb.Args([]string{"/bin/sh", "-c", "exit 7"}),
		sm.Location([]*pb.Range{{Start: &pb.Position{Line: 1}, End: &pb.Position{Line: 1}}}))
	def, err := run.Root().Marshal(ctx)
	if err != nil {
		return nil, err
	}
	return c.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB(), Evaluate: true})
}

// platforms makes a result for each of two platforms.
func platforms(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
	res := gateway.NewResult()
	list := &exptypes.Platforms{}
	for _, arch := range []string{"amd64", "arm64"} {
		one, err := file(ctx, c, "/arch", arch)
		if err != nil {
			return nil, err
		}
		id := "linux/" + arch
		res.AddRef(id, one.Ref)
		list.Platforms = append(list.Platforms, exptypes.Platform{ID: id, Platform: ocispecs.Platform{OS: "linux", Architecture: arch}})
	}
	res.AddMeta("frontend.note", []byte("two of them"))
	dt, err := json.Marshal(list)
	if err != nil {
		return nil, err
	}
	res.AddMeta(exptypes.ExporterPlatformsKey, dt)
	return res, nil
}

// files reads what was made.
func files(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
	res, err := solve(ctx, c, llb.Scratch().File(llb.Mkdir("/d", 0o700).Mkfile("/d/f", 0o640, []byte("0123456789")).Mkfile("/d/g", 0o600, nil)))
	if err != nil {
		return nil, err
	}
	part, err := res.Ref.ReadFile(ctx, gateway.ReadRequest{Filename: "d/f", Range: &gateway.FileRange{Offset: 2, Length: 3}})
	if err != nil {
		return nil, err
	}
	list, err := res.Ref.ReadDir(ctx, gateway.ReadDirRequest{Path: "d"})
	if err != nil {
		return nil, err
	}
	st, err := res.Ref.StatFile(ctx, gateway.StatRequest{Path: "d/f"})
	if err != nil {
		return nil, err
	}
	_, missing := res.Ref.ReadFile(ctx, gateway.ReadRequest{Filename: "d/none"})
	text := fmt.Sprintf("%s, %d entries, %s %d %o, missing %t\n", part, len(list), st.Path, st.Size, st.Mode, missing != nil)
	return file(ctx, c, "/files", text)
}

// inputs returns the input "given".
func inputs(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
	all, err := c.Inputs(ctx)
	if err != nil {
		return nil, err
	}
	st, ok := all["given"]
	if !ok || len(all) != 1 {
		return nil, fmt.Errorf("got %d inputs", len(all))
	}
	return solve(ctx, c, st)
}

type output struct{ bytes.Buffer }

func (*output) Close() error { return nil }

// container runs a process in a container of its own, and leaves the container.
func container(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
	res, err := solve(ctx, c, base(c))
	if err != nil {
		return nil, err
	}
	ctr, err := c.NewContainer(ctx, gateway.NewContainerRequest{Mounts: []gateway.Mount{{Dest: "/", MountType: pb.MountType_BIND, Ref: res.Ref}}})
	if err != nil {
		return nil, err
	}
	var out output
	p, err := ctr.Start(ctx, gateway.StartRequest{
		Args: []string{"/bin/sh", "-c", "read x; echo got $x; exit 5"}, Env: []string{"PATH=/bin"},
		Stdin: io.NopCloser(strings.NewReader("this\n")), Stdout: &out,
	})
	if err != nil {
		return nil, err
	}
	return file(ctx, c, "/container", fmt.Sprintf("%v: %s", p.Wait(), out.String()))
}

// hang waits for ever, with a container that does so, too.
func hang(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
	res, err := solve(ctx, c, base(c))
	if err != nil {
		return nil, err
	}
	ctr, err := c.NewContainer(ctx, gateway.NewContainerRequest{Mounts: []gateway.Mount{{Dest: "/", MountType: pb.MountType_BIND, Ref: res.Ref}}})
	if err != nil {
		return nil, err
	}
	if _, err := ctr.Start(ctx, gateway.StartRequest{Args: []string{"/bin/sh", "-c", "sleep 4711; echo of-asimage"}, Env: []string{"PATH=/bin"}}); err != nil {
		return nil, err
	}
	time.Sleep(time.Hour)
	return nil, nil
}

// nested has the same image make the result.
func nested(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
	return again(ctx, c, "options")
}

// endless never ends to ask itself.
func endless(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
	return again(ctx, c, "endless")
}

func again(ctx context.Context, c gateway.Client, mode string) (*gateway.Result, error) {
	return c.Solve(ctx, gateway.SolveRequest{
		Frontend: "gateway.v0", FrontendOpt: map[string]string{"source": c.BuildOpts().Opts["source"], "mode": mode, "plain": "inner"},
	})
}
