package llb

import (
	"errors"
	"strings"
	"testing"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/frontend/frontendtest"
)

const text = `# syntax=kiln-build/llb
# config={"Entrypoint":["/app"]}
%0 = source docker-image://docker.io/library/alpine:latest  platform=linux/amd64
%1 = exec %0 {
  args "ls"
  cwd /
}  platform=linux/amd64 name="list files"
return %1
`

const described = `{
  "syntax": "kiln-build/llb",
  "steps": {
    "list": {
      "name": "list files",
      "inputs": ["base"],
      "op": {
        "exec": {"meta": {"args": ["ls"], "cwd": "/", "removeMountStubsRecursive": true}, "mounts": [{"input": 0, "dest": "/", "output": 0}]},
        "platform": {"OS": "linux", "Architecture": "amd64"}, "constraints": {}
      }
    },
    "base": {"op": {
      "source": {"identifier": "docker-image://docker.io/library/alpine:latest"},
      "platform": {"OS": "linux", "Architecture": "amd64"}, "constraints": {}
    }}
  },
  "result": "list",
  "config": {"Entrypoint": ["/app"]}
}
`

func run(t *testing.T, file string, opts map[string]string) (*frontend.Result, error) {
	t.Helper()
	gw := &frontendtest.Gateway{Files: map[string]string{"local://dockerfile/Dockerfile": file}}
	return New().Build(t.Context(), frontend.Request{Opts: opts, Worker: ocispecs.Platform{OS: "linux", Architecture: "amd64"}}, gw)
}

// TestForms checks that both forms make the same graph, with its places.
func TestForms(t *testing.T) {
	a, err := run(t, text, map[string]string{"label:by": "me"})
	if err != nil {
		t.Fatal(err)
	}
	b, err := run(t, described, map[string]string{"label:by": "me"})
	if err != nil {
		t.Fatal(err)
	}
	one, other := a.Platforms[0], b.Platforms[0]
	if one.Graph.Root.Vertex.Digest() != other.Graph.Root.Vertex.Digest() {
		t.Errorf("the forms differ:\n%s\n%s", one.Graph.Text(), other.Graph.Text())
	}
	want := `"config":{"Entrypoint":["/app"],"Labels":{"by":"me"}}`
	if string(one.Config) != string(other.Config) || !strings.Contains(string(one.Config), want) {
		t.Errorf("configs are %s and %s, want %s", one.Config, other.Config, want)
	}
	for _, c := range []struct {
		p           frontend.PlatformResult
		first, last int
	}{{one, 4, 7}, {other, 4, 4}} {
		root := c.p.Graph.Root.Vertex
		at := c.p.Graph.Sources.Locations[root.Digest()][0].Ranges[0]
		if at.Start.Line != c.first || at.End.Line != c.last || root.Meta.Description["llb.customname"] != "list files" {
			t.Errorf("step %v at %+v, want lines %d to %d", root.Meta.Description, at, c.first, c.last)
		}
	}
}

func TestPlatforms(t *testing.T) {
	file := strings.Replace(described, `"result": "list"`, `"result": {"linux/amd64": "list", "linux/arm64": "base"}`, 1)
	for opt, want := range map[string]string{"": "linux/amd64 linux/arm64", "linux/arm64": "linux/arm64"} {
		res, err := run(t, file, map[string]string{"platform": opt})
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, p := range res.Platforms {
			ids = append(ids, p.ID)
		}
		if got := strings.Join(ids, " "); got != want {
			t.Errorf("platform %q gives %s, want %s", opt, got, want)
		}
	}
	if _, err := run(t, file, map[string]string{"platform": "linux/s390x"}); err == nil || !strings.Contains(err.Error(), "none for linux/s390x") {
		t.Errorf("a platform that is not there: %v", err)
	}
	if _, err := run(t, described, map[string]string{"platform": "linux/amd64,linux/arm64"}); err == nil || !strings.Contains(err.Error(), "expected an object of results by platform") {
		t.Errorf("several platforms of one: %v", err)
	}
}

func TestErrors(t *testing.T) {
	for _, c := range []struct{ file, want string }{
		{"", `read Dockerfile: text has no "return" line`},
		{"# syntax=x\n%0 = teleport\nreturn %0\n", `Dockerfile:2: %0: operation "teleport" is unknown`},
		{"# config={\nreturn scratch\n", "Dockerfile:1: config is no JSON"},
		{"{", "Dockerfile:1: the text ends too early"},
		{"{\n\"steps\": [", "Dockerfile:2: steps is [, expected an object"},
		{"{\n\"steps\": {}\n}", `description has no "result"`},
		{"{\n\n\"result\": 1}", "Dockerfile:3: result is neither a step nor"},
		{"{\"result\": \"a\"}", `Dockerfile:1: there is no step "a"`},
		{"{\"steps\": {\n\"a\": {\"inputs\": [\"a\"]}}, \"result\": \"a\"}", "Dockerfile:2: step a needs itself"},
		{"{\"steps\": {\n\"a\": {\"op\": {\"sourc\": 1}}}, \"result\": \"a\"}", "Dockerfile:2: step a: decode op"},
		{"{\"steps\": {\n\"a\": {\"ops\": 1}}, \"result\": \"a\"}", `step a has the unknown key "ops"`},
		{"{\"steps\": {\n\"a\": {}}, \"result\": \"a\"}", "Dockerfile:2: step a: "},
		{"{\"steps\": {\n\"a\": {\"op\": {\"source\": {\"identifier\": \"local://x\"}}}, \"a\": {}}, \"result\": \"a\"}", "has the key a twice"},
		{"{\"steps\": {\"a\": {\"op\": {\"source\": {\"identifier\": \"local://x\"}}}},\n\"result\": \"a#7\"}", "Dockerfile:2: "},
		{"{\"steps\": {\"a\": {\"op\": {\"inputs\": [{}]}}}, \"result\": \"a\"}", "step a: op has inputs"},
	} {
		_, err := run(t, c.file, nil)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %s", c.file, err, c.want)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add(text)
	f.Add(described)
	f.Fuzz(func(t *testing.T, file string) {
		_, _ = run(t, file, nil) // it must not panic
	})
}

// TestDescribe asks what can be asked: a file has no targets.
func TestDescribe(t *testing.T) {
	res, err := run(t, text, map[string]string{"requestid": "frontend.subrequests.describe"})
	if err != nil {
		t.Fatal(err)
	}
	if got := string(res.Meta["result.txt"]); !strings.Contains(got, "subrequests.describe") || strings.Contains(got, "targets") {
		t.Errorf("got %s", got)
	}
	_, err = run(t, text, map[string]string{"requestid": "frontend.targets"})
	var unsupported *frontend.UnsupportedError
	if !errors.As(err, &unsupported) {
		t.Errorf("asked for targets: %v", err)
	}
}
