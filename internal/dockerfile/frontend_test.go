package dockerfile

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/dockerfile/syntax"
	"github.com/kiln-build/kiln/llb"
)

var amd64 = ocispecs.Platform{OS: "linux", Architecture: "amd64"}

func build(t *testing.T, gw frontend.Gateway, opts map[string]string) (*frontend.Result, error) {
	t.Helper()
	return New().Build(t.Context(), frontend.Request{Opts: opts, Worker: amd64}, gw)
}

// slowGateway takes a second for each image.
type slowGateway struct {
	*fakeGateway
}

func (g slowGateway) ResolveSource(ctx context.Context, op *llb.SourceOp, opt frontend.ResolveOpt) (*frontend.SourceMeta, error) {
	time.Sleep(time.Second)
	return g.fakeGateway.ResolveSource(ctx, op, opt)
}

// TestFetchesAtOnce checks that all images are asked for at the same time, each
// once, and none that the target does not need.
func TestFetchesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := slowGateway{newFakeGateway(map[string]string{"dockerfile/Dockerfile": `FROM alpine AS a
FROM golang:1 AS b
FROM full AS unused
FROM multi
COPY --from=a /x /x
COPY --from=b /x /x
COPY --from=busybox:1 /x /x
COPY --from=alpine /x /x
`})}
		start := time.Now()
		if _, err := build(t, gw, nil); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took != time.Second {
			t.Errorf("fetching took %v, want 1s", took)
		}
		if n := len(gw.resolved); n != 4 {
			t.Errorf("asked for %d images, want 4:\n%s", n, strings.Join(gw.resolved, "\n"))
		}
		for _, r := range gw.resolved {
			if strings.Contains(r, "full") || !strings.Contains(r, "[internal] load metadata for docker.io/library/") {
				t.Errorf("asked for %s", r)
			}
		}
	})
}

// TestTriggersNeedMore checks that images which ONBUILD triggers name are
// fetched in a second round.
func TestTriggersNeedMore(t *testing.T) {
	gw := newFakeGateway(map[string]string{"dockerfile/Dockerfile": "FROM onbuild\n"})
	if _, err := build(t, gw, nil); err != nil {
		t.Fatal(err)
	}
	if len(gw.resolved) != 2 || !strings.Contains(gw.resolved[1], "busybox") {
		t.Errorf("asked for %q", gw.resolved)
	}
}

// TestLocalRequests checks what is asked of the client.
func TestLocalRequests(t *testing.T) {
	gw := newFakeGateway(map[string]string{"dockerfile/Dockerfile": "FROM scratch\nCOPY a /\n", "context/.dockerignore": "x\n"})
	if _, err := build(t, gw, nil); err != nil {
		t.Fatal(err)
	}
	want := []string{
		`source local://dockerfile  local.differ=none follow="Dockerfile" follow="Dockerfile.dockerignore" follow="dockerfile" local.sharedkeyhint=dockerfile name="[internal] load build definition from Dockerfile"`,
		`source local://context  local.differ=none follow=".dockerignore" local.sharedkeyhint=context-.dockerignore name="[internal] load .dockerignore"`,
	}
	if len(gw.solved) != len(want) {
		t.Fatalf("solved %d graphs:\n%s", len(gw.solved), strings.Join(gw.solved, "\n"))
	}
	for i, w := range want {
		if !strings.Contains(gw.solved[i], w) {
			t.Errorf("solved %s\nwant %s", gw.solved[i], w)
		}
	}
}

// lostContext is a gateway of a client that offers no context.
type lostContext struct{ *fakeGateway }

func (g lostContext) Solve(ctx context.Context, graph *llb.Graph) (frontend.Ref, error) {
	ref, err := g.fakeGateway.Solve(ctx, graph)
	if op, ok := graph.Root.Vertex.Op.(*llb.SourceOp); ok && op.Identifier == "local://context" {
		return nil, errors.New("no such directory")
	}
	return ref, err
}

