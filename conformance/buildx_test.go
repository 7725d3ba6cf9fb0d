package conformance

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/kiln-build/kiln/conformance/peer"
)

// buildxProgram builds buildx, once.
var buildxProgram = sync.OnceValues(func() (string, error) {
	path, err := filepath.Abs(filepath.Join("..", "bin", "peer", "buildx"))
	if err != nil {
		return "", err
	}
	out, err := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "github.com/docker/buildx/cmd/buildx").CombinedOutput()
	if err != nil {
		return "", errors.New(string(out))
	}
	return path, nil
})

// buildx is the real buildx with builders of its own.
type buildx struct {
	t       *testing.T
	program string
	env     []string
}

// newBuildx has a builder for the remote driver on d's socket.
func newBuildx(t *testing.T, d *peer.Daemon) *buildx {
	t.Helper()
	program, err := buildxProgram()
	if err != nil {
		t.Fatalf("build buildx: %v", err)
	}
	b := &buildx{t, program, append(os.Environ(), "BUILDX_CONFIG="+t.TempDir(), "DOCKER_CONFIG="+t.TempDir())}
	b.run("create", "--name", d.Name, "--driver", "remote", "--use", d.Addr())
	return b
}

// try runs buildx and returns what it printed on each stream.
func (b *buildx) try(args ...string) (stdout, stderr string, err error) {
	cmd := exec.CommandContext(b.t.Context(), b.program, args...)
	cmd.Env, cmd.WaitDelay = b.env, 5*time.Second
	var out, log strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &log
	err = cmd.Run()
	return out.String(), log.String(), err
}

func (b *buildx) run(args ...string) (stdout, stderr string) {
	b.t.Helper()
	stdout, stderr, err := b.try(args...)
	if err != nil {
		b.t.Fatalf("buildx %s: %v\n%s\n%s", strings.Join(args, " "), err, stdout, stderr)
	}
	return stdout, stderr
}

// build builds a folder, in which "base" is the base image.
func (b *buildx) build(context string, args ...string) (stdout, stderr string) {
	b.t.Helper()
	return b.run(b.buildArgs(context, args...)...)
}

func (b *buildx) buildArgs(context string, args ...string) []string {
	return slices.Concat([]string{"build", "--progress=plain", "--build-context", "base=oci-layout://" + shared.base.Dir}, args, []string{context})
}

// project is a folder with two stages and a file for each of two platforms.
func project(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	files := map[string]string{
		"Dockerfile": `ARG VERSION=1
FROM base AS build
# VERSION is what is said
ARG VERSION
RUN echo "version $VERSION" > /made

# out holds what was made
FROM scratch AS out
COPY --from=build /made /made
`,
		"multi.Dockerfile": "FROM scratch\nARG TARGETARCH\nCOPY file-$TARGETARCH /file\n",
		"odd.Dockerfile":   "FROM base as odd\nRUN true\n",
		"file-amd64":       "for amd64\n",
		"file-arm64":       "for arm64\n",
		"docker-bake.hcl": `variable "VERSION" { default = "7" }
variable "OUT" {}
variable "BASE" {}
group "default" { targets = ["files", "image"] }
target "common" {
  args = { VERSION = VERSION }
  contexts = { base = BASE }
}
target "files" {
  inherits = ["common"]
  output = ["type=local,dest=${OUT}/files"]
}
target "image" {
  inherits = ["common"]
  output = ["type=oci,dest=${OUT}/image.tar"]
  attest = []
}
`,
	}
	if err := peer.WriteFiles(dir, files); err != nil {
		t.Fatal(err)
	}
	return dir
}

func textOf(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// tarNames lists an archive.
func tarNames(t *testing.T, path string) (names []string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names
		} else if err != nil {
			t.Fatalf("read %s: %v", path, err)
		}
		names = append(names, h.Name)
	}
}

func wantText(t *testing.T, what, text string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(text, want) {
			t.Errorf("%s has no %q:\n%s", what, want, text)
		}
	}
}

// newRegistry serves an empty registry.
func newRegistry(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(s.Close)
	return strings.Replace(s.Listener.Addr().String(), "127.0.0.1", "localhost", 1)
}

func TestBuildxBuilder(t *testing.T) {
	b := newBuildx(t, shared.kiln)
	list, _, _ := b.try("ls") // fails for the builder of a docker that is not there
	wantText(t, "ls", list, "kiln", "running", "linux/amd64")
	about, _ := b.run("inspect")
	wantText(t, "inspect", about, "Driver:        remote", "running", "BuildKit version:", "GC Policy rule#0", "org.mobyproject.buildkit.worker.executor")
}

