package client_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/kiln-build/kiln/client"
	"github.com/kiln-build/kiln/client/clienttest"
	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/llb/pb"
)

// allCaps are what a daemon of today has.
var allCaps = []string{
	"proto.refarray", "readdir", "statfile", "reference.output", "frontend.inputs", "gateway.evaluate",
	"gateway.solve.evaluate", "gateway.exec", "gateway.exec.filesystem", "source.metaresolver",
}

func marshal(t *testing.T, st llb.State) *pb.Definition {
	t.Helper()
	def, err := st.Marshal(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return def.ToPB()
}

// discard forgets events.
type discard struct{}

func (discard) Emit(client.Event) {}

// A driver solves, looks at files, and returns a result with all that it may have.
func TestBuild(t *testing.T) {
	var returned *gateway.ReturnRequest
	d := clienttest.Start(t, func(ctx context.Context, b *clienttest.Build) (map[string]string, error) {
		if b.Request.GetFrontend() != "" || b.Request.GetDefinition() != nil {
			return nil, status.Error(codes.InvalidArgument, "the request is not for a driver")
		}
		var err error
		returned, err = b.Driven(ctx)
		return map[string]string{"k": "v"}, err
	})
	def := marshal(t, llb.Scratch().File(llb.Mkfile("/f", 0o644, nil)))
	var solved *gateway.SolveRequest
	d.Bridge.Caps, d.Bridge.LLBCaps, d.Bridge.Files = allCaps, llb.Caps(), map[string]string{"/f": "content"}
	d.Bridge.OnSolve = func(r *gateway.SolveRequest) (*gateway.SolveResponse, error) {
		solved = r
		return &gateway.SolveResponse{Result: &gateway.Result{
			Result:   &gateway.Result_Ref{Ref: &gateway.Ref{Id: "r1", Def: def}},
			Metadata: map[string][]byte{"m": []byte("1")},
			Attestations: map[string]*gateway.Attestations{"p": {Attestation: []*gateway.Attestation{{
				Kind: gateway.AttestationKind_Bundle, Ref: &gateway.Ref{}, Path: "/a",
				InTotoSubjects: []*gateway.InTotoSubject{{Kind: gateway.InTotoSubjectKind_Raw, Name: "n", Digest: []string{"sha256:x"}}},
			}}}},
		}}, nil
	}
	c := connect(t, d)
	result, err := c.Build(t.Context(), client.SolveOpt{
		Frontend: "ignored", FrontendAttrs: map[string]string{"a": "b"}, FrontendInputs: map[string]llb.State{"in": llb.Image("alpine")},
		CacheImports: []client.CacheEntry{{Type: "registry", Attrs: map[string]string{"ref": "x"}}},
	}, func(ctx context.Context, g *client.Gateway) (*client.BuildResult, error) {
		opts := g.BuildOpts()
		if opts.Opts["a"] != "b" || opts.SessionID == "" || len(opts.Workers) != 1 || len(opts.CacheImports) != 1 || !opts.Caps["statfile"] {
			t.Errorf("the driver is told %+v", opts)
		}
		in, err := g.Inputs(ctx)
		if err != nil || len(in) != 1 {
			t.Errorf("inputs %v, %v", in, err)
		}
		r, err := g.Solve(ctx, client.SolveRequest{Definition: def, FrontendOpt: map[string]string{"x": "y"}})
		if err != nil {
			return nil, err
		}
		text, err := r.Ref.ReadFile(ctx, "/f", &client.FileRange{Offset: 1, Length: 2})
		if err != nil || string(text) != "on" {
			t.Errorf("read %q, %v", text, err)
		}
		if _, err := r.Ref.ReadFile(ctx, "/none", nil); status.Code(err) != codes.NotFound {
			t.Errorf("read what is not there: %v", err)
		}
		st, err := r.Ref.ToState()
		if err != nil {
			t.Error(err)
		}
		if got := marshal(t, st); !bytes.Equal(got.GetDef()[0], def.GetDef()[0]) {
			t.Error("the State of the reference is another one")
		}
		return r, nil
	}, discard{})
	if err != nil || result.Response["k"] != "v" {
		t.Fatalf("result %v, %v", result, err)
	}
	if solved.GetFrontendOpt()["cache-imports"] != `[{"Type":"registry","Attrs":{"ref":"x"}}]` || !solved.GetAllowResultReturn() {
		t.Errorf("solved %v", solved)
	}
	got := returned.GetResult()
	if got.GetRef().GetId() != "r1" || string(got.GetMetadata()["m"]) != "1" {
		t.Errorf("returned %v", returned)
	}
	a := got.GetAttestations()["p"].GetAttestation()[0]
	if a.GetRef() == nil || a.GetKind() != gateway.AttestationKind_Bundle || a.GetInTotoSubjects()[0].GetDigest()[0] != "sha256:x" {
		t.Errorf("returned the attestation %v", a)
	}
}

// What a driver says of its failure is what the build fails with.
func TestBuildFails(t *testing.T) {
	d := clienttest.Start(t, clienttest.Follow)
	d.Bridge.Caps = allCaps
	c := connect(t, d)
	own := errors.New("own reason")
	_, err := c.Build(t.Context(), client.SolveOpt{}, func(context.Context, *client.Gateway) (*client.BuildResult, error) { return nil, own }, discard{})
	if !errors.Is(err, own) || err.Error() != "own reason" {
		t.Errorf("error %v, want the driver's", err)
	}
	d.Bridge.OnSolve = func(*gateway.SolveRequest) (*gateway.SolveResponse, error) {
		return nil, status.ErrorProto(&spb.Status{
			Code: int32(codes.NotFound), Message: "no such thing",
			Details: []*anypb.Any{detail(t, "errdefs.Vertex", `{"digest":"sha256:v"}`)},
		})
	}
	_, err = c.Build(t.Context(), client.SolveOpt{}, func(ctx context.Context, g *client.Gateway) (*client.BuildResult, error) {
		return g.Solve(ctx, client.SolveRequest{Frontend: "x"})
	}, discard{})
	var e *client.Error
	if !errors.As(err, &e) || e.Code != codes.NotFound || e.Vertex != "sha256:v" || e.Message != "no such thing" {
		t.Errorf("error %#v, want the daemon's with its details", err)
	}
	def := marshal(t, llb.Image("x"))
	_, err = c.Build(t.Context(), client.SolveOpt{}, func(ctx context.Context, g *client.Gateway) (*client.BuildResult, error) {
		return g.Solve(ctx, client.SolveRequest{Definition: def})
	}, discard{})
	if err == nil || !strings.Contains(err.Error(), "requested experimental feature") {
		t.Errorf("error %v, want one that names the missing capability", err)
	}
}

// A daemon that fails a build does not wait for its driver, and neither does a client
// whose build is canceled.
func TestBuildEnds(t *testing.T) {
	d := clienttest.Start(t, func(context.Context, *clienttest.Build) (map[string]string, error) {
		return nil, status.Error(codes.InvalidArgument, "not like this")
	})
	d.Bridge.Caps = allCaps
	stuck := func(ctx context.Context, _ *client.Gateway) (*client.BuildResult, error) {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	if _, err := connect(t, d).Build(t.Context(), client.SolveOpt{}, stuck, discard{}); err == nil || err.Error() != "not like this" {
		t.Errorf("error %v, want the daemon's", err)
	}
	waiting := clienttest.Start(t, clienttest.Follow)
	waiting.Bridge.Caps = allCaps
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := connect(t, waiting).Build(ctx, client.SolveOpt{}, stuck, discard{}); err == nil {
		t.Error("a canceled build succeeded")
	}
}

func TestContainer(t *testing.T) {
	d := clienttest.Start(t, clienttest.Follow)
	d.Bridge.Caps, d.Bridge.OnProcess = allCaps, clienttest.Echo(3)
	_, err := connect(t, d).Build(t.Context(), client.SolveOpt{}, func(ctx context.Context, g *client.Gateway) (*client.BuildResult, error) {
		c, err := g.NewContainer(ctx, client.ContainerRequest{Mounts: []client.ContainerMount{{Dest: "/"}}})
		if err != nil {
			return nil, err
		}
		var out bytes.Buffer
		p, err := c.Start(ctx, client.ProcessRequest{Args: []string{"cat"}, Stdin: strings.NewReader("fed"), Stdout: &out})
		if err != nil {
			return nil, err
		}
		var exit *client.ExitError
		if err := p.Wait(); !errors.As(err, &exit) || exit.Code != 3 || out.String() != "fed" {
			t.Errorf("the process wrote %q and ended with %v", out.String(), err)
		}
		p, err = c.Start(ctx, client.ProcessRequest{Args: []string{"cat"}})
		if err != nil {
			return nil, err
		}
		if err := p.Signal(15); err != nil {
			t.Error(err)
		}
		if err := p.Wait(); err == nil || err.Error() != "signal TERM" || errors.As(err, &exit) {
			t.Errorf("the process ended with %v, want what the daemon says of it", err)
		}
		if err := p.Signal(15); err == nil {
			t.Error("a process that has ended took a signal")
		}
		if _, err := c.Start(ctx, client.ProcessRequest{SecretEnv: []*pb.SecretEnv{{ID: "x"}}}); err == nil {
			t.Error("a daemon without secrets for processes was asked for them")
		}
		return nil, c.Release(ctx)
	}, discard{})
	if err != nil {
		t.Error(err)
	}
}

func TestResolve(t *testing.T) {
	d := clienttest.Start(t, clienttest.Follow)
	d.Bridge.Caps = allCaps
	d.Bridge.OnResolve = func(r *gateway.ResolveSourceMetaRequest) (*gateway.ResolveSourceMetaResponse, error) {
		switch {
		case strings.HasSuffix(r.GetSource().GetIdentifier(), "moved"):
			return &gateway.ResolveSourceMetaResponse{Source: &pb.SourceOp{Identifier: "https://x"}}, nil
		case strings.HasSuffix(r.GetSource().GetIdentifier(), "empty"):
			return &gateway.ResolveSourceMetaResponse{}, nil
		}
		return &gateway.ResolveSourceMetaResponse{
			Source: &pb.SourceOp{Identifier: r.GetSource().GetIdentifier() + "@pinned"},
			Image:  &gateway.ResolveSourceImageResponse{Digest: "sha256:d", Config: []byte("{}")},
		}, nil
	}
	_, err := connect(t, d).Build(t.Context(), client.SolveOpt{}, func(ctx context.Context, g *client.Gateway) (*client.BuildResult, error) {
		ref, dgst, config, err := g.ResolveImageConfig(ctx, "a/b", llb.ResolveImageOpt{ResolveMode: "pull"})
		if err != nil || ref != "a/b@pinned" || dgst != digest.Digest("sha256:d") || string(config) != "{}" {
			t.Errorf("resolved %s, %s, %s, %v", ref, dgst, config, err)
		}
		for _, name := range []string{"moved", "empty"} {
			if _, _, _, err := g.ResolveImageConfig(ctx, name, llb.ResolveImageOpt{}); err == nil {
				t.Errorf("%s is taken for an image", name)
			}
		}
		return nil, nil
	}, discard{})
	if err != nil {
		t.Error(err)
	}
}

// A daemon that does not answer well costs no more than an error.
func TestHostileDaemon(t *testing.T) {
	d := clienttest.Start(t, clienttest.Follow)
	d.Bridge.Caps = allCaps
	for name, r := range map[string]*gateway.SolveResponse{
		"kind": {Result: &gateway.Result{Attestations: map[string]*gateway.Attestations{
			"": {Attestation: []*gateway.Attestation{{Kind: 9}}},
		}}},
		"subject": {Result: &gateway.Result{Attestations: map[string]*gateway.Attestations{
			"": {Attestation: []*gateway.Attestation{{InTotoSubjects: []*gateway.InTotoSubject{{Kind: 9}}}}},
		}}},
		"nil": {Result: &gateway.Result{Result: &gateway.Result_Refs{}, Attestations: map[string]*gateway.Attestations{"": nil}}},
	} {
		d.Bridge.OnSolve = func(*gateway.SolveRequest) (*gateway.SolveResponse, error) { return r, nil }
		_, err := connect(t, d).Build(t.Context(), client.SolveOpt{}, func(ctx context.Context, g *client.Gateway) (*client.BuildResult, error) {
			return g.Solve(ctx, client.SolveRequest{Frontend: "x"})
		}, discard{})
		if (err == nil) != (name == "nil") {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// readAll reads a blob of a daemon's history.
func readAll(t *testing.T, r io.ReaderAt, size int64) string {
	t.Helper()
	b, err := io.ReadAll(io.NewSectionReader(r, 0, size))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
