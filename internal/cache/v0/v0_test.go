package v0

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/solver"
)

// recipes are what keys of a test are made of.
type recipes map[solver.Key]solver.Recipe

func (r recipes) Recipe(k solver.Key) (solver.Recipe, bool) {
	found, ok := r[k]
	return found, ok
}

func blobs(names ...string) (out []layer.Blob) {
	for _, n := range names {
		out = append(out, layer.Blob{DiffID: digest.FromString("diff " + n), Desc: ocispecs.Descriptor{
			MediaType: ocispecs.MediaTypeImageLayerGzip, Digest: digest.FromString(n), Size: int64(len(n)),
		}})
	}
	return out
}

func op(name string) string { return digest.FromString(name).String() }

// sample is an image, a command on it, and a copy of a folder whose content counts.
func sample() (recipes, []cache.Entry) {
	r := recipes{
		"image": {Digest: op("image"), Outputs: 1},
		"run":   {Digest: op("run"), Outputs: 1, Inputs: []solver.Ingredient{{Key: "image", Selector: op("/")}}},
		"local": {Digest: op("local"), Outputs: 1, Local: true},
		"copy": {Digest: op("copy"), Outputs: 1, Inputs: []solver.Ingredient{
			{Key: "run"}, {Key: "local", Selector: op("src"), Content: op("content of src")},
		}},
		"two": {Digest: op("two"), Outputs: 2, Inputs: []solver.Ingredient{{Key: "copy", Selector: op("/sub, precisely"), Link: op("/sub"), Content: op("content of sub")}}},
	}
	saved := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	results := map[solver.Key][]cache.EntryResult{
		"run":  {{Layers: blobs("base", "ran"), SavedAt: saved}},
		"copy": {{Layers: blobs("base", "ran", "copied"), SavedAt: saved}},
		"two":  {{Layers: blobs("base", "ran", "copied", "one"), SavedAt: saved}, {Layers: blobs("other"), SavedAt: saved}},
	}
	var entries []cache.Entry
	for _, k := range []solver.Key{"two", "copy", "run", "image", "local"} {
		entries = append(entries, cache.Entry{Key: k, Recipe: r[k], Results: results[k]})
	}
	return r, entries
}

var root = []cache.Root{{Key: "two"}}

// place is documents in memory.
type place struct {
	root  ocispecs.Descriptor
	blobs map[digest.Digest][]byte
}

func (p place) Root() ocispecs.Descriptor { return p.root }
func (p place) Origin() string            { return "origin" }
func (p place) Read(_ context.Context, d ocispecs.Descriptor) ([]byte, error) {
	b, ok := p.blobs[d.Digest]
	if !ok {
		return nil, errors.New("not there: " + d.Digest.String())
	}
	return b, nil
}

func (p *place) put(mediaType string, b []byte) ocispecs.Descriptor {
	d := ocispecs.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	if p.blobs == nil {
		p.blobs = map[digest.Digest][]byte{}
	}
	p.blobs[d.Digest] = b
	return d
}

func inMemory(t *testing.T, d *cache.Document) place {
	t.Helper()
	var p place
	p.put("", d.Config.Data)
	p.root = p.put(d.Manifest.MediaType, d.Data)
	if p.root.Digest != d.Manifest.Digest {
		t.Fatalf("manifest has digest %s, it is said to have %s", p.root.Digest, d.Manifest.Digest)
	}
	return p
}

