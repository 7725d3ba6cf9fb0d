package conformance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/filesync"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/stack"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/tonistiigi/fsutil"

	"github.com/kiln-build/kiln/conformance/peer"
)

// TestProgramErrors compares what programs find in errors: the code of a process, the
// step, the place in a file, the frontends that it went through.
func TestProgramErrors(t *testing.T) {
	file := llb.NewSourceMap(nil, "build.hlb", "hlb", []byte("one\ntwo\nthree\n"))
	line := file.Location([]*pb.Range{{Start: &pb.Position{Line: 2}, End: &pb.Position{Line: 2, Character: 3}}})
	run := func(opts ...llb.RunOption) gateway.SolveRequest {
		return evaluated(t, base().Run(append(opts, line)...).Root())
	}
	for name, req := range map[string]gateway.SolveRequest{
		"exit code":              run(llb.Args([]string{"/bin/sh", "-c", "exit 7"})),
		"no such program":        run(llb.Args([]string{"/no/such"})),
		"not in PATH":            run(llb.Args([]string{"no-such"})),
		"a folder":               run(llb.Args([]string{"/bin"})),
		"no user":                run(llb.Args([]string{"/bin/true"}), llb.User("nobody-known")),
		"killed":                 run(llb.Args([]string{"/bin/sh", "-c", "sh -c 'kill -9 $$'; exit $?"})),
		"a file is missing":      evaluated(t, llb.Scratch().File(llb.Copy(base(), "/none", "/"), line)),
		"no such frontend":       {Frontend: "no-such"},
		"bad Dockerfile":         lowered(t, "FROM scratch\nHUH\n"),
		"no Dockerfile":          {Frontend: "dockerfile.v0", FrontendInputs: map[string]*pb.Definition{"dockerfile": definition(t, base()), "context": definition(t, base())}},
		"no such capability":     lowered(t, "FROM scratch\n", "frontend.caps=moby.buildkit.frontend.huh"),
		"no such request":        lowered(t, "FROM scratch\n", "requestid=huh"),
		"no frontend's image":    {Frontend: "gateway.v0", FrontendOpt: map[string]string{"source": "127.0.0.1:1/none"}},
		"no image of its own":    {Frontend: "gateway.v0"},
		"no image on first line": lowered(t, "# syntax=127.0.0.1:1/none\nFROM scratch\n"),
	} {
		t.Run(name, func(t *testing.T) {
			var told [2]string
			for i, d := range []*peer.Daemon{shared.kiln, shared.buildkit} {
				if err := asFrontend(t, d, func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
					_, err := c.Solve(ctx, req)
					return nil, err
				}); err == nil {
					t.Errorf("%s: no error", d.Name)
				} else {
					told[i] = anatomy(err)
				}
			}
			if told[0] != told[1] {
				t.Errorf("Kiln's error has\n%swant, as BuildKit's,\n%s", told[0], told[1])
			}
		})
	}
}

// lowered asks the frontend for Dockerfiles to build a file.
func lowered(t *testing.T, text string, opts ...string) gateway.SolveRequest {
	t.Helper()
	r := gateway.SolveRequest{Frontend: "dockerfile.v0", FrontendOpt: map[string]string{}, FrontendInputs: map[string]*pb.Definition{
		"dockerfile": definition(t, llb.Scratch().File(llb.Mkfile("/Dockerfile", 0o644, []byte(text)))),
		"context":    definition(t, llb.Scratch().File(llb.Mkdir("/none", 0o755))),
	}}
	for _, o := range opts {
		key, value, _ := strings.Cut(o, "=")
		r.FrontendOpt[key] = value
	}
	return r
}

// anatomy is what programs can find in an error without reading its text.
func anatomy(err error) string {
	var vertex *errdefs.VertexError
	text := fmt.Sprintf("exit code %d, stacks %t, step %t\n", exitCode(err), len(stack.Traces(err)) > 0, errors.As(err, &vertex))
	for _, s := range errdefs.Sources(err) {
		text += fmt.Sprintf("%s line %d\n", s.Info.GetFilename(), s.Ranges[0].GetStart().GetLine())
	}
	for _, f := range errdefs.Frontends(err) {
		text += fmt.Sprintf("frontend %s of %q\n", f.Name, f.Source)
	}
	var lacks *errdefs.UnsupportedFrontendCapError
	var unknown *errdefs.UnsupportedSubrequestError
	return text + fmt.Sprintf("lacks %t, unknown request %t\n", errors.As(err, &lacks), errors.As(err, &unknown))
}

