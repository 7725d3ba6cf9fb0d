// Package image exports images into Kiln's own store and to registries.
//
// The manifest and config are kept as content, the image under its names. With
// push=true it is pushed to each name once all of it is made; layers that came
// from a registry and were never looked at are mounted there, or streamed from
// one registry to the other, without being kept here.
package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/distribution/reference"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/exporter"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/registry"
)

// Images keeps images by name; [store.Store] does.
//
// [store.Store]: github.com/kiln-build/kiln/internal/store.Store
type Images interface {
	PutImage(name string, d ocispecs.Descriptor) error
}

// Registry is what of [registry.Client] is needed here.
type Registry interface {
	Push(ctx context.Context, p registry.Push) error
}

// Config is what an Exporter is made of.
type Config struct {
	Layers   exporter.Layers
	Content  content.Store
	Images   Images
	Registry Registry
	// Fetcher streams layers that are not here straight from where they are.
	// Nil pulls them into the store first.
	Fetcher layer.Fetcher
}

// Exporter exports images.
type Exporter struct{ cfg Config }

// New returns an exporter.
func New(c Config) *Exporter { return &Exporter{c} }

// Check tells bad attributes.
func (e *Exporter) Check(attrs map[string]string) error {
	o, err := exporter.DecodeImage(exporter.KindImage, attrs)
	if err == nil && o.Push && len(o.Names) == 0 && !o.NamesFromMeta {
		err = errNoName
	}
	return err
}

// errNoName is what BuildKit passes over: it pushes nothing and says that all went
// well. Nobody who asks for a push wants that, and without push=true it is still to
// be had.
var errNoName = errors.New("push image: it has no name to push to: give one with -t or name=")

// Export stores an image and, once all else is done, pushes it.
func (e *Exporter) Export(ctx context.Context, in exporter.Input, to exporter.Target) (map[string]string, error) {
	o, err := exporter.DecodeImage(exporter.KindImage, to.Attrs)
	if err != nil {
		return nil, err
	}
	img, err := exporter.Assemble(ctx, e.cfg.Layers, in, o)
	if err != nil {
		return nil, err
	}
	if o.Push && len(img.Names) == 0 {
		return nil, errNoName
	}
	to.KeepDocuments(img)
	if o.Store {
		if err := e.store(ctx, img, o); err != nil {
			return nil, err
		}
	}
	if names := respondedNames(img, o); len(names) > 0 {
		img.Response["image.name"] = strings.Join(names, ",")
	}
	if !o.Push {
		return img.Response, nil
	}
	return img.Response, to.Finish(ctx, func(ctx context.Context) error {
		for _, name := range img.Names {
			if err := e.push(ctx, img, name, o); err != nil {
				return fmt.Errorf("failed to push %s: %w", name, err)
			}
		}
		return nil
	})
}

// respondedNames are what the client is told: the names as it gave them.
func respondedNames(img *exporter.Image, o exporter.ImageOptions) []string {
	names := slices.Clone(img.Given)
	if dangling := danglingName(img, o); dangling != "" {
		names = append(names, dangling)
	}
	return names
}

// danglingName names an image by its digest alone, if that was asked for.
func danglingName(img *exporter.Image, o exporter.ImageOptions) string {
	if o.DanglingPrefix == "" || len(img.Names) > 0 && o.DanglingEmptyOnly {
		return ""
	}
	return o.DanglingPrefix + "@" + img.Root.Digest.String()
}

