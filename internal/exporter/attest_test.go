package exporter

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/layer"
)

// said is an attestation that repeats what it is about.
func said(name string, inlineOnly bool) Attestation {
	return Attestation{
		Path: name, PredicateType: "https://example.org/" + name, InlineOnly: inlineOnly,
		Statement: func(_ context.Context, about About) ([]byte, error) {
			var subjects []string
			for _, s := range about.Subjects {
				subjects = append(subjects, s.Image+s.File+" "+s.Digest.String())
			}
			return json.Marshal(map[string]any{"about": subjects})
		},
	}
}

func attested(atts ...Attestation) Input {
	in := single(`{"architecture":"amd64","os":"linux","created":"2020-01-02T03:04:05Z"}`)
	in.Platforms[0].Attestations = atts
	return in
}

func of(t *testing.T, kind string, in Input, attrs map[string]string) (*Image, error) {
	t.Helper()
	o, err := DecodeImage(kind, attrs)
	if err != nil {
		return nil, err
	}
	return Assemble(t.Context(), twoLayers(), in, o)
}

// index reads the image's index and what it lists.
func index(t *testing.T, img *Image) (idx ocispecs.Index, manifests []ocispecs.Manifest) {
	t.Helper()
	if err := json.Unmarshal(img.Manifests[len(img.Manifests)-1].Data, &idx); err != nil {
		t.Fatal(err)
	}
	for _, d := range idx.Manifests {
		i := slices.IndexFunc(img.Manifests, func(b Blob) bool { return b.Desc.Digest == d.Digest })
		if i < 0 {
			t.Fatalf("the index lists %s, which is not there", d.Digest)
		}
		var m ocispecs.Manifest
		if err := json.Unmarshal(img.Manifests[i].Data, &m); err != nil {
			t.Fatal(err)
		}
		manifests = append(manifests, m)
	}
	return idx, manifests
}

func TestAttestationsMakeAnIndex(t *testing.T) {
	img, err := of(t, KindImage, attested(said("provenance.json", true), said("sbom.spdx.json", false)), map[string]string{"name": "app,reg.example.org/b:2"})
	if err != nil {
		t.Fatal(err)
	}
	idx, manifests := index(t, img)
	if img.Single != nil || img.Root.MediaType != ocispecs.MediaTypeImageIndex || len(idx.Manifests) != 2 || img.Response["containerimage.config.digest"] != "" {
		t.Fatalf("root %+v, index %+v", img.Root, idx)
	}
	d, m := idx.Manifests[1], manifests[1]
	if d.Platform.OS != "unknown" || d.Platform.Architecture != "unknown" || len(d.Annotations) != 2 ||
		d.Annotations["vnd.docker.reference.type"] != "attestation-manifest" || d.Annotations["vnd.docker.reference.digest"] != idx.Manifests[0].Digest.String() {
		t.Errorf("descriptor %+v", d)
	}
	if m.ArtifactType != attestationArtifact || m.Subject == nil || m.Subject.Digest != idx.Manifests[0].Digest || m.Subject.Platform != nil ||
		m.Config.MediaType != ocispecs.MediaTypeEmptyJSON || len(m.Layers) != 2 {
		t.Errorf("manifest %+v", m)
	}
	if l := m.Layers[0]; l.MediaType != "application/vnd.in-toto+json" || len(l.Annotations) != 1 || l.Annotations["in-toto.io/predicate-type"] != "https://example.org/provenance.json" {
		t.Errorf("layer %+v", l)
	}
	i := slices.IndexFunc(img.Configs, func(b Blob) bool { return b.Desc.Digest == m.Layers[0].Digest })
	if i < 0 || string(img.Configs[i].Data) != fmt.Sprintf(`{"about":["docker.io/library/app:latest %[1]s","reg.example.org/b:2 %[1]s"]}`, idx.Manifests[0].Digest) {
		t.Errorf("statement %d of %d blobs", i, len(img.Configs))
	}
	if !slices.ContainsFunc(img.Configs, func(b Blob) bool { return b.Desc.Digest == m.Config.Digest && string(b.Data) == "{}" }) {
		t.Error("the empty config is not there")
	}
}