func decode(t *testing.T, p place) cache.Index {
	t.Helper()
	x, err := Format{}.Decode(t.Context(), p, cache.ReadPolicy{BuildKit: true, Bundles: true})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func digests(layers []layer.LazyBlob) (out []string) {
	for _, l := range layers {
		out = append(out, l.Desc.Digest.Encoded()[:6])
	}
	return out
}

func want(names ...string) (out []string) {
	for _, b := range blobs(names...) {
		out = append(out, b.Desc.Digest.Encoded()[:6])
	}
	return out
}

func TestRoundTrip(t *testing.T) {
	for name, o := range map[string]cache.ExportOptions{
		"image manifest": {ImageManifest: true, OCI: true}, "index": {OCI: true}, "docker": {},
	} {
		t.Run(name, func(t *testing.T) {
			r, entries := sample()
			doc, err := Format{}.Encode(entries, root, o)
			if err != nil {
				t.Fatal(err)
			}
			x := decode(t, inMemory(t, doc))
			for _, test := range []struct {
				key    solver.Key
				output int
				want   []string
			}{
				{"run", 0, want("base", "ran")}, {"copy", 0, want("base", "ran", "copied")},
				{"two", 0, want("base", "ran", "copied", "one")}, {"two", 1, want("other")}, {"image", 0, nil},
			} {
				got, ok := x.Find(r, test.key, test.output)
				if ok != (test.want != nil) || !slices.Equal(digests(got), test.want) {
					t.Errorf("%s@%d: found %v, %t, expected %v", test.key, test.output, digests(got), ok, test.want)
				}
				for _, l := range got {
					if l.Origin != "origin" || l.DiffID.Validate() != nil {
						t.Errorf("%s: layer %+v has no origin or no diff id", test.key, l)
					}
				}
			}
			if got := x.Content(r, solver.Ingredient{Key: "copy", Selector: op("/sub, precisely")}); got != op("content of sub") {
				t.Errorf("content of what copy made: %q", got)
			}
			if got := x.Content(r, solver.Ingredient{Key: "copy", Selector: op("/sub")}); got != "" {
				t.Errorf("content of what nobody has looked at: %q", got)
			}
		})
	}
}

// TestBare reads what a config says itself, where there is no manifest.
func TestBare(t *testing.T) {
	r, entries := sample()
	doc, err := Format{}.Encode(entries, root, cache.ExportOptions{ImageManifest: true, OCI: true})
	if err != nil {
		t.Fatal(err)
	}
	other, err := Format{}.Encode(entries[:1], []cache.Root{{Key: entries[0].Key}}, cache.ExportOptions{OCI: true})
	if err != nil {
		t.Fatal(err)
	}
	var configs [2][]byte
	for i, d := range []*cache.Document{other, doc} {
		var err error
		if configs[i], err = d.Bare(); err != nil {
			t.Fatal(err)
		}
	}
	x, err := Format{}.Decode(t.Context(), cache.NewBareReader("origin", nil, configs[0], configs[1]), cache.ReadPolicy{BuildKit: true})
	if err != nil {
		t.Fatal(err)
	}
	got, ok := x.Find(r, "two", 0)
	if !ok || !slices.Equal(digests(got), want("base", "ran", "copied", "one")) {
		t.Errorf("found %v, %t", digests(got), ok)
	}
	for _, l := range got {
		if l.Origin != "origin" || l.DiffID.Validate() != nil || l.Desc.Size <= 0 || !images.IsLayerType(l.Desc.MediaType) {
			t.Errorf("layer %+v lacks something", l)
		}
	}
	if x, err := (Format{}).Decode(t.Context(), cache.NewBareReader("origin", nil), cache.ReadPolicy{BuildKit: true}); err != nil {
		t.Errorf("no cache: %v, %v", x, err)
	}
	if _, err := (Format{}).Decode(t.Context(), cache.NewBareReader("origin", []byte("{")), cache.ReadPolicy{BuildKit: true}); err == nil {
		t.Error("half a config was read")
	}
}

// A step is found only if all that it is made of is the same.
func TestMisses(t *testing.T) {
	_, entries := sample()
	doc, err := Format{}.Encode(entries, root, cache.ExportOptions{ImageManifest: true, OCI: true})
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(recipes){
		"operation": func(r recipes) { r["copy"] = solver.Recipe{Digest: op("another"), Inputs: r["copy"].Inputs} },
		"content": func(r recipes) {
			r["copy"] = solver.Recipe{Digest: op("copy"), Inputs: []solver.Ingredient{{Key: "run"}, {Key: "local", Selector: op("src"), Content: op("other")}}}
		},
		"input's operation": func(r recipes) { r["image"] = solver.Recipe{Digest: op("another image")} },
		"selector": func(r recipes) {
			r["run"] = solver.Recipe{Digest: op("run"), Inputs: []solver.Ingredient{{Key: "image", Selector: op("/other")}}}
		},
		"number of inputs": func(r recipes) { r["copy"] = solver.Recipe{Digest: op("copy"), Inputs: r["copy"].Inputs[:1]} },
	} {
		r, _ := sample()
		change(r)
		if got, ok := decode(t, inMemory(t, doc)).Find(r, "copy", 0); ok {
			t.Errorf("another %s: found %v", name, digests(got))
		}
	}
	// What is known by content alone is found without what it came from.
	r, _ := sample()
	r["local"] = solver.Recipe{Digest: op("another session's folder"), Local: true}
	if _, ok := decode(t, inMemory(t, doc)).Find(r, "copy", 0); !ok {
		t.Error("another session's folder of the same content is not found")
	}
}

// What BuildKit writes says what content leads to a step beside what it came from, so
// that nobody has to carry out the steps below, whose results may be nowhere.
func TestContentOfOthers(t *testing.T) {
	r, entries := sample()
	doc, err := Format{}.Encode(entries, root, cache.ExportOptions{ImageManifest: true, OCI: true})
	if err != nil {
		t.Fatal(err)
	}
	what := solver.Ingredient{Key: "copy", Selector: op("/sub, precisely"), Link: op("/sub")}
	for name, test := range map[string]struct {
		of     solver.Ingredient
		change func(c *config, ways *[]input)
		want   string
	}{
		"as it is":       {of: what, want: op("content of sub")},
		"other selector": {of: solver.Ingredient{Key: "copy", Selector: what.Selector, Link: op("/other")}},
		"two contents": {of: what, change: func(c *config, ways *[]input) {
			c.Records = append(c.Records, record{Digest: digest.FromString("other content")})
			*ways = append(*ways, input{Link: len(c.Records) - 1})
		}},
		"no content": {of: what, change: func(c *config, ways *[]input) {
			*ways = slices.DeleteFunc(*ways, func(in input) bool { return in.Selector == "" })
		}},
		"a result is no content": {of: what, change: func(c *config, ways *[]input) {
			for i, rec := range c.Records {
				if rec.Digest.String() == op("content of sub") {
					c.Records[i].Results = []result{{}}
				}
			}
		}},
		"a source may have several names": {of: solver.Ingredient{Key: "image", Selector: op("/")}, change: func(c *config, _ *[]input) {
			c.Records = append(c.Records, record{Digest: digest.FromString("another name")})
			for i, rec := range c.Records {
				if rec.Digest == recordDigest(op("run"), 0) {
					c.Records[i].Inputs[0] = append(rec.Inputs[0], input{Link: len(c.Records) - 1})
				}
			}
		}},
	} {
		c, err := decodeConfig(doc.Config.Data)
		if err != nil {
			t.Fatal(err)
		}
		var users []*[]input // how the two outputs are led to
		for i, rec := range c.Records {
			c.Records[i].Outputs = 0 // BuildKit has no fields of ours
			for j := range rec.Inputs {
				for k := range rec.Inputs[j] {
					rec.Inputs[j][k].Content, rec.Inputs[j][k].Own = "", ""
				}
			}
			if rec.Digest == recordDigest(op("two"), 0) || rec.Digest == recordDigest(op("two"), 1) {
				users = append(users, &rec.Inputs[0])
			}
		}
		for _, ways := range users {
			if test.change != nil {
				test.change(c, ways)
			}
		}
		if got := newIndex(c, nil, "origin").contentOf(r, test.of); got != test.want {
			t.Errorf("%s: found %q, expected %q", name, got, test.want)
		}
	}
}

// The bytes depend on the steps alone, not on the order in which they come.
func TestDeterministic(t *testing.T) {
	_, entries := sample()
	o := cache.ExportOptions{ImageManifest: true, OCI: true}
	a, err := Format{}.Encode(entries, root, o)
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(entries)
	b, err := Format{}.Encode(entries, root, o)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Config.Data, b.Config.Data) || a.Manifest.Digest != b.Manifest.Digest {
		t.Errorf("two orders, two caches:\n%s\n%s", a.Config.Data, b.Config.Data)
	}
	if strings.Contains(string(a.Config.Data), op("local")) {
		t.Error("what holds for one job only was written")
	}
}

