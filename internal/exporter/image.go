package exporter

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/progress"
)

// Layers makes blobs of file system states; [layer.Store] does.
type Layers interface {
	Blobs(ctx context.Context, r *layer.Ref, v layer.Variant) ([]layer.Blob, error)
	ReaderAt(ctx context.Context, b layer.Blob) (content.ReaderAt, error)
}

// Image is a whole image: everything but the bytes of its layers.
type Image struct {
	Names     []string // normalised, with tags
	Given     []string // the same names as the client has them
	Root      ocispecs.Descriptor
	Manifests []Blob       // an index comes last, after what it lists
	Configs   []Blob       // configs and statements
	Layers    []layer.Blob // those of all platforms, each once
	Response  map[string]string
	// Single is the manifest of an image for one platform; nil for an index.
	Single *ocispecs.Manifest
}

// Blob is a blob in memory.
type Blob struct {
	Desc ocispecs.Descriptor
	Data []byte
}

// Assemble makes an image of a result. Layers are compressed as needed, for
// several platforms at once.
func Assemble(ctx context.Context, store Layers, in Input, o ImageOptions) (*Image, error) {
	if len(in.Platforms) == 0 {
		return nil, errors.New("assemble image: the result is for no platform")
	}
	o, err := o.settle(in)
	if err != nil {
		return nil, err
	}
	img := &Image{}
	if img.Given, img.Names, err = imageNames(o, in); err != nil {
		return nil, err
	}
	parts := make([]part, len(in.Platforms))
	g, gctx := errgroup.WithContext(ctx)
	for i, p := range in.Platforms {
		g.Go(func() (err error) {
			parts[i].layers, err = blobsOf(gctx, store, p, o.layerVariant(o.Epoch.of(in, p)))
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	index := isSplit(in) || len(in.Platforms) > 1
	seen := map[digest.Digest]bool{}
	for i, p := range in.Platforms {
		var inline map[string]json.RawMessage
		if p.MakeCache != nil {
			if inline, err = p.MakeCache(ctx, parts[i].layers); err != nil {
				return nil, fmt.Errorf("make inline cache%s: %w", forPlatform(p.ID), err)
			}
		}
		p.Config, p.Base = o.configs(p)
		config, err := completeConfig(p, parts[i].layers, o.Epoch.of(in, p), inline)
		if err != nil {
			return nil, fmt.Errorf("complete config of image%s: %w", forPlatform(p.ID), err)
		}
		if err := parts[i].finish(config, p, o, o.Epoch.of(in, p)); err != nil {
			return nil, err
		}
		if f := newFinder(store, parts[i].layers); f != nil {
			parts[i].layerOf = f.find
		}
		index = index || p.inline(o)
		img.Configs = append(img.Configs, parts[i].config)
		img.Manifests = append(img.Manifests, parts[i].manifest)
		for _, l := range parts[i].layers {
			if !seen[l.Desc.Digest] {
				seen[l.Desc.Digest] = true
				img.Layers = append(img.Layers, l)
			}
		}
	}
	if index {
		err = img.addIndex(ctx, in, parts, o)
	} else {
		err = img.setSingle(&parts[0], o)
	}
	if err != nil {
		return nil, err
	}
	return img, img.respond()
}

// setSingle makes the one manifest the image.
func (img *Image) setSingle(p *part, o ImageOptions) error {
	if len(o.annotationsFor("index", nil))+len(o.annotationsFor("index-descriptor", nil)) > 0 {
		return errors.New("index annotations not supported for single platform export: this image has one manifest only")
	}
	img.Root, img.Single = p.manifest.Desc, &p.decoded
	if o.Kind == KindImage {
		return nil
	}
	return img.tellCreation(p.config.Data)
}

// tellCreation notes in the descriptor when an archive's image was made.
func (img *Image) tellCreation(config []byte) error {
	var known struct{ Created *time.Time }
	if err := json.Unmarshal(config, &known); err != nil {
		return fmt.Errorf("decode image config: %w", err)
	}
	annotations := maps.Clone(img.Root.Annotations)
	if annotations == nil {
		annotations = map[string]string{}
	}
	if _, told := annotations[ocispecs.AnnotationCreated]; !told && known.Created != nil {
		annotations[ocispecs.AnnotationCreated] = known.Created.UTC().Format(time.RFC3339)
		img.Root.Annotations = annotations
	}
	return nil
}

func forPlatform(id string) string {
	if id == "" {
		return ""
	}
	return " for " + id
}

// blobsOf turns a platform's files into layers.
func blobsOf(ctx context.Context, store Layers, p Platform, v layer.Variant) ([]layer.Blob, error) {
	if p.Ref == nil {
		return nil, nil
	}
	task := progress.StepFrom(ctx).Task("exporting layers"+forPlatform(p.ID), 0)
	defer task.Done()
	layers, err := store.Blobs(ctx, p.Ref, v)
	if err != nil {
		return nil, fmt.Errorf("make layers of image%s: %w", forPlatform(p.ID), err)
	}
	return layers, nil
}

// part is an image for one platform.
type part struct {
	layers           []layer.Blob
	config, manifest Blob
	decoded          ocispecs.Manifest
	layerOf          func(context.Context, string) (digest.Digest, error)
}

func (p *part) finish(config []byte, platform Platform, o ImageOptions, epoch *time.Time) error {
	manifestType, configType := ocispecs.MediaTypeImageManifest, ocispecs.MediaTypeImageConfig
	if !*o.OCITypes {
		manifestType, configType = images.MediaTypeDockerSchema2Manifest, images.MediaTypeDockerSchema2Config
	}
	p.config = newBlob(configType, config)
	p.decoded = ocispecs.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: manifestType,
		Config: p.config.Desc, Layers: []ocispecs.Descriptor{},
		Annotations: o.annotationsFor("manifest", &platform.Platform),
	}
	for _, l := range p.layers {
		d, err := layerDescriptor(l.Desc, o)
		if err != nil {
			return err
		}
		if epoch != nil && o.noteTimes && *o.OCITypes && l.Ref != nil && !l.Ref.Record().FromImage() {
			d.Annotations = maps.Clone(d.Annotations)
			if d.Annotations == nil {
				d.Annotations = map[string]string{}
			}
			d.Annotations["buildkit/rewritten-timestamp"] = strconv.FormatInt(epoch.Unix(), 10)
		}
		p.decoded.Layers = append(p.decoded.Layers, d)
	}
	data, err := encodeManifest(p.decoded)
	if err != nil {
		return fmt.Errorf("encode manifest: %w", err)
	}
	p.manifest = newBlob(manifestType, data)
	pl := platforms.Normalize(platform.Platform)
	if pl.OS != "" {
		p.manifest.Desc.Platform = &pl
	}
	p.manifest.Desc.Annotations = o.annotationsFor("manifest-descriptor", &platform.Platform)
	return nil
}

func newBlob(mediaType string, data []byte) Blob {
	return Blob{
		Desc: ocispecs.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))},
		Data: data,
	}
}

