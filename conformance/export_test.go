package conformance

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"maps"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kiln-build/kiln/conformance/corpus"
	"github.com/kiln-build/kiln/conformance/peer"
)

// simple is a context that builds for any platform.
func simple(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := peer.WriteFiles(dir, map[string]string{
		"Dockerfile": "FROM scratch\nCOPY main.txt /\nLABEL a=b\n", "main.txt": "main",
	}); err != nil {
		t.Fatal(err)
	}
	return dir
}

// answers builds on both daemons and returns what each told of the exports.
func answers(t *testing.T, context, output string, opts ...string) (told [2]document) {
	t.Helper()
	for i, d := range []*peer.Daemon{shared.kiln, shared.buildkit} {
		meta := filepath.Join(t.TempDir(), "meta.json")
		dest := filepath.Join(t.TempDir(), "out")
		args := shared.tools.BuildArgs(d, shared.base, peer.Build{Context: context, Output: strings.ReplaceAll(output, "DEST", dest)})
		args = append(args, "--metadata-file", meta)
		for _, o := range opts {
			args = append(args, "--opt", o)
		}
		command(t, d, args...)
		data, err := os.ReadFile(meta)
		if errors.Is(err, fs.ErrNotExist) {
			continue // nothing was told
		}
		if err != nil {
			t.Fatal(err)
		}
		told[i] = decode(t, data)
	}
	return told
}

// TestSameAnswers compares what clients are told of exports.
func TestSameAnswers(t *testing.T) {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	where := strings.TrimPrefix(server.URL, "http://")
	context := simple(t)
	both := "platform=linux/amd64,linux/arm64"
	for name, c := range map[string]struct {
		output string
		opts   []string
	}{
		"image":             {"type=image,name=example.org/a:1", nil},
		"short name":        {"type=image,name=app", nil},
		"two names":         {`type=image,"name=example.org/a:1,example.org/b"`, nil},
		"no name":           {"type=image", nil},
		"dangling":          {"type=image,dangling-name-prefix=dangling,danging-name-empty-only=true", nil},
		"dangling and name": {"type=image,name=example.org/a:1,dangling-name-prefix=dangling,name-canonical=true", nil},
		"pushed":            {"type=image,push=true,name=" + where + "/pushed:1", nil},
		"by digest":         {"type=image,push=true,push-by-digest=true,name-canonical=true,name=" + where + "/digest", nil},
		"platforms":         {"type=image,name=example.org/a:1", []string{both}},
		"oci":               {"type=oci,dest=DEST,name=app:2", nil},
		"docker":            {"type=docker,dest=DEST,name=app:2", nil},
		"oci of platforms":  {"type=oci,dest=DEST", []string{both}},
		"oci as folder":     {"type=oci,dest=DEST,tar=false", nil},
		"local":             {"type=local,dest=DEST", nil},
		"tar":               {"type=tar,dest=DEST", nil},
		"with Docker types": {"type=image,oci-mediatypes=false", nil},
		"attested":          {"type=image,name=example.org/a:1", []string{"attest:provenance=mode=min,inline-only=true"}},
		"archive inline":    {"type=oci,dest=DEST", []string{"attest:provenance=mode=min,inline-only=true"}},
		"forced inline":     {"type=oci,dest=DEST,attestation-inline=true", []string{"attest:provenance=mode=min,inline-only=true"}},
		"annotated":         {"type=image,annotation-manifest-descriptor.a=b,annotation.c=d", nil},
		"index annotated":   {"type=image,annotation-index-descriptor.a=b,annotation-index.c=d,annotation[linux/arm64].e=f", []string{both}},
		"zstd":              {"type=oci,dest=DEST,compression=zstd,compression-level=3", nil},
		"estargz":           {"type=oci,dest=DEST,compression=estargz,force-compression=true", nil},
		"uncompressed":      {"type=image,compression=uncompressed", nil},
		"epoch":             {"type=oci,dest=DEST", []string{"build-arg:SOURCE_DATE_EPOCH=1700000000"}},
	} {
		t.Run(name, func(t *testing.T) {
			told := answers(t, context, c.output, c.opts...)
			for _, m := range told {
				if d, ok := m["containerimage.descriptor"].(document); ok {
					if d["digest"] != m["containerimage.digest"] {
						t.Errorf("the descriptor is of %s, the image is %s", d["digest"], m["containerimage.digest"])
					}
					// When it was made, which only BuildKit tells by the second of the export.
					if a, ok := d["annotations"].(document); ok && a["org.opencontainers.image.created"] != nil {
						a["org.opencontainers.image.created"] = "…"
					}
				}
				if n, ok := m["image.name"].(string); ok && strings.Contains(n, "dangling@") {
					m["image.name"] = strings.ReplaceAll(n, fmt.Sprint(m["containerimage.digest"]), "…")
				}
			}
			if a, b := shape(t, told[0]), shape(t, told[1]); a != b {
				t.Errorf("Kiln tells\n%s\nBuildKit\n%s", a, b)
			}
			if name, ok := told[0]["image.name"].(string); ok && strings.HasPrefix(name, where) {
				checkPushed(t, where, name, fmt.Sprint(told[0]["containerimage.digest"]), strings.Contains(c.output, "by-digest"))
			}
		})
	}
}

