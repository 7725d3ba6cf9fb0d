package frontend

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/llb"
)

func TestAttestOptions(t *testing.T) {
	for _, c := range []struct {
		opts map[string]string
		want map[string]map[string]string
	}{
		{map[string]string{"target": "x", "attest:provenance": ""}, map[string]map[string]string{"provenance": {}}},
		{
			map[string]string{"attest:provenance": "mode=max", "build-arg:BUILDKIT_ATTEST_PROVENANCE": `mode=min,"builder-id=a,b"`},
			map[string]map[string]string{"provenance": {"mode": "min", "builder-id": "a,b"}},
		},
		// As for BuildKit, what was asked for is made, whatever is said of it.
		{
			map[string]string{"attest:provenance": "false", "attest:sbom": "generator=x,disabled=true"},
			map[string]map[string]string{"provenance": {"false": ""}, "sbom": {"generator": "x", "disabled": "true"}},
		},
	} {
		got, err := AttestOptions(c.opts)
		if err != nil || !maps.EqualFunc(got, c.want, maps.Equal) {
			t.Errorf("%v: %v, %v, want %v", c.opts, got, err, c.want)
		}
	}
	for _, bad := range []map[string]string{{"attest:signature": ""}, {"attest:sbom": `"x`}, {"attest:sbom": "a\nb"}} {
		if _, err := AttestOptions(bad); err == nil {
			t.Errorf("%v was taken", bad)
		}
	}
	for _, bad := range []string{"generator=", "generator=A B"} {
		if _, err := SBOMOptions(map[string]string{"attest:sbom": bad}); err == nil || !strings.Contains(err.Error(), "sbom generator") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	r, err := SBOMOptions(map[string]string{"attest:sbom": "generator=scan,SELECT=all"})
	if err != nil || r.Generator != "docker.io/library/scan:latest" || !maps.Equal(r.Params, map[string]string{"SELECT": "all"}) {
		t.Errorf("%+v, %v", r, err)
	}
}

// oneImage is a gateway that knows one image.
type oneImage struct{ config string }

func (g oneImage) Solve(context.Context, *llb.Graph) (Ref, error) {
	return nil, errors.New("not needed")
}
func (g oneImage) Warn(context.Context, digest.Digest, Warning) {}
func (g oneImage) ResolveSource(_ context.Context, op *llb.SourceOp, _ ResolveOpt) (*SourceMeta, error) {
	return &SourceMeta{Op: op, Config: []byte(g.config)}, nil
}

func TestScan(t *testing.T) {
	amd64 := ocispecs.Platform{OS: "linux", Architecture: "amd64"}
	r := SBOMRequest{Generator: "docker.io/library/scan:1", Params: map[string]string{"B": "2", "A": "1"}}
	if _, err := NewScanner(t.Context(), oneImage{`{"config":{}}`}, r, amd64, ""); err == nil || !strings.Contains(err.Error(), "does not have cmd") {
		t.Errorf("a scanner that runs nothing: %v", err)
	}
	s, err := NewScanner(t.Context(), oneImage{`{"config":{"Entrypoint":["/scan"],"Cmd":["-v"],"Env":["PATH=/bin"],"WorkingDir":"/w"}}`}, r, amd64, "")
	if err != nil {
		t.Fatal(err)
	}
	local := llb.Edge{Vertex: &llb.Vertex{Op: &llb.SourceOp{Identifier: "local://context"}}}
	base := llb.Edge{Vertex: &llb.Vertex{Op: &llb.SourceOp{Identifier: "docker-image://docker.io/library/app:1"}, Platform: &amd64}}
	a := s.Scan("linux/amd64", base, map[string]llb.Edge{"context": local, "same": base})
	if err := a.Graph.Verify(); err != nil {
		t.Fatal(err)
	}
	op := a.Graph.Root.Vertex.Op.(*llb.ExecOp)
	want := []string{
		"PATH=/bin", "BUILDKIT_SCAN_DESTINATION=/run/out/", "BUILDKIT_SCAN_SOURCE=/run/src/core/sbom",
		"BUILDKIT_SCAN_SOURCE_EXTRAS=/run/src/extras", "BUILDKIT_SCAN_A=1", "BUILDKIT_SCAN_B=2",
	}
	if !slices.Equal(op.Env, want) || !slices.Equal(op.Args, []string{"/scan", "-v"}) || op.Cwd != "/w" {
		t.Errorf("env %v, args %v, cwd %s", op.Env, op.Args, op.Cwd)
	}
	var dests []string
	for _, m := range op.Mounts {
		dests = append(dests, m.Dest)
	}
	if want := []string{"/", "/run/src/core/sbom", "/run/src/extras/sbom-context", "/run/src/extras/sbom-same", "/tmp", "/run/out/"}; !slices.Equal(dests, want) {
		t.Errorf("mounts %v", dests)
	}
	if op.Mounts[3].Input != op.Mounts[1].Input || !op.Mounts[1].ReadOnly || a.Graph.Root.Index != 1 || !a.Bundle {
		t.Errorf("%+v", a)
	}
	if !(&Result{Platforms: []PlatformResult{{Attestations: []Attestation{a}}}}).HasSBOM() || (&Result{}).HasSBOM() {
		t.Error("an SBOM is not seen")
	}
	// The result may be empty.
	empty := s.Scan("linux/amd64", llb.Edge{}, nil)
	if err := empty.Graph.Verify(); err != nil {
		t.Error(err)
	}
}
