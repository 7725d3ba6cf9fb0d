package source_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/source"
)

// documents are blobs in memory.
type documents map[digest.Digest][]byte

func (d documents) add(mediaType string, v any) ocispecs.Descriptor {
	b, ok := v.([]byte)
	if !ok {
		b, _ = json.Marshal(v) // of plain structs
	}
	desc := ocispecs.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	d[desc.Digest] = b
	return desc
}

func (d documents) read(_ context.Context, desc ocispecs.Descriptor) ([]byte, error) {
	b, ok := d[desc.Digest]
	if !ok {
		return nil, fmt.Errorf("no document %s", desc.Digest)
	}
	return b, nil
}

// image adds an image for a platform, and says so in its descriptor.
func (d documents) image(platform string) ocispecs.Descriptor {
	parts := append(strings.Split(platform, "/"), "")
	layer := d.add(ocispecs.MediaTypeImageLayerGzip, []byte("layer of "+platform))
	config := d.add(ocispecs.MediaTypeImageConfig, []byte(`{"rootfs":{"diff_ids":["`+digest.FromString(platform).String()+`"]}}`))
	desc := d.add(ocispecs.MediaTypeImageManifest, ocispecs.Manifest{Config: config, Layers: []ocispecs.Descriptor{layer}})
	desc.Platform = &ocispecs.Platform{OS: parts[0], Architecture: parts[1], Variant: parts[2]}
	return desc
}

func (d documents) index(platforms ...string) ocispecs.Descriptor {
	var index ocispecs.Index
	for _, p := range platforms {
		index.Manifests = append(index.Manifests, d.image(p))
	}
	return d.add(ocispecs.MediaTypeImageIndex, index)
}

func TestSelectImage(t *testing.T) {
	d := documents{}
	root := d.index("linux/arm/v6", "linux/arm/v7", "linux/amd64", "unknown/unknown")
	for want, platform := range map[string]ocispecs.Platform{
		"linux/arm/v7": {OS: "linux", Architecture: "arm"},
		"linux/arm/v6": {OS: "linux", Architecture: "arm", Variant: "v6"},
		"linux/amd64":  {OS: "linux", Architecture: "amd64"},
	} {
		img, err := source.SelectImage(t.Context(), "x", root, platform, d.read)
		if err != nil {
			t.Fatal(err)
		}
		if img.Desc.Digest != d.image(want).Digest || img.Root.Digest != root.Digest {
			t.Errorf("%v got %v", platform, img.Desc.Platform)
		}
		blobs, err := img.LazyBlobs(d[img.Manifest.Config.Digest], 0, "origin", "linux")
		if err != nil || len(blobs) != 1 || blobs[0].DiffID != digest.FromString(want) || blobs[0].Origin != "origin" {
			t.Errorf("blobs %+v, %v", blobs, err)
		}
	}
	_, err := source.SelectImage(t.Context(), "the/image:tag", root, ocispecs.Platform{OS: "linux", Architecture: "s390x"}, d.read)
	if err == nil || !strings.Contains(err.Error(), "linux/amd64, linux/arm/v6, linux/arm/v7") || !strings.Contains(err.Error(), "the/image:tag") ||
		strings.Contains(err.Error(), "unknown") {
		t.Errorf("got %v", err)
	}
}

func TestHostileManifests(t *testing.T) {
	d := documents{}
	layer := d.add(ocispecs.MediaTypeImageLayer, []byte("x"))
	config := d.add(ocispecs.MediaTypeImageConfig, []byte("{}"))
	deep := d.image("linux/amd64")
	for range 5 {
		deep.Platform = nil
		deep = d.add(ocispecs.MediaTypeImageIndex, ocispecs.Index{Manifests: []ocispecs.Descriptor{deep}})
	}
	many := ocispecs.Manifest{Config: config}
	for range 5000 {
		many.Layers = append(many.Layers, layer)
	}
	huge := config
	huge.Size = 1 << 40
	for name, root := range map[string]ocispecs.Descriptor{
		"not JSON":        d.add(ocispecs.MediaTypeImageManifest, []byte("<html>")),
		"null":            d.add("", []byte("null")),
		"both":            d.add(ocispecs.MediaTypeImageManifest, []byte(`{"layers":[],"manifests":[]}`)),
		"schema 1":        d.add("", []byte(`{"schemaVersion":1,"fsLayers":[]}`)),
		"nested deep":     deep,
		"many layers":     d.add(ocispecs.MediaTypeImageManifest, many),
		"bad layer":       d.add(ocispecs.MediaTypeImageManifest, ocispecs.Manifest{Config: config, Layers: []ocispecs.Descriptor{{MediaType: layer.MediaType, Digest: "sha256:../../etc"}}}),
		"negative size":   d.add(ocispecs.MediaTypeImageManifest, ocispecs.Manifest{Config: config, Layers: []ocispecs.Descriptor{{MediaType: layer.MediaType, Digest: layer.Digest, Size: -1}}}),
		"huge config":     d.add(ocispecs.MediaTypeImageManifest, ocispecs.Manifest{Config: huge}),
		"not files":       d.add(ocispecs.MediaTypeImageManifest, ocispecs.Manifest{Config: config, Layers: []ocispecs.Descriptor{{MediaType: "text/plain", Digest: layer.Digest}}}),
		"huge manifest":   {MediaType: ocispecs.MediaTypeImageManifest, Digest: layer.Digest, Size: 1 << 40},
		"index of nobody": d.add(ocispecs.MediaTypeImageIndex, ocispecs.Index{}),
	} {
		if _, err := source.SelectImage(t.Context(), "x", root, ocispecs.Platform{OS: "linux", Architecture: "amd64"}, d.read); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	img := &source.Image{Manifest: ocispecs.Manifest{Layers: []ocispecs.Descriptor{layer}}}
	for _, config := range []string{`{}`, `[]`, `{"rootfs":{"diff_ids":["x"]}}`, `null`} {
		if _, err := img.LazyBlobs([]byte(config), 0, "", ""); err == nil {
			t.Errorf("config %s was taken", config)
		}
	}
}

func TestImageKey(t *testing.T) {
	// The JSON is the protocol's: see BuildKit's source/containerimage.
	got, err := source.ImageKey("sha256:abc", ocispecs.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}, 2)
	want := digest.FromString(`{"Digest":"sha256:abc","OS":"linux","Arch":"arm","Variant":"v7","Limit":2}`).String()
	if err != nil || got != want {
		t.Errorf("got %s, %v; want %s", got, err, want)
	}
}
