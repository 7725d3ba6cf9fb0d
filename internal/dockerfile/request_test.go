package dockerfile

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/frontend"
)

// ask asks for the answer of a subrequest about a Dockerfile.
func ask(t *testing.T, id, file string, more map[string]string, into any) *frontend.Result {
	t.Helper()
	opts := map[string]string{"requestid": id, "frontend.caps": "moby.buildkit.frontend.subrequests"}
	maps.Copy(opts, more)
	res, err := build(t, newFakeGateway(map[string]string{"dockerfile/Dockerfile": file}), opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(res.Meta["result.json"], into); err != nil {
		t.Fatal(err)
	}
	if string(res.Meta["version"]) != "1.0.0" || len(res.Platforms) != 0 {
		t.Errorf("the answer has version %q and %d results", res.Meta["version"], len(res.Platforms))
	}
	return res
}

func TestDescribeRequest(t *testing.T) {
	var all []struct{ Name, Version, Type string }
	ask(t, "frontend.subrequests.describe", "", nil, &all)
	var names []string
	for _, r := range all {
		names = append(names, r.Name)
		if r.Type != "rpc" || r.Version == "" {
			t.Errorf("%+v", r)
		}
	}
	for _, want := range []string{"frontend.outline", "frontend.targets", "frontend.lint", "frontend.convertllb", "frontend.subrequests.describe"} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is not listed in %q", want, names)
		}
	}
}

// TestConvertRequest checks that the graph is told as BuildKit tells it.
func TestConvertRequest(t *testing.T) {
	var out struct {
		Def map[string]struct {
			Inputs []struct{ Digest string }
			Exec   *struct{ Meta struct{ Args []string } }
			Source *struct{ Identifier string }
		}
		Metadata map[string]struct {
			Description map[string]string
			Caps        map[string]bool
		}
		Source struct {
			Locations map[string]any
			Infos     []struct{ Filename string }
		}
	}
	res, err := build(t, newFakeGateway(map[string]string{"dockerfile/Dockerfile": "FROM alpine\nRUN make\n"}), map[string]string{"requestid": "frontend.convertllb"})
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(res.Meta["result.json"], &out); err != nil || string(res.Meta["version"]) != "0.1.0" {
		t.Fatalf("%v, version %s: %s", err, res.Meta["version"], res.Meta["result.json"])
	}
	if len(out.Def) != 3 || len(out.Source.Infos) != 1 || len(out.Source.Locations) == 0 {
		t.Errorf("%d operations: %s", len(out.Def), res.Meta["result.json"])
	}
	runs := 0
	for id, op := range out.Def {
		if op.Exec == nil {
			continue
		}
		runs++
		m := out.Metadata[id]
		if op.Exec.Meta.Args[2] != "make" || out.Def[op.Inputs[0].Digest].Source == nil || m.Description["llb.customname"] != "[2/2] RUN make" || !m.Caps["exec.meta.base"] {
			t.Errorf("operation %+v, of which is said %+v", op, m)
		}
	}
	if runs != 1 {
		t.Errorf("%d runs", runs)
	}
}

func TestTargetsRequest(t *testing.T) {
	const file = `# build makes the program
FROM --platform=$BUILDPLATFORM alpine AS build
FROM build
FROM scratch AS last
`
	type target struct {
		Name, Description, Base, Platform string
		Default                           bool
		Location                          struct {
			Ranges []struct{ Start struct{ Line int } }
		}
	}
	var list struct {
		Targets []target
		Sources [][]byte
	}
	res := ask(t, "frontend.targets", file, nil, &list)
	if len(list.Targets) != 3 || len(list.Sources) != 1 || string(list.Sources[0]) != file {
		t.Fatalf("%+v", list)
	}
	first, second, last := list.Targets[0], list.Targets[1], list.Targets[2]
	if first.Name != "build" || first.Description != "makes the program" || first.Base != "alpine" ||
		first.Platform != "$BUILDPLATFORM" || first.Default || first.Location.Ranges[0].Start.Line != 2 {
		t.Errorf("%+v", first)
	}
	if second.Name != "" || second.Base != "build" || !last.Default || last.Name != "last" {
		t.Errorf("%+v %+v", second, last)
	}
	if text := string(res.Meta["result.txt"]); !strings.Contains(text, "last (default)") || !strings.HasPrefix(text, "TARGET") {
		t.Errorf("text %q", text)
	}
}

