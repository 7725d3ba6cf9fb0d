package content_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	sessioncontent "github.com/kiln-build/kiln/internal/session/content"
	"github.com/kiln-build/kiln/internal/session/sessiontest"
)

// newLayout makes an OCI layout with one blob and one tag.
func newLayout(t *testing.T) (string, ocispecs.Descriptor) {
	t.Helper()
	dir, data := t.TempDir(), bytes.Repeat([]byte("blob"), 1_000_000)
	d := ocispecs.Descriptor{MediaType: "x/y", Digest: digest.FromBytes(data), Size: int64(len(data))}
	tagged := d
	tagged.Annotations = map[string]string{ocispecs.AnnotationRefName: "v1"}
	index, err := json.Marshal(ocispecs.Index{Manifests: []ocispecs.Descriptor{tagged}})
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`), "index.json": index, "blobs/sha256/" + d.Digest.Encoded(): data,
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir, d
}

func TestLayoutOverSession(t *testing.T) {
	dir, d := newLayout(t)
	layout, err := sessioncontent.OpenLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer layout.Close()
	for tag, ok := range map[string]bool{"v1": true, "": true, "v2": false} {
		got, err := layout.Resolve(tag)
		if (err == nil) != ok || ok && got.Digest != d.Digest {
			t.Errorf("tag %q: got %v, %v", tag, got.Digest, err)
		}
	}
	c := sessiontest.Connect(t, sessioncontent.NewProvider(map[string]content.Store{"oci:base": layout}))
	store, err := sessioncontent.Store(c, "oci:base")
	if err != nil {
		t.Fatal(err)
	}
	got, err := content.ReadBlob(t.Context(), store, d)
	if err != nil || digest.FromBytes(got) != d.Digest {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if _, err := store.Info(t.Context(), digest.FromString("other")); !errdefs.IsNotFound(err) {
		t.Errorf("missing blob: got %v", err)
	}
	if err := store.Delete(t.Context(), d.Digest); err == nil {
		t.Error("a layout to read from was written to")
	}
	other, err := sessioncontent.Store(c, "oci:other")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Info(t.Context(), d.Digest); err == nil || !strings.Contains(err.Error(), "oci:other") {
		t.Errorf("unknown store: got %v", err)
	}
}

func TestWriteOverSession(t *testing.T) {
	there, err := local.NewStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c := sessiontest.Connect(t, sessioncontent.NewProvider(map[string]content.Store{"export": there}))
	store, err := sessioncontent.Store(c, "export")
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("data"), 2_000_000)
	d := ocispecs.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
	if err := content.WriteBlob(t.Context(), store, "ref", bytes.NewReader(data), d); err != nil {
		t.Fatal(err)
	}
	got, err := content.ReadBlob(t.Context(), there, d)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestNoLayout(t *testing.T) {
	empty, dir := t.TempDir(), t.TempDir()
	if err := os.Symlink("/etc/hostname", filepath.Join(dir, "oci-layout")); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{empty, dir, filepath.Join(dir, "missing")} {
		if l, err := sessioncontent.OpenLayout(d); err == nil {
			t.Errorf("%s is taken for a layout", d)
			_ = l.Close()
		}
	}
	if _, err := sessioncontent.Store(sessiontest.Connect(t), "x"); err == nil {
		t.Error("a client without stores has one")
	}
}
