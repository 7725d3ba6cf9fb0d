package provenance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/llb"
)

var update = flag.Bool("update", false, "write what came out into the golden files")

const graph = `%0 = source docker-image://docker.io/library/alpine:3.20@sha256:1111111111111111111111111111111111111111111111111111111111111111  platform=linux/amd64
%1 = source local://context  local.session="x" local.unique="y"
%2 = source git://example.org/repo.git#v1  git.fullurl="https://user:secret@example.org/repo.git" git.authtokensecret="GIT_TOKEN"
%3 = source https://example.org/file.tgz
%4 = source docker-image+blob://example.org/blobs@sha256:2222222222222222222222222222222222222222222222222222222222222222
%5 = file %0 { copy %1:/main.go /src/  mode=0644 }
%6 = exec %5 {
  args "go" "build"
  cwd /src
  mount secret:token /run/secrets/token  optional
  mount ssh:default /run/ssh.sock
  mount %2 /repo
  mount %3 /dl
  mount %4 /blob
}
return %6
`

var amd64 = ocispecs.Platform{OS: "linux", Architecture: "amd64"}

func parse(t *testing.T, text string) *llb.Graph {
	t.Helper()
	g, err := llb.ParseText(text)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// pinned gives every source of a graph a digest.
func pinned(g *llb.Graph) map[digest.Digest]Pin {
	pins := map[digest.Digest]Pin{}
	for _, v := range g.Vertices() {
		op, ok := v.Op.(*llb.SourceOp)
		if !ok {
			continue
		}
		pin := Pin{Op: op, Digest: digest.FromString(op.Scheme()), Platform: v.Platform}
		if op.Scheme() == "git" {
			pin.Digest = "sha1:0123456789012345678901234567890123456789"
		}
		pins[v.Digest()] = pin
	}
	return pins
}

func capture(t *testing.T, g *llb.Graph) *Capture {
	t.Helper()
	c := &Capture{}
	c.AddGraph(g, pinned(g))
	c.AddImage(Image{Ref: "docker.io/library/alpine:3.20", Platform: &amd64, Digest: digest.FromString("docker-image")})
	c.Request.Frontend = "dockerfile.v0"
	c.Request.Args = FilterArgs(map[string]string{
		"context": "https://user:secret@example.org/repo.git#v1:sub", "filename": "Dockerfile", "build-arg:TOKEN": "t", "label:a": "b",
		"target": "release", "platform": "linux/amd64", "attest:provenance": "mode=max", "cache-imports": "[]",
		"vcs:source": "https://u:p@example.org/me.git", "vcs:revision": "abc", "context:base": "https://u:p@example.org/b.tar",
	})
	c.Tidy()
	return c
}

func TestGolden(t *testing.T) {
	g := parse(t, graph)
	exec := g.Root.Vertex
	g.Sources = llb.SourceIndex{
		Files:     []llb.SourceFile{{Name: "Dockerfile", Language: "Dockerfile", Data: []byte("FROM alpine"), From: parse(t, "%0 = source local://dockerfile\nreturn %0\n")}},
		Locations: map[digest.Digest][]llb.Location{exec.Digest(): {{Ranges: []llb.Range{{Start: llb.Position{Line: 3}, End: llb.Position{Line: 4, Character: 2}}}}}},
	}
	at := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	run := Run{
		ID: "run1", Started: at, Finished: at.Add(time.Minute), CompatibilityVersion: 30, Builder: amd64,
		DockerfileVersion: "1.27", Custom: map[string]any{"site": map[string]any{"rack": 7}},
		Layers: map[llb.Edge][]ocispecs.Descriptor{g.Root: {{MediaType: ocispecs.MediaTypeImageLayerGzip, Digest: digest.FromString("layer"), Size: 5}}},
	}
	for name, values := range map[string]map[string]string{
		"v1": {"builder-id": "https://ci.example.org/1", "reproducible": "true"}, "v02": {"version": "v0.2"}, "min": {"mode": "min"},
	} {
		t.Run(name, func(t *testing.T) {
			o, err := ParseOptions(values)
			if err != nil {
				t.Fatal(err)
			}
			p, err := New(capture(t, g), g, run, o)
			if err != nil {
				t.Fatal(err)
			}
			got, err := p.Encode(o)
			if err != nil {
				t.Fatal(err)
			}
			for _, secret := range []string{"secret@", "u:p@", "attest:", "local.session", "local.unique"} {
				if bytes.Contains(got, []byte(secret)) {
					t.Errorf("it tells %q", secret)
				}
			}
			file := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want, err := os.ReadFile(file); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %v, got\n%s", file, err, got)
			}
		})
	}
}

