package exporter

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/layer"
)

// memoryLayers answers every ref with the same layers, and remembers how it was asked.
type memoryLayers struct {
	data    [][]byte
	types   []string
	variant layer.Variant
}

func (m *memoryLayers) Blobs(_ context.Context, _ *layer.Ref, v layer.Variant) ([]layer.Blob, error) {
	m.variant = v
	var out []layer.Blob
	for i, b := range m.data {
		mediaType := ocispecs.MediaTypeImageLayerGzip
		if i < len(m.types) {
			mediaType = m.types[i]
		}
		out = append(out, layer.Blob{
			Desc: ocispecs.Descriptor{
				MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b)),
				Annotations: map[string]string{"containerd.io/uncompressed": "x", "org.example/keep": "y"},
			},
			DiffID: digest.FromString("diff" + string(b)),
		})
	}
	return out, nil
}

func (m *memoryLayers) ReaderAt(_ context.Context, b layer.Blob) (content.ReaderAt, error) {
	for _, d := range m.data {
		if digest.FromBytes(d) == b.Desc.Digest {
			return readerAt{bytes.NewReader(d)}, nil
		}
	}
	return nil, fmt.Errorf("no blob %s", b.Desc.Digest)
}

type readerAt struct{ *bytes.Reader }

func (readerAt) Close() error { return nil }

var amd64 = ocispecs.Platform{OS: "linux", Architecture: "amd64"}

func single(config string) Input {
	return Input{Platforms: []Platform{{Platform: amd64, Ref: &layer.Ref{}, Config: []byte(config)}}}
}

