package layout_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/session"
	sessioncontent "github.com/kiln-build/kiln/internal/session/content"
	"github.com/kiln-build/kiln/internal/session/sessiontest"
	"github.com/kiln-build/kiln/internal/source"
	"github.com/kiln-build/kiln/internal/source/layout"
	"github.com/kiln-build/kiln/llb"
)

// recorder takes the layers that would be made.
type recorder struct{ blobs []layer.LazyBlob }

func (r *recorder) FromBlobs(_ context.Context, blobs []layer.LazyBlob) (*layer.Ref, error) {
	r.blobs = blobs
	return nil, nil
}

// newLayout makes a layout with one image of one layer.
func newLayout(t *testing.T) (*sessioncontent.Layout, digest.Digest) {
	t.Helper()
	dir := t.TempDir()
	add := func(mediaType string, b []byte) ocispecs.Descriptor {
		d := ocispecs.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
		p := filepath.Join(dir, "blobs/sha256", d.Digest.Encoded())
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, b, 0o644); err != nil {
			t.Fatal(err)
		}
		return d
	}
	manifest, err := json.Marshal(ocispecs.Manifest{
		Config: add(ocispecs.MediaTypeImageConfig, []byte(`{"rootfs":{"diff_ids":["`+digest.FromString("d").String()+`"]}}`)),
		Layers: []ocispecs.Descriptor{add(ocispecs.MediaTypeImageLayerGzip, []byte("layer"))},
	})
	if err != nil {
		t.Fatal(err)
	}
	d := add(ocispecs.MediaTypeImageManifest, manifest)
	if err := os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	l, err := sessioncontent.OpenLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l, d.Digest
}

// nowhere is a fetcher that has nothing.
type nowhere struct{}

func (nowhere) Fetch(_ context.Context, origin string, _ ocispecs.Descriptor) (io.ReadCloser, error) {
	return nil, os.ErrNotExist
}

func (nowhere) OpenBlob(context.Context, string, digest.Digest) (io.ReadCloser, int64, error) {
	return nil, 0, os.ErrNotExist
}

func TestResolveFetchAndPull(t *testing.T) {
	l, d := newLayout(t)
	c := sessiontest.Connect(t, sessioncontent.NewProvider(map[string]content.Store{"oci:base": l}))
	ctx := sessiontest.Context(t.Context(), c)
	rec := &recorder{}
	s := layout.New(rec, &source.MemoryMemo{}, session.NewManager())
	op := &llb.SourceOp{
		Identifier: "oci-layout://local/base@" + d.String(),
		Attrs:      map[string]string{"oci.store": "base", "oci.session": c.ID()},
	}
	opt := source.Options{Platform: ocispecs.Platform{OS: "linux", Architecture: "amd64"}, WantConfig: true}
	pin, err := s.Resolve(ctx, op, opt)
	if err != nil {
		t.Fatal(err)
	}
	if pin.Digest != d || !strings.Contains(string(pin.Config), "rootfs") {
		t.Errorf("pin %+v", pin)
	}
	if _, err := s.Fetch(ctx, pin); err != nil {
		t.Fatal(err)
	}
	if len(rec.blobs) != 1 {
		t.Fatalf("%d layers", len(rec.blobs))
	}
	rc, err := layout.Fetcher{Next: nowhere{}}.Fetch(ctx, rec.blobs[0].Origin, rec.blobs[0].Desc)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if b, err := io.ReadAll(rc); err != nil || string(b) != "layer" {
		t.Errorf("read %q, %v", b, err)
	}
	if _, err := (layout.Fetcher{Next: nowhere{}}).Fetch(ctx, "docker.io/library/x", rec.blobs[0].Desc); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("other origins are for the next fetcher: got %v", err)
	}
	// What was read once needs no client.
	op.Attrs = map[string]string{"oci.store": "base"}
	if _, err := s.Resolve(t.Context(), op, opt); err != nil {
		t.Error(err)
	}
}

func TestRefusals(t *testing.T) {
	l, d := newLayout(t)
	c := sessiontest.Connect(t, sessioncontent.NewProvider(map[string]content.Store{"oci:base": l}))
	ctx := sessiontest.Context(t.Context(), c)
	s := layout.New(&recorder{}, &source.MemoryMemo{}, session.NewManager())
	for name, op := range map[string]*llb.SourceOp{
		"no digest":      {Identifier: "oci-layout://base"},
		"bad digest":     {Identifier: "oci-layout://base@sha256:../../x"},
		"no store":       {Identifier: "oci-layout://@" + d.String()},
		"unknown store":  {Identifier: "oci-layout://other@" + d.String()},
		"unknown digest": {Identifier: "oci-layout://base@" + digest.FromString("x").String()},
		"unknown attr":   {Identifier: "oci-layout://base@" + d.String(), Attrs: map[string]string{"oci.x": "y"}},
		"other checksum": {Identifier: "oci-layout://base@" + d.String(), Attrs: map[string]string{"image.checksum": digest.FromString("x").String()}},
		"bad limit":      {Identifier: "oci-layout://base@" + d.String(), Attrs: map[string]string{"oci.layerlimit": "x"}},
	} {
		if _, err := s.Resolve(ctx, op, source.Options{}); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}
