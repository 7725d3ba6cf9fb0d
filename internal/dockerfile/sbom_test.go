package dockerfile

import (
	"slices"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/llb"
)

const scanned = `ARG BUILDKIT_SBOM_SCAN_CONTEXT=true
FROM alpine AS unused
FROM alpine AS tools
ARG BUILDKIT_SBOM_SCAN_STAGE=true
RUN make tools
FROM alpine AS quiet
ARG BUILDKIT_SBOM_SCAN_STAGE=tools,other
RUN make quiet
FROM alpine AS other
ARG BUILDKIT_SBOM_SCAN_STAGE=OTHER
RUN make other
FROM alpine
COPY --from=tools /a /a
COPY --from=quiet /b /b
COPY --from=other /c /c
`

func scanOf(t *testing.T, file string, opts map[string]string) *llb.ExecOp {
	t.Helper()
	gw := newFakeGateway(map[string]string{"dockerfile/Dockerfile": file})
	gw.images["docker.io/example/scan:1"] = `{"architecture":"amd64","os":"linux","config":{"Entrypoint":["/scan"]}}`
	opts["attest:sbom"] = "generator=example/scan:1,FORMAT=spdx"
	res, err := build(t, gw, opts)
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Platforms[0].Attestations) != 1 || !res.HasSBOM() {
		t.Fatalf("attestations %+v", res.Platforms[0].Attestations)
	}
	g := res.Platforms[0].Attestations[0].Graph
	if err := g.Verify(); err != nil {
		t.Fatal(err)
	}
	op := g.Root.Vertex.Op.(*llb.ExecOp)
	if g.Root.Vertex.Inputs[op.Mounts[1].Input] != res.Platforms[0].Graph.Root {
		t.Error("it is not the result that is scanned")
	}
	return op
}

func extrasOf(op *llb.ExecOp) (names []string) {
	for _, m := range op.Mounts {
		if name, ok := strings.CutPrefix(m.Dest, "/run/src/extras/"); ok {
			names = append(names, name)
		}
	}
	return names
}

func TestSBOM(t *testing.T) {
	op := scanOf(t, scanned, map[string]string{})
	if got, want := extrasOf(op), []string{"sbom-context", "sbom-other", "sbom-tools"}; !slices.Equal(got, want) {
		t.Errorf("it scans %v, want %v", got, want)
	}
	if !slices.Contains(op.Env, "BUILDKIT_SCAN_FORMAT=spdx") || !slices.Equal(op.Args, []string{"/scan"}) {
		t.Errorf("env %v, args %v", op.Env, op.Args)
	}
	op = scanOf(t, "FROM alpine AS a\nRUN x\nFROM a\n", map[string]string{})
	if got := extrasOf(op); len(got) > 0 || slices.ContainsFunc(op.Env, func(e string) bool { return strings.HasPrefix(e, "BUILDKIT_SCAN_SOURCE_EXTRAS") }) {
		t.Errorf("it scans %v unasked", got)
	}
	op = scanOf(t, "ARG BUILDKIT_SBOM_SCAN_STAGE\nFROM alpine AS a\nRUN x\nFROM a\n", map[string]string{"build-arg:BUILDKIT_SBOM_SCAN_STAGE": "true"})
	if got := extrasOf(op); !slices.Equal(got, []string{"sbom-a"}) {
		t.Errorf("it scans %v, asked by a build argument", got)
	}
}

func TestBadSBOMOptions(t *testing.T) {
	gw := newFakeGateway(map[string]string{"dockerfile/Dockerfile": "FROM alpine\n"})
	gw.images["docker.io/example/idle:1"] = `{"architecture":"amd64","os":"linux","config":{}}`
	for _, option := range []string{"generator=", "generator=example/idle:1", "generator=example/unknown:1"} {
		if _, err := build(t, gw, map[string]string{"attest:sbom": option}); err == nil {
			t.Errorf("%s was taken", option)
		}
	}
	gw.images["docker.io/example/scan:1"] = `{"architecture":"amd64","os":"linux","config":{"Cmd":["/scan"]}}`
	if res, err := build(t, gw, map[string]string{"attest:sbom": "generator=example/scan:1,disabled=true"}); err != nil || !res.HasSBOM() {
		t.Errorf("who does not want an SBOM does not ask for it: %v", err)
	}
}

func TestSourceIsTold(t *testing.T) {
	res, err := build(t, newFakeGateway(map[string]string{"dockerfile/Dockerfile": "FROM alpine\n"}), nil)
	if err != nil {
		t.Fatal(err)
	}
	from := res.Platforms[0].Graph.Sources.Files[0].From
	if from == nil || !strings.Contains(from.Text(), "local://dockerfile") {
		t.Errorf("the Dockerfile is from %v", from)
	}
}
