package v0

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/solver"
)

// Encode writes a cache. Equal steps give equal bytes.
func (Format) Encode(entries []cache.Entry, roots []cache.Root, o cache.ExportOptions) (*cache.Document, error) {
	w := newWriter(entries, roots)
	conf, layers := w.config()
	if len(layers) == 0 {
		return &cache.Document{}, nil
	}
	data, err := json.Marshal(conf)
	if err != nil {
		return nil, fmt.Errorf("encode cache config: %w", err)
	}
	d := &cache.Document{Config: cache.Upload{Data: data, Desc: ocispecs.Descriptor{
		MediaType: ConfigType, Digest: digest.FromBytes(data), Size: int64(len(data)),
	}}}
	for _, l := range layers {
		desc, err := layerDescriptor(l, o.OCI)
		if err != nil {
			return nil, err
		}
		d.Layers = append(d.Layers, cache.Upload{Desc: desc, Layer: &l})
	}
	d.Bare = func() ([]byte, error) { return bare(*conf, d.Layers) }
	return d, manifest(d, o)
}

// bare is a config that itself tells of its layers.
func bare(conf config, layers []cache.Upload) ([]byte, error) {
	said := map[digest.Digest]*aboutLayer{}
	for _, l := range layers {
		said[l.Desc.Digest] = about(l.Desc)
	}
	conf.Layers = slices.Clone(conf.Layers)
	for i := range conf.Layers {
		conf.Layers[i].About = said[conf.Layers[i].Blob]
	}
	data, err := json.Marshal(conf)
	if err != nil {
		return nil, fmt.Errorf("encode cache config: %w", err)
	}
	return data, nil
}

// EncodeInline writes the records of what an image has the layers of.
func (Format) EncodeInline(entries []cache.Entry, roots []cache.Root, image []layer.Blob) ([]byte, error) {
	at := map[digest.Digest]int{}
	for i, l := range image {
		if _, ok := at[l.DiffID]; !ok {
			at[l.DiffID] = i
		}
	}
	entries = slices.Clone(entries) // they may be wanted whole elsewhere
	for i := range entries {
		entries[i].Results = slices.Clone(entries[i].Results)
		for j, r := range entries[i].Results {
			if slices.ContainsFunc(r.Layers, func(l layer.Blob) bool { _, ok := at[l.DiffID]; return !ok }) {
				entries[i].Results[j] = cache.EntryResult{}
			}
		}
	}
	w := newWriter(entries, roots)
	w.inline = at
	conf, _ := w.config()
	if !slices.ContainsFunc(conf.Records, func(r record) bool { return len(r.Results)+len(r.Chains) > 0 }) {
		return nil, nil
	}
	data, err := json.Marshal(conf.Records)
	if err != nil {
		return nil, fmt.Errorf("encode inline cache: %w", err)
	}
	return data, nil
}

// node is a record before it has a number.
type node struct {
	digest  digest.Digest
	inputs  [][]link
	result  *stack
	saved   time.Time
	outputs int

	id string // tells it from all others
}

type link struct {
	to       *node
	selector string
	content  string
	own      string // selector of content, if it is another
}

// stack is a layer and all below it, before it has a number.
type stack struct {
	blob   layer.Blob
	parent *stack
	id     string
	number int
}

// writer gathers records.
type writer struct {
	entries map[solver.Key]*cache.Entry
	roots   []cache.Root
	nodes   map[string]*node // by key and output; nil for what is not to be written
	content map[string]*node
	stacks  map[laid]*stack
	inline  map[digest.Digest]int // numbers of an image's layers; nil for numbers of our own
}

func newWriter(entries []cache.Entry, roots []cache.Root) *writer {
	w := &writer{
		entries: map[solver.Key]*cache.Entry{}, roots: roots, nodes: map[string]*node{},
		content: map[string]*node{}, stacks: map[laid]*stack{},
	}
	for i := range entries {
		w.entries[entries[i].Key] = &entries[i]
	}
	return w
}