// TestContextNotNeeded checks that a build which copies nothing asks for the
// context's .dockerignore only, and does without the context.
func TestContextNotNeeded(t *testing.T) {
	gw := newFakeGateway(map[string]string{"dockerfile/Dockerfile": "FROM alpine\nRUN true\nCOPY <<X /x\nX\n"})
	if _, err := build(t, lostContext{gw}, nil); err != nil {
		t.Fatal(err)
	}
	if len(gw.solved) != 2 || !strings.Contains(gw.solved[1], ".dockerignore") {
		t.Errorf("solved %v, want the Dockerfile's graph and that of .dockerignore", gw.solved)
	}
	gw = newFakeGateway(map[string]string{"dockerfile/Dockerfile": "FROM alpine\nCOPY a /\n"})
	if _, err := build(t, lostContext{gw}, nil); err == nil || !strings.Contains(err.Error(), "no such directory") {
		t.Errorf("a context that is needed and missing: %v", err)
	}
}

// TestArchiveContext checks that a tar behind a URL is unpacked, and the
// Dockerfile read from it.
func TestArchiveContext(t *testing.T) {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	if err := w.WriteHeader(&tar.Header{Name: "Dockerfile", Size: 0, Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	const url = "http://buildkit-session/abc"
	gw := &archiveGateway{fakeGateway: newFakeGateway(map[string]string{url: archive.String()}), dockerfile: "FROM alpine\nCOPY a /\n"}
	res, err := build(t, gw, map[string]string{"context": url})
	if err != nil {
		t.Fatal(err)
	}
	text := res.Platforms[0].Graph.Text()
	for _, want := range []string{"copy %1:/context / unpack", "copy %2:/a / follow"} {
		if !strings.Contains(text, want) {
			t.Errorf("graph has no %q:\n%s", want, text)
		}
	}
}

// archiveGateway has a Dockerfile in what was unpacked.
type archiveGateway struct {
	*fakeGateway
	dockerfile string
}

func (g *archiveGateway) Solve(ctx context.Context, graph *llb.Graph) (frontend.Ref, error) {
	if _, ok := graph.Root.Vertex.Op.(*llb.FileOp); ok {
		return fakeRef{"Dockerfile": g.dockerfile}, nil
	}
	return g.fakeGateway.Solve(ctx, graph)
}

// TestInputs checks that graphs of the request stand in for contexts.
func TestInputs(t *testing.T) {
	root := func(url string) *llb.Graph {
		return &llb.Graph{Root: llb.Edge{Vertex: &llb.Vertex{Op: &llb.SourceOp{Identifier: url, Attrs: map[string]string{}}}}}
	}
	gw := newFakeGateway(map[string]string{"dockerfile/Dockerfile": "FROM base\nCOPY a /\nRUN true\n"})
	res, err := New().Build(t.Context(), frontend.Request{
		Opts: map[string]string{
			"context:base":        "input:base",
			"input-metadata:base": `{"containerimage.config":"eyJjb25maWciOnsiRW52IjpbIklOPXB1dCJdfX0="}`,
		},
		Inputs: map[string]*llb.Graph{"base": root("https://example.com/base"), "context": root("https://example.com/context")},
		Worker: amd64,
	}, gw)
	if err != nil {
		t.Fatal(err)
	}
	text := res.Platforms[0].Graph.Text()
	for _, want := range []string{"source https://example.com/base", "source https://example.com/context", `"IN=put"`} {
		if !strings.Contains(text, want) {
			t.Errorf("graph has no %s:\n%s", want, text)
		}
	}
	if _, err := build(t, gw, map[string]string{"context:base": "input:gone"}); err == nil || !strings.Contains(err.Error(), `no input "gone"`) {
		t.Errorf("error %v", err)
	}
}

// TestSourceRanges checks that steps are tied to the lines of the file.
func TestSourceRanges(t *testing.T) {
	gw := newFakeGateway(map[string]string{"dockerfile/Dockerfile": "FROM alpine\n\nRUN a && \\\n  b\nRUN <<E\nx\nE\n"})
	res, err := build(t, gw, nil)
	if err != nil {
		t.Fatal(err)
	}
	g := res.Platforms[0].Graph
	var got []string
	for _, v := range g.Vertices() {
		for _, loc := range g.Sources.Locations[v.Digest()] {
			at := v.Op.Kind()
			for _, r := range loc.Ranges { // one for each line, as BuildKit's clients expect
				at += fmt.Sprintf(" %d-%d", r.Start.Line, r.End.Line)
			}
			got = append(got, at)
		}
	}
	if s := strings.Join(got, ", "); s != "source 1-1, exec 3-3 4-4, exec 5-5 6-6 7-7" {
		t.Errorf("steps stand at %s", s)
	}
}

// TestCauses checks that what went wrong below can still be told apart.
func TestCauses(t *testing.T) {
	boom := errors.New("connection refused")
	gw := &brokenGateway{fakeGateway: newFakeGateway(map[string]string{"dockerfile/Dockerfile": "FROM alpine\n"}), err: boom}
	_, err := build(t, gw, nil)
	var at *frontend.SourceError
	if !errors.Is(err, boom) || !errors.As(err, &at) || at.Ranges[0].Start.Line != 1 {
		t.Errorf("error %v does not tell cause and place", err)
	}
	if _, err := build(t, newFakeGateway(nil), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v of a missing Dockerfile", err)
	}
	var un *frontend.UnsupportedError
	if _, err := build(t, gw, map[string]string{"requestid": "frontend.unknown"}); !errors.As(err, &un) || un.Kind != "subrequest" {
		t.Errorf("error %v of a subrequest", err)
	}
}

type brokenGateway struct {
	*fakeGateway
	err error
}

func (g *brokenGateway) ResolveSource(context.Context, *llb.SourceOp, frontend.ResolveOpt) (*frontend.SourceMeta, error) {
	return nil, g.err
}

// TestHostileConfig checks that broken image configs end in errors.
func TestHostileConfig(t *testing.T) {
	for _, config := range []string{"null", "[]", "{", `{"config":{"OnBuild":["ONBUILD RUN x"]}}`, `{"config":{"OnBuild":[""]}}`, `{"config":1}`, ""} {
		gw := newFakeGateway(map[string]string{"dockerfile/Dockerfile": "FROM bad\n"})
		gw.images["docker.io/library/bad:latest"] = config
		if _, err := build(t, gw, nil); err == nil {
			t.Errorf("config %q was taken", config)
		}
	}
	gw := newFakeGateway(map[string]string{"dockerfile/Dockerfile": "FROM bad\nRUN true\n"})
	gw.images["docker.io/library/bad:latest"] = "{}"
	if _, err := build(t, gw, nil); err != nil {
		t.Errorf("an empty config is an error: %v", err)
	}
}

// TestBadInput checks that large files and junk end in one clear error.
func TestBadInput(t *testing.T) {
	for name, text := range map[string]string{
		"line is longer than 1048576": strings.Repeat("x", 10<<20),
		"file is 20971520 bytes long": strings.Repeat("x\n", 10<<20),
		"binary file":                 "\x7fELF\x02\x01\x01\x00\x00",
		"no instructions":             "",
		"unknown instruction":         strings.Repeat("junk ! ' \" [\n", 1000),
	} {
		_, err := build(t, newFakeGateway(map[string]string{"dockerfile/Dockerfile": text}), nil)
		if err == nil || !strings.Contains(err.Error(), name) || len(err.Error()) > 20000 {
			t.Errorf("%s: error %.200v", name, err)
		}
	}
}

// TestWarnOnce checks that a build for several platforms warns once.
func TestWarnOnce(t *testing.T) {
	gw := newFakeGateway(map[string]string{"dockerfile/Dockerfile": "FROM multi\nMAINTAINER x\n"})
	if _, err := build(t, gw, map[string]string{"platform": "linux/amd64,linux/arm64"}); err != nil {
		t.Fatal(err)
	}
	if len(gw.warnings) != 1 || gw.warnings[0].URL != "https://docs.docker.com/go/dockerfile/rule/maintainer-deprecated/" {
		t.Errorf("warnings %+v", gw.warnings)
	}
}

func TestRuleURLs(t *testing.T) {
	for r, want := range map[rule]string{
		ruleJSONArgs: "json-args-recommended", ruleSecrets: "secrets-used-in-arg-or-env", ruleFromAsCasing: "from-as-casing",
	} {
		if got := r.url(); got != ruleDocs+want+"/" {
			t.Errorf("page of %s is %s", r, got)
		}
	}
}

// FuzzBuild checks that no file makes the frontend panic, that errors have their
// place inside the file, and that graphs are valid.
func FuzzBuild(f *testing.F) {
	for _, text := range []string{
		"FROM alpine\nRUN --mount=type=cache,target=/x,sharing=locked a\nCOPY --from=0 a b\n",
		"ARG A=1\nFROM full AS x\nONBUILD RUN a\nFROM x\nEXPOSE $A 1-3/udp\nCOPY --parents ./a/./b /c\n",
		"FROM scratch\nADD --checksum=x https://a/b /\nCOPY <<E /\n$X\nE\nHEALTHCHECK CMD [\"a\"]\nWORKDIR ../x",
		"FROM scratch\nADD a https:// b",
		"FROM onbuild\nENV a=b c=${a#*}\nUSER 4294967296\nCOPY --chown=$a --chmod=u+x,g=o --link a b",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		res, err := build(t, newFakeGateway(map[string]string{"dockerfile/Dockerfile": text}), map[string]string{"build-arg:a": text})
		for _, e := range frontend.SourceErrorsIn(err) {
			for _, r := range e.Ranges {
				if lines := strings.Count(string(e.File.Data), "\n") + 1; r.Start.Line < 1 || r.End.Line > lines {
					t.Fatalf("error at %+v of %d lines", r, lines)
				}
			}
			e.Snippet()
		}
		if err == nil {
			if err := res.Platforms[0].Graph.Verify(); err != nil && utf8.ValidString(text) {
				t.Fatalf("graph is not valid: %v", err)
			}
		}
	})
}

// bench lowers a file again and again.
func bench(b *testing.B, text string) {
	file, err := syntax.Parse(syntax.NewSource("Dockerfile", []byte(text)), syntax.DockerfileWords())
	if err != nil {
		b.Fatal(err)
	}
	opts, err := decodeOptions(nil)
	if err != nil {
		b.Fatal(err)
	}
	in := &input{file: file, words: syntax.DockerfileWords(), opts: opts, target: amd64, build: amd64, implicit: true}
	known := &facts{images: map[string]*imageFact{}, ignores: map[string][]string{mainIgnore().key(): nil}}
	for round := 0; ; round++ {
		_, n, err := lower(in, known)
		if err != nil || round > 3 {
			b.Fatal(err, n)
		}
		if n.empty() {
			break
		}
		for _, q := range n.images {
			known.images[q.key()] = &imageFact{op: q.op, config: []byte(plainImage("amd64", nil))}
		}
	}
	b.ResetTimer()
	for b.Loop() {
		out, _, err := lower(in, known)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := out.graph.Marshal(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLower1000Lines lowers a single stage of 1,000 lines.
func BenchmarkLower1000Lines(b *testing.B) {
	var text strings.Builder
	text.WriteString("FROM alpine\n")
	for i := range 333 {
		fmt.Fprintf(&text, "ENV V%d=x\nRUN echo ${V%d} %d\nCOPY f%d /d/\n", i, i, i, i)
	}
	bench(b, text.String())
}

// BenchmarkLower200Stages lowers 200 stages that copy from each other.
func BenchmarkLower200Stages(b *testing.B) {
	var text strings.Builder
	for i := range 200 {
		fmt.Fprintf(&text, "FROM alpine AS s%d\nWORKDIR /w%d\nRUN make\n", i, i)
		if i > 0 {
			fmt.Fprintf(&text, "COPY --from=s%d /out /in\n", i-1)
		}
	}
	bench(b, text.String())
}

// BenchmarkParse1000Lines parses the file of BenchmarkLower1000Lines.
func BenchmarkParse1000Lines(b *testing.B) {
	text := []byte("FROM alpine\n" + strings.Repeat("ENV A=x\nRUN echo ${A} \\\n  && true\n", 333))
	for b.Loop() {
		if _, err := syntax.Parse(syntax.NewSource("Dockerfile", text), syntax.DockerfileWords()); err != nil {
			b.Fatal(err)
		}
	}
}

// TestConcurrentBuilds checks that one frontend serves many builds at a time.
func TestConcurrentBuilds(t *testing.T) {
	f := New()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			gw := newFakeGateway(map[string]string{"dockerfile/Dockerfile": "FROM alpine\nRUN true\nCOPY a /\n"})
			if _, err := f.Build(t.Context(), frontend.Request{Worker: amd64}, gw); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// TestGrowth checks that a small file cannot grow without bound.
func TestGrowth(t *testing.T) {
	var doubling, stages, runs, args strings.Builder
	doubling.WriteString("FROM alpine\nENV A=0123456789abcdef\n")
	for range 40 {
		doubling.WriteString("ENV A=$A$A\n")
	}
	stages.WriteString("FROM alpine AS s0\n" + strings.Repeat("LABEL a=b\n", 20000))
	for i := range 20000 {
		fmt.Fprintf(&stages, "FROM s%d AS s%d\n", i, i+1)
	}
	runs.WriteString("FROM alpine\nENV L=" + strings.Repeat("x", 100000) + "\n" + strings.Repeat("RUN a\n", 50000))
	args.WriteString("FROM alpine\n")
	for i := range 20000 {
		fmt.Fprintf(&args, "ARG A%d=x\nRUN b\n", i)
	}
	for name, text := range map[string]string{
		"doubling": doubling.String(), "stages": stages.String(), "runs": runs.String(), "args": args.String(),
	} {
		_, err := build(t, newFakeGateway(map[string]string{"dockerfile/Dockerfile": text}), nil)
		var at *frontend.SourceError
		if !errors.As(err, &at) || !strings.Contains(err.Error(), "more than") {
			t.Errorf("%s: error %.300v", name, err)
		}
	}
}

// FuzzGitRef reads addresses of repositories: what is taken keeps passwords out
// of titles, and is an address for the source of git repositories, too.
func FuzzGitRef(f *testing.F) {
	for _, s := range []string{
		"https://example.com/x.git#main:sub", "git@example.com:x?ref=a&subdir=b#a", "github.com/org/repo?tag=v1", "git://h/x?keep-git-dir",
		"https://user:secret@example.com/x.git", "ssh://-oProxyCommand=x/y", "http://h/x.git?commit=aa&commit=bb", "https://h/%2e.git#-x",
		"http://:@0000@0000/.git",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		g, isGit, err := parseGitRef(s)
		if err != nil || !isGit {
			return
		}
		op := g.op(true, false, "")
		if !strings.HasPrefix(op.Identifier, "git://") || op.Attrs["git.keepgitdir"] != "true" {
			t.Errorf("%q became %+v", s, op)
		}
		if u, err := url.Parse(s); err == nil && u.User != nil {
			public := u.Scheme + "://xxxxx@" + u.Host + u.Path + u.RawQuery + u.Fragment // where a password may stand by chance
			if p, ok := u.User.Password(); ok && len(p) > 4 && !strings.Contains(public, p) && strings.Contains(gitTitle(s), p) {
				t.Errorf("the password is in %q", gitTitle(s))
			}
		}
	})
}