// TestMinKeepsCapture: what one attestation leaves out, another one tells.
func TestMinKeepsCapture(t *testing.T) {
	g := parse(t, graph)
	c := capture(t, g)
	c.Request.Root = &Request{Request: &Parameters{Args: map[string]string{"build-arg:X": "1"}, Secrets: []ID{{ID: "s"}}}}
	c.Request.Inputs = map[string]*Request{"in": {Request: &Parameters{Args: map[string]string{"label:X": "1"}}}}
	p, err := New(c, g, Run{}, Options{Min: true})
	if err != nil {
		t.Fatal(err)
	}
	data, err := p.Encode(Options{})
	if err != nil || bytes.Contains(data, []byte("build-arg:")) || bytes.Contains(data, []byte("label:")) || bytes.Contains(data, []byte("secrets")) {
		t.Errorf("%v, min tells %s", err, data)
	}
	if p.RunDetails.Metadata.Completeness.Request {
		t.Error("a request that something was left out of is called complete")
	}
	if c.Request.Args["build-arg:TOKEN"] != "t" || len(c.Request.Secrets) != 2 || c.Request.Root.Request.Args["build-arg:X"] != "1" ||
		c.Request.Inputs["in"].Request.Args["label:X"] != "1" {
		t.Errorf("the capture was changed: %+v", c.Request)
	}
}

func TestCompleteness(t *testing.T) {
	for _, c := range []struct {
		graph              string
		complete, hermetic bool
	}{
		{"%0 = source docker-image://docker.io/library/a:1\nreturn %0\n", true, true},
		{"%0 = source docker-image://docker.io/library/a:1\n%1 = exec %0 {\n  args \"x\"\n  cwd /\n}\nreturn %1\n", true, false},
		{"%0 = source docker-image://docker.io/library/a:1\n%1 = exec %0 {\n  args \"x\"\n  cwd /\n  network none\n}\nreturn %1\n", true, true},
		{"%0 = source local://context\nreturn %0\n", false, false},
	} {
		g := parse(t, c.graph)
		var cp Capture
		cp.AddGraph(g, pinned(g))
		p, err := New(&cp, g, Run{}, Options{Min: true})
		if err != nil {
			t.Fatal(err)
		}
		m := p.RunDetails.Metadata
		if m.Completeness.ResolvedDependencies != c.complete || m.Hermetic != c.hermetic || m.Completeness.Request {
			t.Errorf("%s: complete %+v, hermetic %v", c.graph, m.Completeness, m.Hermetic)
		}
	}
	// A source that was never looked at is none that was used.
	g := parse(t, graph)
	var cp Capture
	cp.AddGraph(g, nil)
	if len(cp.Images)+len(cp.Git)+len(cp.HTTP)+len(cp.Locals)+len(cp.Blobs) > 0 {
		t.Errorf("%+v", cp)
	}
}

func TestPackageURL(t *testing.T) {
	const d = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
	for ref, want := range map[string]string{
		"alpine":                           "pkg:docker/alpine@latest",
		"library/alpine:3.15":              "pkg:docker/alpine@3.15",
		"docker.io/library/alpine@" + d:    "pkg:docker/alpine?digest=" + d,
		"docker.io/library/alpine:1@" + d:  "pkg:docker/alpine@1?digest=" + d,
		"user/test:v2":                     "pkg:docker/user/test@v2",
		"ghcr.io/foo/bar":                  "pkg:docker/ghcr.io/foo/bar@latest",
		"localhost:5000/a/b/c:x_y":         "pkg:docker/localhost%3A5000/a/b/c@x_y",
		"registry.example.org:443/foo:1.2": "pkg:docker/registry.example.org%3A443/foo@1.2",
	} {
		if got, err := packageURL(purlDocker, ref, nil); err != nil || got != want {
			t.Errorf("%s: %s, %v, want %s", ref, got, err, want)
		}
	}
	got, err := packageURL(purlOCI, "base@"+d, &amd64, qualifier{"ref_type", "blob"}, qualifier{"vcs_url", "https://a/b#c"})
	if want := "pkg:oci/base?digest=" + d + "&platform=linux%2Famd64&ref_type=blob&vcs_url=https:%2F%2Fa%2Fb%23c"; err != nil || got != want {
		t.Errorf("%s, %v, want %s", got, err, want)
	}
	if _, err := packageURL(purlDocker, "UPPER CASE", nil); err == nil || !strings.Contains(err.Error(), "UPPER CASE") {
		t.Errorf("%v", err)
	}
}

func TestGitContext(t *testing.T) {
	for s, want := range map[string]string{
		"https://example.org/a.git":                             "https://example.org/a.git",
		"https://example.org/a.git#main:sub/dir":                "https://example.org/a.git#main:sub/dir",
		"https://example.org/a.git?branch=b&subdir=../x":        "https://example.org/a.git#refs/heads/b:../x",
		"https://example.org/a.git?tag=v1":                      "https://example.org/a.git#refs/tags/v1",
		"git@example.org:a/b.git#:sub":                          "git@example.org:a/b.git#:sub",
		"github.com/a/b":                                        "github.com/a/b",
		"https://example.org/a.tar.gz":                          "",
		"./git":                                                 "",
		"context":                                               "",
		"https://example.org/a.git?ref=%zz":                     "",
		"docker-image://alpine":                                 "",
		"ssh://git@example.org/a.git?ref=aaaa#bbbb:no/../where": "ssh://git@example.org/a.git#aaaa:where",
	} {
		g, ok := parseGitContext(s)
		want = strings.Replace(want, "../x", "x", 1)
		if ok != (want != "") || ok && g.full() != want {
			t.Errorf("%s: %q, %v, want %q", s, g.full(), ok, want)
		}
	}
	for s, want := range map[string]string{
		"https://a:b@c/d": "https://xxxxx:xxxxx@c/d", "https://a@c/d": "https://xxxxx@c/d", "https://:b@c/d": "https://:xxxxx@c/d",
		"https://c/d": "https://c/d", "context": "context", "%%": "%%", "git@example.org:x": "git@example.org:x",
	} {
		if got := redact(s); got != want {
			t.Errorf("%s: %s, want %s", s, got, want)
		}
	}
}

