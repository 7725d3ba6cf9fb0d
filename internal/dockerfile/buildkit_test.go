package dockerfile

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
)

// layoutDigest is the image that the recorded builds used in place of all base
// images. Its config is testdata/buildkit/base.json.
const layoutDigest = "sha256:6cfcfa21e06596a843101c3e16574e73b7bd1e183297d4b60c536cbac6bd5d3d"

// TestDigestsOfBuildKit checks that every operation has the digest that
// docker/dockerfile 1.27 of BuildKit v0.33.1 gave it. The vectors were recorded
// with its subrequest frontend.convertllb; the client's session, which is part
// of what they say of directories and layouts, stands beside them.
func TestDigestsOfBuildKit(t *testing.T) {
	paths, err := filepath.Glob("testdata/buildkit/*.txtar")
	if err != nil || len(paths) < 25 {
		t.Fatalf("found %d recorded builds, want 25 or more: %v", len(paths), err)
	}
	config, err := os.ReadFile("testdata/buildkit/base.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			opts, files := request(t, a)
			gw := newFakeGateway(files)
			for _, name := range []string{"alpine", "alpine:3.20", "golang:1", "busybox:1", "full", "multi", "onbuild", "empty"} {
				opts["context:"+name] = "oci-layout://store@" + layoutDigest
				gw.images["docker.io/library/"+name+"@"+layoutDigest] = string(config)
			}
			res, err := New().Build(t.Context(), frontend.Request{
				Opts: opts, Worker: ocispecs.Platform{OS: "linux", Architecture: "amd64"},
			}, gw)
			if err != nil {
				t.Fatal(err)
			}
			g := withSession(t, res.Platforms[0].Graph, strings.TrimSpace(files["session"]))
			want := strings.Fields(files["digests"])
			var got []string
			for _, v := range g.Vertices() {
				d := string(v.Digest())
				got = append(got, d)
				if !slices.Contains(want, d) {
					t.Errorf("BuildKit has no such operation: %s", (&llb.Graph{Root: llb.Edge{Vertex: v}}).Text())
				}
			}
			slices.Sort(got)
			if got = slices.Compact(got); len(got) != len(want) {
				t.Errorf("%d operations, BuildKit has %d", len(got), len(want))
			}
		})
	}
}

// withSession is the graph as a frontend makes it that knows the client's session.
func withSession(t *testing.T, g *llb.Graph, session string) *llb.Graph {
	t.Helper()
	out, err := g.Rewrite(func(v *llb.Vertex) ([]llb.Edge, error) {
		op, ok := v.Op.(*llb.SourceOp)
		if !ok {
			return []llb.Edge{{Vertex: v}}, nil
		}
		scheme, _, _ := strings.Cut(op.Identifier, "://")
		key := map[string]string{"local": "local.session", "oci-layout": "oci.session"}[scheme]
		if key == "" {
			return []llb.Edge{{Vertex: v}}, nil
		}
		attrs := map[string]string{key: session}
		maps.Copy(attrs, op.Attrs)
		return []llb.Edge{{Vertex: v.With(&llb.SourceOp{Identifier: op.Identifier, Attrs: attrs}, v.Inputs)}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