func definition(t *testing.T, st llb.State) *pb.Definition {
	t.Helper()
	def, err := st.Marshal(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return def.ToPB()
}

func evaluated(t *testing.T, st llb.State) gateway.SolveRequest {
	t.Helper()
	return gateway.SolveRequest{Definition: definition(t, st), Evaluate: true}
}

// gatewayNotStarted: a process that cannot be started has the runtime's exit code, in a
// container of its own and beside another.
func gatewayNotStarted(t *testing.T, ctx context.Context, c gateway.Client) {
	for _, program := range []string{"/no/such", "no-such", "/bin"} {
		ctr := container(t, ctx, c)
		if _, err := output(t, ctx, ctr, program); exitCode(err) != 1 {
			t.Errorf("%s: %v, want exit code 1", program, err)
		}
		_ = ctr.Release(ctx)
		ctr = container(t, ctx, c)
		start(t, ctx, ctr, gateway.StartRequest{Args: []string{"sleep", "50"}})
		if _, err := output(t, ctx, ctr, program); exitCode(err) != 255 {
			t.Errorf("%s beside another process: %v, want exit code 255", program, err)
		}
		_ = ctr.Release(ctx)
	}
}

// gatewayEnvironment: names without values are none of the environment.
func gatewayEnvironment(t *testing.T, ctx context.Context, c gateway.Client) {
	ctr := container(t, ctx, c)
	defer ctr.Release(context.WithoutCancel(ctx))
	var out transcript
	p := start(t, ctx, ctr, gateway.StartRequest{
		Args: []string{"sh", "-c", "echo ${A-unset} ${B-unset} ${C-unset}"}, Env: []string{"PATH=/bin", "A=", "B", "", "C=x=y"}, Stdout: &out,
	})
	if err := p.Wait(); err != nil || out.String() != "unset x=y\n" {
		t.Errorf("ended with %v and wrote %q", err, out.String())
	}
}

// gatewaySignalNames: signals that have no names of their own, and those that have two.
func gatewaySignalNames(t *testing.T, ctx context.Context, c gateway.Client) {
	ctr := container(t, ctx, c)
	defer ctr.Release(context.WithoutCancel(ctx))
	var out transcript
	p := start(t, ctx, ctr, gateway.StartRequest{
		Args:   []string{"sh", "-c", "trap : ABRT CHLD IO SYS; trap 'echo first' 40; trap 'exit 5' 63; echo up; while :; do sleep 0.05; done"},
		Stdout: &out,
	})
	out.await(t, "up")
	for range 20 { // which of two names the library sends is chance
		for _, s := range []syscall.Signal{syscall.SIGABRT, syscall.SIGCHLD, syscall.SIGIO, syscall.SIGSYS} {
			if err := p.Signal(ctx, s); err != nil {
				t.Fatalf("%v: %v", s, err)
			}
		}
	}
	if err := p.Signal(ctx, syscall.Signal(40)); err != nil {
		t.Error(err)
	}
	out.await(t, "first")
	if err := p.Signal(ctx, syscall.Signal(63)); err != nil {
		t.Error(err)
	}
	if err := p.Wait(); exitCode(err) != 5 {
		t.Errorf("ended with %v, want exit code 5", err)
	}
}

// gatewayLocalSource: of a directory nothing is known before it is sent.
func gatewayLocalSource(t *testing.T, ctx context.Context, c gateway.Client) {
	m, err := c.ResolveSourceMetadata(ctx, &pb.SourceOp{Identifier: "local://anything"}, sourceresolver.Opt{})
	if err != nil || m.Op.GetIdentifier() != "local://anything" || m.Image != nil || m.Git != nil || m.HTTP != nil {
		t.Errorf("got %+v, %v", m, err)
	}
}

// TestProgramWarnings compares what becomes of warnings that a frontend gives.
func TestProgramWarnings(t *testing.T) {
	source := &pb.SourceInfo{Filename: "build.hlb", Language: "hlb", Data: []byte("one\ntwo\n")}
	place := []*pb.Range{{Start: &pb.Position{Line: 1, Character: 2}, End: &pb.Position{Line: 2, Character: 1}}}
	given := []gateway.WarnOpts{
		{},
		{Level: 2, URL: "https://example.org/why", Detail: [][]byte{[]byte("first"), []byte("second")}},
		{Level: 1, SourceInfo: source, Range: place},
		{Level: -1},
	}
	var told [2]string
	for i, d := range []*peer.Daemon{shared.kiln, shared.buildkit} {
		for _, s := range watched(t, d, client.SolveOpt{}, func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
			for n, w := range given {
				if err := c.Warn(ctx, digest.FromString("step"), fmt.Sprint("warning ", n), w); err != nil {
					return nil, err
				}
			}
			return gateway.NewResult(), nil
		}) {
			for _, w := range s.Warnings {
				text, err := json.Marshal(w)
				if err != nil {
					t.Fatal(err)
				}
				told[i] += string(text) + "\n"
			}
		}
	}
	if told[0] != told[1] || strings.Count(told[0], "\n") != len(given) {
		t.Errorf("Kiln tells\n%swant, as BuildKit,\n%s", told[0], told[1])
	}
}

