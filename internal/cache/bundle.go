package cache

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/solver"
)

// Bundle is records of a build that travel together, in the config of the image
// that has their layers. One signature is for all, and each layer is told once.
type Bundle struct {
	Scope   string                   `json:"scope,omitempty"`
	Layers  []RecordLayer            `json:"layers"`  // of the image
	Results map[solver.Key][]Bundled `json:"results"` // by step: of each output
	// Contents are digests of parts of results, by [ContentSubject].
	Contents map[string]digest.Digest `json:"contents,omitempty"`
	Writer   string                   `json:"writer,omitempty"` // see [Record]
}

// Bundled is one output of a step: numbers of layers, base first. Without any it
// is not in the image.
type Bundled []int

// ImageField is the field of an image's config that has a bundle.
const ImageField = "kiln.cache.v1"

// bundleType is what a bundle's signature says that it is of.
const bundleType = "application/vnd.kiln.cache.bundle.v1+json"

// LargestBundle is how many bytes the records of one image have at most, before
// they are signed. A registry and all who run the image carry them, too.
const LargestBundle = 256 << 10

// NewBundle makes a bundle of the steps that an image consists of, the last ones
// first, and of what they and all that lead to them have read, as far as there is
// room. It returns nil if nothing is in the image.
func NewBundle(entries []Entry, image []layer.Blob, scope string) *Bundle {
	b := &Bundle{Scope: scope, Results: map[solver.Key][]Bundled{}, Contents: map[string]digest.Digest{}}
	at := map[digest.Digest]int{}
	room := LargestBundle
	for i, l := range image {
		b.Layers = append(b.Layers, layerOf(l))
		room -= 512 + len(b.Layers[i].Description)
		if _, ok := at[l.DiffID]; !ok {
			at[l.DiffID] = i
		}
	}
	recipes := map[solver.Key]solver.Recipe{}
	for _, e := range entries {
		recipes[e.Key] = e.Recipe
	}
	for _, inImage := range []bool{true, false} {
		for _, e := range entries {
			out := bundled(e, at)
			if (out != nil) != inImage {
				continue
			}
			if room -= sizeOf(e.Key, out); room < 0 {
				return b.unlessEmpty()
			}
			if out != nil {
				b.Results[e.Key] = out
			}
			room -= b.addContents(e.Recipe, recipes, room)
		}
	}
	return b.unlessEmpty()
}

func (b *Bundle) unlessEmpty() *Bundle {
	if len(b.Results) == 0 {
		return nil
	}
	return b
}

// bundled are a step's outputs, or nil if none is in the image, or is nobody's
// business.
func bundled(e Entry, at map[digest.Digest]int) (out []Bundled) {
	if e.Recipe.Local || e.Recipe.Private {
		return nil
	}
	some := false
	for _, r := range e.Results {
		var one Bundled
		for _, l := range r.Layers {
			n, ok := at[l.DiffID]
			if !ok {
				one = nil
				break
			}
			one = append(one, n)
		}
		some = some || len(one) > 0
		out = append(out, one)
	}
	if !some {
		return nil
	}
	return out
}

// sizeOf is how many bytes a step takes, at most.
func sizeOf(k solver.Key, out []Bundled) int {
	n := len(k) + 8
	for _, o := range out {
		n += 8 + 6*len(o)
	}
	return n
}

// addContents adds what a step has read, if there is room, and returns its size.
func (b *Bundle) addContents(r solver.Recipe, recipes map[solver.Key]solver.Recipe, room int) (size int) {
	for _, in := range r.Inputs {
		below, ok := recipes[in.Key]
		if in.Content == "" || !ok || below.Local || r.Private {
			continue
		}
		subject := ContentSubject(in)
		if n := len(subject) + len(in.Content) + 16; size+n <= room {
			b.Contents[subject] = digest.Digest(in.Content)
			size += n
		}
	}
	return size
}

// SealBundle writes a bundle under a signature, as JSON. A nil Identity signs nothing.
func (id *Identity) SealBundle(b Bundle) ([]byte, error) {
	b.Writer = ""
	if id != nil {
		b.Writer = id.Public()
	}
	if err := b.check(); err != nil {
		return nil, fmt.Errorf("encode %w", err)
	}
	payload, err := json.Marshal(b)
	if err != nil {
		return nil, fmt.Errorf("encode records of image: %w", err)
	}
	data, err := id.sign(bundleType, payload)
	if err != nil {
		return nil, fmt.Errorf("encode records of image: %w", err)
	}
	return data, nil
}

// UsableBundle returns a bundle if it is what it claims and counts.
func UsableBundle(data []byte, scope string, t Trust) (*Bundle, error) {
	e, err := openEnvelope(data, bundleType)
	if err != nil {
		return nil, err
	}
	var b Bundle
	if err := json.Unmarshal(e.Payload, &b); err != nil {
		return nil, fmt.Errorf("decode records of image: %w", err)
	}
	if err := e.verify(b.Writer); err != nil {
		return nil, err
	}
	if err := b.check(); err != nil {
		return nil, err
	}
	if b.Scope != scope {
		return nil, fmt.Errorf("records of image are of scope %q, expected %q", b.Scope, scope)
	}
	if err := t.acceptsFrom(b.Writer, b.Scope); err != nil {
		return nil, err
	}
	return &b, nil
}

// check holds a bundle against what a bundle can be.
func (b *Bundle) check() error {
	if len(b.Layers) > mostRecordLayers {
		return fmt.Errorf("records of image have more than %d layers", mostRecordLayers)
	}
	if err := (RecordOutput{Layers: b.Layers}).check(); err != nil {
		return fmt.Errorf("records of image: %w", err)
	}
	for k, out := range b.Results {
		if k == "" || len(out) == 0 || len(out) > mostOutputs {
			return fmt.Errorf("records of image have a step %.80q with %d results, expected 1 to %d", k, len(out), mostOutputs)
		}
		for _, o := range out {
			if len(o) > len(b.Layers) || slices.ContainsFunc(o, func(n int) bool { return n < 0 || n >= len(b.Layers) }) {
				return fmt.Errorf("records of image have a step %.80q of layers %v, of %d", k, o, len(b.Layers))
			}
		}
	}
	for subject, d := range b.Contents {
		if d.Validate() != nil {
			return fmt.Errorf("records of image have digest %.80q of %.80q, expected sha256:<64 hex digits>", d, subject)
		}
	}
	return nil
}

// Find returns the layers of an output, which are pulled from origin.
func (b *Bundle) Find(k solver.Key, output int, origin string) (out []layer.LazyBlob, ok bool) {
	results := b.Results[k]
	if output < 0 || output >= len(results) {
		return nil, false
	}
	for _, n := range results[output] {
		out = append(out, b.Layers[n].Lazy(origin))
	}
	return out, len(out) > 0
}

// Matches tells why a bundle is not of an image of these layers, whose names in
// its manifest nobody has signed.
func (b *Bundle) Matches(layers []ocispecs.Descriptor) error {
	for _, l := range b.Layers {
		if !slices.ContainsFunc(layers, func(d ocispecs.Descriptor) bool { return d.Digest == l.Digest }) {
			return errors.New("records of image are of other layers than the image has: they were replaced since")
		}
	}
	return nil
}