func TestNothingToKeep(t *testing.T) {
	doc, err := Format{}.Encode([]cache.Entry{{Key: "k", Recipe: solver.Recipe{Digest: op("x"), Local: true}}}, []cache.Root{{Key: "k"}}, cache.ExportOptions{})
	if err != nil || len(doc.Layers) != 0 {
		t.Errorf("got %v, %v", doc, err)
	}
	_, entries := sample()
	for i := range entries {
		entries[i].Recipe.Private = true
	}
	if doc, err = (Format{}).Encode(entries, root, cache.ExportOptions{}); err != nil || len(doc.Layers) != 0 {
		t.Errorf("results that are to stay at home: got %d layers, %v", len(doc.Layers), err)
	}
}

// TestInline carries a cache in an image, also one whose layers are in another order.
func TestInline(t *testing.T) {
	r, entries := sample()
	for name, image := range map[string][]layer.Blob{
		"in order": blobs("base", "ran", "copied"), "out of order": blobs("copied", "base", "ran"),
	} {
		t.Run(name, func(t *testing.T) {
			data, err := Format{}.EncodeInline(entries, root, image)
			if err != nil {
				t.Fatal(err)
			}
			p := imageWith(t, image, data)
			x := decode(t, p)
			if got, ok := x.Find(r, "copy", 0); !ok || !slices.Equal(digests(got), want("base", "ran", "copied")) {
				t.Errorf("copy: found %v, %t", digests(got), ok)
			}
			if got, ok := x.Find(r, "two", 0); ok {
				t.Errorf("two, whose layer is not in the image: found %v", digests(got))
			}
		})
	}
	if data, err := (Format{}).EncodeInline(entries, root, blobs("strange")); err != nil || data != nil {
		t.Errorf("an image of other layers: %s, %v", data, err)
	}
	if x := decode(t, imageWith(t, blobs("base"), nil)); len(x.(indexes)) != 0 {
		t.Error("an image without a cache has one")
	}
}