// watched builds with f as the frontend and returns all that is told meanwhile.
func watched(t *testing.T, d *peer.Daemon, opt client.SolveOpt, f gateway.BuildFunc) (all []*client.SolveStatus) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	c := dial(ctx, t, d)
	defer c.Close()
	opt.OCIStores = baseStores(t)
	ch, done := make(chan *client.SolveStatus), make(chan struct{})
	go func() {
		defer close(done)
		for s := range ch {
			all = append(all, s)
		}
	}()
	_, err := c.Build(ctx, opt, "", f, ch)
	<-done
	if err != nil {
		t.Errorf("%s: %v", d.Name, err)
	}
	return all
}

// TestImportNobodyNeeds builds what the daemon has, with a cache of others that it has
// no use for: that is no failure of any step.
func TestImportNobodyNeeds(t *testing.T) {
	cache := t.TempDir()
	st := base().Run(llb.Args([]string{"/bin/sh", "-c", "echo made > /made"})).Root()
	for _, d := range []*peer.Daemon{shared.kiln, shared.buildkit} {
		exports := client.SolveOpt{CacheExports: []client.CacheOptionsEntry{
			{Type: "local", Attrs: map[string]string{"dest": cache + "/" + d.Name}}, {Type: "inline"}, {Type: "inline"},
		}}
		imports := client.SolveOpt{FrontendAttrs: map[string]string{}, CacheImports: []client.CacheOptionsEntry{{Type: "local", Attrs: map[string]string{"src": cache + "/" + d.Name}}}}
		for _, opt := range []client.SolveOpt{exports, imports, imports, imports} {
			for _, s := range watched(t, d, opt, func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
				return c.Solve(ctx, gateway.SolveRequest{Definition: definition(t, st)})
			}) {
				for _, v := range s.Vertexes {
					if v.Error != "" {
						t.Errorf("%s: %s ended with %s", d.Name, v.Name, v.Error)
					}
				}
			}
		}
	}
}

