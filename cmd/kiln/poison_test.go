package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestNoPoisonedCache is CVE-2024-24557, where an image whose history matched
// was taken for a step's result, and some changes of a config were none: the
// daemon has built on a forged image before, and what it makes has nothing of it.
func TestNoPoisonedCache(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	b.start()
	const honest = "FROM base\nRUN echo honest > /file\n"
	image := b.layout(t, honest, "")
	forged := b.layout(t, "FROM base\nRUN echo forged > /file\n", "")
	takeHistory(t, forged, image)
	// Whoever builds on the forged image puts its layers into the daemon's store.
	for i, c := range []struct{ dockerfile, parent, want string }{
		{"FROM parent\nRUN cp /file /made\n", forged, "forged\n"},
		{"FROM parent\nRUN cp /file /made\n", image, "honest\n"},
		{honest + "RUN cp /file /made\n", image, "honest\n"},
	} {
		if got := b.made(t, c.dockerfile, c.parent); got != c.want {
			t.Errorf("build %d made %q, want %q", i, got, c.want)
		}
	}
	// Parents of equal layers whose configs differ.
	for _, config := range []string{
		"HEALTHCHECK CMD %s", "ONBUILD LABEL b=%s", "ENTRYPOINT [\"%s\"]", "ENV A=%s",
	} {
		var before string
		for _, value := range []string{"1", "2"} {
			parent := b.layout(t, "FROM scratch\nCOPY same /\n"+fmt.Sprintf(config, value)+"\n", "")
			child := b.layout(t, "FROM parent\nCOPY same /again\n", parent)
			got := string(imageConfig(t, child).Config)
			if got == before {
				t.Errorf("%s: what was built on another parent has the same config, %s", config, got)
			}
			before = got
		}
	}
	b.noPanic()
}

// contextArgs makes a context with a Dockerfile, and the arguments to build it on a
// layout called "parent", if there is one.
func contextArgs(t *testing.T, dockerfile, parent string) []string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"Dockerfile": dockerfile, "same": "same"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if parent == "" {
		return []string{dir}
	}
	return []string{"--build-context", "parent=oci-layout://" + parent, dir}
}

// layout builds an image into a layout of its own.
func (b *builder) layout(t *testing.T, dockerfile, parent string) string {
	t.Helper()
	dest := filepath.Join(t.TempDir(), "layout")
	args := append([]string{"build", "--progress=plain", "-o", "type=oci,tar=false,dest=" + dest}, contextArgs(t, dockerfile, parent)...)
	if out, err := b.command(args...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return dest
}

// made builds and returns the file /made.
func (b *builder) made(t *testing.T, dockerfile, parent string) string {
	t.Helper()
	dest := filepath.Join(t.TempDir(), "files")
	args := append([]string{"build", "--progress=plain", "-o", dest}, contextArgs(t, dockerfile, parent)...)
	if out, err := b.command(args...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text, err := os.ReadFile(filepath.Join(dest, "made"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// forgeable is an image's config, as far as the tests forge it.
type forgeable struct {
	ocispecs.Platform
	Config  json.RawMessage    `json:"config"`
	RootFS  ocispecs.RootFS    `json:"rootfs"`
	History []ocispecs.History `json:"history"`
}

// blob reads what a descriptor names in a layout.
func blob(t *testing.T, layout string, d digest.Digest, into any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(layout, "blobs", "sha256", d.Encoded()))
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// putBlob adds a document to a layout.
func putBlob(t *testing.T, layout string, of any) (digest.Digest, int64) {
	t.Helper()
	text, err := json.Marshal(of)
	if err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(text)
	if err := os.WriteFile(filepath.Join(layout, "blobs", "sha256", d.Encoded()), text, 0o644); err != nil {
		t.Fatal(err)
	}
	return d, int64(len(text))
}

// image reads the index and the manifest of a layout of one image.
func image(t *testing.T, layout string) (index ocispecs.Index, manifest ocispecs.Manifest) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(layout, "index.json"))
	if err == nil {
		err = json.Unmarshal(text, &index)
	}
	if err != nil || len(index.Manifests) != 1 {
		t.Fatalf("%s: %v", text, err)
	}
	blob(t, layout, index.Manifests[0].Digest, &manifest)
	return index, manifest
}

func imageConfig(t *testing.T, layout string) (c forgeable) {
	t.Helper()
	_, manifest := image(t, layout)
	blob(t, layout, manifest.Config.Digest, &c)
	return c
}

// takeHistory gives the image of a layout the history of another's.
func takeHistory(t *testing.T, forged, of string) {
	t.Helper()
	index, manifest := image(t, forged)
	c := imageConfig(t, forged)
	c.History = imageConfig(t, of).History
	manifest.Config.Digest, manifest.Config.Size = putBlob(t, forged, c)
	index.Manifests[0].Digest, index.Manifests[0].Size = putBlob(t, forged, manifest)
	text, err := json.Marshal(index)
	if err == nil {
		err = os.WriteFile(filepath.Join(forged, "index.json"), text, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}
