// Package v0 writes and reads caches in the format of BuildKit's
// cache/remotecache/v1: a JSON config of records, which are steps by the digests
// of their operations and inputs, and layers, which are blobs by digest; and a
// manifest that names the config and the blobs.
//
// BuildKit gives a step many keys, Kiln one. A record therefore says how a step
// is found from each of its inputs: by what the input is made of, and, where an
// input counts by its content, by that content, too. Two things are Kiln's own,
// in fields that BuildKit passes over: the content of a link, so that
// nobody has to fetch an input to learn it, and how many outputs a step has.
//
// The package decides and does no I/O but through a [cache.Reader].
package v0

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/cache"
)

// ConfigType is the media type of a cache's config.
const ConfigType = "application/vnd.buildkit.cacheconfig.v0"

// Annotations of layers in a manifest. The first is containerd's.
const (
	annotationDiffID      = "containerd.io/uncompressed"
	annotationCreatedAt   = "buildkit/createdat"
	annotationDescription = "buildkit/description"
)

// Format is a cache.Format.
type Format struct{}

var _ cache.Format = Format{}

// config is the JSON document. Names and order of fields are the protocol's.
type config struct {
	Layers  []layerEntry `json:"layers,omitempty"`
	Records []record     `json:"records,omitempty"`
}

// layerEntry is a blob on top of another; a parent of -1 is none, and 0 is left out.
type layerEntry struct {
	Blob   digest.Digest `json:"blob,omitempty"`
	Parent int           `json:"parent,omitempty"`
	About  *aboutLayer   `json:"annotations,omitempty"`
}

// aboutLayer is what a manifest would say of a layer, where there is none.
type aboutLayer struct {
	MediaType string        `json:"mediaType,omitempty"`
	DiffID    digest.Digest `json:"diffID,omitempty"`
	Size      int64         `json:"size,omitempty"`
	CreatedAt time.Time     `json:"createdAt"`
}

func about(d ocispecs.Descriptor) *aboutLayer {
	a := &aboutLayer{MediaType: d.MediaType, DiffID: digest.Digest(d.Annotations[annotationDiffID]), Size: d.Size}
	// A time that cannot be read is none.
	a.CreatedAt, _ = time.Parse(time.RFC3339Nano, d.Annotations[annotationCreatedAt])
	return a
}

// described are the layers that a config itself tells of.
func (c *config) described() (out []ocispecs.Descriptor) {
	for _, l := range c.Layers {
		if l.About == nil || l.About.Size <= 0 {
			continue
		}
		d := ocispecs.Descriptor{MediaType: l.About.MediaType, Digest: l.Blob, Size: l.About.Size,
			Annotations: map[string]string{annotationDiffID: l.About.DiffID.String()}}
		if !l.About.CreatedAt.IsZero() {
			d.Annotations[annotationCreatedAt] = l.About.CreatedAt.UTC().Format(time.RFC3339Nano)
		}
		out = append(out, d)
	}
	return out
}

type record struct {
	Results []result      `json:"layers,omitempty"`
	Chains  []chain       `json:"chains,omitempty"`
	Digest  digest.Digest `json:"digest,omitempty"`
	Inputs  [][]input     `json:"inputs,omitempty"`
	Outputs int           `json:"kiln.outputs,omitempty"`
}

type result struct {
	Layer     int       `json:"layer"`
	CreatedAt time.Time `json:"createdAt"`
}

// chain names each layer, where their order is not that of the list.
type chain struct {
	Layers    []int     `json:"layers"`
	CreatedAt time.Time `json:"createdAt"`
}

type input struct {
	Selector string `json:"selector,omitempty"`
	Link     int    `json:"link"`
	// Content is the digest of what Own selects, or of what Selector does.
	Content string `json:"kiln.content,omitempty"`
	Own     string `json:"kiln.selector,omitempty"`
}

// recordDigest names one output of an operation.
func recordDigest(operation string, output int) digest.Digest {
	return digest.FromString(fmt.Sprintf("%s@%d", operation, output))
}

// Limits of what is read.
const (
	maxConfig  = 64 << 20 // bytes; BuildKit reads no more than 1 MiB
	maxRecords = 1 << 20
)

// decodeConfig reads a config and checks every number in it.
func decodeConfig(b []byte) (*config, error) {
	var c config
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, fmt.Errorf("decode cache config: %w", err)
	}
	return &c, c.check()
}

func (c *config) check() error {
	if len(c.Records) > maxRecords || len(c.Layers) > maxRecords {
		return fmt.Errorf("cache config has %d records and %d layers, expected at most %d", len(c.Records), len(c.Layers), maxRecords)
	}
	for i, l := range c.Layers {
		if err := l.Blob.Validate(); err != nil {
			return fmt.Errorf("cache config: layer %d has malformed digest %q", i, l.Blob)
		}
		if l.Parent < -1 || l.Parent >= len(c.Layers) || l.Parent == i {
			return fmt.Errorf("cache config: layer %d lies on layer %d, of %d", i, l.Parent, len(c.Layers))
		}
	}
	for i, r := range c.Records {
		for _, alternatives := range r.Inputs {
			if len(alternatives) == 0 {
				return fmt.Errorf("cache config: record %d has an input that nothing leads to", i)
			}
			for _, in := range alternatives {
				if in.Link < 0 || in.Link >= len(c.Records) {
					return fmt.Errorf("cache config: record %d refers to record %d, of %d", i, in.Link, len(c.Records))
				}
			}
		}
		for _, res := range r.Results {
			if res.Layer < 0 || res.Layer >= len(c.Layers) {
				return fmt.Errorf("cache config: record %d refers to layer %d, of %d", i, res.Layer, len(c.Layers))
			}
		}
		for _, ch := range r.Chains {
			for _, n := range ch.Layers {
				if n < 0 || n >= len(c.Layers) {
					return fmt.Errorf("cache config: record %d refers to layer %d, of %d", i, n, len(c.Layers))
				}
			}
		}
	}
	return c.acyclic()
}

// acyclic refuses records and layers that are made of themselves.
func (c *config) acyclic() error {
	state := make([]byte, len(c.Layers)) // 1 on the way, 2 done
	for i := range c.Layers {
		var path []int
		for n := i; n != -1 && state[n] != 2; n = c.Layers[n].Parent {
			if state[n] == 1 {
				return fmt.Errorf("cache config: layer %d lies on itself", n)
			}
			state[n] = 1
			path = append(path, n)
		}
		for _, n := range path {
			state[n] = 2
		}
	}
	return c.acyclicRecords()
}

func (c *config) acyclicRecords() error {
	// Without recursion: a hostile chain could be as long as the config.
	waits := make([]int, len(c.Records)) // links that are not settled
	leads := make([][]int, len(c.Records))
	var ready []int
	for i, r := range c.Records {
		for _, alternatives := range r.Inputs {
			for _, in := range alternatives {
				waits[i]++
				leads[in.Link] = append(leads[in.Link], i)
			}
		}
		if waits[i] == 0 {
			ready = append(ready, i)
		}
	}
	settled := 0
	for len(ready) > 0 {
		n := ready[len(ready)-1]
		ready = ready[:len(ready)-1]
		settled++
		for _, to := range leads[n] {
			if waits[to]--; waits[to] == 0 {
				ready = append(ready, to)
			}
		}
	}
	if settled != len(c.Records) {
		return fmt.Errorf("cache config: %d of %d records lead to themselves", len(c.Records)-settled, len(c.Records))
	}
	return nil
}
