package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/client"
	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/frontend/sdk"
	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/llb/pb"
)

// bigFile is more than a message of gRPC holds and than one part of a file.
const bigFile = 5<<20 + 3

// probe is a frontend that tries all that frontends of any place have.
func probe(ctx context.Context, req frontend.Request, gw frontend.Gateway) (*frontend.Result, error) {
	b, err := sdk.Open(ctx, req, gw)
	if err != nil {
		return nil, err
	}
	if text := string(b.File.Data); text != "other" || b.Args["A"] != "b=c" || b.Target != "t" {
		return nil, fmt.Errorf("file %q, args %v, target %q", text, b.Args, b.Target)
	}
	st := llb.Scratch().File(llb.Mkfile("/big", 0o644, bytes.Repeat([]byte("x"), bigFile)), b.Step(sdk.Lines(1, 1), "write a big file"))
	g, err := st.Graph(ctx)
	if err != nil {
		return nil, err
	}
	ref, err := gw.Solve(ctx, g)
	if err != nil {
		return nil, err
	}
	if data, err := ref.ReadFile(ctx, "/big"); err != nil || len(data) != bigFile {
		return nil, fmt.Errorf("read %d bytes of the big file, %w", len(data), err)
	}
	if n, err := io.Copy(io.Discard, frontend.Open(ctx, ref, "big")); err != nil || n != bigFile {
		return nil, fmt.Errorf("read %d bytes of the big file by parts, %w", n, err)
	}
	if _, err := ref.ReadFile(ctx, "/missing"); !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("a missing file: %w", err)
	}
	if err := ref.Evaluate(ctx); err != nil {
		return nil, err
	}
	gw.Warn(ctx, g.Root.Vertex.Digest(), b.File.Warning(sdk.Lines(1, 1), "have a look"))
	inner, err := gw.(frontend.Forwarder).Frontend(ctx, "inner", map[string]string{"x": "y"}, map[string]*llb.Graph{"in": g})
	if err != nil || len(inner.Platforms) != 1 || inner.Platforms[0].Graph.Root.Vertex.Digest() != g.Root.Vertex.Digest() {
		return nil, fmt.Errorf("another frontend: %+v, %w", inner, err)
	}
	if string(inner.Platforms[0].Config) != `{"inner":true}` || string(inner.Meta["k"]) != "v" {
		return nil, fmt.Errorf("another frontend's config is %s, its metadata %s", inner.Platforms[0].Config, inner.Meta)
	}
	if req.Opts["fail"] != "" {
		return nil, b.File.Errorf(sdk.Lines(1, 1), "this line is wrong: %w", errors.New("as it was to be"))
	}
	return &frontend.Result{Platforms: []frontend.PlatformResult{{Graph: g, Config: []byte("{}")}}}, nil
}

// inner is a frontend that returns its input.
func inner(_ context.Context, req frontend.Request, _ frontend.Gateway) (*frontend.Result, error) {
	if req.Opts["x"] != "y" {
		return nil, fmt.Errorf("options are %v", req.Opts)
	}
	return &frontend.Result{
		Meta:      map[string][]byte{"k": []byte("v")},
		Platforms: []frontend.PlatformResult{{Graph: req.Inputs["in"], Config: []byte(`{"inner":true}`)}},
	}, nil
}

// TestSameFrontendAnywhere checks that a frontend runs the same in a container,
// in the daemon and on the client's side.
func TestSameFrontendAnywhere(t *testing.T) {
	g := serveFrontends(t, map[string]program{"sdk": func(ctx context.Context, f *inContainer) error {
		return sdk.Serve(ctx, f.raw, f.spec.Process.Env, sdk.Func(probe))
	}})
	g.frontends["probe"], g.frontends["inner"] = sdk.Func(probe), sdk.Func(inner)
	c, err := client.New("unix://"+g.socket, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	opts := map[string]string{"filename": "file", "build-arg:A": "b=c", "target": "t", "frontend.caps": "moby.buildkit.frontend.inputs"}
	solve := func(ctx context.Context, ref, name string, opts map[string]string) error {
		_, err := control.NewControlClient(g.conn).Solve(ctx, &control.SolveRequest{
			Ref: ref, Frontend: name, FrontendAttrs: opts, FrontendInputs: map[string]*pb.Definition{"image": textGraph(t, "program"), "dockerfile": textGraph(t, "other")},
		})
		return err
	}
	places := map[string]func(ctx context.Context, ref string, opts map[string]string) error{
		"daemon": func(ctx context.Context, ref string, opts map[string]string) error {
			return solve(ctx, ref, "probe", opts)
		},
		"container": func(ctx context.Context, ref string, opts map[string]string) error {
			all := imageOpts("sdk")
			maps.Copy(all, opts)
			return solve(ctx, ref, "gateway.v0", all)
		},
		"client": func(ctx context.Context, ref string, opts map[string]string) error {
			file := llb.Scratch().File(llb.Mkfile("/file", 0o644, []byte("other")))
			_, err := c.Build(ctx, client.SolveOpt{
				Ref: ref, FrontendAttrs: opts, FrontendInputs: map[string]llb.State{"dockerfile": file},
			}, sdk.BuildFunc(sdk.Func(probe)), nil)
			return err
		},
	}
	for place, run := range places {
		t.Run(place, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			if err := run(ctx, "good-"+place, opts); err != nil {
				t.Error(err)
			}
			bad := maps.Clone(opts)
			bad["fail"] = "yes"
			err := run(ctx, "bad-"+place, bad)
			if err == nil || !strings.Contains(err.Error(), "file:1: this line is wrong: as it was to be") {
				t.Fatalf("got %v", err)
			}
			if place != "client" && !strings.Contains(fmt.Sprint(status.Convert(err).Proto().GetDetails()), "errdefs.Source") {
				t.Errorf("the place is lost: %v", status.Convert(err).Proto())
			}
			lacking := maps.Clone(opts)
			lacking["frontend.caps"] = "moby.buildkit.frontend.telepathy"
			if err := run(ctx, "lacking-"+place, lacking); err == nil || !strings.Contains(err.Error(), "unsupported frontend capability moby.buildkit.frontend.telepathy") {
				t.Errorf("a capability that it does not have: %v", err)
			} else if place != "client" && status.Code(err) != codes.Unimplemented {
				t.Errorf("the code is %v", status.Code(err))
			}
		})
	}
}
