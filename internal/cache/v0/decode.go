package v0

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/solver"
)

// mostManifests is how many manifests of an index are looked at.
const mostManifests = 256

// Decode reads a cache of its own, or those that the images of a manifest or
// an index carry in their configs.
func (Format) Decode(ctx context.Context, r cache.Reader, p cache.ReadPolicy) (cache.Index, error) {
	d := &decoder{ctx: ctx, r: r, policy: p}
	if err := d.manifest(r.Root(), true); err != nil {
		return nil, err
	}
	return d.found, nil
}

type decoder struct {
	ctx    context.Context
	r      cache.Reader
	policy cache.ReadPolicy
	found  indexes
	seen   int
}

// document is a manifest or an index.
type document struct {
	MediaType string                `json:"mediaType"`
	Config    *ocispecs.Descriptor  `json:"config"`
	Layers    []ocispecs.Descriptor `json:"layers"`
	Manifests []ocispecs.Descriptor `json:"manifests"`
}

func (d *decoder) manifest(desc ocispecs.Descriptor, top bool) error {
	if d.seen++; d.seen > mostManifests {
		return fmt.Errorf("import cache: the index lists more than %d manifests", mostManifests)
	}
	data, err := d.r.Read(d.ctx, desc)
	if err != nil {
		return err
	}
	var doc document
	if err := json.Unmarshal(data, &doc); err != nil {
		return fmt.Errorf("import cache: decode manifest %s: %w", desc.Digest, err)
	}
	switch {
	case doc.Config != nil && doc.Config.MediaType == ConfigType:
		return d.config(*doc.Config, doc.Layers)
	case doc.Config != nil && len(doc.Layers) > 0:
		return d.inline(*doc.Config, doc.Layers)
	}
	configs := 0
	for _, m := range doc.Manifests {
		if m.MediaType != ConfigType {
			continue
		}
		if configs++; configs > mostManifests {
			return fmt.Errorf("import cache: the index lists more than %d caches", mostManifests)
		}
		if err := d.config(m, doc.Manifests); err != nil {
			return err
		}
	}
	if configs > 0 {
		return nil
	}
	if !top && len(doc.Manifests) > 0 {
		return nil // an index in an index is no image of ours
	}
	for _, m := range doc.Manifests {
		if m.Platform != nil && m.Platform.OS == "unknown" {
			continue // an attestation
		}
		if err := d.manifest(m, false); err != nil {
			return err
		}
	}
	return nil
}

func (d *decoder) config(desc ocispecs.Descriptor, layers []ocispecs.Descriptor) error {
	if !d.policy.BuildKit {
		return nil
	}
	if desc.Size > maxConfig {
		return fmt.Errorf("import cache: config %s has %d bytes, expected at most %d", desc.Digest, desc.Size, maxConfig)
	}
	data, err := d.r.Read(d.ctx, desc)
	if err != nil {
		return err
	}
	c, err := decodeConfig(data)
	if err != nil {
		return fmt.Errorf("import cache: %w", err)
	}
	if !slices.ContainsFunc(layers, func(l ocispecs.Descriptor) bool { return images.IsLayerType(l.MediaType) }) {
		layers = c.described()
	}
	d.found = append(d.found, newIndex(c, layers, d.r.Origin()))
	return nil
}

// indexes are several caches of one place.
type indexes []part

// part is one of them.
type part interface {
	find(r cache.Recipes, k solver.Key, output int) ([]layer.LazyBlob, bool)
	contentOf(r cache.Recipes, of solver.Ingredient) string
}

// Empty tells whether there is none.
func (all indexes) Empty() bool { return len(all) == 0 }

// Find asks one after the other.
func (all indexes) Find(r cache.Recipes, k solver.Key, output int) ([]layer.LazyBlob, bool) {
	for _, x := range all {
		if layers, ok := x.find(r, k, output); ok {
			return layers, true
		}
	}
	return nil, false
}

// Content asks one after the other.
func (all indexes) Content(r cache.Recipes, of solver.Ingredient) string {
	for _, x := range all {
		if d := x.contentOf(r, of); d != "" {
			return d
		}
	}
	return ""
}

// index finds records of one config.
type index struct {
	conf     *config
	blobs    map[digest.Digest]ocispecs.Descriptor
	origin   string
	byDigest map[digest.Digest][]int
	dependOn [][]int // by record: those that it leads to

	mu      sync.Mutex
	matched map[string][]int // records of an output, by key and number
}