// TestBundled: records of Kiln in an image are found by key, whatever BuildKit's
// say, and only where they count.
func TestBundled(t *testing.T) {
	r, entries := sample()
	image := blobs("base", "ran", "copied")
	data, err := (*cache.Identity)(nil).SealBundle(*cache.NewBundle(entries, image, ""))
	if err != nil {
		t.Fatal(err)
	}
	field := func(with []layer.Blob) place {
		return imageOf(t, with, map[string]any{cache.ImageField: json.RawMessage(data)})
	}
	for name, test := range map[string]struct {
		place place
		with  cache.ReadPolicy
		found bool
		warns int
	}{
		"alone":                     {field(image), cache.ReadPolicy{Bundles: true}, true, 0},
		"beside BuildKit's":         {field(image), cache.ReadPolicy{Bundles: true, BuildKit: true}, true, 0},
		"not asked for":             {field(image), cache.ReadPolicy{BuildKit: true}, false, 0},
		"of another scope":          {field(image), cache.ReadPolicy{Bundles: true, Scope: "pr"}, false, 1},
		"in an image of others":     {field(blobs("base", "ran", "other")), cache.ReadPolicy{Bundles: true}, false, 1},
		"damaged":                   {imageOf(t, image, map[string]any{cache.ImageField: "rubbish"}), cache.ReadPolicy{Bundles: true}, false, 1},
		"BuildKit's, which may not": {imageWith(t, image, []byte("[]")), cache.ReadPolicy{Bundles: true}, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			warned := 0
			test.with.Warn = func(error) { warned++ }
			x, err := Format{}.Decode(t.Context(), test.place, test.with)
			if err != nil {
				t.Fatal(err)
			}
			if x.Empty() == test.found || warned != test.warns {
				t.Errorf("empty %t, %d warnings, expected %t, %d", x.Empty(), warned, !test.found, test.warns)
			}
			got, ok := x.Find(r, "copy", 0)
			if ok != test.found || ok && !slices.Equal(digests(got), want("base", "ran", "copied")) {
				t.Errorf("copy: found %v, %t", digests(got), ok)
			}
			if got := x.Content(r, solver.Ingredient{Key: "copy", Selector: op("/sub, precisely")}); (got != "") != test.found {
				t.Errorf("content of copy: %q", got)
			}
		})
	}
}