// checkPushed pulls what Kiln pushed, which BuildKit pushed after it again.
func checkPushed(t *testing.T, where, image, digest string, byDigest bool) {
	t.Helper()
	repo, err := name.NewRepository(strings.Split(strings.TrimSuffix(image, ":1"), ",")[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := remote.Get(repo.Digest(digest)); err != nil {
		t.Errorf("%s has no %s: %v", where, digest, err)
	}
	tags, err := remote.List(repo)
	if err != nil || (len(tags) == 0) != byDigest {
		t.Errorf("tags %v, %v", tags, err)
	}
}

// TestSameRefusals compares what both refuse, and that Kiln says it in words
// that whoever looks for BuildKit's finds.
func TestSameRefusals(t *testing.T) {
	var all sync.WaitGroup
	defer all.Wait()
	context := simple(t)
	both := "platform=linux/amd64,linux/arm64"
	for says, c := range map[string]struct {
		output string
		opts   []string
	}{
		"non-bool value specified for push":                                   {"type=image,push=perhaps", nil},
		"non-bool value specified for oci-mediatypes":                         {"type=image,oci-mediatypes=perhaps", nil},
		"unsupported compression type":                                        {"type=image,compression=lzma", nil},
		"non-integer value much specified for compression-level":              {"type=image,compression-level=much", nil},
		`"compression=estargz" conflicts with "oci-mediatypes=false"`:         {"type=image,compression=estargz,oci-mediatypes=false", nil},
		`"oci-artifact=true" conflicts with "oci-mediatypes=false"`:           {"type=image,oci-artifact=true,oci-mediatypes=false", nil},
		"docker exporter does not currently support exporting manifest lists": {"type=docker,dest=DEST", []string{both}},
		"index annotations not supported for single platform export":          {"type=image,annotation-index.a=b", nil},
		`cannot export annotations with "oci-mediatypes=false"`:               {"type=image,annotation-index.a=b,oci-mediatypes=false", []string{both}},
		"invalid annotation: no platform linux/s390x found in source":         {"type=image,annotation[linux/s390x].a=b", []string{both}},
		`cannot export attestations with "oci-mediatypes=false"`:              {"type=image,oci-mediatypes=false", []string{"attest:provenance="}},
		"cannot overwrite main.txt from linux/":                               {"type=local,dest=DEST,platform-split=false", []string{both}},
		`unknown attestation type "signature"`:                                {"type=image", []string{"attest:signature=yes"}},
		"invalid provenance SLSA version":                                     {"type=image", []string{"attest:provenance=version=v9"}},
		"invalid mode":                                                        {"type=image", []string{"attest:provenance=mode=some"}},
		"provenance materials are incomplete":                                 {"type=image", []string{"attest:provenance=complete-materials=true"}},
		"failed to parse sbom":                                                {"type=image", []string{"attest:sbom=generator=A B"}},
		"failed to parse reproducible flag":                                   {"type=image", []string{"attest:provenance=reproducible=perhaps"}},
	} {
		for _, d := range []*peer.Daemon{shared.kiln, shared.buildkit} {
			output := strings.ReplaceAll(c.output, "DEST", filepath.Join(t.TempDir(), "out"))
			args := shared.tools.BuildArgs(d, shared.base, peer.Build{Context: context, Output: output})
			for _, o := range c.opts {
				args = append(args, "--opt", o)
			}
			// All at once: BuildKit's client waits a while before it believes an early refusal.
			all.Go(func() {
				if out := failing(t, d, args...); !strings.Contains(out, says) {
					t.Errorf("%s does not say %q but\n%s", d.Name, says, out)
				}
			})
		}
	}
}

// TestSameIndexes compares images for several platforms with their attestations.
func TestSameIndexes(t *testing.T) {
	// A file of its own: BuildKit takes a layer that another test had compressed,
	// whatever was asked for there.
	context := simple(t)
	if err := peer.WriteFiles(context, map[string]string{"main.txt": t.Name()}); err != nil {
		t.Fatal(err)
	}
	dests := on(t, context, ociTo(",annotation-index.a=b,annotation[linux/arm64].c=d"), "platform=linux/amd64,linux/arm64", "attest:provenance=mode=max")
	kiln, buildkit := readLayout(t, dests[0]), readLayout(t, dests[1])
	if len(kiln.manifests) != 4 || len(buildkit.manifests) != 4 || !maps.Equal(kiln.index.Annotations, buildkit.index.Annotations) {
		t.Fatalf("Kiln's index %+v, BuildKit's %+v", kiln.index, buildkit.index)
	}
	for i, a := range kiln.index.Manifests {
		b := buildkit.index.Manifests[i]
		if a.MediaType != b.MediaType || a.Platform.String() != b.Platform.String() || !slices.Equal(keys(a.Annotations), keys(b.Annotations)) {
			t.Errorf("Kiln lists %+v, BuildKit %+v", a, b)
		}
		if a, b := shape(t, kiln.manifests[i]), shape(t, buildkit.manifests[i]); a != b {
			t.Errorf("Kiln's manifest:\n%s\nBuildKit's:\n%s", a, b)
		}
	}
	for i, a := range kiln.statements {
		for _, s := range []document{a, buildkit.statements[i]} {
			corpus.ForgetOwn(s["predicate"].(document))
		}
		if a, b := shape(t, a), shape(t, buildkit.statements[i]); a != b {
			t.Errorf("Kiln's statement:\n%s\nBuildKit's:\n%s", a, b)
		}
	}
}

// TestHistoryHasProvenance reads a build's provenance from its record, as
// buildx does.
func TestHistoryHasProvenance(t *testing.T) {
	buildctl(t, "build", "--frontend=dockerfile.v0", "--local", "context="+simple(t), "--local", "dockerfile="+simple(t), "--opt", "label:only=here")
	for line := range strings.Lines(buildctl(t, "debug", "histories", "--format", "{{json .}}")) {
		var event struct {
			Record struct {
				FrontendAttrs map[string]string
				Result        struct {
					Attestations []struct {
						Digest, MediaType string            `json:",omitempty"`
						Annotations       map[string]string `json:",omitempty"`
					}
				}
			}
		}
		if err := json.Unmarshal([]byte(line), &event); err != nil {
			t.Fatalf("decode %s: %v", line, err)
		}
		r := event.Record
		if r.FrontendAttrs["label:only"] != "here" {
			continue
		}
		if len(r.Result.Attestations) != 1 || r.Result.Attestations[0].Annotations["in-toto.io/predicate-type"] != "https://slsa.dev/provenance/v1" {
			t.Fatalf("attestations %+v", r.Result.Attestations)
		}
		predicate := decode(t, []byte(buildctl(t, "debug", "get", r.Result.Attestations[0].Digest)))
		parameters := predicate["buildDefinition"].(document)["externalParameters"].(document)
		if got := parameters["request"].(document)["args"].(document)["label:only"]; got != "here" {
			t.Errorf("parameters %v", parameters)
		}
		return
	}
	t.Error("the history has no record of the build")
}
