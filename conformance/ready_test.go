package conformance

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/layout"

	"github.com/kiln-build/kiln/conformance/peer"
)

// readyRun has what the examples of the ready frontends are built with.
type readyRun struct {
	registry, server string // addresses
	image            string // of the frontend, by its digest
}

// TestReadyFrontends builds the examples of each ready frontend by its image on
// Kiln and on BuildKit, by buildctl and by buildx, and by what Kiln has built in.
// All images must be the same, to the digest.
func TestReadyFrontends(t *testing.T) {
	archives, err := filepath.Glob(filepath.Join("testdata", "frontends", "*.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	dirs, err := filepath.Glob(filepath.Join("..", "frontends", "*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(dirs) == 0 || len(archives) != len(dirs) {
		t.Fatalf("there are %d frontends and examples of %d", len(dirs), len(archives))
	}
	run := readyRun{registry: serveRegistry(t), server: serveExternals(t)}
	run.pushBase(t)
	for _, archive := range archives {
		frontend := strings.TrimSuffix(filepath.Base(archive), ".txtar")
		t.Run(frontend, func(t *testing.T) {
			run.image = run.pushFrontend(t, frontend)
			dir := unpack(t, filepath.Join("frontends", frontend+".txtar"))
			files, err := filepath.Glob(filepath.Join(dir, "*.build"))
			if err != nil || len(files) == 0 {
				t.Fatalf("no examples: %v", err)
			}
			for _, file := range files {
				run.compare(t, dir, filepath.Base(file))
			}
		})
	}
}

// compare builds a file in all ways.
func (r readyRun) compare(t *testing.T, dir, file string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.ReplaceAll(text, []byte("SERVER"), []byte(r.server))
	if err := os.WriteFile(filepath.Join(dir, file), text, 0o600); err != nil {
		t.Fatal(err)
	}
	pinned := "BUILDKIT_SYNTAX=" + r.image
	builtin := r.buildctl(t, shared.kiln, dir, file)
	for way, got := range map[string]made{
		"its image on Kiln":               r.buildctl(t, shared.kiln, dir, file, "--opt=build-arg:"+pinned),
		"its image on BuildKit":           r.buildctl(t, shared.buildkit, dir, file, "--opt=build-arg:"+pinned),
		"its image on BuildKit by buildx": r.buildx(t, shared.buildkit, dir, file, "--build-arg", pinned),
		"buildx on Kiln":                  r.buildx(t, shared.kiln, dir, file, "--build-arg", pinned),
	} {
		if got.digest == builtin.digest {
			continue
		}
		t.Errorf("%s: by %s it is %s, built in %s", file, way, got.digest, builtin.digest)
		compareConfigs(t, builtin.config, got.config)
		compareFiles(t, builtin.files, got.files)
		for i := range min(len(builtin.parts), len(got.parts)) { // the first are the manifest and the config
			if builtin.parts[i] != got.parts[i] {
				t.Errorf("part %d is\n%s\nbuilt in\n%s", i, got.parts[i], builtin.parts[i])
			}
		}
	}
}

// Times are those of the example, and layers are not compressed: gzip may pack
// them in several ways.
const (
	readyEpoch  = "SOURCE_DATE_EPOCH=1700000000"
	readyOutput = "type=oci,rewrite-timestamp=true,compression=uncompressed,force-compression=true,dest="
)

func (r readyRun) base() string { return r.registry + "/stand-in/ubuntu:16.04" }

func (r readyRun) buildctl(t *testing.T, d *peer.Daemon, dir, file string, more ...string) made {
	t.Helper()
	dest := filepath.Join(t.TempDir(), "image.tar")
	command(t, d, append([]string{
		shared.tools.Buildctl, "--addr", d.Addr(), "build", "--frontend=dockerfile.v0", "--local=context=" + dir, "--local=dockerfile=" + dir,
		"--opt=filename=" + file, "--opt=context:ubuntu:16.04=docker-image://" + r.base(), "--opt=build-arg:" + readyEpoch, "--output=" + readyOutput + dest,
	}, more...)...)
	return made{open(t, dest), parts(t, dest)}
}

func (r readyRun) buildx(t *testing.T, d *peer.Daemon, dir, file string, more ...string) made {
	t.Helper()
	dest := filepath.Join(t.TempDir(), "image.tar")
	b := newBuildx(t, d)
	b.run(append([]string{
		"build", "--provenance=false", "--build-context", "ubuntu:16.04=docker-image://" + r.base(), "--build-arg", readyEpoch,
		"-f", filepath.Join(dir, file), "--output", readyOutput + dest, dir,
	}, more...)...)
	return made{open(t, dest), parts(t, dest)}
}

// made is an image with its manifest, its config and the headers of its layers'
// files.
type made struct {
	image
	parts []string
}

func parts(t *testing.T, archive string) (out []string) {
	t.Helper()
	dir := t.TempDir()
	if text, err := exec.Command("tar", "-xf", archive, "-C", dir).CombinedOutput(); err != nil {
		t.Fatalf("unpack %s: %v: %s", archive, err, text)
	}
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	img, err := index.Image(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	all, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, raw := range []func() ([]byte, error){img.RawManifest, img.RawConfigFile} {
		text, err := raw()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, string(text))
	}
	for _, l := range all {
		r, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		var text strings.Builder
		for tr := tar.NewReader(r); ; {
			h, err := tr.Next()
			if errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&text, "%s %c %o %d:%d %d %v %s %v %v\n", h.Name, h.Typeflag, h.Mode, h.Uid, h.Gid, h.Size, h.ModTime.UTC(), h.Linkname, h.Format, h.PAXRecords)
		}
		out = append(out, text.String())
	}
	return out
}

// pushBase makes what stands in for ubuntu:16.04: busybox, and a script for apt-get.
func (r readyRun) pushBase(t *testing.T) {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatalf("the base is made of busybox: %v", err)
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for file, text := range map[string]string{"busybox": string(program), "apt-get": "#!/bin/sh\necho \"$@\" >> /installed\n"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	push(t, dir, "FROM scratch\nCOPY busybox /bin/busybox\nENV PATH=/bin\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\nCOPY apt-get /bin/\n", r.base())
}

// pushFrontend makes the image of a frontend by its own Dockerfile and returns its
// name with the digest.
func (r readyRun) pushFrontend(t *testing.T, frontend string) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(dir, frontend), "./cmd/"+frontend)
	cmd.Dir, cmd.Env = "..", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v: %s", frontend, err, out)
	}
	dockerfile, err := os.ReadFile(filepath.Join("..", "frontends", frontend, "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	image := r.registry + "/frontends/" + frontend
	push(t, dir, string(dockerfile), image)
	return pinnedImage(t, image)
}

// externalTool is a file that examples download.
const externalTool = "#!/bin/sh\necho a tool\n"

// serveExternals serves what examples download, and returns its address.
func serveExternals(t *testing.T) string {
	t.Helper()
	var archive bytes.Buffer
	zw := gzip.NewWriter(&archive)
	tw := tar.NewWriter(zw)
	const text = "from the archive\n"
	if err := tw.WriteHeader(&tar.Header{Name: "archive/file", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(text))}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(tw, text); err != nil {
		t.Fatal(err)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/tool", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, externalTool) })
	mux.HandleFunc("/archive.tar.gz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(archive.Bytes()) })
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server.URL
}