func imageWith(t *testing.T, layers []layer.Blob, inline []byte) place {
	t.Helper()
	if inline == nil {
		return imageOf(t, layers, map[string]any{})
	}
	return imageOf(t, layers, map[string]any{"moby.buildkit.cache.v0": inline})
}

// imageOf is an image whose config has fields.
func imageOf(t *testing.T, layers []layer.Blob, image map[string]any) (p place) {
	t.Helper()
	var ids []digest.Digest
	var m ocispecs.Manifest
	for _, l := range layers {
		ids = append(ids, l.DiffID)
		m.Layers = append(m.Layers, l.Desc)
	}
	image["rootfs"] = map[string]any{"diff_ids": ids}
	b, err := json.Marshal(image)
	if err != nil {
		t.Fatal(err)
	}
	m.Config = p.put(ocispecs.MediaTypeImageConfig, b)
	if b, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	one := p.put(ocispecs.MediaTypeImageManifest, b)
	if b, err = json.Marshal(ocispecs.Index{Manifests: []ocispecs.Descriptor{one}}); err != nil {
		t.Fatal(err)
	}
	p.root = p.put(ocispecs.MediaTypeImageIndex, b)
	return p
}

func TestBadConfigs(t *testing.T) {
	d := op("x")
	for text, want := range map[string]string{
		`[`:                                "decode cache config",
		`{"layers":[{"blob":"nonsense"}]}`: "malformed digest",
		`{"layers":[{"blob":"` + d + `","parent":5}]}`:                                                             "lies on layer 5",
		`{"layers":[{"blob":"` + d + `"}]}`:                                                                        "lies on layer 0",
		`{"layers":[{"blob":"` + d + `","parent":1},{"blob":"` + d + `"}]}`:                                        "lies on itself",
		`{"records":[{"digest":"` + d + `","inputs":[[]]}]}`:                                                       "nothing leads to",
		`{"records":[{"digest":"` + d + `","inputs":[[{"link":3}]]}]}`:                                             "refers to record 3",
		`{"records":[{"digest":"` + d + `","inputs":[[{"link":-1}]]}]}`:                                            "refers to record -1",
		`{"records":[{"digest":"` + d + `","inputs":[[{"link":0}]]}]}`:                                             "lead to themselves",
		`{"records":[{"inputs":[[{"link":1}]]},{"inputs":[[{"link":0}]]}]}`:                                        "lead to themselves",
		`{"records":[{"digest":"` + d + `","layers":[{"layer":1}]}]}`:                                              "refers to layer 1",
		`{"records":[{"digest":"` + d + `","chains":[{"layers":[0]}]}]}`:                                           "refers to layer 0",
		`{"layers":[{"blob":"` + d + `","parent":-1}],"records":[{"digest":"` + d + `","layers":[{"layer":-2}]}]}`: "refers to layer -2",
	} {
		if _, err := decodeConfig([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, expected an error with %q", text, err, want)
		}
	}
}

// FuzzConfig looks for configs that are taken and then cannot be searched.
func FuzzConfig(f *testing.F) {
	_, entries := sample()
	doc, err := Format{}.Encode(entries, root, cache.ExportOptions{ImageManifest: true, OCI: true})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(doc.Config.Data)
	f.Add([]byte(`{"layers":[{"blob":"x","parent":-1}],"records":[{"digest":"d","inputs":[[{"link":0}]],"layers":[{"layer":0}]}]}`))
	r, _ := sample()
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := decodeConfig(data)
		if err != nil {
			return
		}
		x := indexes{newIndex(c, nil, "")}
		for k := range r {
			if layers, ok := x.Find(r, k, 0); ok && len(layers) == 0 {
				t.Error("found a result without layers")
			}
			x.Content(r, solver.Ingredient{Key: k})
		}
	})
}
