package sdk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
)

// Image is files and what to run of them: a base, or a result.
type Image struct {
	State  llb.State
	Config Config
	// History is what the layers of the base were made by.
	History []ocispecs.History
	// Base is the JSON of the base image, nil if there is none. Exporters leave
	// the layers that it names as they are.
	Base []byte
}

// Config is how to run an image, with what Docker's images have besides OCI's.
type Config struct {
	ocispecs.ImageConfig
	Healthcheck json.RawMessage `json:",omitempty"`
	Shell       []string        `json:",omitempty"`
}

// imageFile is the JSON of an image.
type imageFile struct {
	ocispecs.Image
	Config Config `json:"config"`
}

// Image finds a base image, such as "alpine" or "ghcr.io/owner/name:1", by the
// name or what the user put in its place. "scratch" is empty.
func (b *Build) Image(ctx context.Context, name string, p ocispecs.Platform) (*Image, error) {
	if name == "scratch" {
		return &Image{State: llb.Scratch()}, nil
	}
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil, fmt.Errorf("read image name %q: %w", name, err)
	}
	named = reference.TagNameOnly(named)
	source := &llb.SourceOp{Identifier: imageScheme + named.String()}
	if v, ok := b.named(named, p); ok {
		scheme, rest, _ := strings.Cut(v, ":")
		switch rest = strings.TrimPrefix(rest, "//"); scheme {
		case "input":
			return b.inputImage(rest)
		case "docker-image", "oci-layout":
			if source, err = replacement(named, scheme, rest); err != nil {
				return nil, fmt.Errorf("use context %s=%s: %w", name, v, err)
			}
		default:
			return nil, fmt.Errorf("use context %s=%s: expected docker-image://NAME, oci-layout://STORE@DIGEST or input:NAME", name, v)
		}
	}
	_, ref, _ := strings.Cut(source.Identifier, "://")
	meta, err := b.gw.ResolveSource(ctx, source, frontend.ResolveOpt{
		Platform: &p, Mode: b.opts["image-resolve-mode"], LogName: "[internal] load metadata for " + ref,
	})
	if err != nil {
		return nil, err
	}
	scheme, ref, _ := strings.Cut(meta.Op.Identifier, "://")
	if meta.Digest != "" && !strings.Contains(ref, "@") {
		ref += "@" + string(meta.Digest)
	}
	title := llb.WithCustomName("FROM " + ref)
	if scheme == "oci-layout" {
		return baseImage(llb.OCILayout(ref, llb.OCIStore("", source.Attrs["oci.store"]), llb.Platform(p), title), meta.Config)
	}
	return baseImage(llb.Image(ref, llb.Platform(p), title), meta.Config)
}

const imageScheme = "docker-image://"

// replacement is the source that is in place of an image.
func replacement(named reference.Named, scheme, spec string) (*llb.SourceOp, error) {
	if scheme == "docker-image" {
		ref, err := reference.ParseNormalizedNamed(spec)
		if err != nil {
			return nil, err
		}
		return &llb.SourceOp{Identifier: imageScheme + reference.TagNameOnly(ref).String()}, nil
	}
	ref, err := reference.Parse(spec)
	if err != nil {
		return nil, err
	}
	store, isNamed := ref.(reference.Named)
	digested, isDigested := ref.(reference.Digested)
	if !isNamed || !isDigested {
		return nil, errors.New("expected STORE@sha256:DIGEST")
	}
	shown, err := reference.WithDigest(reference.TrimNamed(named), digested.Digest())
	if err != nil {
		return nil, err
	}
	return &llb.SourceOp{Identifier: "oci-layout://" + shown.String(), Attrs: map[string]string{"oci.store": store.Name()}}, nil
}

// named is what the user put in place of an image by an option "context:NAME".
func (b *Build) named(named reference.Named, p ocispecs.Platform) (string, bool) {
	short := "context:" + strings.TrimSuffix(reference.FamiliarString(named), ":latest")
	if v, ok := b.opts[short+"::"+platforms.FormatAll(platforms.Normalize(p))]; ok {
		return v, true
	}
	v, ok := b.opts[short]
	return v, ok
}

// inputImage is an image that came with the request.
func (b *Build) inputImage(name string) (*Image, error) {
	g := b.inputs[name]
	if g == nil {
		return nil, fmt.Errorf("request has no input %q", name)
	}
	st, err := stateOf(g)
	if err != nil {
		return nil, err
	}
	var meta map[string][]byte
	if text := b.opts["input-metadata:"+name]; text != "" {
		if err := json.Unmarshal([]byte(text), &meta); err != nil {
			return nil, fmt.Errorf("read metadata of input %s: %w", name, err)
		}
	}
	return baseImage(st, meta[metaConfig])
}

// baseImage is an image to build on.
func baseImage(st llb.State, config []byte) (*Image, error) {
	img := &Image{State: st}
	if len(config) == 0 {
		return img, nil
	}
	var file imageFile
	if err := json.Unmarshal(config, &file); err != nil {
		return nil, fmt.Errorf("decode image config: %w", err)
	}
	img.Config, img.History, img.Base = file.Config, file.History, config
	var err error
	if img.State, err = st.WithImageConfig(config); err != nil {
		return nil, fmt.Errorf("use image config: %w", err)
	}
	return img, nil
}

// Images has f make an image for each platform, at the same time, and makes them
// the build's result.
func (b *Build) Images(ctx context.Context, f func(context.Context, ocispecs.Platform) (*Image, error)) (*frontend.Result, error) {
	res := &frontend.Result{Meta: map[string][]byte{}, Platforms: make([]frontend.PlatformResult, len(b.Platforms))}
	errs, made := make([]error, len(b.Platforms)), make([]*Image, len(b.Platforms))
	var all sync.WaitGroup
	for i, p := range b.Platforms {
		all.Go(func() {
			img, err := f(ctx, p)
			if err == nil {
				made[i] = img
				res.Platforms[i], err = b.platform(ctx, img, p)
			}
			errs[i] = err
		})
	}
	all.Wait()
	for _, err := range errs { // one is enough: they are of one file
		if err != nil {
			return nil, err
		}
	}
	for i, img := range made {
		key := metaBase
		if id := res.Platforms[i].ID; id != "" {
			key += "/" + id
		}
		if img.Base != nil {
			res.Meta[key] = img.Base
		}
	}
	if epoch := b.Args["SOURCE_DATE_EPOCH"]; epoch != "" {
		res.Meta["source.date.epoch"] = []byte(epoch)
	}
	return res, nil
}

// platform is the result for a platform.
func (b *Build) platform(ctx context.Context, img *Image, p ocispecs.Platform) (frontend.PlatformResult, error) {
	out := frontend.PlatformResult{Platform: p}
	if img == nil {
		return out, errors.New("the frontend made no image")
	}
	if b.many {
		out.ID = platforms.FormatAll(p)
	}
	file := imageFile{Image: ocispecs.Image{Platform: p, History: img.History, RootFS: ocispecs.RootFS{Type: "layers"}}, Config: img.Config}
	if len(b.Labels) > 0 {
		labels := maps.Clone(b.Labels)
		for k, v := range img.Config.Labels {
			if _, ok := labels[k]; !ok {
				labels[k] = v
			}
		}
		file.Config.Labels = labels
	}
	var err error
	if out.Config, err = json.Marshal(file); err != nil {
		return out, fmt.Errorf("write image config: %w", err)
	}
	out.Graph, err = img.State.Graph(ctx, llb.Platform(p))
	return out, err
}