// layerTypes pairs OCI's media types of layers with Docker's. The last is
// no standard, but what others write.
var layerTypes = [][2]string{
	{ocispecs.MediaTypeImageLayer, images.MediaTypeDockerSchema2Layer},
	{ocispecs.MediaTypeImageLayerGzip, images.MediaTypeDockerSchema2LayerGzip},
	{ocispecs.MediaTypeImageLayerZstd, images.MediaTypeDockerSchema2LayerZstd},
}

// foreignTypes are the media types of layers that must not be distributed, by
// those of layers that may.
var foreignTypes = map[string]string{
	ocispecs.MediaTypeImageLayer:           "application/vnd.oci.image.layer.nondistributable.v1.tar",
	ocispecs.MediaTypeImageLayerGzip:       "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
	ocispecs.MediaTypeImageLayerZstd:       "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
	images.MediaTypeDockerSchema2Layer:     images.MediaTypeDockerSchema2LayerForeign,
	images.MediaTypeDockerSchema2LayerGzip: images.MediaTypeDockerSchema2LayerForeignGzip,
}

// layerDescriptor is a layer as a manifest names it: in the manifest's family
// of media types, without marks of our own.
func layerDescriptor(d ocispecs.Descriptor, o ImageOptions) (ocispecs.Descriptor, error) {
	out := ocispecs.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
	for k, v := range d.Annotations {
		own := strings.HasPrefix(k, "buildkit/") || strings.HasPrefix(k, "kiln/") ||
			strings.HasPrefix(k, "containerd.io/") && !strings.HasPrefix(k, "containerd.io/snapshot/stargz")
		if own || !*o.OCITypes {
			continue
		}
		if out.Annotations == nil {
			out.Annotations = map[string]string{}
		}
		out.Annotations[k] = v
	}
	for plain, foreign := range foreignTypes {
		if d.MediaType == foreign {
			out.MediaType = plain
		}
	}
	known := false
	for _, pair := range layerTypes {
		if out.MediaType == pair[0] || out.MediaType == pair[1] {
			known = true
			out.MediaType = pair[0]
			if !*o.OCITypes {
				out.MediaType = pair[1]
			}
		}
	}
	if !known && !images.IsLayerType(d.MediaType) {
		return out, fmt.Errorf("layer %s has media type %q, which is not a layer's", d.Digest, d.MediaType)
	}
	if foreign, ok := foreignTypes[out.MediaType]; ok && o.ForeignLayers && len(d.URLs) > 0 {
		out.MediaType, out.URLs = foreign, d.URLs
	}
	return out, nil
}

