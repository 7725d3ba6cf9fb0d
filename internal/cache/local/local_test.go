package local_test

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/cache/local"
	blobs "github.com/kiln-build/kiln/internal/content"
	"github.com/kiln-build/kiln/internal/layer"
	sessioncontent "github.com/kiln-build/kiln/internal/session/content"
	"github.com/kiln-build/kiln/internal/session/sessiontest"
)

func upload(mediaType, text string) cache.Upload {
	return cache.Upload{Data: []byte(text), Desc: ocispecs.Descriptor{MediaType: mediaType, Digest: digest.FromString(text), Size: int64(len(text))}}
}

// TestRoundTrip writes a cache into a folder of a client and reads it again.
func TestRoundTrip(t *testing.T) {
	store, err := blobs.Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c := sessiontest.Connect(t, sessioncontent.NewProvider(map[string]content.Store{"local:some/dir": store}))
	ctx := sessiontest.Context(t.Context(), c)
	one, config := upload(ocispecs.MediaTypeImageLayerGzip, "a layer"), upload("application/vnd.buildkit.cacheconfig.v0", "{}")
	one.Layer = &layer.Blob{Desc: one.Desc}
	m := upload(ocispecs.MediaTypeImageManifest, `{"schemaVersion":2}`)
	doc := &cache.Document{Layers: []cache.Upload{one}, Config: config, Manifest: m.Desc, Data: m.Data}
	w, err := local.New("test").Writer(ctx, map[string]string{"dest": "some/dir"})
	if err != nil {
		t.Fatal(err)
	}
	opened := 0
	open := func(context.Context, layer.Blob) (io.ReadCloser, error) {
		opened++
		return io.NopCloser(strings.NewReader("a layer")), nil
	}
	for range 2 { // what is there is not sent again
		if err := w.Write(ctx, doc, open); err != nil {
			t.Fatal(err)
		}
	}
	if opened != 1 {
		t.Errorf("the layer was opened %d times, expected once", opened)
	}
	r, err := local.New("test").Reader(ctx, map[string]string{"src": "some/dir", "digest": m.Desc.Digest.String()})
	if err != nil {
		t.Fatal(err)
	}
	if r.Root().Size != m.Desc.Size {
		t.Errorf("root is %v", r.Root())
	}
	for _, u := range []cache.Upload{m, config} {
		if b, err := r.Read(ctx, u.Desc); err != nil || !bytes.Equal(b, u.Data) {
			t.Errorf("read %q, %v", b, err)
		}
	}
	rc, err := local.Fetcher{Next: nowhere{}}.Fetch(ctx, r.Origin(), one.Desc)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(rc); err != nil || string(b) != "a layer" {
		t.Errorf("fetched %q, %v", b, err)
	}
	if err := rc.Close(); err != nil {
		t.Error(err)
	}
	if _, err := (local.Fetcher{Next: nowhere{}}).Fetch(ctx, "docker.io/x", one.Desc); err == nil {
		t.Error("something came from nowhere")
	}
}

// nowhere is a fetcher that has nothing.
type nowhere struct{}

func (nowhere) Fetch(context.Context, string, ocispecs.Descriptor) (io.ReadCloser, error) {
	return nil, io.ErrUnexpectedEOF
}

func TestRefusals(t *testing.T) {
	ctx := sessiontest.Context(t.Context(), sessiontest.Connect(t))
	d := digest.FromString("x").String()
	for want, attrs := range map[string]map[string]string{
		"requires src":             {"digest": d},
		"requires explicit digest": {"src": "x"},
		"malformed digest":         {"src": "x", "digest": "sha256:short"},
		`cache folder "x"`:         {"src": "x", "digest": d},
	} {
		if _, err := local.New("test").Reader(ctx, attrs); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: got %v, expected %q", attrs, err, want)
		}
	}
	if _, err := local.New("test").Writer(ctx, nil); err == nil || !strings.Contains(err.Error(), "requires dest") {
		t.Errorf("no dest: got %v", err)
	}
}