func TestConfigSource(t *testing.T) {
	c := &Capture{
		Git:  []Git{{URL: "https://example.org/a.git#main", Commit: strings.Repeat("a", 64)}},
		HTTP: []HTTP{{URL: "https://example.org/c.tar", Digest: digest.FromString("x")}},
	}
	for context, want := range map[string]ConfigSource{
		"https://example.org/a.git#main:sub": {URI: "https://example.org/a.git#main:sub", Digest: DigestSet{"sha256": strings.Repeat("a", 64)}},
		"https://example.org/c.tar":          {URI: "https://example.org/c.tar", Digest: digestSet(digest.FromString("x"))},
		"https://u:p@example.org/d.tar":      {URI: "https://xxxxx:xxxxx@example.org/d.tar"},
	} {
		r := NewRequest("f", map[string]string{"context": context, "target": "t"}, c)
		got, err := json.Marshal(r.ConfigSource)
		if err != nil {
			t.Fatal(err)
		}
		if exp, err := json.Marshal(want); err != nil || !bytes.Equal(got, exp) || r.Request.Args["context"] != "" {
			t.Errorf("%s: %s, want %s", context, got, exp)
		}
	}
}

func TestOptions(t *testing.T) {
	for key, bad := range map[string]string{
		"mode": "some", "version": "v2", "reproducible": "perhaps", "inline-only": "x", "complete-materials": "y", "filename": "",
	} {
		if _, err := ParseOptions(map[string]string{key: bad}); err == nil || !strings.Contains(err.Error(), "attest:provenance") {
			t.Errorf("%s=%s: %v", key, bad, err)
		}
	}
	o, err := ParseOptions(map[string]string{"mode": "full", "filename": "p.json", "inline-only": "1"})
	if err != nil || o.Min || o.Filename != "p.json" || !o.InlineOnly || o.PredicateType() != "https://slsa.dev/provenance/v1" {
		t.Errorf("%+v, %v", o, err)
	}
}

func TestSupplementSPDX(t *testing.T) {
	layerOf := func(_ context.Context, name string) (digest.Digest, error) {
		if name == "/lost" {
			return "", nil
		}
		return digest.Digest("sha256:" + name), nil
	}
	doc := `{"spdxVersion":"SPDX-2.3","big":12345678901234567890,"creationInfo":{"creators":["Tool: x"]},
		"files":[{"fileName":"/a"},{"fileName":"/b","comment":"mine"},{"fileName":"/lost"},7],
		"packages":[{"files":[{"fileName":"/c"}]},{"name":"p"}]}`
	got, err := SupplementSPDX(t.Context(), []byte(doc), "kiln-1", layerOf)
	want := `{"big":12345678901234567890,"creationInfo":{"creators":["Tool: x","Tool: kiln-1"]},` +
		`"files":[{"comment":"layerID: sha256:/a","fileName":"/a"},{"comment":"mine","fileName":"/b"},{"fileName":"/lost"},7],` +
		`"packages":[{"files":[{"comment":"layerID: sha256:/c","fileName":"/c"}]},{"name":"p"}],"spdxVersion":"SPDX-2.3"}`
	if err != nil || string(got) != want {
		t.Errorf("%v, got\n%s, want\n%s", err, got, want)
	}
	for _, other := range []string{`{"predicate":1}`, `[]`, `null`, `{`} {
		if got, err := SupplementSPDX(t.Context(), []byte(other), "t", layerOf); err != nil || string(got) != other {
			t.Errorf("%s became %s, %v", other, got, err)
		}
	}
	broken := errors.New("no disk")
	if _, err := SupplementSPDX(t.Context(), []byte(doc), "t", func(context.Context, string) (digest.Digest, error) { return "", broken }); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

func TestReadStatement(t *testing.T) {
	s, err := ReadStatement([]byte(`{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://spdx.dev/Document","subject":[{"name":"a","digest":{"sha256":"b"}}],"predicate":{"x":1}}`))
	if err != nil || s.PredicateType != PredicateSPDX || len(s.Subject) != 1 || string(s.Predicate) != `{"x":1}` {
		t.Errorf("%+v, %v", s, err)
	}
	for _, bad := range []string{``, `[]`, `{}`, `{"_type":"other","predicateType":"x"}`, `{"predicateType":"x"} {}`, `null`} {
		if _, err := ReadStatement([]byte(bad)); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
}
