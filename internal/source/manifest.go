package source

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/layer"
)

// Limits of what an image may consist of, so that a hostile one cannot fill
// the memory.
const (
	maxDocument = 4 << 20 // bytes of a manifest, index or config
	maxLayers   = 4096
	maxNesting  = 3 // indexes in indexes
)

// Image is an image for one platform, in the documents that describe it.
type Image struct {
	Root     ocispecs.Descriptor // what the reference names: an index or a manifest
	Desc     ocispecs.Descriptor // of the manifest
	Manifest ocispecs.Manifest
}

// ReadBlob returns a document whole. It must check its digest.
type ReadBlob func(ctx context.Context, desc ocispecs.Descriptor) ([]byte, error)

// SelectImage finds the manifest of a platform below root. name is for errors.
func SelectImage(ctx context.Context, name string, root ocispecs.Descriptor, platform ocispecs.Platform, read ReadBlob) (*Image, error) {
	desc := root
	for range maxNesting {
		if err := checkDescriptor(desc); err != nil {
			return nil, fmt.Errorf("image %s: %w", name, err)
		}
		if desc.Size > maxDocument {
			return nil, fmt.Errorf("image %s: %s has %d bytes, expected at most %d", name, desc.Digest, desc.Size, maxDocument)
		}
		b, err := read(ctx, desc)
		if err != nil {
			return nil, err
		}
		var kind struct {
			SchemaVersion int
			MediaType     string
			Layers        []json.RawMessage
			Manifests     []json.RawMessage
			FSLayers      []json.RawMessage
		}
		if err := json.Unmarshal(b, &kind); err != nil {
			return nil, fmt.Errorf("image %s: decode manifest %s: %w", name, desc.Digest, err)
		}
		switch {
		case kind.FSLayers != nil || kind.SchemaVersion == 1:
			return nil, fmt.Errorf("image %s has a manifest in Docker's schema 1, which nobody supports any more: push it anew", name)
		case kind.Manifests != nil && kind.Layers != nil:
			// What it is would depend on who reads it.
			return nil, fmt.Errorf("image %s: %s is both a manifest and an index", name, desc.Digest)
		case kind.Manifests != nil || images.IsIndexType(desc.MediaType):
			if desc, err = choose(name, b, platform); err != nil {
				return nil, err
			}
			continue
		case kind.Layers == nil && !images.IsManifestType(desc.MediaType):
			return nil, fmt.Errorf("image %s: expected a manifest or an index, %s is of type %q", name, desc.Digest, desc.MediaType)
		}
		img := &Image{Root: root, Desc: desc}
		if err := json.Unmarshal(b, &img.Manifest); err != nil {
			return nil, fmt.Errorf("image %s: decode manifest %s: %w", name, desc.Digest, err)
		}
		return img, img.check(name)
	}
	return nil, fmt.Errorf("image %s has indexes nested more than %d deep", name, maxNesting)
}

// checkDescriptor refuses what could not be fetched safely.
func checkDescriptor(d ocispecs.Descriptor) error {
	if err := d.Digest.Validate(); err != nil {
		return fmt.Errorf("malformed digest %q: %w", d.Digest, err)
	}
	if d.Size < 0 {
		return fmt.Errorf("%s is said to have %d bytes", d.Digest, d.Size)
	}
	return nil
}

func (img *Image) check(name string) error {
	if n := len(img.Manifest.Layers); n > maxLayers {
		return fmt.Errorf("image %s has %d layers, expected at most %d", name, n, maxLayers)
	}
	for _, d := range append([]ocispecs.Descriptor{img.Manifest.Config}, img.Manifest.Layers...) {
		if err := checkDescriptor(d); err != nil {
			return fmt.Errorf("image %s: %w", name, err)
		}
	}
	if img.Manifest.Config.Size > maxDocument {
		return fmt.Errorf("image %s: the config has %d bytes, expected at most %d", name, img.Manifest.Config.Size, maxDocument)
	}
	for _, l := range img.Manifest.Layers {
		if !images.IsLayerType(l.MediaType) {
			return fmt.Errorf("%s is no image of files: it has a part of type %q", name, l.MediaType)
		}
	}
	return nil
}

// choose picks the best match for a platform from an index.
func choose(name string, index []byte, platform ocispecs.Platform) (ocispecs.Descriptor, error) {
	var decoded ocispecs.Index
	if err := json.Unmarshal(index, &decoded); err != nil {
		return ocispecs.Descriptor{}, fmt.Errorf("image %s: decode index: %w", name, err)
	}
	match := platforms.Only(platforms.Normalize(platform))
	var best *ocispecs.Descriptor
	var there []string
	for i := range decoded.Manifests {
		d := &decoded.Manifests[i]
		if d.Platform == nil {
			// Tools for one platform leave it out.
			if len(decoded.Manifests) == 1 {
				return *d, nil
			}
			continue
		}
		if d.Platform.OS == "unknown" {
			continue // an attestation
		}
		there = append(there, platforms.FormatAll(platforms.Normalize(*d.Platform)))
		if match.Match(*d.Platform) && (best == nil || match.Less(*d.Platform, *best.Platform)) {
			best = d
		}
	}
	if best == nil {
		slices.Sort(there)
		return ocispecs.Descriptor{}, fmt.Errorf("image %s has nothing for platform %s, only for: %s",
			name, platforms.FormatAll(platform), strings.Join(slices.Compact(there), ", "))
	}
	return *best, nil
}

// LazyBlobs are the layers of an image: config is its config, and limit, if
// not 0, how many of them are wanted, and system the one that the image was asked for.
func (img *Image) LazyBlobs(config []byte, limit int, origin, system string) ([]layer.LazyBlob, error) {
	var c struct {
		RootFS struct {
			DiffIDs []digest.Digest `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, fmt.Errorf("decode config %s: %w", img.Manifest.Config.Digest, err)
	}
	layers, ids := img.Manifest.Layers, c.RootFS.DiffIDs
	if len(layers) != len(ids) {
		return nil, fmt.Errorf("manifest %s lists %d layers, its config %d", img.Desc.Digest, len(layers), len(ids))
	}
	if limit > 0 && limit < len(layers) {
		layers, ids = layers[:limit], ids[:limit]
	}
	blobs := make([]layer.LazyBlob, len(layers))
	for i := range layers {
		if err := ids[i].Validate(); err != nil {
			return nil, fmt.Errorf("config %s has malformed digest %q of a layer", img.Manifest.Config.Digest, ids[i])
		}
		blobs[i] = layer.LazyBlob{Desc: layers[i], DiffID: ids[i], Origin: origin, Windows: system == "windows"}
	}
	return blobs, nil
}

// ImageKey is the cache key of an image (BuildKit's source/containerimage): fields
// and order are the protocol's.
func ImageKey(root digest.Digest, p ocispecs.Platform, limit int) (string, error) {
	b, err := json.Marshal(struct {
		Digest     digest.Digest
		OS         string
		Arch       string
		Variant    string   `json:",omitempty"`
		OSVersion  string   `json:",omitempty"`
		OSFeatures []string `json:",omitempty"`
		Limit      *int     `json:",omitempty"`
	}{root, p.OS, p.Architecture, p.Variant, p.OSVersion, p.OSFeatures, optional(limit)})
	if err != nil {
		return "", fmt.Errorf("encode cache key: %w", err)
	}
	return digest.FromBytes(b).String(), nil
}

func optional(n int) *int {
	if n == 0 {
		return nil
	}
	return &n
}
