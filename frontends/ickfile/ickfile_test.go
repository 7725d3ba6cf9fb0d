package ickfile

import (
	"strings"
	"testing"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/frontend/frontendtest"
	"github.com/kiln-build/kiln/internal/dockerfile"
)

func gateway(file string) *frontendtest.Gateway {
	return &frontendtest.Gateway{
		Files: map[string]string{"local://dockerfile/Dockerfile": file},
		Images: map[string]ocispecs.ImageConfig{
			"docker.io/library/alpine:latest": {Cmd: []string{"/bin/sh"}, Env: []string{"PATH=/bin"}},
		},
	}
}

func build(t *testing.T, f frontend.Frontend, gw frontend.Gateway) (*frontend.Result, error) {
	t.Helper()
	return f.Build(t.Context(), frontend.Request{Worker: ocispecs.Platform{OS: "linux", Architecture: "amd64"}}, gw)
}

// TestSameAsDockerfile checks that an Ickfile is the Dockerfile with other words:
// the same steps, by digest, and the same image.
func TestSameAsDockerfile(t *testing.T) {
	ick := `#syntax=agbell/ick
ARG BASE=alpine
Come_From ${BASE} AS build
PLEASE --mount=type=cache,target=/c echo one
please <<EOF
echo two
EOF
come_from scratch
stash --from=build --chown=1:2 /etc/passwd /p
STASH . /src
ENV A=b
ONBUILD please echo three
ONBUILD STASH x y
ENTRYPOINT ["/p"]
`
	words := strings.NewReplacer("Come_From", "FROM", "come_from", "FROM", "PLEASE", "RUN", "please", "RUN", "STASH", "COPY", "stash", "COPY", "agbell/ick", "docker/dockerfile")
	got, err := build(t, New(), gateway(ick))
	if err != nil {
		t.Fatal(err)
	}
	want, err := build(t, dockerfile.New(), gateway(words.Replace(ick)))
	if err != nil {
		t.Fatal(err)
	}
	if g, w := got.Platforms[0].Graph.Root.Vertex.Digest(), want.Platforms[0].Graph.Root.Vertex.Digest(); g != w {
		t.Errorf("root %s, want %s:\n%s", g, w, got.Platforms[0].Graph.Text())
	}
	// The history and the triggers are read by others.
	if g, w := string(got.Platforms[0].Config), string(want.Platforms[0].Config); g != w {
		t.Errorf("config\n%s\nwant\n%s", g, w)
	}
}

// TestErrorsSpeakIck checks that errors and remarks have the words of the file.
func TestErrorsSpeakIck(t *testing.T) {
	for _, c := range []struct{ file, want string }{
		{"FROM alpine\n", "unknown instruction: FROM (did you mean COME_FROM?)"},
		{"come_from alpine\nRUN x\n", "unknown instruction: RUN (did you mean PLEASE?)"},
		{"come_from alpine\nCOPPY x y\n", "unknown instruction: COPPY (did you mean STASH?)"},
		{"come_from alpine\nPLESE x\n", "unknown instruction: PLESE (did you mean PLEASE?)"},
		{"come_from alpine\nstash x\n", "STASH has no destination"},
		{"come_from\n", "COME_FROM has no arguments"},
		{"come_from alpine\nplease --maunt=x y\n", "PLEASE"},
		{"please x\n", "please stands above the first COME_FROM"},
		{"# nothing\n", "expected COME_FROM with a base image"},
		{"come_from alpine\nstash https://example.com/x /\n", `STASH has the URL "https://example.com/x" as a source`},
		{"come_from alpine\nONBUILD come_from x\n", "any instruction but COME_FROM, MAINTAINER and ONBUILD"},
		{"ARG A\ncome_from $A\n", "an image, or ARGs above COME_FROM that make one"},
		{"ARG A\ncome_from alpine\nstash --from=$A x y\n", "define a new stage with COME_FROM"},
	} {
		_, err := build(t, New(), gateway(c.file))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %s", c.file, err, c.want)
		}
		for _, word := range []string{"FROM ", "RUN ", "COPY "} {
			text := ""
			if err != nil {
				text = strings.NewReplacer("COME_FROM ", "", "instruction: FROM ", "", "instruction: RUN ", "").Replace(err.Error())
			}
			if strings.Contains(text, word) {
				t.Errorf("%q: the error speaks of %s: %s", c.file, word, text)
			}
		}
	}
}

func TestRemarksSpeakIck(t *testing.T) {
	gw := gateway("come_from alpine AS x\nARG TOKEN=1\nplease echo\nSTASH . .\n")
	if _, err := build(t, New(), gw); err != nil {
		t.Fatal(err)
	}
	var all string
	for _, w := range gw.Warnings() {
		all += w.Short + " " + strings.Join(w.Detail, " ") + "\n"
	}
	for _, want := range []string{
		"Write COME_FROM and AS in the same case", "use PLEASE --mount=type=secret", `"please" is not in upper case`,
	} {
		if !strings.Contains(all, want) {
			t.Errorf("remarks lack %q:\n%s", want, all)
		}
	}
}

// TestTriggersOfImages checks that what images bring along is in the words of
// Dockerfiles.
func TestTriggersOfImages(t *testing.T) {
	gw := &frontendtest.Gateway{Files: map[string]string{"local://dockerfile/Dockerfile": "come_from a AS base\nONBUILD please echo one\ncome_from base\n"}}
	gw.Images = map[string]ocispecs.ImageConfig{"docker.io/library/a:latest": {}}
	res, err := build(t, New(), gw)
	if err != nil {
		t.Fatal(err)
	}
	if text := res.Platforms[0].Graph.Text(); !strings.Contains(text, "echo one") {
		t.Errorf("the trigger was not run:\n%s", text)
	}
}
