package cachetest

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/layer"
)

// BarePlace is a place without manifests that is read from, too.
type BarePlace interface {
	cache.Place
	layer.Fetcher
}

// Bare writes a cache in BuildKit's format into a place without manifests, and
// reads it again.
func Bare(t *testing.T, p BarePlace, attrs map[string]string) {
	t.Helper()
	text := "a layer of " + t.Name()
	one := cache.Upload{Desc: blobOf(text), Layer: &layer.Blob{Desc: blobOf(text)}}
	config := []byte(`{"layers":[{"blob":"` + one.Desc.Digest.String() + `","parent":-1}]}`)
	doc := &cache.Document{Layers: []cache.Upload{one}, Bare: func() ([]byte, error) { return config, nil }}
	w, err := p.Writer(t.Context(), attrs)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // what is there is not sent again, the second config is as good
		if err := w.Write(t.Context(), doc, func(context.Context, layer.Blob) (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader(text)), nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	r, err := p.Reader(t.Context(), attrs)
	if err != nil {
		t.Fatal(err)
	}
	b, err := r.Read(t.Context(), r.Root())
	var index ocispecs.Index
	if err == nil {
		err = json.Unmarshal(b, &index)
	}
	if err != nil || len(index.Manifests) == 0 {
		t.Fatalf("the index is %q (%v)", b, err)
	}
	for _, m := range index.Manifests {
		if b, err := r.Read(t.Context(), m); err != nil || !bytes.Equal(b, config) {
			t.Errorf("read %q (%v), wrote %q", b, err, config)
		}
	}
	rc, err := p.Fetch(t.Context(), r.Origin(), one.Desc)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if b, err := io.ReadAll(rc); err != nil || string(b) != text {
		t.Errorf("fetched %q, %v", b, err)
	}
}