func TestOutlineRequest(t *testing.T) {
	const file = `ARG inherited=box
ARG unused=abc
# sfx is a suffix
ARG sfx="y${inherited}"
FROM al${sfx} AS first
# BAR is a number
ARG BAR=456
RUN --mount=type=secret,id=key,required --mount=type=ssh true
FROM scratch AS other
ARG none
# target defines the build
FROM first AS target
COPY --from=first /a /
`
	var out outlineReport
	res := ask(t, "frontend.outline", file, map[string]string{
		"target": "target", "build-arg:BAR": "678", "build-arg:sfx": "pine",
	}, &out)
	if out.Name != "target" || out.Description != "defines the build" || len(out.Sources) != 1 {
		t.Errorf("%+v", out)
	}
	var args []string
	for _, a := range out.Args {
		args = append(args, a.Name+"="+a.Value+" "+a.Description)
	}
	// What is given needs no default, and nothing that a default is made of.
	if want := []string{"sfx=pine is a suffix", "BAR=678 is a number"}; !slices.Equal(args, want) {
		t.Errorf("arguments %q, want %q", args, want)
	}
	if len(out.Secrets) != 1 || out.Secrets[0].Name != "key" || !out.Secrets[0].Required || out.Secrets[0].Location.Ranges[0].Start.Line != 8 {
		t.Errorf("secrets %+v", out.Secrets)
	}
	if len(out.SSH) != 1 || out.SSH[0].Name != "default" || out.SSH[0].Required {
		t.Errorf("agents %+v", out.SSH)
	}
	for _, want := range []string{"TARGET:", "DESCRIPTION:", "BUILD ARG", "BAR", "SECRET", "SSH"} {
		if !strings.Contains(string(res.Meta["result.txt"]), want) {
			t.Errorf("the text has no %q: %s", want, res.Meta["result.txt"])
		}
	}
}

func TestOutlineOfRepeatedArgs(t *testing.T) {
	const file = `ARG FOO=123
ARG ABC=abc
ARG DEF=def
ARG FOO=${FOO}${ABC}
FROM scratch
ARG FOO
ARG IN=1
ARG IN=${IN}2
COPY a /
`
	var out outlineReport
	ask(t, "frontend.outline", file, nil, &out)
	var args []string
	for _, a := range out.Args {
		args = append(args, a.Name+"="+a.Value)
	}
	if want := []string{"ABC=abc", "FOO=123abc", "IN=12"}; !slices.Equal(args, want) {
		t.Errorf("arguments %q, want %q", args, want)
	}
}

func TestLintRequest(t *testing.T) {
	type result struct {
		Warnings []struct {
			RuleName, URL, Description, Detail string
			Location                           struct {
				Ranges []struct{ Start struct{ Line int } }
			}
		}
		Sources    []struct{ Filename string }
		BuildError *struct {
			Message  string
			Location struct {
				Ranges []struct{ Start struct{ Line int } }
			}
		}
	}
	for _, c := range []struct {
		name, file, status string
		rule               string
		line               int
		broken             string
	}{
		{"clean", "FROM scratch\nCOPY a /\n", "0", "", 0, ""},
		{"a remark", "FROM scratch as x\nCOPY a /\n", "1", "FromAsCasing", 1, ""},
		{"a remark that were an error", "# check=error=true\nFROM scratch as x\nCOPY a /\n", "1", "FromAsCasing", 2, ""},
		{"no Dockerfile", "FROM scratch\nNOPE\n", "1", "", 2, "NOPE"},
		{"no graph", "FROM scratch\nCOPY --from=later / /\nFROM scratch AS later\nCOPY --chmod=9 a /\n", "1", "", 2, "'9'"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out result
			res := ask(t, "frontend.lint", c.file, nil, &out)
			if got := string(res.Meta["result.statuscode"]); got != c.status {
				t.Errorf("status %s, want %s: %+v", got, c.status, out)
			}
			if len(out.Sources) != 1 || out.Sources[0].Filename != "Dockerfile" {
				t.Errorf("sources %+v", out.Sources)
			}
			switch {
			case c.broken != "":
				if out.BuildError == nil || !strings.Contains(out.BuildError.Message, c.broken) || out.BuildError.Location.Ranges[0].Start.Line != c.line {
					t.Errorf("error %+v", out.BuildError)
				}
			case c.rule == "":
				if len(out.Warnings) != 0 {
					t.Errorf("%+v", out.Warnings)
				}
			case len(out.Warnings) != 1:
				t.Errorf("%+v", out.Warnings)
			default:
				w := out.Warnings[0]
				if w.RuleName != c.rule || w.URL == "" || w.Description == "" || strings.HasPrefix(w.Detail, c.rule) || w.Location.Ranges[0].Start.Line != c.line {
					t.Errorf("%+v", w)
				}
				if !strings.Contains(string(res.Meta["result.txt"]), "WARNING: "+c.rule) {
					t.Errorf("text %s", res.Meta["result.txt"])
				}
			}
		})
	}
}

// A request may say which of its sessions has a local directory.
func TestLocalSessions(t *testing.T) {
	gw := newFakeGateway(map[string]string{"dockerfile/Dockerfile": "FROM scratch\nCOPY a /\n"})
	res, err := build(t, gw, map[string]string{"local-sessionid:context": "another"})
	if err != nil {
		t.Fatal(err)
	}
	if text := res.Platforms[0].Graph.Text(); !strings.Contains(text, "another") {
		t.Errorf("the context is not of that session:\n%s", text)
	}
}
