package conformance

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"

	"github.com/kiln-build/kiln/conformance/corpus"
	"github.com/kiln-build/kiln/conformance/peer"
)

// attested is a context whose build uses what provenance tells of.
func attested(t *testing.T, head ...string) string {
	t.Helper()
	dir := t.TempDir()
	if err := peer.WriteFiles(dir, map[string]string{
		"Dockerfile": strings.Join(head, "") + `FROM base AS tools
ARG GREETING
RUN echo $GREETING > /greeting
FROM base
COPY --from=tools /greeting /greeting
COPY main.txt /
RUN --mount=type=secret,id=token,required=false --network=none true
CMD ["cat", "/greeting"]
`,
		"main.txt": "main",
	}); err != nil {
		t.Fatal(err)
	}
	return dir
}

// on runs the same buildctl against both daemons. dest has one more argument
// for each: where the output goes.
func on(t *testing.T, context string, output func(dest string) string, opts ...string) (dests []string) {
	t.Helper()
	for _, d := range []*peer.Daemon{shared.kiln, shared.buildkit} {
		dest := filepath.Join(t.TempDir(), d.Name)
		args := shared.tools.BuildArgs(d, shared.base, peer.Build{Context: context, Output: output(dest)})
		for _, o := range opts {
			args = append(args, "--opt", o)
		}
		command(t, d, args...)
		dests = append(dests, dest)
	}
	return dests
}

func ociTo(more string) func(string) string {
	return func(dest string) string { return "type=oci,dest=" + dest + more }
}

// document is any JSON text.
type document = corpus.Document

// unpacked is an image layout, read.
type unpacked struct {
	index        *v1.IndexManifest
	manifests    []document // of the index, in order
	statements   []document // of the attestations, in order
	image        v1.Hash    // of the first manifest
	attestations []*v1.Manifest
}