func TestBuildxOutputs(t *testing.T) {
	b, dir, out := newBuildx(t, shared.kiln), project(t), t.TempDir()
	at := func(name string) string { return filepath.Join(out, name) }
	for _, o := range []string{
		"type=local,dest=" + at("local"), "type=tar,dest=" + at("tar"), "type=oci,dest=" + at("oci"),
		"type=docker,dest=" + at("docker"), "type=oci,tar=false,dest=" + at("layout"), "type=cacheonly",
	} {
		b.build(dir, "-o", o)
	}
	if got := textOf(t, at("local/made")); got != "version 1\n" {
		t.Errorf("the local output has %q", got)
	}
	if names := tarNames(t, at("tar")); !slices.Contains(names, "made") {
		t.Errorf("the tar output has %q", names)
	}
	for name, want := range map[string][]string{"oci": {"oci-layout", "index.json"}, "docker": {"manifest.json"}} {
		names := tarNames(t, at(name))
		for _, w := range want {
			if !slices.Contains(names, w) {
				t.Errorf("the %s output has no %s: %q", name, w, names)
			}
		}
	}
	if _, err := os.Stat(at("layout/index.json")); err != nil {
		t.Error(err)
	}
	if _, stderr, err := b.try(b.buildArgs(dir, "-o", "type=nope")...); err == nil || !strings.Contains(stderr, "nope") {
		t.Errorf("an unknown output: %v\n%s", err, stderr)
	}
}

func TestBuildxMetadataFile(t *testing.T) {
	b, dir := newBuildx(t, shared.kiln), project(t)
	file := filepath.Join(t.TempDir(), "meta.json")
	ref := newRegistry(t) + "/app:1"
	b.build(dir, "-t", ref, "--push", "--metadata-file", file)
	var meta struct {
		Ref        string `json:"buildx.build.ref"`
		Name       string `json:"image.name"`
		Digest     string `json:"containerimage.digest"`
		Provenance struct {
			BuildType string `json:"buildType"`
		} `json:"buildx.build.provenance"`
		Descriptor struct{ MediaType, Digest string } `json:"containerimage.descriptor"`
	}
	if err := json.Unmarshal([]byte(textOf(t, file)), &meta); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(meta.Ref, "kiln/kiln0/") || meta.Name != ref || meta.Digest == "" || meta.Descriptor.Digest != meta.Digest || meta.Provenance.BuildType == "" {
		t.Errorf("metadata: %s", textOf(t, file))
	}
	shown, _ := b.run("imagetools", "inspect", ref, "--format", "{{json .Manifest}}")
	wantText(t, "imagetools inspect", shown, meta.Digest)
}

func TestBuildxBake(t *testing.T) {
	b, dir, out := newBuildx(t, shared.kiln), project(t), t.TempDir()
	b.env = append(b.env, "OUT="+out, "BASE=oci-layout://"+shared.base.Dir)
	meta := filepath.Join(out, "meta.json")
	b.run("bake", "-f", filepath.Join(dir, "docker-bake.hcl"), "--progress=plain", "--metadata-file", meta,
		"--set", "*.context="+dir, "--allow=fs="+out, "--allow=fs.read="+dir, "--allow=fs.read="+shared.base.Dir)
	if got := textOf(t, filepath.Join(out, "files/made")); got != "version 7\n" {
		t.Errorf("bake made %q", got)
	}
	open(t, filepath.Join(out, "image.tar"))
	var all map[string]map[string]any
	if err := json.Unmarshal([]byte(textOf(t, meta)), &all); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"files", "image"} {
		if all[target]["buildx.build.ref"] == nil {
			t.Errorf("metadata of %s: %v", target, all[target])
		}
	}
}

// TestBuildxPlatforms pushes an image of two platforms, with the attestations
// that buildx asks for when nobody says otherwise, and looks at it.
func TestBuildxPlatforms(t *testing.T) {
	b, dir := newBuildx(t, shared.kiln), project(t)
	host := newRegistry(t)
	one, two := host+"/app:1", host+"/app:2"
	b.build(dir, "-f", filepath.Join(dir, "multi.Dockerfile"), "--platform", "linux/amd64,linux/arm64", "-t", one, "--push")
	shown, _ := b.run("imagetools", "inspect", one)
	wantText(t, "imagetools inspect", shown, "linux/amd64", "linux/arm64", "attestation-manifest", "application/vnd.oci.image.index.v1+json")
	b.run("imagetools", "create", "-t", two, one)
	raw := func(ref string) string {
		out, _ := b.run("imagetools", "inspect", "--raw", ref)
		return out
	}
	if raw(one) != raw(two) {
		t.Errorf("the copy is another image:\n%s\n%s", raw(one), raw(two))
	}
	provenance, _ := b.run("imagetools", "inspect", one, "--format", "{{json .Provenance}}")
	wantText(t, "provenance", provenance, `"linux/amd64"`, `"linux/arm64"`, "SLSA", "dockerfile.v0")
	b.build(dir, "-f", filepath.Join(dir, "multi.Dockerfile"), "--provenance=false", "-t", two, "--push")
	wantText(t, "an image without attestations", raw(two), "application/vnd.oci.image.manifest.v1+json")
}