func assemble(t *testing.T, m *memoryLayers, in Input, attrs map[string]string) *Image {
	t.Helper()
	o, err := DecodeImage(KindImage, attrs)
	if err != nil {
		t.Fatal(err)
	}
	img, err := Assemble(t.Context(), m, in, o)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func twoLayers() *memoryLayers { return &memoryLayers{data: [][]byte{[]byte("one"), []byte("two")}} }

func TestAssembleSingle(t *testing.T) {
	m := twoLayers()
	img := assemble(t, m, single(`{"architecture":"amd64","os":"linux","config":{"Cmd":["x"],"Healthcheck":{"Test":["NONE"]}}}`),
		map[string]string{"name": "app,reg.example.com/x:v2", "annotation.a": "1", "annotation-manifest-descriptor.b": "2", "annotation-manifest[linux/arm64].c": "3"})
	if want := []string{"docker.io/library/app:latest", "reg.example.com/x:v2"}; !slices.Equal(img.Names, want) {
		t.Errorf("names %v, want %v", img.Names, want)
	}
	var mf ocispecs.Manifest
	if err := json.Unmarshal(img.Manifests[0].Data, &mf); err != nil {
		t.Fatal(err)
	}
	if img.Root.Digest != digest.FromBytes(img.Manifests[0].Data) || img.Response["containerimage.digest"] != img.Root.Digest.String() {
		t.Error("the root is not the manifest")
	}
	if mf.Annotations["a"] != "1" || len(mf.Annotations) != 1 || img.Root.Annotations["b"] != "2" {
		t.Errorf("annotations %v, %v", mf.Annotations, img.Root.Annotations)
	}
	if len(mf.Layers) != 2 || !reflect.DeepEqual(mf.Layers[0].Annotations, map[string]string{"org.example/keep": "y"}) {
		t.Errorf("layers %+v", mf.Layers)
	}
	var config struct {
		Config  struct{ Healthcheck struct{ Test []string } }
		RootFS  ocispecs.RootFS
		History []ocispecs.History
	}
	if err := json.Unmarshal(img.Configs[0].Data, &config); err != nil {
		t.Fatal(err)
	}
	if len(config.Config.Healthcheck.Test) != 1 || len(config.RootFS.DiffIDs) != 2 || len(config.History) != 2 {
		t.Errorf("config %s", img.Configs[0].Data)
	}
	raw, err := base64.StdEncoding.DecodeString(img.Response["containerimage.descriptor"])
	var desc ocispecs.Descriptor
	if err != nil || json.Unmarshal(raw, &desc) != nil || desc.Digest != img.Root.Digest {
		t.Errorf("descriptor %q", img.Response["containerimage.descriptor"])
	}
	if img.Response["containerimage.config.digest"] != mf.Config.Digest.String() {
		t.Errorf("config digest %q", img.Response["containerimage.config.digest"])
	}
}

func TestAssembleIndex(t *testing.T) {
	in := Input{Platforms: []Platform{
		{ID: "linux/amd64", Platform: amd64, Ref: &layer.Ref{}},
		{ID: "linux/arm64", Platform: ocispecs.Platform{OS: "linux", Architecture: "arm64"}},
	}}
	img := assemble(t, twoLayers(), in, map[string]string{"annotation-index.i": "1", "annotation-manifest[linux/arm64].c": "3"})
	if img.Single != nil || len(img.Manifests) != 3 || img.Root.MediaType != ocispecs.MediaTypeImageIndex {
		t.Fatalf("root %+v", img.Root)
	}
	var index ocispecs.Index
	if err := json.Unmarshal(img.Manifests[2].Data, &index); err != nil {
		t.Fatal(err)
	}
	if index.Annotations["i"] != "1" || len(index.Manifests) != 2 || index.Manifests[1].Platform.Architecture != "arm64" {
		t.Errorf("index %s", img.Manifests[2].Data)
	}
	if !strings.Contains(string(img.Manifests[1].Data), `"c": "3"`) || strings.Contains(string(img.Manifests[0].Data), `"c": "3"`) {
		t.Error("annotation of one platform is not where it belongs")
	}
	docker := assemble(t, twoLayers(), in, map[string]string{"oci-mediatypes": "false"})
	if !strings.Contains(string(docker.Manifests[0].Data), "application/vnd.docker.image.rootfs.diff.tar.gzip") ||
		docker.Root.MediaType != "application/vnd.docker.distribution.manifest.list.v2+json" {
		t.Errorf("manifest %s", docker.Manifests[0].Data)
	}
	if !strings.Contains(string(img.Configs[1].Data), `"architecture":"arm64"`) || !strings.Contains(string(img.Configs[1].Data), "PATH=") {
		t.Errorf("default config %s", img.Configs[1].Data)
	}
}

func TestHistoryMatchesLayers(t *testing.T) {
	day := func(n int) time.Time { return time.Date(2020, 1, n, 0, 0, 0, 0, time.UTC) }
	for name, tc := range map[string]struct {
		history string
		layers  int
		epoch   *time.Time
		empty   []bool
		created []int // days
	}{
		"too few":          {`[{"created":"2020-01-01T00:00:00Z"}]`, 3, new(day(9)), []bool{false, false, false}, []int{1, 9, 9}},
		"too many":         {`[{"created":"2020-01-01T00:00:00Z"},{"created":"2020-01-02T00:00:00Z"}]`, 1, nil, []bool{false, true}, []int{1, 2}},
		"later than epoch": {`[{"created":"2020-01-05T00:00:00Z"},{"empty_layer":true}]`, 1, new(day(3)), []bool{false, true}, []int{3, 3}},
		"config only":      {`[{"created":"2020-01-05T00:00:00Z"},{"empty_layer":true}]`, 1, nil, []bool{false, true}, []int{5, 5}},
		"config first":     {`[{"empty_layer":true},{"created":"2020-01-05T00:00:00Z"}]`, 1, nil, []bool{true, false}, []int{5, 5}},
	} {
		t.Run(name, func(t *testing.T) {
			m := &memoryLayers{}
			for i := range tc.layers {
				m.data = append(m.data, fmt.Append(nil, i))
			}
			in := single(`{"architecture":"amd64","os":"linux","history":` + tc.history + `}`)
			in.Epoch = tc.epoch
			img := assemble(t, m, in, nil)
			var config struct {
				Created *time.Time
				History []ocispecs.History
			}
			if err := json.Unmarshal(img.Configs[0].Data, &config); err != nil {
				t.Fatal(err)
			}
			var empty []bool
			var created []int
			for _, h := range config.History {
				empty = append(empty, h.EmptyLayer)
				created = append(created, h.Created.Day())
			}
			if !slices.Equal(empty, tc.empty) || !slices.Equal(created, tc.created) {
				t.Errorf("empty %v, created on %v; want %v, %v", empty, created, tc.empty, tc.created)
			}
			if got := config.Created.Day(); got != tc.created[len(tc.created)-1] {
				t.Errorf("image created on day %d", got)
			}
		})
	}
}

func TestEpochReachesLayers(t *testing.T) {
	m, in := twoLayers(), single("")
	in.Epoch = new(time.Unix(100, 0))
	assemble(t, m, in, nil)
	if m.variant.Epoch == nil || *m.variant.Epoch != 100 {
		t.Error("the result's epoch does not bound times in layers")
	}
	assemble(t, m, in, map[string]string{"source-date-epoch": "7", "compression": "zstd", "compression-level": "22", "force-compression": "true"})
	if *m.variant.Epoch != 7 || m.variant.Compression != "zstd" || m.variant.Level != 22 || !m.variant.Force {
		t.Errorf("variant %+v", m.variant)
	}
	assemble(t, m, in, map[string]string{"rewrite-timestamp": "false"})
	if m.variant.Epoch != nil {
		t.Error("rewrite-timestamp=false bounds times in layers all the same")
	}
}

func TestBadOptionsAreRefused(t *testing.T) {
	for key, value := range map[string]string{
		"push": "maybe", "compression": "lzma", "compression-level": "10", "source-date-epoch": "yesterday",
		"oci-mediatypes": "2", "annotation": "x", "annotation-foo.a": "x", "annotation[not//a/platform/x/y].k": "v", "unpack": "x",
	} {
		if _, err := DecodeImage(KindImage, map[string]string{key: value}); err == nil || !strings.Contains(err.Error(), value) {
			t.Errorf("%s=%s: got %v", key, value, err)
		}
	}
	if _, err := DecodeFiles(map[string]string{"mode": "move"}, single("")); err == nil {
		t.Error("mode=move was taken")
	}
	if _, err := DecodeImage(KindImage, map[string]string{"somebody-elses": "x"}); err != nil {
		t.Errorf("unknown key: %v", err)
	}
}

func TestBadInputIsRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		in    Input
		attrs map[string]string
		types []string
	}{
		"no platform":       {in: Input{}},
		"null config":       {in: single("null")},
		"list config":       {in: single("[]")},
		"broken config":     {in: single(`{"history":5}`)},
		"name with digest":  {in: single(""), attrs: map[string]string{"name": "a@sha256:" + strings.Repeat("a", 64)}},
		"malformed name":    {in: single(""), attrs: map[string]string{"name": "A B"}},
		"no name in meta":   {in: single(""), attrs: map[string]string{"name": "*"}},
		"index annotations": {in: single(""), attrs: map[string]string{"annotation-index.a": "b"}},
		"not a layer":       {in: single(""), types: []string{"text/html"}},
	} {
		m := twoLayers()
		m.types = tc.types
		o, err := DecodeImage(KindImage, tc.attrs)
		if err != nil {
			t.Fatal(name, err)
		}
		if _, err := Assemble(t.Context(), m, tc.in, o); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func TestPlatformDir(t *testing.T) {
	for id, want := range map[string]string{
		"linux/amd64": "linux_amd64", "linux/arm/v7": "linux_arm_v7", "windows(10.0.1)/amd64": "windows(10.0.1)_amd64",
		"": "", ".": "_", "..": "__", "../x": ".._x", "a/../b": "a_.._b", `..\outside`: ".._outside", "/etc": "_etc", "c:x": "c_x", "a\x00b": "",
	} {
		if got, err := PlatformDir(id); got != want || (err != nil) != (want == "") {
			t.Errorf("PlatformDir(%q) = %q, %v; want %q", id, got, err, want)
		}
	}
}

func archive(t *testing.T, docker bool) ([]byte, map[string][]byte) {
	t.Helper()
	m := twoLayers()
	in := single("")
	in.Epoch = new(time.Unix(5, 0))
	img := assemble(t, m, in, map[string]string{"name": "app:v1"})
	var b bytes.Buffer
	if err := WriteArchive(t.Context(), &b, img, m, docker); err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	r := tar.NewReader(bytes.NewReader(b.Bytes()))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return b.Bytes(), files
		} else if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = data
	}
}