// store keeps the documents, children first, and then the names.
func (e *Exporter) store(ctx context.Context, img *exporter.Image, o exporter.ImageOptions) error {
	for _, b := range slices.Concat(img.Configs, img.Manifests) {
		task := progress.StepFrom(ctx).Task(kind(b)+" "+b.Desc.Digest.String(), b.Desc.Size)
		d := ocispecs.Descriptor{MediaType: b.Desc.MediaType, Digest: b.Desc.Digest, Size: b.Desc.Size}
		err := content.WriteBlob(ctx, e.cfg.Content, "image-"+d.Digest.String(), bytes.NewReader(b.Data), d)
		task.Done()
		if err != nil {
			return fmt.Errorf("keep %s of image: %w", d.Digest, err)
		}
	}
	root := ocispecs.Descriptor{MediaType: img.Root.MediaType, Digest: img.Root.Digest, Size: img.Root.Size}
	for _, name := range storedNames(img, o) {
		task := progress.StepFrom(ctx).Task("naming to "+name, 0)
		err := e.cfg.Images.PutImage(name, root)
		task.Done()
		if err != nil {
			return fmt.Errorf("name image %s: %w", name, err)
		}
	}
	return nil
}

// kind is what is shown of keeping a document; "" is nothing.
func kind(b exporter.Blob) string {
	switch b.Desc.MediaType {
	case ocispecs.MediaTypeImageConfig, "application/vnd.docker.container.image.v1+json":
		return "exporting config"
	case ocispecs.MediaTypeImageIndex, "application/vnd.docker.distribution.manifest.list.v2+json":
		return "exporting manifest list"
	case ocispecs.MediaTypeImageManifest, "application/vnd.docker.distribution.manifest.v2+json":
		if b.Desc.Annotations["vnd.docker.reference.type"] != "" {
			return "exporting attestation manifest"
		}
		return "exporting manifest"
	}
	return "exporting attestation"
}

// storedNames are the names to keep an image under: those that were given, and
// those with its digest that were asked for.
func storedNames(img *exporter.Image, o exporter.ImageOptions) []string {
	names := slices.Clone(img.Names)
	if o.NameCanonical {
		for _, name := range img.Names {
			if named, err := reference.ParseNormalizedNamed(name); err == nil {
				names = append(names, reference.TrimNamed(named).String()+"@"+img.Root.Digest.String())
			}
		}
	}
	if dangling := danglingName(img, o); dangling != "" {
		names = append(names, dangling)
	}
	return names
}

func (e *Exporter) push(ctx context.Context, img *exporter.Image, name string, o exporter.ImageOptions) error {
	p := registry.Push{Ref: name, ByDigest: o.ByDigest, Insecure: o.Insecure}
	for _, l := range img.Layers {
		if o.ForeignLayers && len(l.Desc.URLs) > 0 {
			continue // whoever pulls gets it from there
		}
		p.Blobs = append(p.Blobs, registry.Blob{
			Desc: l.Desc, Origin: originOf(l),
			Open: func(ctx context.Context) (io.ReadCloser, error) { return e.open(ctx, l) },
		})
	}
	for _, c := range img.Configs {
		p.Blobs = append(p.Blobs, registry.Blob{Desc: c.Desc, Open: func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(c.Data)), nil
		}})
	}
	for _, m := range img.Manifests {
		p.Manifests = append(p.Manifests, registry.Manifest{Desc: m.Desc, Data: m.Data})
	}
	task := progress.StepFrom(ctx).Task("pushing layers", 0)
	defer task.Done()
	return e.cfg.Registry.Push(ctx, p)
}

// originOf is where a layer's blob came from, "" if it was made here.
func originOf(l layer.Blob) string {
	if l.Ref == nil {
		return ""
	}
	return l.Ref.Record().Origin
}

// open reads a layer from where it is.
func (e *Exporter) open(ctx context.Context, l layer.Blob) (io.ReadCloser, error) {
	if origin := originOf(l); origin != "" && e.cfg.Fetcher != nil {
		if _, err := e.cfg.Content.Info(ctx, l.Desc.Digest); err != nil {
			return e.cfg.Fetcher.Fetch(ctx, origin, l.Desc)
		}
	}
	r, err := e.cfg.Layers.ReaderAt(ctx, l)
	if err != nil {
		return nil, err
	}
	return section{io.NewSectionReader(r, 0, r.Size()), r}, nil
}

type section struct {
	*io.SectionReader
	io.Closer
}
