package build

import (
	"strings"
	"testing"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/exporter"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/provenance"
	"github.com/kiln-build/kiln/internal/solver"
	"github.com/kiln-build/kiln/internal/source"
	"github.com/kiln-build/kiln/llb"
)

var (
	amd64 = ocispecs.Platform{OS: "linux", Architecture: "amd64"}
	arm64 = ocispecs.Platform{OS: "linux", Architecture: "arm64"}
)

// made is a vertex as the solver names it.
type made digest.Digest

func (m made) Digest() digest.Digest  { return digest.Digest(m) }
func (m made) Op() solver.Op          { return nil }
func (m made) Inputs() []solver.Edge  { return nil }
func (m made) Name() string           { return "" }
func (m made) Group() *progress.Group { return nil }

func image(t *testing.T, name string) *llb.Graph {
	t.Helper()
	g, err := llb.ParseText("%0 = source docker-image://docker.io/library/" + name + "  platform=linux/amd64\nreturn %0\n")
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func local(t *testing.T, name string) *llb.Graph {
	t.Helper()
	g, err := llb.ParseText("%0 = source local://" + name + "\nreturn %0\n")
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// run notes that a graph was solved and made.
func (r *records) run(t *testing.T, s *scope, g *llb.Graph) {
	t.Helper()
	s.solved = append(s.solved, &solved{g, g})
	r.pinned(g.Root.Vertex, &source.Pin{Digest: digest.FromString(g.Text())})
	r.evaluated(solver.Edge{Vertex: made(g.Root.Vertex.Digest())})
}

func result(g *llb.Graph) *frontend.Result {
	return &frontend.Result{Platforms: []frontend.PlatformResult{{Graph: g, Platform: amd64}}}
}

func TestCaptureTellsOfTheRequestThatMadeAResult(t *testing.T) {
	r := &records{root: scope{opts: map[string]string{"label:client": "yes"}}}
	ctx, outer := r.enter(t.Context(), "dockerfile.v0", map[string]string{"target": "app", "build-arg:X": "1"}, nil)
	_, inner := r.enter(ctx, "inner.v0", nil, nil)
	_, other := r.enter(t.Context(), "other.v0", nil, nil)
	app, sibling := image(t, "app:1"), image(t, "sibling:1")
	r.run(t, outer, local(t, "dockerfile"))
	r.run(t, inner, image(t, "inner:1"))
	r.run(t, other, image(t, "elsewhere:1"))
	r.run(t, &r.root, app)
	r.run(t, &r.root, sibling)
	outer.solved = append(outer.solved, &solved{image(t, "unused:1"), image(t, "unused:1")})
	r.resolved(ctx, &llb.SourceOp{Identifier: "docker-image://docker.io/library/resolved:1"}, &amd64, digest.FromString("r"))
	r.returned(outer, result(app))
	c := r.capture(app, []*llb.Graph{app, sibling}, amd64, []ocispecs.Platform{amd64})
	var refs []string
	for _, i := range c.Images {
		refs = append(refs, strings.TrimPrefix(i.Ref, "docker.io/library/"))
	}
	if got, want := strings.Join(refs, " "), "app:1 inner:1 resolved:1"; got != want {
		t.Errorf("images %s, want %s", got, want)
	}
	if len(c.Locals) != 1 || c.Locals[0] != "dockerfile" {
		t.Errorf("locals %v", c.Locals)
	}
	if c.Request.Frontend != "dockerfile.v0" || c.Request.Args["target"] != "app" || c.Request.Root == nil || c.Request.Root.Request.Args["label:client"] != "yes" {
		t.Errorf("request %+v", c.Request)
	}
	if c := r.capture(sibling, nil, amd64, nil); c.Request.Frontend != "" || c.Request.Root != nil {
		t.Errorf("a result that no frontend made is of %+v", c.Request)
	}
}

func TestRootIsTheSameRequest(t *testing.T) {
	opts := map[string]string{"target": "app"}
	r := &records{root: scope{frontend: "dockerfile.v0", opts: opts}}
	_, s := r.enter(t.Context(), "dockerfile.v0", opts, nil)
	app := image(t, "app:1")
	r.returned(s, result(app))
	if c := r.capture(app, nil, amd64, nil); c.Request.Root != nil {
		t.Errorf("the client's own request is told twice: %+v", c.Request.Root)
	}
}

func TestInputsAreTraced(t *testing.T) {
	all := &producers{}
	first, second, third := &records{producers: all}, &records{producers: all}, &records{producers: all}
	base, app, deep := image(t, "base:1"), image(t, "app:1"), image(t, "deep:1")
	_, s := first.enter(t.Context(), "a.v0", map[string]string{"target": "deep"}, nil)
	first.returned(s, result(deep))
	_, s = second.enter(t.Context(), "b.v0", map[string]string{"target": "base"}, map[string]*llb.Graph{"in": deep, "unknown": image(t, "x:1")})
	second.returned(s, result(base))
	ask := func() map[string]*provenance.Request {
		_, s := third.enter(t.Context(), "c.v0", nil, map[string]*llb.Graph{"base": base})
		third.results = nil
		third.returned(s, result(app))
		return third.capture(app, nil, amd64, nil).Request.Inputs
	}
	got := ask()
	if len(got) != 1 || got["base"].Request.Frontend != "b.v0" || len(got["base"].Request.Inputs) != 1 || got["base"].Request.Inputs["in"].Request.Args["target"] != "deep" {
		t.Errorf("inputs %+v", got)
	}
	// Two that made the same, and are not the same.
	fourth := &records{producers: all}
	_, s = fourth.enter(t.Context(), "b.v0", map[string]string{"target": "another"}, nil)
	fourth.returned(s, result(base))
	if got := ask(); len(got) != 0 {
		t.Errorf("one of two was chosen: %+v", got)
	}
	for _, r := range []*records{first, second, third, fourth} {
		r.close()
	}
	if len(all.made) != 0 {
		t.Errorf("builds that ended are remembered: %v", all.made)
	}
}

func TestImagesOfOtherPlatformsAreLeftOut(t *testing.T) {
	images := []provenance.Image{
		{Ref: "both", Platform: &amd64}, {Ref: "both", Platform: &arm64}, {Ref: "one", Platform: &amd64}, {Ref: "any"},
	}
	for _, c := range []struct {
		of   ocispecs.Platform
		all  []ocispecs.Platform
		want string
	}{
		{arm64, []ocispecs.Platform{amd64, arm64}, "both/arm64 one/amd64 any"},
		{amd64, []ocispecs.Platform{amd64}, "both/amd64 both/arm64 one/amd64 any"},
	} {
		var got []string
		for _, i := range forPlatform(images, c.of, c.all) {
			name := i.Ref
			if i.Platform != nil {
				name += "/" + i.Platform.Architecture
			}
			got = append(got, name)
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%s, want %s", s, c.want)
		}
	}
}

func TestCompatibility(t *testing.T) {
	for _, v := range []int{0, 10, 20, 30} {
		if err := CheckCompatibility(v); err != nil {
			t.Errorf("%d: %v", v, err)
		}
	}
	for v, want := range map[int]string{11: "unsupported compatibility-version 11", -1: "supported: [10 20 30]", 40: "upgrade"} {
		if err := CheckCompatibility(v); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%d: %v", v, err)
		}
	}
}

func TestEpochOfExports(t *testing.T) {
	given := []Export{{Type: "a"}, {Type: "b", Attrs: map[string]string{"source-date-epoch": "7"}}}
	got := withEpoch(given, map[string]string{"build-arg:SOURCE_DATE_EPOCH": "5"})
	if got[0].Attrs["source-date-epoch"] != "5" || got[1].Attrs["source-date-epoch"] != "7" || given[0].Attrs != nil {
		t.Errorf("%v of %v", got, given)
	}
	if got := withEpoch(given, map[string]string{"build-arg:SOURCE_DATE_EPOCH": "context"}); got[0].Attrs != nil {
		t.Errorf("what is for the frontend went to %v", got)
	}
}

func TestStatements(t *testing.T) {
	about := exporter.About{Subjects: []exporter.Subject{{Image: "app:1", Platform: amd64, Digest: "sha256:aa"}, {File: "bin/x", Digest: "sha256:bb"}}}
	got, err := statement("type", []byte(`{"a": 1}`), []frontend.Subject{{Self: true, Name: "alias"}, {Name: "raw", Digests: []digest.Digest{"sha256:cc", "sha512:dd"}}}, about)
	want := `{"_type":"https://in-toto.io/Statement/v1","predicateType":"type","subject":[` +
		`{"name":"pkg:docker/app@1?platform=linux%2Famd64","digest":{"sha256":"aa"}},{"name":"alias","digest":{"sha256":"aa"}},` +
		`{"name":"bin/x","digest":{"sha256":"bb"}},{"name":"alias","digest":{"sha256":"bb"}},` +
		`{"name":"raw","digest":{"sha256":"cc","sha512":"dd"}}],"predicate":{"a":1}}`
	if err != nil || strings.ReplaceAll(string(got), `\u0026`, "&") != want {
		t.Errorf("%v, got\n%s, want\n%s", err, got, want)
	}
}

// TestBaseOfSteps: the step that a result is built on, by the graph's text.
func TestBaseOfSteps(t *testing.T) {
	g, err := llb.ParseText(`%0 = source docker-image://docker.io/library/base:1  platform=linux/amd64
%1 = source local://context
%2 = file %0 {
  copy %1:/a /
  mkdir /b
}
%3 = exec %2 {
  args "x"
  cwd /
  mount %1 /src ro
}
return %3
`)
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for e, ok := g.Root, true; ok; e, ok = baseOf(e) {
		kinds = append(kinds, e.Vertex.Op.Kind()+" "+e.Vertex.Op.Name())
	}
	if len(kinds) != 3 || kinds[2] != "source docker-image://docker.io/library/base:1" {
		t.Errorf("steps %q", kinds)
	}
}