func TestBuildxUsageAndPrune(t *testing.T) {
	b, dir := newBuildx(t, shared.kiln), project(t)
	b.build(dir)
	total := regexp.MustCompile(`(?m)^Total:\s+(.+)$`)
	before, _ := b.run("du")
	if m := total.FindStringSubmatch(before); m == nil || m[1] == "0B" {
		t.Errorf("du after a build:\n%s", before)
	}
	verbose, _ := b.run("du", "--verbose")
	wantText(t, "du --verbose", verbose, "ID:", "Reclaimable:", "Description:")
	pruned, _ := b.run("prune", "--all", "--force")
	wantText(t, "prune", pruned, "Total:")
	after, _ := b.run("du")
	if m := total.FindStringSubmatch(after); m == nil || m[1] != "0B" {
		t.Errorf("du after prune --all:\n%s", after)
	}
}

func TestBuildxHistory(t *testing.T) {
	b, dir := newBuildx(t, shared.kiln), project(t)
	b.build(dir, "--build-arg", "VERSION=history", "--no-cache")
	refs, _ := b.run("history", "ls", "--format", "{{.Ref}}")
	ref, _, _ := strings.Cut(strings.TrimSpace(refs), "\n")
	if ref == "" {
		t.Fatalf("no build is in the history: %q", refs)
	}
	about, _ := b.run("history", "inspect", ref)
	wantText(t, "history inspect", about, "BUILD ARG", "VERSION", "history", "Build Steps:", ref)
	logs, stderr := b.run("history", "logs", ref)
	wantText(t, "history logs", logs+stderr, "RUN echo", "DONE")
	attached, _ := b.run("history", "inspect", "attachment", ref, "--type", "https://slsa.dev/provenance/v1")
	wantText(t, "history inspect attachment", attached, "dockerfile.v0", "buildType")
	trace, _ := b.run("history", "trace", ref) // as JSON where no terminal is
	var spans struct {
		Data []struct {
			Spans []struct{ OperationName string }
		}
	}
	if err := json.Unmarshal([]byte(trace), &spans); err != nil || len(spans.Data) == 0 || len(spans.Data[0].Spans) < 3 {
		t.Errorf("history trace: %v\n%.2000s", err, trace)
	}
	file := filepath.Join(t.TempDir(), "build.dockerbuild")
	b.run("history", "export", "-o", file, ref)
	if info, err := os.Stat(file); err != nil || info.Size() == 0 {
		t.Errorf("exported history: %v", err)
	}
	b.run("history", "rm", ref)
	if left, _ := b.run("history", "ls", "--format", "{{.Ref}}"); strings.Contains(left, ref) {
		t.Errorf("%s is still there after rm:\n%s", ref, left)
	}
	if _, _, err := b.try("history", "inspect", ref); err == nil {
		t.Error("a removed build can be inspected")
	}
}

func TestBuildxCheck(t *testing.T) {
	b, dir := newBuildx(t, shared.kiln), project(t)
	stdout, stderr := b.build(dir, "--check")
	wantText(t, "--check of a clean file", stdout+stderr, "no warnings found")
	stdout, stderr, err := b.try(b.buildArgs(dir, "--check", "-f", filepath.Join(dir, "odd.Dockerfile"))...)
	if err == nil {
		t.Error("--check of an odd file succeeds")
	}
	wantText(t, "--check", stdout+stderr, "FromAsCasing", "FROM base as odd")
}

func TestBuildxCall(t *testing.T) {
	b, dir := newBuildx(t, shared.kiln), project(t)
	outline, _ := b.build(dir, "--call=outline", "--build-arg", "VERSION=9")
	wantText(t, "outline", outline, "TARGET:", "out", "holds what was made", "BUILD ARG", "VERSION", "9", "is what is said")
	targets, _ := b.build(dir, "--call=targets")
	wantText(t, "targets", targets, "build", "out (default)", "holds what was made")
	text, _ := b.build(dir, "--call=targets,format=json")
	var list struct{ Targets []struct{ Name, Base string } }
	if err := json.Unmarshal([]byte(text), &list); err != nil || len(list.Targets) != 2 || list.Targets[0].Base != "base" {
		t.Errorf("targets as JSON: %v\n%s", err, text)
	}
}

func TestBuildxError(t *testing.T) {
	b, dir := newBuildx(t, shared.kiln), t.TempDir()
	if err := peer.WriteFiles(dir, map[string]string{"Dockerfile": "FROM base\nRUN echo told && exit 7\n"}); err != nil {
		t.Fatal(err)
	}
	_, stderr, err := b.try(b.buildArgs(dir)...)
	if err == nil {
		t.Fatal("the build of a step that fails succeeds")
	}
	wantText(t, "the error", stderr, "told", "exit code: 7", "Dockerfile:2", ">>> RUN echo told")
}

// TestBuildxSame has buildx build the same on both daemons.
func TestBuildxSame(t *testing.T) {
	dir := project(t)
	var images []image
	for _, d := range []*peer.Daemon{shared.kiln, shared.buildkit} {
		b, dest := newBuildx(t, d), filepath.Join(t.TempDir(), "image.tar")
		b.build(dir, "--build-arg", "SOURCE_DATE_EPOCH=1700000000", "-o", "type=oci,dest="+dest)
		images = append(images, open(t, dest))
	}
	compareConfigs(t, images[0].config, images[1].config)
	compareFiles(t, images[0].files, images[1].files)
}
