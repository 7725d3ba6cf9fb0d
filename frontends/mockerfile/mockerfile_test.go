package mockerfile

import (
	"encoding/json"
	"errors"
	"flag"
	"strings"
	"testing"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/frontend/frontendtest"
)

// buildFile builds a file for linux/amd64 where there are a few bases.
func buildFile(t *testing.T, file string, opts map[string]string) (*frontend.Result, error) {
	t.Helper()
	gw := &frontendtest.Gateway{
		Files: map[string]string{"local://dockerfile/Dockerfile": file, "local://context/.dockerignore": "*.tmp\n"},
		Images: map[string]ocispecs.ImageConfig{
			"docker.io/library/ubuntu:16.04":  {Env: []string{"PATH=/usr/bin:/bin"}, Cmd: []string{"/bin/bash"}},
			"docker.io/library/alpine:latest": {Env: []string{"PATH=/bin", "A=base"}, User: "nobody", WorkingDir: "/srv", Labels: map[string]string{"from": "base"}},
		},
	}
	return New().Build(t.Context(), frontend.Request{Opts: opts, Worker: ocispecs.Platform{OS: "linux", Architecture: "amd64"}}, gw)
}

var update = flag.Bool("update", false, "write what is made into the test data")

func TestGolden(t *testing.T) { frontendtest.Golden(t, *update, golden) }

// golden is what a file becomes, as text.
func golden(t *testing.T, file string, opts map[string]string) string {
	t.Helper()
	res, err := buildFile(t, file, opts)
	if err != nil {
		return "error: " + err.Error() + "\n"
	}
	return frontendtest.Text(t, res)
}