func newIndex(c *config, layers []ocispecs.Descriptor, origin string) *index {
	x := &index{
		conf: c, origin: origin, blobs: map[digest.Digest]ocispecs.Descriptor{},
		byDigest: map[digest.Digest][]int{}, dependOn: make([][]int, len(c.Records)), matched: map[string][]int{},
	}
	for _, l := range layers {
		if images.IsLayerType(l.MediaType) {
			x.blobs[l.Digest] = l
		}
	}
	for i, r := range c.Records {
		x.byDigest[r.Digest] = append(x.byDigest[r.Digest], i)
		for _, alternatives := range r.Inputs {
			for _, in := range alternatives {
				x.dependOn[in.Link] = append(x.dependOn[in.Link], i)
			}
		}
	}
	return x
}

// match returns the records of an output of a step.
func (x *index) match(r cache.Recipes, k solver.Key, output int) []int {
	name := fmt.Sprintf("%s@%d", k, output)
	if found, ok := x.matched[name]; ok {
		return found
	}
	recipe, ok := r.Recipe(k)
	if !ok || recipe.Local {
		return nil
	}
	var found []int
	for _, i := range x.byDigest[recordDigest(recipe.Digest, output)] {
		rec := &x.conf.Records[i]
		if len(rec.Inputs) == len(recipe.Inputs) && x.leads(r, rec, recipe.Inputs) {
			found = append(found, i)
		}
	}
	x.matched[name] = found
	return found
}

// leads tells whether all inputs lead to a record.
func (x *index) leads(r cache.Recipes, rec *record, inputs []solver.Ingredient) bool {
	for n, in := range inputs {
		byContent := slices.ContainsFunc(rec.Inputs[n], func(l input) bool {
			return in.Content != "" && l.Selector == "" && x.conf.Records[l.Link].Digest == digest.Digest(in.Content)
		})
		if byContent {
			continue
		}
		sources := x.match(r, in.Key, in.Index)
		byDefinition := slices.ContainsFunc(rec.Inputs[n], func(l input) bool {
			return l.Selector == in.LinkSelector() && slices.Contains(sources, l.Link)
		})
		if !byDefinition {
			return false
		}
	}
	return true
}

func (x *index) find(r cache.Recipes, k solver.Key, output int) ([]layer.LazyBlob, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, i := range x.match(r, k, output) {
		rec := &x.conf.Records[i]
		for _, res := range rec.Results {
			var order []int
			for n := res.Layer; n != -1; n = x.conf.Layers[n].Parent {
				order = append(order, n)
			}
			slices.Reverse(order)
			if layers, ok := x.layers(order); ok {
				return layers, true
			}
		}
		for _, ch := range rec.Chains {
			if layers, ok := x.layers(ch.Layers); ok {
				return layers, true
			}
		}
	}
	return nil, false
}

// layers are blobs, if all of them can be had.
func (x *index) layers(order []int) ([]layer.LazyBlob, bool) {
	var out []layer.LazyBlob
	for _, n := range order {
		d, ok := x.blobs[x.conf.Layers[n].Blob]
		diffID := digest.Digest(d.Annotations[annotationDiffID])
		if !ok || diffID.Validate() != nil {
			return nil, false
		}
		lazy := layer.LazyBlob{DiffID: diffID, Origin: x.origin, Description: d.Annotations[annotationDescription]}
		// A time that cannot be read is none.
		lazy.CreatedAt, _ = time.Parse(time.RFC3339Nano, d.Annotations[annotationCreatedAt])
		d.Annotations = nil
		lazy.Desc = d
		out = append(out, lazy)
	}
	return out, len(out) > 0
}

func (x *index) contentOf(r cache.Recipes, of solver.Ingredient) string {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, i := range x.match(r, of.Key, of.Index) {
		for _, user := range x.dependOn[i] {
			for _, alternatives := range x.conf.Records[user].Inputs {
				if d := x.contentBy(alternatives, i, of); d != "" {
					return d
				}
			}
		}
	}
	return ""
}

// contentBy is the content by which alternatives lead to a step, if one of them is what
// of chooses of record i.
func (x *index) contentBy(alternatives []input, i int, of solver.Ingredient) string {
	for _, in := range alternatives {
		own := in.Own
		if own == "" {
			own = in.Selector
		}
		switch {
		case in.Link != i:
		case in.Content == "" && in.Selector == of.LinkSelector() && len(x.conf.Records[i].Inputs) > 0:
			return x.soleContent(alternatives)
		case own == of.Selector && digest.Digest(in.Content).Validate() == nil:
			return in.Content
		}
	}
	return ""
}

// soleContent is the digest of the one record among alternatives that stands for
// content, as BuildKit writes it: nothing leads to it, and it has no result. Of several
// nobody can tell which is meant.
func (x *index) soleContent(alternatives []input) (found string) {
	for _, in := range alternatives {
		r := x.conf.Records[in.Link]
		if in.Selector != "" || len(r.Inputs)+len(r.Results)+len(r.Chains) > 0 || r.Digest.Validate() != nil {
			continue
		}
		if found != "" {
			return ""
		}
		found = r.Digest.String()
	}
	return found
}