// node makes the record of one output, or nil if nothing leads to it.
func (w *writer) node(k solver.Key, output int) *node {
	name := fmt.Sprintf("%s@%d", k, output)
	if n, ok := w.nodes[name]; ok {
		return n
	}
	w.nodes[name] = nil
	e := w.entries[k]
	if e == nil || e.Recipe.Local {
		return nil
	}
	n := &node{digest: recordDigest(e.Recipe.Digest, output)}
	if e.Recipe.Outputs > 1 {
		n.outputs = e.Recipe.Outputs
	}
	for _, in := range e.Recipe.Inputs {
		links := w.links(in)
		if len(links) == 0 {
			return nil
		}
		n.inputs = append(n.inputs, links)
	}
	if output < len(e.Results) && !e.Recipe.Private {
		n.result, n.saved = w.stack(e.Results[output].Layers), e.Results[output].SavedAt.UTC()
	}
	n.id = n.identity()
	w.nodes[name] = n
	// All outputs of a step are written, whoever asked for one.
	for i := range e.Results {
		if i != output && len(e.Results[i].Layers) > 0 {
			w.node(k, i)
		}
	}
	return n
}

// links are the ways in which an input leads to a step.
func (w *writer) links(in solver.Ingredient) (links []link) {
	if n := w.node(in.Key, in.Index); n != nil {
		l := link{to: n, selector: in.LinkSelector(), content: in.Content}
		if l.content != "" && in.Selector != l.selector {
			l.own = in.Selector
		}
		links = append(links, l)
	}
	if in.Content == "" {
		return links
	}
	n := w.content[in.Content]
	if n == nil {
		n = &node{digest: digest.Digest(in.Content)}
		n.id = n.identity()
		w.content[in.Content] = n
	}
	return append(links, link{to: n})
}

// identity names a record by all that leads to it.
func (n *node) identity() string {
	var b strings.Builder
	b.WriteString(n.digest.String())
	for _, links := range n.inputs {
		b.WriteByte('|')
		for _, l := range links {
			fmt.Fprintf(&b, "%s:%s,", l.selector, l.to.id)
		}
	}
	return n.digest.String() + digest.FromString(b.String()).Encoded()
}

// laid is a blob and what it lies on.
type laid struct {
	below *stack
	blob  digest.Digest
}

func (w *writer) stack(layers []layer.Blob) (top *stack) {
	for _, l := range layers {
		at := laid{top, l.Desc.Digest}
		s := w.stacks[at]
		if s == nil {
			id := at.blob.String()
			if top != nil {
				id += top.id
			}
			s = &stack{blob: l, parent: top, id: at.blob.String() + digest.FromString(id).Encoded()}
			w.stacks[at] = s
		}
		top = s
	}
	return top
}

// config numbers everything, in an order that depends on the content alone.
func (w *writer) config() (*config, []layer.Blob) {
	for _, r := range w.roots {
		w.node(r.Key, r.Output)
	}
	c := &config{}
	stacks := sorted(w.stacks, func(s *stack) string { return s.id })
	for i, s := range stacks {
		s.number = i
	}
	var layers []layer.Blob
	listed := map[digest.Digest]bool{}
	if w.inline == nil {
		for _, s := range stacks {
			entry := layerEntry{Blob: s.blob.Desc.Digest, Parent: -1}
			if s.parent != nil {
				entry.Parent = s.parent.number
			}
			c.Layers = append(c.Layers, entry)
			if !listed[s.blob.Desc.Digest] {
				listed[s.blob.Desc.Digest] = true
				layers = append(layers, s.blob)
			}
		}
	}
	all := map[string]*node{}
	for _, nodes := range []map[string]*node{w.nodes, w.content} {
		for _, n := range nodes {
			if n != nil {
				if known := all[n.id]; known != nil && known.result != nil {
					continue // the same step under two names
				}
				all[n.id] = n
			}
		}
	}
	nodes := sorted(all, func(n *node) string { return n.id })
	numbers := map[string]int{}
	for i, n := range nodes {
		numbers[n.id] = i
	}
	for _, n := range nodes {
		c.Records = append(c.Records, w.record(n, numbers))
	}
	return c, layers
}