// TestProgramContent has programs look at what they had exported: the image's
// documents and layers can be read from the daemon, though no record names them.
func TestProgramContent(t *testing.T) {
	for _, d := range []*peer.Daemon{shared.kiln, shared.buildkit} {
		c := dial(t.Context(), t, d)
		defer c.Close()
		def, err := base().File(llb.Mkfile("/content", 0o644, []byte("of an image"))).Marshal(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Solve(t.Context(), def, client.SolveOpt{
			Exports:   []client.ExportEntry{{Type: client.ExporterImage, Attrs: map[string]string{"name": "example.org/content:1"}}},
			OCIStores: baseStores(t),
			Internal:  true,
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		image := digest.Digest(resp.ExporterResponse[exptypes.ExporterImageDigestKey])
		store := proxy.NewContentStore(c.ContentClient())
		var manifest ocispecs.Manifest
		if err := json.Unmarshal(readInParts(t, d, store, image), &manifest); err != nil {
			t.Errorf("%s: %v", d.Name, err)
			continue
		}
		for _, blob := range append(manifest.Layers[1:], manifest.Config) {
			if data := readInParts(t, d, store, blob.Digest); int64(len(data)) != blob.Size {
				t.Errorf("%s: %s has %d bytes, want %d", d.Name, blob.MediaType, len(data), blob.Size)
			}
		}
		var listed []digest.Digest
		if err := store.Walk(t.Context(), func(i content.Info) error {
			listed = append(listed, i.Digest)
			return nil
		}, "digest=="+string(image)); err != nil || len(listed) != 1 || listed[0] != image {
			t.Errorf("%s: of the image is listed %v (%v)", d.Name, listed, err)
		}
	}
}

// readInParts reads a blob as programs do that know no size, a buffer at a time.
func readInParts(t *testing.T, d *peer.Daemon, store content.Provider, blob digest.Digest) []byte {
	t.Helper()
	ra, err := store.ReaderAt(t.Context(), ocispecs.Descriptor{Digest: blob})
	if err != nil {
		t.Errorf("%s: %v", d.Name, err)
		return nil
	}
	defer ra.Close()
	var data []byte
	for {
		buf := make([]byte, 100)
		n, err := ra.ReadAt(buf, int64(len(data)))
		data = append(data, buf[:n]...)
		if err != nil && !errors.Is(err, io.EOF) {
			t.Errorf("%s: after %d bytes: %v", d.Name, len(data), err)
			return nil
		}
		if n == 0 || err != nil {
			break
		}
	}
	if digest.FromBytes(data) != blob {
		t.Errorf("%s: %s has other content, %d bytes", d.Name, blob, len(data))
	}
	return data
}

// TestProgramSharedSession has builds share a session that the program began itself: at
// the same time one exports, one reads and one returns nothing; another comes later.
func TestProgramSharedSession(t *testing.T) {
	data := t.TempDir()
	if err := os.WriteFile(filepath.Join(data, "data"), []byte("sent"), 0o644); err != nil {
		t.Fatal(err)
	}
	fs, err := fsutil.NewFS(data)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []*peer.Daemon{shared.kiln, shared.buildkit} {
		t.Run(d.Name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			c := dial(ctx, t, d)
			defer c.Close()
			s, err := session.NewSession(ctx, "shared")
			if err != nil {
				t.Fatal(err)
			}
			dest := t.TempDir()
			s.Allow(filesync.NewFSSyncProvider(filesync.StaticDirSource{"data": fs}))
			s.Allow(filesync.NewFSSyncTarget(filesync.WithFSSyncDir(0, dest)))
			ended := make(chan error, 1)
			go func() { ended <- s.Run(ctx, c.Dialer()) }()
			copied := llb.Scratch().File(llb.Copy(llb.Local("data"), "/data", "/copied"))
			build := func(opt client.SolveOpt, f gateway.BuildFunc) error {
				opt.SharedSession, opt.SessionPreInitialized = s, true
				_, err := c.Build(ctx, opt, "program", f, nil)
				return err
			}
			read := func(ctx context.Context, g gateway.Client) (*gateway.Result, error) {
				res, err := g.Solve(ctx, gateway.SolveRequest{Definition: definition(t, copied)})
				if err != nil {
					return nil, err
				}
				if text, err := res.Ref.ReadFile(ctx, gateway.ReadRequest{Filename: "copied"}); err != nil || string(text) != "sent" {
					return nil, fmt.Errorf("read %q (%w)", text, err)
				}
				return res, nil
			}
			nothing := func(context.Context, gateway.Client) (*gateway.Result, error) { return nil, nil }
			together := make(chan error, 3)
			go func() {
				together <- build(client.SolveOpt{Exports: []client.ExportEntry{{Type: client.ExporterLocal, OutputDir: dest}}}, read)
			}()
			go func() { together <- build(client.SolveOpt{}, read) }()
			go func() { together <- build(client.SolveOpt{}, nothing) }()
			for range 3 {
				if err := <-together; err != nil {
					t.Error(err)
				}
			}
			if text, err := os.ReadFile(filepath.Join(dest, "copied")); err != nil || string(text) != "sent" {
				t.Errorf("exported %q (%v)", text, err)
			}
			if err := build(client.SolveOpt{}, read); err != nil {
				t.Errorf("later: %v", err)
			}
			if err := errors.Join(s.Close(), <-ended); err != nil {
				t.Error(err)
			}
		})
	}
}
