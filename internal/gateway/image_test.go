package gateway

import (
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/build"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/llb"
)

func TestAllowedFrontends(t *testing.T) {
	for _, c := range []struct {
		allowed []string
		source  string
		ok      bool
	}{
		{nil, "example.com/any:1", true},
		{[]string{"docker/dockerfile"}, "docker/dockerfile:1.7", true},
		{[]string{"docker.io/docker/dockerfile:1"}, "docker/dockerfile@sha256:" + strings.Repeat("a", 64), true},
		{[]string{"docker/dockerfile"}, "docker/dockerfile-upstream", false},
		{[]string{"docker/dockerfile"}, "example.com/docker/dockerfile", false},
		{[]string{"docker/dockerfile"}, "not a name", false},
	} {
		f, err := NewImageFrontend(c.allowed, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.check(c.source); (err == nil) != c.ok {
			t.Errorf("%v allow %q: %v", c.allowed, c.source, err)
		}
	}
	if _, err := NewImageFrontend([]string{"NOT A NAME"}, nil); err == nil {
		t.Error("a wrong name is taken")
	}
}

func TestFrontendCaps(t *testing.T) {
	inputs := map[string]*llb.Graph{"x": {}}
	for name, c := range map[string]struct {
		label, digest, wants string
		inputs               map[string]*llb.Graph
		lacks                string
	}{
		"nothing wanted":   {},
		"there":            {label: "a,b+v1", wants: "b+other,a"},
		"lacks":            {label: "a", wants: "a,b+v2", lacks: "b"},
		"lacks inputs":     {label: "a", inputs: inputs, lacks: "moby.buildkit.frontend.inputs"},
		"inputs":           {label: "moby.buildkit.frontend.inputs", inputs: inputs},
		"old with inputs":  {digest: "sha256:080bd74d8778f83e7b670de193362d8c593c8b14f5c8fb919d28ee8feda0d069", inputs: inputs},
		"old, others lack": {digest: "sha256:080bd74d8778f83e7b670de193362d8c593c8b14f5c8fb919d28ee8feda0d069", wants: "a", lacks: "a"},
	} {
		image := &frontendImage{digest: c.digest, config: ocispecs.ImageConfig{Labels: map[string]string{"moby.buildkit.frontend.caps": c.label}}}
		err := image.checkCaps(frontend.Request{Opts: map[string]string{"frontend.caps": c.wants}, Inputs: c.inputs})
		want := ""
		if c.lacks != "" {
			want = "unsupported frontend capability " + c.lacks
		}
		if got := errorText(err); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestRefusedFrontends(t *testing.T) {
	f, err := NewImageFrontend([]string{"docker/dockerfile"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	f.Attach(&Service{}) // which is never reached
	for want, opts := range map[string]map[string]string{
		"development gateway is no longer supported":         {"source": "docker/dockerfile", "gateway-devel": "true"},
		"no source specified for gateway":                    {},
		"'example.com/x:1' is not an allowed gateway source": {"source": "example.com/x:1"},
	} {
		if _, err := f.Build(t.Context(), frontend.Request{Opts: opts}, &build.Bridge{}); errorText(err) != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestNamedFrontendInput(t *testing.T) {
	g := &llb.Graph{Root: llb.Edge{Vertex: &llb.Vertex{Op: &llb.SourceOp{Identifier: "local://x"}}}}
	req := frontend.Request{
		Opts: map[string]string{
			"context:example.com/f": "input:front", "context:example.com/g:1": "local:x", "context:example.com/h": "input:none",
			"input-metadata:front": `{"containerimage.config":"eyJjb25maWciOnsiRW50cnlwb2ludCI6WyIvZiJdfX0="}`,
		},
		Inputs: map[string]*llb.Graph{"front": g}, Worker: ocispecs.Platform{OS: "linux", Architecture: "amd64"},
	}
	br := &build.Bridge{}
	image := &frontendImage{name: "example.com/f:latest"}
	found, err := findReplacement(t.Context(), br, image, req)
	if err != nil || !found || image.graph != g || !slices.Equal(image.config.Entrypoint, []string{"/f"}) {
		t.Errorf("got %t, %v, %+v", found, err, image)
	}
	if found, err := findReplacement(t.Context(), br, &frontendImage{name: "example.com/other"}, req); found || err != nil {
		t.Errorf("another image: %t, %v", found, err)
	}
	for _, name := range []string{"example.com/g:1", "example.com/h"} {
		if _, err := findReplacement(t.Context(), br, &frontendImage{name: name}, req); err == nil {
			t.Errorf("%s is replaced", name)
		}
	}
}

// TestLateLog checks that a frontend has a step if it writes something, and that
// only so much of it is shown.
func TestLateLog(t *testing.T) {
	var events []progress.Event
	sink := progress.SinkFunc(func(e progress.Event) { events = append(events, e) })
	(&lateLog{sink: sink, name: "quiet"}).end()
	if len(events) != 0 {
		t.Errorf("a quiet frontend has %d events", len(events))
	}
	l := &lateLog{sink: sink, name: "loud"}
	piece := []byte(strings.Repeat("x", 1<<19))
	for range 3 {
		if n, err := l.Write(piece); n != len(piece) || err != nil {
			t.Fatalf("wrote %d, %v", n, err)
		}
	}
	l.explain("and why")
	l.end()
	var all strings.Builder
	ends := map[digest.Digest]bool{}
	for _, e := range events {
		if e.Log != nil {
			all.Write(e.Log.Data)
		}
		if e.Vertex != nil {
			ends[e.Vertex.Digest] = e.Vertex.Completed != nil
		}
	}
	rest, ok := strings.CutPrefix(all.String(), strings.Repeat("x", mostFrontendLog))
	if want := "\n[output clipped, a frontend's log limit of 1 MiB is reached]\nand why"; !ok || rest != want {
		t.Errorf("%d bytes are shown, which end with %q, want %d and %q", all.Len(), rest[max(0, len(rest)-100):], mostFrontendLog, want)
	}
	if len(ends) != 1 || !slices.Contains(slices.Collect(maps.Values(ends)), true) {
		t.Errorf("the steps are %v, want one that has ended", ends)
	}
}

func TestFrontendConn(t *testing.T) {
	stdio, conn, spoke := newFrontendConn()
	go func() {
		_, _ = stdio.out.Write([]byte("call"))
		_, _ = io.Copy(stdio.out, stdio.in)
		stdio.out.Close()
	}()
	b := make([]byte, 4)
	if _, err := io.ReadFull(conn, b); err != nil || string(b) != "call" {
		t.Fatalf("read %q, %v", b, err)
	}
	<-spoke // or the daemon gives up
	if _, err := conn.Write([]byte("back")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, b); err != nil || string(b) != "back" {
		t.Fatalf("read %q, %v", b, err)
	}
	if !strings.HasPrefix(conn.babble(), "call") {
		t.Errorf("%q is taken for the greeting of a client", conn.babble())
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := stdio.out.Write([]byte("x")); err == nil {
		t.Error("a process writes to a closed connection")
	}
}