func (img *Image) addIndex(ctx context.Context, in Input, parts []part, o ImageOptions) error {
	index := ocispecs.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageIndex,
		Annotations: o.annotationsFor("index", nil),
	}
	if !*o.OCITypes {
		index.MediaType = images.MediaTypeDockerSchema2ManifestList
	}
	for _, p := range parts {
		index.Manifests = append(index.Manifests, p.manifest.Desc)
	}
	for i, p := range in.Platforms {
		if len(p.Attestations) == 0 {
			continue
		}
		if !*o.OCITypes {
			return errors.New("cannot export attestations with \"oci-mediatypes=false\"")
		}
		d, err := img.attest(ctx, parts[i], p, o)
		if err != nil {
			return err
		}
		index.Manifests = append(index.Manifests, d)
	}
	data, err := encodeManifest(index)
	if err != nil {
		return fmt.Errorf("encode index: %w", err)
	}
	b := newBlob(index.MediaType, data)
	b.Desc.Annotations = o.annotationsFor("index-descriptor", nil)
	img.Manifests = append(img.Manifests, b)
	img.Root = b.Desc
	if o.Kind == KindImage {
		return nil
	}
	return img.tellCreation(parts[0].config.Data)
}

// respond fills in what the client is told (BuildKit's
// exporter/containerimage/exptypes).
func (img *Image) respond() error {
	desc, err := json.Marshal(img.Root)
	if err != nil {
		return fmt.Errorf("encode descriptor: %w", err)
	}
	img.Response = map[string]string{
		"containerimage.digest":     img.Root.Digest.String(),
		"containerimage.descriptor": base64.StdEncoding.EncodeToString(desc),
	}
	if img.Single != nil {
		img.Response["containerimage.config.digest"] = img.Single.Config.Digest.String()
	}
	if len(img.Names) > 0 {
		img.Response["image.name"] = strings.Join(img.Names, ",")
	}
	return nil
}

// imageNames are the names that an image is to have, as given and normalised.
func imageNames(o ImageOptions, in Input) (given, names []string, err error) {
	given = o.Names
	if o.NamesFromMeta {
		given = splitNames(string(in.Meta["image.name"]))
		if len(given) == 0 {
			return nil, nil, errors.New("name=* takes the image's name from the frontend, which gave none: give a name")
		}
	}
	for _, name := range given {
		ref, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			return nil, nil, fmt.Errorf("image name %q is malformed (expected [host/]name[:tag]): %w", name, err)
		}
		if _, ok := ref.(reference.Digested); ok {
			return nil, nil, fmt.Errorf("image name %q has a digest, which is known only afterwards: leave it out", name)
		}
		names = append(names, reference.TagNameOnly(ref).String())
	}
	return given, names, nil
}
