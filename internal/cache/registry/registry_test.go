package registry_test

import (
	"bytes"
	"context"
	"io"
	"log"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/cache"
	cacheregistry "github.com/kiln-build/kiln/internal/cache/registry"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/registry"
)

func upload(mediaType, text string) cache.Upload {
	return cache.Upload{Data: []byte(text), Desc: ocispecs.Descriptor{MediaType: mediaType, Digest: digest.FromString(text), Size: int64(len(text))}}
}

// TestRoundTrip writes a cache and reads it again.
func TestRoundTrip(t *testing.T) {
	s := httptest.NewServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(s.Close)
	roundTrip(t, map[string]string{"ref": s.Listener.Addr().String() + "/some/cache:tag"})
}

// TestInsecure does the same at a registry whose certificate nobody knows.
func TestInsecure(t *testing.T) {
	s := httptest.NewTLSServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(s.Close)
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	attrs := map[string]string{"ref": net.JoinHostPort("127.0.0.1", port) + "/some/cache:tag", "registry.insecure": "true"}
	roundTrip(t, attrs)
	delete(attrs, "registry.insecure")
	p := cacheregistry.New(registry.New(registry.Config{Backoff: time.Millisecond, Attempts: 1, Stall: time.Second}))
	if _, err := p.Reader(t.Context(), attrs); err == nil {
		t.Error("a registry whose certificate nobody knows was believed")
	}
}

func roundTrip(t *testing.T, attrs map[string]string) {
	t.Helper()
	p := cacheregistry.New(registry.New(registry.Config{Backoff: time.Millisecond, Attempts: 2, Stall: 5 * time.Second}))
	config := upload("application/vnd.buildkit.cacheconfig.v0", "{}")
	one := upload(ocispecs.MediaTypeImageLayerGzip, "a layer")
	one.Layer = &layer.Blob{Desc: one.Desc}
	text := `{"schemaVersion":2,"config":{},"layers":[]}`
	m := upload(ocispecs.MediaTypeImageManifest, text)
	doc := &cache.Document{Layers: []cache.Upload{one}, Config: config, Manifest: m.Desc, Data: m.Data}
	w, err := p.Writer(t.Context(), attrs)
	if err != nil {
		t.Fatal(err)
	}
	open := func(context.Context, layer.Blob) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader("a layer")), nil
	}
	if err := w.Write(t.Context(), doc, open); err != nil {
		t.Fatal(err)
	}
	r, err := p.Reader(t.Context(), attrs)
	if err != nil {
		t.Fatal(err)
	}
	if r.Root().Digest != m.Desc.Digest || !strings.HasSuffix(r.Origin(), "/some/cache@"+m.Desc.Digest.String()) {
		t.Errorf("root %v, origin %s", r.Root(), r.Origin())
	}
	for _, u := range []cache.Upload{m, config} {
		d := u.Desc
		if u.Desc.Digest == m.Desc.Digest {
			d = r.Root()
		}
		if b, err := r.Read(t.Context(), d); err != nil || !bytes.Equal(b, u.Data) {
			t.Errorf("read %q, %v, expected %q", b, err, u.Data)
		}
	}
	if _, err := r.Read(t.Context(), ocispecs.Descriptor{Digest: one.Desc.Digest, Size: 1 << 40}); err == nil {
		t.Error("a document of 1 TiB was read")
	}
}

func TestRefusals(t *testing.T) {
	p := cacheregistry.New(registry.New(registry.Config{Backoff: time.Millisecond, Attempts: 1, Stall: time.Second}))
	for what, test := range map[string]struct {
		attrs map[string]string
		fails string
	}{
		"no ref":       {nil, "missing ref"},
		"malformed":    {map[string]string{"ref": "h/UPPER"}, "malformed"},
		"with digest":  {map[string]string{"ref": "h/r@" + digest.FromString("x").String()}, "give a tag"},
		"bad insecure": {map[string]string{"ref": "h/r", "registry.insecure": "perhaps"}, "expected true or false"},
	} {
		if _, err := p.Writer(t.Context(), test.attrs); err == nil || !strings.Contains(err.Error(), test.fails) {
			t.Errorf("%s: got %v, expected %q", what, err, test.fails)
		}
	}
	if _, err := p.Reader(t.Context(), nil); err == nil {
		t.Error("a reader of nothing")
	}
}