func readLayout(t *testing.T, archive string) unpacked {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("tar", "-xf", archive, "-C", dir).CombinedOutput(); err != nil {
		t.Fatalf("unpack %s: %v: %s", archive, err, out)
	}
	root, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	top, err := root.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	index, err := root.ImageIndex(top.Manifests[0].Digest)
	if err != nil {
		t.Fatalf("the image is no index: %v", err)
	}
	u := unpacked{}
	if u.index, err = index.IndexManifest(); err != nil {
		t.Fatal(err)
	}
	blob := func(h v1.Hash) []byte {
		data, err := os.ReadFile(filepath.Join(dir, "blobs", h.Algorithm, h.Hex))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	for i, d := range u.index.Manifests {
		raw := blob(d.Digest)
		u.manifests = append(u.manifests, decode(t, raw))
		if i == 0 {
			u.image = d.Digest
		}
		if d.Annotations["vnd.docker.reference.type"] == "" {
			continue
		}
		m, err := v1.ParseManifest(bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		u.attestations = append(u.attestations, m)
		for _, l := range m.Layers {
			u.statements = append(u.statements, decode(t, blob(l.Digest)))
		}
	}
	return u
}

func decode(t *testing.T, data []byte) document {
	t.Helper()
	var d document
	if err := json.Unmarshal(data, &d); err != nil {
		t.Fatalf("decode %.200s: %v", data, err)
	}
	return d
}

// shape is a document with what varies left out.
func shape(t *testing.T, d document) string {
	t.Helper()
	text, err := corpus.Shape(d)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestSameAttestationForms compares how attestations hang on an image.
func TestSameAttestationForms(t *testing.T) {
	context := attested(t)
	for name, output := range map[string]string{
		"artifact": "", "image": ",oci-artifact=false", "named": ",name=example.org/app:1",
	} {
		t.Run(name, func(t *testing.T) {
			dests := on(t, context, ociTo(output), "attest:provenance=mode=min")
			kiln, buildkit := readLayout(t, dests[0]), readLayout(t, dests[1])
			if len(kiln.manifests) != len(buildkit.manifests) || len(kiln.attestations) != 1 {
				t.Fatalf("Kiln's index lists %d manifests, BuildKit's %d", len(kiln.manifests), len(buildkit.manifests))
			}
			for i := range kiln.manifests {
				a, b := kiln.index.Manifests[i], buildkit.index.Manifests[i]
				if a.MediaType != b.MediaType || a.Platform.String() != b.Platform.String() || !slices.Equal(keys(a.Annotations), keys(b.Annotations)) {
					t.Errorf("Kiln lists %+v, BuildKit %+v", a, b)
				}
				if a, b := shape(t, kiln.manifests[i]), shape(t, buildkit.manifests[i]); a != b {
					t.Errorf("Kiln's manifest:\n%s\nBuildKit's:\n%s", a, b)
				}
			}
			if got := kiln.index.Manifests[1].Annotations["vnd.docker.reference.digest"]; got != kiln.image.String() {
				t.Errorf("the attestation is about %s, the image is %s", got, kiln.image)
			}
			a, b := kiln.statements[0], buildkit.statements[0]
			if a, b := fmt.Sprint(a["_type"], a["predicateType"]), fmt.Sprint(b["_type"], b["predicateType"]); a != b {
				t.Errorf("Kiln's statement is %s, BuildKit's %s", a, b)
			}
			subject := shape(t, document{"subject": a["subject"]})
			if want := shape(t, document{"subject": b["subject"]}); subject != want {
				t.Errorf("Kiln's subject %s, BuildKit's %s", subject, want)
			}
			if name == "named" && !strings.Contains(fmt.Sprint(a["subject"]), kiln.image.Hex) {
				t.Errorf("subject %v, the image is %s", a["subject"], kiln.image)
			}
		})
	}
}

func keys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }

// TestSameProvenance compares what is told of a build.
func TestSameProvenance(t *testing.T) {
	context := attested(t)
	for name, attest := range map[string]string{
		"min": "mode=min", "max": "mode=max,builder-id=https://ci.example.org/1", "v0.2": "mode=max,version=v0.2,reproducible=true",
	} {
		t.Run(name, func(t *testing.T) {
			dests := on(t, context, ociTo(""), "attest:provenance="+attest, "build-arg:GREETING=hello", "label:a=b",
				"vcs:source=https://user:secret@example.org/app.git", "vcs:revision=0123", "filename=Dockerfile")
			kiln, buildkit := readLayout(t, dests[0]).statements[0], readLayout(t, dests[1]).statements[0]
			a, b := kiln["predicate"].(document), buildkit["predicate"].(document)
			for _, p := range []document{a, b} {
				corpus.ForgetOwn(p)
			}
			if a, b := shape(t, a), shape(t, b); a != b {
				t.Errorf("Kiln's provenance:\n%s\nBuildKit's:\n%s", a, b)
			}
		})
	}
}

// scanner builds a scanner with Kiln and pushes it to a registry of its own.
func scanner(t *testing.T) (name string) {
	t.Helper()
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	name = strings.TrimPrefix(server.URL, "http://") + "/scanner:1"
	dir := t.TempDir()
	if err := peer.WriteFiles(dir, map[string]string{
		"Dockerfile": "FROM base\nCOPY scan.sh /scan.sh\nENTRYPOINT [\"/bin/sh\", \"/scan.sh\"]\n", "scan.sh": corpus.ScanScript(),
	}); err != nil {
		t.Fatal(err)
	}
	command(t, shared.kiln, shared.tools.BuildArgs(shared.kiln, shared.base, peer.Build{
		Context: dir, Output: "type=image,push=true,registry.insecure=true,name=" + name,
	})...)
	return name
}

// TestSameSBOM compares what a scanner's findings become.
func TestSameSBOM(t *testing.T) {
	context := attested(t, "ARG BUILDKIT_SBOM_SCAN_CONTEXT=true\n", "ARG BUILDKIT_SBOM_SCAN_STAGE\n")
	sbom := "attest:sbom=FLAVOR=plain,generator=" + scanner(t)
	var told [2][]string
	for i, dest := range on(t, context, ociTo(",name=example.org/app:1"), sbom, "build-arg:BUILDKIT_SBOM_SCAN_STAGE=tools") {
		u := readLayout(t, dest)
		layers := map[string]int{}
		for n, l := range u.manifests[0]["layers"].([]any) {
			layers[l.(document)["digest"].(string)] = n
		}
		for _, s := range u.statements {
			p := s["predicate"].(document)
			line := fmt.Sprint(s["_type"], s["predicateType"], p["name"], len(s["subject"].([]any)), s["subject"].([]any)[0].(document)["name"])
			for _, f := range p["files"].([]any) {
				f := f.(document)
				comment, _ := f["comment"].(string)
				at, ok := layers[strings.TrimPrefix(comment, "layerID: ")]
				line += fmt.Sprint(" ", f["fileName"], " in layer ", at, ok)
			}
			told[i] = append(told[i], line)
		}
	}
	if len(told[0]) != 3 || !slices.Equal(told[0], told[1]) {
		t.Errorf("Kiln tells\n%s\nBuildKit\n%s", strings.Join(told[0], "\n"), strings.Join(told[1], "\n"))
	}
}

// TestSameAttestationFiles compares attestations beside exported files.
func TestSameAttestationFiles(t *testing.T) {
	context := attested(t)
	sbom := "attest:sbom=generator=" + scanner(t)
	for name, attrs := range map[string]string{
		"plain": "", "split": ",platform-split=true", "prefix": ",attestation-prefix=about-", "delete": ",mode=delete",
		"epoch": ",platform-split=false,source-date-epoch=1700000000",
	} {
		t.Run(name, func(t *testing.T) {
			dests := on(t, context, func(dest string) string { return "type=local,dest=" + dest + attrs },
				sbom, "attest:provenance=mode=min,filename=made.json")
			var told [2][]string
			for i, dest := range dests {
				for file := range walk(t, dest) {
					line := file
					if strings.HasSuffix(file, ".json") {
						data, err := os.ReadFile(filepath.Join(dest, file))
						if err != nil {
							t.Fatal(err)
						}
						line += shape(t, document{"subject": decode(t, data)["subject"]})
					}
					if info, err := os.Lstat(filepath.Join(dest, file)); err != nil {
						t.Fatal(err)
					} else if strings.Contains(attrs, "epoch") && file != "." {
						line += info.ModTime().UTC().String()
					}
					told[i] = append(told[i], line)
				}
				slices.Sort(told[i])
			}
			if a, b := strings.Join(told[0], "\n"), strings.Join(told[1], "\n"); a != b || !strings.Contains(a, "made.json") || !strings.Contains(a, "sbom.spdx.json") {
				t.Errorf("Kiln's files:\n%s\nBuildKit's:\n%s", a, b)
			}
		})
	}
}

// gitServer serves a repository of one file over http.
func gitServer(t *testing.T) (url string) {
	t.Helper()
	root := t.TempDir()
	git := func(dir string, args ...string) string {
		cmd := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=a", "-c", "user.email=a@example.org"}, args...)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	work := filepath.Join(root, "work")
	if err := peer.WriteFiles(work, map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"}); err != nil {
		t.Fatal(err)
	}
	git(work, "init", "-q", "-b", "main")
	git(work, "add", ".")
	git(work, "commit", "-q", "-m", "one")
	git(root, "clone", "-q", "--bare", work, filepath.Join(root, "app.git"))
	server := httptest.NewServer(&cgi.Handler{
		Path: filepath.Join(git(root, "--exec-path"), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1"}, Logger: log.New(io.Discard, "", 0), Stderr: io.Discard,
	})
	t.Cleanup(server.Close)
	return server.URL + "/app.git"
}

// TestSameMaterials compares what provenance lists of images, files at URLs and
// repositories.
func TestSameMaterials(t *testing.T) {
	image, repository := scanner(t), gitServer(t)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "content") }))
	defer web.Close()
	dir := t.TempDir()
	if err := peer.WriteFiles(dir, map[string]string{
		"Dockerfile": "FROM " + image + "\nADD " + web.URL + "/file?x=1 /file\nADD " + repository + "#main /app\n",
	}); err != nil {
		t.Fatal(err)
	}
	for name, opts := range map[string][]string{
		"local":      nil,
		"repository": {"context=" + repository + "#main", "filename=Dockerfile"},
		"query":      {"context=" + repository + "?branch=main"},
	} {
		t.Run(name, func(t *testing.T) {
			dests := on(t, dir, ociTo(""), append([]string{"attest:provenance=mode=min"}, opts...)...)
			var told [2]string
			for i, dest := range dests {
				p := readLayout(t, dest).statements[0]["predicate"].(document)
				corpus.ForgetOwn(p)
				delete(p["runDetails"].(document)["metadata"].(document), "startedOn")
				delete(p["runDetails"].(document)["metadata"].(document), "finishedOn")
				delete(p["runDetails"].(document)["metadata"].(document), "invocationId")
				told[i] = indented(t, p)
			}
			if told[0] != told[1] {
				t.Errorf("Kiln's provenance:\n%s\nBuildKit's:\n%s", told[0], told[1])
			}
		})
	}
}