func sorted[K comparable, T any](m map[K]*T, id func(*T) string) []*T {
	var out []*T
	for _, v := range m {
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b *T) int { return strings.Compare(id(a), id(b)) })
	return out
}

func (w *writer) record(n *node, numbers map[string]int) record {
	r := record{Digest: n.digest, Outputs: n.outputs}
	for _, links := range n.inputs {
		var ins []input
		for _, l := range links {
			ins = append(ins, input{Selector: l.selector, Link: numbers[l.to.id], Content: l.content, Own: l.own})
		}
		slices.SortFunc(ins, func(a, b input) int { return a.Link - b.Link })
		r.Inputs = append(r.Inputs, ins)
	}
	switch {
	case n.result == nil:
	case w.inline == nil:
		r.Results = []result{{Layer: n.result.number, CreatedAt: n.saved}}
	default:
		var order []int
		inOrder := true
		for s := n.result; s != nil; s = s.parent {
			order = append(order, w.inline[s.blob.DiffID])
		}
		slices.Reverse(order)
		for i, at := range order {
			inOrder = inOrder && i == at
		}
		if inOrder {
			r.Results = []result{{Layer: len(order) - 1, CreatedAt: n.saved}}
		} else {
			r.Chains = []chain{{Layers: order, CreatedAt: n.saved}}
		}
	}
	return r
}

// layerDescriptor is a layer as the manifest names it.
func layerDescriptor(l layer.Blob, oci bool) (ocispecs.Descriptor, error) {
	d := ocispecs.Descriptor{Digest: l.Desc.Digest, Size: l.Desc.Size, Annotations: map[string]string{annotationDiffID: l.DiffID.String()}}
	if rec := l.Ref.Record(); rec.ID != "" {
		d.Annotations[annotationCreatedAt] = rec.CreatedAt.UTC().Format(time.RFC3339Nano)
		if rec.Description != "" {
			d.Annotations[annotationDescription] = rec.Description
		}
	}
	for _, pair := range [][2]string{
		{ocispecs.MediaTypeImageLayer, images.MediaTypeDockerSchema2Layer},
		{ocispecs.MediaTypeImageLayerGzip, images.MediaTypeDockerSchema2LayerGzip},
		{ocispecs.MediaTypeImageLayerZstd, images.MediaTypeDockerSchema2LayerZstd},
	} {
		if l.Desc.MediaType == pair[0] || l.Desc.MediaType == pair[1] {
			d.MediaType = pair[1]
			if oci {
				d.MediaType = pair[0]
			}
			return d, nil
		}
	}
	if !images.IsLayerType(l.Desc.MediaType) {
		return d, fmt.Errorf("export cache: layer %s has media type %q, which is not a layer's", d.Digest, l.Desc.MediaType)
	}
	d.MediaType = l.Desc.MediaType
	return d, nil
}

// manifest completes a document.
func manifest(d *cache.Document, o cache.ExportOptions) (err error) {
	version := specs.Versioned{SchemaVersion: 2}
	var layers []ocispecs.Descriptor
	for _, l := range d.Layers {
		layers = append(layers, l.Desc)
	}
	mediaType := ocispecs.MediaTypeImageManifest
	if o.ImageManifest {
		d.Data, err = json.Marshal(ocispecs.Manifest{Versioned: version, MediaType: mediaType, Config: d.Config.Desc, Layers: layers})
	} else {
		mediaType = ocispecs.MediaTypeImageIndex
		if !o.OCI {
			mediaType = images.MediaTypeDockerSchema2ManifestList
		}
		d.Data, err = json.Marshal(ocispecs.Index{Versioned: version, MediaType: mediaType, Manifests: append(layers, d.Config.Desc)})
	}
	if err != nil {
		return fmt.Errorf("encode cache manifest: %w", err)
	}
	d.Manifest = ocispecs.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(d.Data), Size: int64(len(d.Data))}
	return nil
}
