package dockerfile

import (
	"context"
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
)

// forwardingGateway notes what is handed over.
type forwardingGateway struct {
	*fakeGateway
	name string
	opts map[string]string
	err  error
}

func (g *forwardingGateway) Frontend(_ context.Context, name string, opts map[string]string, _ map[string]*llb.Graph) (*frontend.Result, error) {
	g.name, g.opts = name, opts
	return &frontend.Result{}, g.err
}

func TestHandOver(t *testing.T) {
	for name, c := range map[string]struct {
		file         string
		opts         map[string]string
		image, lines string // "" stays here
	}{
		"none":             {file: "FROM scratch\n"},
		"own":              {file: "# syntax=docker/dockerfile:1\nFROM scratch\n"},
		"own in full":      {file: "# syntax=docker.io/docker/dockerfile-upstream:master-labs\nFROM scratch\n"},
		"own by name":      {file: "# syntax=dockerfile.v0\nFROM scratch\n"},
		"other":            {file: "# syntax=example.com/x:1 a b\nno Dockerfile\n", image: "example.com/x:1", lines: "example.com/x:1 a b"},
		"behind a shebang": {file: "#!/usr/bin/env x\n#syntax=y\n{", image: "y", lines: "y"},
		"slashes":          {file: "// Syntax = y\n", image: "y", lines: "y"},
		"object":           {file: "{\"syntax\": \"y\"}", image: "y", lines: "y"},
		"not at the top":   {file: "\n# syntax=y\nFROM scratch\n"},
		"argument": {
			file: "# syntax=z\n", opts: map[string]string{"build-arg:BUILDKIT_SYNTAX": " y more"}, image: "y", lines: "y more",
		},
		"argument is own": {file: "# syntax=z\nFROM scratch\n", opts: map[string]string{"build-arg:BUILDKIT_SYNTAX": "docker/dockerfile:1"}},
		"called by it":    {file: "# syntax=z\nFROM scratch\n", opts: map[string]string{"cmdline": "z"}},
		"own is replaced": {
			file: "# syntax=docker/dockerfile:1\n", opts: map[string]string{"context:docker/dockerfile:1": "docker-image://y"},
			image: "docker/dockerfile:1", lines: "docker/dockerfile:1",
		},
		"own of another version is replaced": {
			file: "# syntax=docker/dockerfile:1\nFROM scratch\n", opts: map[string]string{"context:docker/dockerfile:2": "docker-image://y"},
		},
	} {
		gw := &forwardingGateway{fakeGateway: newFakeGateway(map[string]string{"dockerfile/Dockerfile": c.file})}
		if _, err := build(t, gw, maps.Clone(c.opts)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if c.image == "" {
			if gw.name != "" {
				t.Errorf("%s: handed over to %s", name, gw.opts["source"])
			}
			continue
		}
		want := maps.Clone(c.opts)
		if want == nil {
			want = map[string]string{}
		}
		want["source"], want["cmdline"] = c.image, c.lines
		if gw.name != "gateway.v0" || !maps.Equal(gw.opts, want) {
			t.Errorf("%s: %q got %q, want %q", name, gw.name, gw.opts, want)
		}
	}
}

// locatedError is an error of another side that says where it is.
type locatedError struct{ error }

func (locatedError) Located() bool { return true }

func TestHandOverFails(t *testing.T) {
	gw := &forwardingGateway{fakeGateway: newFakeGateway(map[string]string{"dockerfile/Dockerfile": "#!x\n# syntax=y\n"}), err: errors.New("broken")}
	_, err := build(t, gw, nil)
	if places := frontend.SourceErrorsIn(err); len(places) != 1 || places[0].Ranges[0].Start.Line != 2 || err.Error() != "broken" {
		t.Errorf("got %v at %v", err, places)
	}
	_, err = build(t, gw, map[string]string{"build-arg:BUILDKIT_SYNTAX": "y z"})
	if want := "failed with build-arg:BUILDKIT_SYNTAX = y z: broken"; err == nil || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
	gw.err = locatedError{errors.New("elsewhere")}
	if _, err = build(t, gw, nil); !errors.Is(err, gw.err) || len(frontend.SourceErrorsIn(err)) != 0 {
		t.Errorf("an error that has its place got another: %v", err)
	}
}