func TestArchive(t *testing.T) {
	raw, files := archive(t, true)
	again, _ := archive(t, true)
	if !bytes.Equal(raw, again) {
		t.Error("two archives of the same image differ")
	}
	for name, data := range files {
		if hex, ok := strings.CutPrefix(name, "blobs/sha256/"); ok && hex != "" && digest.FromBytes(data).Encoded() != hex {
			t.Errorf("%s holds other bytes", name)
		}
	}
	var index ocispecs.Index
	if err := json.Unmarshal(files["index.json"], &index); err != nil {
		t.Fatal(err)
	}
	a := index.Manifests[0].Annotations
	if a["io.containerd.image.name"] != "docker.io/library/app:v1" || a["org.opencontainers.image.ref.name"] != "v1" {
		t.Errorf("annotations %v", a)
	}
	var manifests []dockerManifest
	if err := json.Unmarshal(files["manifest.json"], &manifests); err != nil {
		t.Fatal(err)
	}
	if m := manifests[0]; m.RepoTags[0] != "app:v1" || files[m.Config] == nil || string(files[m.Layers[0]]) != "one" {
		t.Errorf("manifest.json %+v", m)
	}
	if !strings.Contains(string(files["repositories"]), `"app":{"v1":`) || files["oci-layout"] == nil {
		t.Errorf("repositories %s", files["repositories"])
	}
	if _, files := archive(t, false); files["manifest.json"] != nil {
		t.Error("an OCI archive has Docker's files")
	}
}
