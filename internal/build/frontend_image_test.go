package build

import (
	"context"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/op"
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

func TestWithoutImage(t *testing.T) {
	opts := map[string]string{"source": "dockerfile.v0", "cmdline": "x"}
	name, got := withoutImage("gateway.v0", opts)
	if name != "dockerfile.v0" || !maps.Equal(got, map[string]string{"cmdline": "x"}) || len(opts) != 2 {
		t.Errorf("got %s %v, and left %v", name, got, opts)
	}
	for _, opts := range []map[string]string{
		{"source": "other"}, {}, {"source": "dockerfile.v0", "context:dockerfile.v0::linux/amd64": "docker-image://x"},
	} {
		if name, got := withoutImage("gateway.v0", opts); name != "gateway.v0" || !maps.Equal(got, opts) {
			t.Errorf("%v became %s %v", opts, name, got)
		}
	}
}

// stubHost is never reached.
type stubHost struct{ FrontendHost }

func TestRefusedFrontends(t *testing.T) {
	f, err := NewImageFrontend([]string{"docker/dockerfile"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	f.Attach(stubHost{})
	for want, opts := range map[string]map[string]string{
		"development gateway is no longer supported":         {"source": "docker/dockerfile", "gateway-devel": "true"},
		"no source specified for gateway":                    {},
		"'example.com/x:1' is not an allowed gateway source": {"source": "example.com/x:1"},
	} {
		if _, err := f.Build(t.Context(), frontend.Request{Opts: opts}, &Bridge{}); errorText(err) != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestFrontendDepth(t *testing.T) {
	ctx, n := t.Context(), 0
	for {
		next, err := deeper(ctx)
		if err != nil {
			break
		}
		if ctx, n = next, n+1; n > mostFrontends {
			t.Fatal("there is no end")
		}
	}
	if n != mostFrontends {
		t.Errorf("%d frontends may call each other, want %d", n, mostFrontends)
	}
	if _, err := deeper(context.Background()); err != nil {
		t.Errorf("another request is refused: %v", err)
	}
}

func TestNamedFrontendInput(t *testing.T) {
	g := &llb.Graph{Root: llb.Edge{Vertex: &llb.Vertex{Op: &llb.SourceOp{Identifier: "local://x"}}}}
	req := frontend.Request{
		Opts: map[string]string{
			"context:example.com/f": "input:front", "context:example.com/g:1": "local:x", "context:example.com/h": "input:none",
			"input-metadata:front": `{"containerimage.config":"eyJjb25maWciOnsiRW50cnlwb2ludCI6WyIvZiJdfX0="}`,
		},
		Inputs: map[string]*llb.Graph{"front": g},
	}
	br := &Bridge{builder: &Builder{Worker: &op.Worker{Platforms: []ocispecs.Platform{{OS: "linux", Architecture: "amd64"}}}}}
	image := &frontendImage{name: "example.com/f:latest"}
	found, err := br.findNamedFrontend(t.Context(), image, req)
	if err != nil || !found || image.graph != g || !slices.Equal(image.config.Entrypoint, []string{"/f"}) {
		t.Errorf("got %t, %v, %+v", found, err, image)
	}
	if found, err := br.findNamedFrontend(t.Context(), &frontendImage{name: "example.com/other"}, req); found || err != nil {
		t.Errorf("another image: %t, %v", found, err)
	}
	for _, name := range []string{"example.com/g:1", "example.com/h"} {
		if _, err := br.findNamedFrontend(t.Context(), &frontendImage{name: name}, req); err == nil {
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
	l.end()
	shown := 0
	ends := map[digest.Digest]bool{}
	for _, e := range events {
		if e.Log != nil {
			shown += len(e.Log.Data)
		}
		if e.Vertex != nil {
			ends[e.Vertex.Digest] = e.Vertex.Completed != nil
		}
	}
	if shown != mostFrontendLog {
		t.Errorf("%d bytes are shown, want %d", shown, mostFrontendLog)
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
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := stdio.out.Write([]byte("x")); err == nil {
		t.Error("a process writes to a closed connection")
	}
}