func TestAttestationForms(t *testing.T) {
	both := []Attestation{said("p.json", true), said("s.json", false)}
	for name, c := range map[string]struct {
		kind    string
		atts    []Attestation
		attrs   map[string]string
		version int
		want    string // index, artifact or image; an error's words
	}{
		"none":                        {kind: KindImage, want: "single"},
		"inline only, in a store":     {kind: KindImage, atts: both[:1], want: "artifact"},
		"inline only, in an archive":  {kind: KindOCI, atts: both[:1], want: "single"},
		"inline only, forced":         {kind: KindOCI, atts: both[:1], attrs: map[string]string{"attestation-inline": "true"}, want: "artifact"},
		"inline only, not wanted":     {kind: KindImage, atts: both[:1], attrs: map[string]string{"attestation-inline": "false"}, want: "single"},
		"beside others":               {kind: KindOCI, atts: both, want: "artifact"},
		"as an image":                 {kind: KindImage, atts: both, attrs: map[string]string{"oci-artifact": "false"}, want: "image"},
		"as an image before 0.31":     {kind: KindImage, atts: both, version: Compat015, want: "image"},
		"as an artifact before 0.31":  {kind: KindImage, atts: both, version: Compat015, attrs: map[string]string{"oci-artifact": "true"}, want: "artifact"},
		"with Docker's types":         {kind: KindImage, atts: both, attrs: map[string]string{"oci-mediatypes": "false"}, want: `cannot export attestations with "oci-mediatypes=false"`},
		"Docker's types and artifact": {kind: KindImage, atts: both, attrs: map[string]string{"oci-mediatypes": "false", "oci-artifact": "true"}, want: `"oci-artifact=true" conflicts with "oci-mediatypes=false"`},
	} {
		t.Run(name, func(t *testing.T) {
			in := attested(c.atts...)
			in.CompatibilityVersion = c.version
			img, err := of(t, c.kind, in, c.attrs)
			got := "single"
			switch {
			case err != nil:
				got = err.Error()
			case img.Single == nil:
				_, manifests := index(t, img)
				m := manifests[1]
				got = "image"
				if m.Subject != nil {
					got = "artifact"
				} else if m.ArtifactType != "" || m.Config.MediaType != ocispecs.MediaTypeImageConfig {
					t.Errorf("manifest %+v", m)
				}
			}
			if got != c.want && !(err != nil && strings.Contains(got, c.want)) {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
	failing := Attestation{Path: "x", Statement: func(context.Context, About) ([]byte, error) { return nil, errors.New("no idea") }}
	if _, err := of(t, KindImage, attested(failing), nil); err == nil || !strings.Contains(err.Error(), "no idea") {
		t.Errorf("a failing statement: %v", err)
	}
}

func TestCompatibility(t *testing.T) {
	for version, want := range map[int]string{
		0: ocispecs.MediaTypeImageManifest, Compat031: ocispecs.MediaTypeImageManifest,
		Compat015: "application/vnd.docker.distribution.manifest.v2+json", Compat013: "application/vnd.docker.distribution.manifest.v2+json",
	} {
		in := attested()
		in.CompatibilityVersion = version
		if img, err := of(t, KindImage, in, nil); err != nil || img.Root.MediaType != want {
			t.Errorf("version %d: %v", version, err)
		}
		if img, err := of(t, KindOCI, in, nil); err != nil || img.Root.MediaType != ocispecs.MediaTypeImageManifest ||
			img.Root.Annotations["org.opencontainers.image.created"] != "2020-01-02T03:04:05Z" {
			t.Errorf("version %d: an OCI archive has %+v, %v", version, img, err)
		}
	}
	in := attested()
	in.CompatibilityVersion = Compat013
	_, err := of(t, KindOCI, in, map[string]string{"compression": "zstd"})
	if f, ok := errors.AsType[*FeatureError](err); !ok || f.Version != 10 || f.Feature != "oci exporter compression=zstd" {
		t.Errorf("got %v", err)
	}
}

func TestAnnotationsOfPlatforms(t *testing.T) {
	in := Input{Platforms: []Platform{{ID: "linux/amd64", Platform: amd64, Ref: &layer.Ref{}}}, Meta: map[string][]byte{"annotation-index.from": []byte("frontend")}}
	img, err := of(t, KindImage, in, map[string]string{"annotation-index[linux/amd64].a": "1", "annotation[linux/amd64].b": "2"})
	if err != nil {
		t.Fatal(err)
	}
	idx, manifests := index(t, img)
	if idx.Annotations["a"] != "1" || idx.Annotations["from"] != "frontend" || manifests[0].Annotations["b"] != "2" {
		t.Errorf("index %v, manifest %v", idx.Annotations, manifests[0].Annotations)
	}
	for attr, want := range map[string]string{
		"annotation[linux/arm64].b": "invalid annotation: no platform linux/arm64 found in source",
	} {
		if _, err := of(t, KindImage, in, map[string]string{attr: "x"}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", attr, err)
		}
	}
	if _, err := of(t, KindImage, attested(), map[string]string{"annotation-index.a": "1"}); err == nil || !strings.Contains(err.Error(), "index annotations not supported for single platform export") {
		t.Errorf("an index's annotations: %v", err)
	}
}

func TestForeignLayers(t *testing.T) {
	yes, no := true, false
	for _, c := range []struct {
		mediaType string
		urls      []string
		o         ImageOptions
		want      string
	}{
		{"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", []string{"u"}, ImageOptions{OCITypes: &yes}, ocispecs.MediaTypeImageLayerGzip},
		{"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", []string{"u"}, ImageOptions{OCITypes: &yes, ForeignLayers: true}, "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"},
		{"application/vnd.oci.image.layer.nondistributable.v1.tar", []string{"u"}, ImageOptions{OCITypes: &no, ForeignLayers: true}, "application/vnd.docker.image.rootfs.foreign.diff.tar"},
		{"application/vnd.oci.image.layer.nondistributable.v1.tar", nil, ImageOptions{OCITypes: &no, ForeignLayers: true}, "application/vnd.docker.image.rootfs.diff.tar"},
		{ocispecs.MediaTypeImageLayerGzip, nil, ImageOptions{OCITypes: &no, ForeignLayers: true}, "application/vnd.docker.image.rootfs.diff.tar.gzip"},
	} {
		d, err := layerDescriptor(ocispecs.Descriptor{MediaType: c.mediaType, URLs: c.urls}, c.o)
		if err != nil || d.MediaType != c.want || (len(d.URLs) > 0) != strings.Contains(c.want, "foreign") && (len(d.URLs) > 0) != strings.Contains(c.want, "nondistributable") {
			t.Errorf("%s: %+v, %v, want %s", c.mediaType, d, err, c.want)
		}
	}
}

func TestConflicts(t *testing.T) {
	for want, attrs := range map[string]map[string]string{
		`"compression=estargz" conflicts with "oci-mediatypes=false"`: {"compression": "estargz", "oci-mediatypes": "false"},
		"unsupported compression type lzma":                           {"compression": "lzma"},
		"non-bool value specified for oci-artifact":                   {"oci-artifact": "maybe"},
		"non-integer value x specified for compression-level":         {"compression-level": "x"},
	} {
		if _, err := DecodeImage(KindImage, attrs); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %s", attrs, err, want)
		}
	}
	o, err := DecodeImage(KindImage, map[string]string{"compression-level": "0", "unpack": "", "rewrite-timestamp": "true"})
	if err != nil || o.Variant.Level != layer.LevelStore || !o.Unpack || !o.RewriteTimes {
		t.Errorf("%+v, %v", o, err)
	}
}

func TestEpochs(t *testing.T) {
	at := func(n int64) *time.Time { return new(time.Unix(n, 0).UTC()) }
	in, p := Input{Epoch: at(2)}, Platform{Epoch: at(3)}
	for i, c := range []struct {
		e    Epoch
		in   Input
		want *time.Time
	}{{Epoch{true, at(1)}, in, at(1)}, {Epoch{true, nil}, in, nil}, {Epoch{}, in, at(2)}, {Epoch{}, Input{}, at(3)}} {
		got := c.e.of(c.in, p)
		if (got == nil) != (c.want == nil) || got != nil && !got.Equal(*c.want) {
			t.Errorf("%d: %v, want %v", i, got, c.want)
		}
	}
	// What a base image says of its making stays as it is.
	base := `{"history":[{"created":"2024-01-01T00:00:00Z","created_by":"base"}]}`
	in = single(`{"architecture":"amd64","os":"linux","history":[{"created":"2024-01-01T00:00:00Z","created_by":"base"},{"created":"2024-01-01T00:00:00Z","created_by":"new"}]}`)
	in.Platforms[0].Base = []byte(base)
	img := assemble(t, twoLayers(), in, map[string]string{"source-date-epoch": "86400"})
	var config struct{ History []ocispecs.History }
	if err := json.Unmarshal(img.Configs[0].Data, &config); err != nil || config.History[0].Created.Year() != 2024 || config.History[1].Created.Year() != 1970 {
		t.Errorf("%v, %s", err, img.Configs[0].Data)
	}
}

// listed are layers whose files are known.
type listed struct {
	*memoryLayers
	asked []*layer.Ref
	files map[*layer.Ref][]string
}

func (l *listed) Blobs(ctx context.Context, r *layer.Ref, v layer.Variant) ([]layer.Blob, error) {
	blobs, err := l.memoryLayers.Blobs(ctx, r, v)
	for i := range blobs {
		blobs[i].Ref = &layer.Ref{}
		l.files[blobs[i].Ref] = [][]string{{"bin", "bin/sh", "etc/conf"}, {"etc/conf"}}[i]
	}
	return blobs, err
}

func (l *listed) Paths(_ context.Context, r *layer.Ref, f func(string)) error {
	l.asked = append(l.asked, r)
	for _, p := range l.files[r] {
		f(p)
	}
	return nil
}

func TestFinder(t *testing.T) {
	l := &listed{memoryLayers: twoLayers(), files: map[*layer.Ref][]string{}}
	blobs, err := l.Blobs(t.Context(), nil, layer.Variant{})
	if err != nil {
		t.Fatal(err)
	}
	f := newFinder(l, blobs)
	for i, c := range []struct {
		path string
		want digest.Digest
		asks int
	}{{"/etc/conf", blobs[1].Desc.Digest, 1}, {"bin/../bin/sh", blobs[0].Desc.Digest, 2}, {"/gone", "", 2}, {"bin", blobs[0].Desc.Digest, 2}} {
		if got, err := f.find(t.Context(), c.path); err != nil || got != c.want || len(l.asked) != c.asks {
			t.Errorf("%d: %s came with %q, %v, after %d lists", i, c.path, got, err, len(l.asked))
		}
	}
	if newFinder(twoLayers(), blobs) != nil {
		t.Error("layers that cannot be listed are searched")
	}
}

// folder is a mounter of one directory.
type folder string

func (f folder) Mount(context.Context, *layer.Ref) (string, func() error, error) {
	return string(f), func() error { return nil }, nil
}

func TestAttestationFiles(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(
		os.MkdirAll(filepath.Join(dir, "b\xff/sub"), 0o755), os.WriteFile(filepath.Join(dir, "b\xff/sub/x"), nil, 0o644),
		os.WriteFile(filepath.Join(dir, "a"), []byte("text"), 0o644), os.Symlink("a", filepath.Join(dir, "link")),
		os.MkdirAll(filepath.Join(dir, "c"), 0o755), os.WriteFile(filepath.Join(dir, "c/d"), []byte("deep"), 0o644),
	); err != nil {
		t.Fatal(err)
	}
	two := Input{Platforms: []Platform{{ID: "linux/amd64", Attestations: []Attestation{said("deep/p.json", false), said("inline.json", true)}}, {ID: "linux/arm64"}}}
	mounted, release, err := MountAll(t.Context(), folder(dir), two, FilesOptions{AttestationPrefix: "x-"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := release(); err != nil {
			t.Error(err)
		}
	}()
	if len(mounted[0].Extra) != 1 || mounted[0].Extra[0].Name != "x-p.linux_amd64.json" || len(mounted[1].Extra) != 0 {
		t.Fatalf("%+v", mounted)
	}
	text := mounted[0].Extra[0].Data
	for _, want := range []string{"\n  \"about\"", `"a ` + digest.FromString("text").String(), `"c/d ` + digest.FromString("deep").String()} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("%s does not tell %s", text, want)
		}
	}
	if bytes.Contains(text, []byte("link")) {
		t.Errorf("%s tells of a link", text)
	}
	two.Platforms[0].Attestations = []Attestation{said("a/p.json", false), said("b/p.json", false)}
	if _, _, err := MountAll(t.Context(), folder(dir), two, FilesOptions{PlatformSplit: true}); err == nil || !strings.Contains(err.Error(), "duplicate attestation path name p.json") {
		t.Errorf("two files of one name: %v", err)
	}
}