// TestErrors checks that errors have a line and say what to write.
func TestErrors(t *testing.T) {
	const head = "apiVersion: v1alpha1\n"
	for _, c := range []struct{ file, want string }{
		{"", "Dockerfile:1: file is empty"},
		{"a: [", "Dockerfile:1: read YAML: did not find expected node content"},
		{"- x\n", "Dockerfile:1: file is a list, expected fields such as apiVersion"},
		{"images: []\n", "Dockerfile:1: apiVersion is missing"},
		{"apiVersion: v2\nimages: []\n", `Dockerfile:1: apiVersion is "v2", expected v1alpha1`},
		{head, "Dockerfile:1: file has no images"},
		{head + "images:\n- name: a\n  form: b\n", `Dockerfile:4: image has the unknown field "form": did you mean from?`},
		{head + "images:\n- name: a\n  zzzzzzzz: b\n", "expected one of cmd, copy, entrypoint, env, external"},
		{head + "images:\n- name: a\n", "Dockerfile:3: image has no from"},
		{head + "images:\n- from: a\n  from: b\n", "Dockerfile:4:"},
		{head + "images:\n- from: [a]\n", "Dockerfile:3: here is a list, expected a text"},
		{head + "images:\n- from: a\n  package:\n    install: curl\n", `Dockerfile:5: here is "curl", expected a list`},
		{head + "images:\n- from: a\n  package: {}\n", "Dockerfile:4: package says nothing"},
		{head + "images:\n- from: a\n  external:\n  - src: x\n    dst: /y\n", `Dockerfile:5: external file has src "x", expected a URL`},
		{head + "images:\n- from: a\n  external:\n  - src: https://x/y\n    dst: y\n", `Dockerfile:6: external file has dst "y", expected an absolute path`},
		{head + "images:\n- from: a\n  external:\n  - {src: 'https://x/y', dst: /y, sha256: abc}\n", "Dockerfile:5: sha256 is"},
		{head + "images:\n- from: a\n  copy: [a]\n", `Dockerfile:4: copy has "a", expected SRC DST`},
		{head + "images:\n- from: a\n  copy: [{src: a, dst: b, chmod: u+x}]\n", "chmod is \"u+x\", expected an octal number"},
		{head + "images:\n- from: a\n- from: b\n", "Dockerfile:3: image has no name"},
		{head + "images:\n- {name: a, from: alpine}\n- {name: a, from: alpine}\n", "Dockerfile:4: image a stands here twice"},
		{head + "images:\n- {name: a, from: b}\n- {name: b, from: a}\n", "Dockerfile:3: image b is made from line 4 on"},
		{head + "images:\n- {name: a, from: a}\n", "Dockerfile:3: image a is made from line 3 on"},
		{head + "images:\n- from: missing\n", "Dockerfile:3: find image missing: docker.io/library/missing:latest: not found"},
	} {
		_, err := buildFile(t, c.file, nil)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %s", c.file, err, c.want)
		} else if len(frontend.SourceErrorsIn(err)) == 0 {
			t.Errorf("%q: the error has no place: %v", c.file, err)
		}
	}
	if _, err := buildFile(t, head+"images:\n- {name: one, from: alpine}\n", map[string]string{"target": "ono"}); err == nil || !strings.Contains(err.Error(), "did you mean one?") {
		t.Errorf("unknown target: %v", err)
	}
	if _, err := buildFile(t, strings.Repeat("#", maxSize+1), nil); err == nil || !strings.Contains(err.Error(), "expected at most") {
		t.Errorf("a file that is too long: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("apiVersion: v1alpha1\nimages: [&a {name: x, from: *a}]\n")
	f.Fuzz(func(t *testing.T, file string) {
		_, _ = buildFile(t, file, nil) // it must not panic, nor take long
	})
}

// TestTargets asks about a file: nothing of it is built.
func TestTargets(t *testing.T) {
	const file = "apiVersion: v1alpha1\nimages:\n- name: tools\n  from: alpine\n- name: app\n  from: tools\n"
	for _, c := range []struct {
		request, target, name, want string
	}{
		{"frontend.targets", "", "result.txt", "TARGET        DESCRIPTION\ntools         \napp (default) \n"},
		{"frontend.targets", "tools", "result.txt", "TARGET          DESCRIPTION\ntools (default) \napp             \n"},
		{"frontend.subrequests.describe", "", "result.txt", "NAME                 VERSION DESCRIPTION\ntargets              1.0.0   List what can be built\nsubrequests.describe 1.0.0   List what can be asked\n"},
		{"frontend.targets", "", "version", "1.0.0"},
	} {
		res, err := buildFile(t, file, map[string]string{"requestid": c.request, "target": c.target, "frontend.caps": "moby.buildkit.frontend.subrequests+forward"})
		if err != nil {
			t.Fatal(err)
		}
		if got := string(res.Meta[c.name]); got != c.want || len(res.Platforms) > 0 {
			t.Errorf("%s, target %q: %s is\n%s\nwant\n%s", c.request, c.target, c.name, got, c.want)
		}
	}
	res, err := buildFile(t, file, map[string]string{"requestid": "frontend.targets"})
	if err != nil {
		t.Fatal(err)
	}
	var list struct {
		Targets []struct {
			Name, Base string
			Default    bool
			Location   struct {
				Ranges []struct{ Start struct{ Line int } }
			}
		}
		Sources [][]byte
	}
	if err := json.Unmarshal(res.Meta["result.json"], &list); err != nil {
		t.Fatal(err)
	}
	if n := len(list.Targets); n != 2 || len(list.Sources) != 1 || string(list.Sources[0]) != file {
		t.Fatalf("got %s", res.Meta["result.json"])
	}
	if app := list.Targets[1]; app.Name != "app" || app.Base != "tools" || !app.Default || len(app.Location.Ranges) != 1 || app.Location.Ranges[0].Start.Line != 5 {
		t.Errorf("app is %+v", app)
	}
	_, err = buildFile(t, file, map[string]string{"requestid": "frontend.outline"})
	var unsupported *frontend.UnsupportedError
	if !errors.As(err, &unsupported) || unsupported.Kind != "subrequest" {
		t.Errorf("a question that it does not know: %v", err)
	}
}
