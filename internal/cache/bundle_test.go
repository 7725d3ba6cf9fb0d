package cache

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/solver"
)

func imageOf(names ...string) (out []layer.Blob) {
	for _, n := range names {
		out = append(out, layer.Blob{DiffID: digest.FromString("diff " + n), Desc: ocispecs.Descriptor{
			MediaType: ocispecs.MediaTypeImageLayerGzip, Digest: digest.FromString(n), Size: int64(len(n)),
		}})
	}
	return out
}

func signer(t *testing.T, seed byte) *Identity {
	t.Helper()
	id, err := NewIdentity(bytes.Repeat([]byte{seed}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// builds are a step in an image, one in another stage that it copies from, and
// what they are made of.
func builds() []Entry {
	content := digest.FromString("content").String()
	return []Entry{
		{
			Key: "last", Recipe: solver.Recipe{Inputs: []solver.Ingredient{{Key: "base"}, {Key: "stage", Selector: "/made", Content: content}}},
			Results: []EntryResult{{Layers: imageOf("base", "last")}, {}},
		},
		{
			Key: "stage", Recipe: solver.Recipe{Inputs: []solver.Ingredient{{Key: "tools", Selector: "/in", Content: content}, {Key: "folder", Content: content}}},
			Results: []EntryResult{{Layers: imageOf("tools", "stage")}},
		},
		{Key: "private", Recipe: solver.Recipe{Private: true}, Results: []EntryResult{{Layers: imageOf("base")}}},
		{Key: "base", Results: []EntryResult{{Layers: imageOf("base")}}},
		{Key: "tools"},
		{Key: "folder", Recipe: solver.Recipe{Local: true}},
	}
}

func TestBundle(t *testing.T) {
	image := imageOf("base", "last")
	b := NewBundle(builds(), image, "trunk")
	data, err := signer(t, 1).SealBundle(*b)
	if err != nil {
		t.Fatal(err)
	}
	again, err := signer(t, 1).SealBundle(*NewBundle(builds(), image, "trunk"))
	if err != nil || !bytes.Equal(data, again) {
		t.Errorf("the same steps give other bytes (%v)", err)
	}
	got, err := UsableBundle(data, "trunk", Trust{Writers: []TrustedWriter{{Key: signer(t, 1).Public()}}})
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[solver.Key]int{"last": 2, "base": 1, "stage": 0, "private": 0, "tools": 0} {
		layers, ok := got.Find(key, 0, "origin")
		if ok != (want > 0) || len(layers) != want {
			t.Errorf("%s: found %d layers (%t), expected %d", key, len(layers), ok, want)
		}
		for i, l := range layers {
			if l.Origin != "origin" || l.Desc.Digest != image[i].Desc.Digest || l.DiffID != image[i].DiffID {
				t.Errorf("%s: layer %d is %+v", key, i, l)
			}
		}
	}
	for _, output := range []int{-1, 1, 2} {
		if _, ok := got.Find("last", output, ""); ok {
			t.Errorf("output %d, which is not in the image, is found", output)
		}
	}
	copied, inner := ContentSubject(solver.Ingredient{Key: "stage", Selector: "/made"}), ContentSubject(solver.Ingredient{Key: "tools", Selector: "/in"})
	if got.Contents[copied] == "" || got.Contents[inner] == "" || len(got.Contents) != 2 {
		t.Errorf("contents are %v, expected two", got.Contents)
	}
	if b := NewBundle(builds(), imageOf("strange"), ""); b != nil {
		t.Errorf("an image of other layers has records: %+v", b)
	}
	if err := got.Matches([]ocispecs.Descriptor{image[1].Desc, image[0].Desc}); err != nil {
		t.Error(err)
	}
	if err := got.Matches([]ocispecs.Descriptor{image[0].Desc, imageOf("replaced")[0].Desc}); err == nil {
		t.Error("an image whose layers were replaced has records")
	}
}

// TestBundleIsBounded: what comes first is told, and the rest left out.
func TestBundleIsBounded(t *testing.T) {
	entries := builds()[:1]
	for i := range 20_000 {
		e := Entry{Key: solver.Key(digest.FromString(fmt.Sprint(i)).Encoded()), Results: builds()[3].Results}
		e.Recipe.Inputs = []solver.Ingredient{{Key: "base", Selector: fmt.Sprint(i), Content: digest.FromString("x").String()}}
		entries = append(entries, e)
	}
	entries = append(entries, Entry{Key: "base"}, Entry{Key: "stage"})
	b := NewBundle(entries, imageOf("base", "last"), "")
	data, err := json.Marshal(b)
	if err != nil || len(data) > LargestBundle || len(data) < LargestBundle/2 {
		t.Errorf("it has %d bytes (%v), expected up to %d", len(data), err, LargestBundle)
	}
	if _, ok := b.Results["last"]; !ok {
		t.Error("the last step is left out")
	}
}

// TestForgedBundle: records that were changed, are of others or make no sense are
// not used.
func TestForgedBundle(t *testing.T) {
	trusted := Trust{Writers: []TrustedWriter{{Key: signer(t, 1).Public(), Scopes: []string{"trunk", ""}}}}
	b := NewBundle(builds(), imageOf("base", "last"), "trunk")
	sealed := func(by *Identity, b Bundle) []byte {
		data, err := by.SealBundle(b)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	wrap := func(text string) []byte {
		data, err := json.Marshal(envelope{PayloadType: bundleType, Payload: []byte(text)})
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	var changed envelope
	if err := json.Unmarshal(sealed(signer(t, 1), *b), &changed); err != nil {
		t.Fatal(err)
	}
	changed.Payload = bytes.Replace(changed.Payload, []byte(`"last"`), []byte(`"lost"`), 1)
	altered, err := json.Marshal(changed)
	if err != nil {
		t.Fatal(err)
	}
	record, err := signer(t, 1).Seal(Record{Subject: aboutSubject})
	if err != nil {
		t.Fatal(err)
	}
	other := *b
	other.Scope = "pr-1"
	for _, test := range []struct {
		name, scope, want string
		data              []byte
		trust             Trust
	}{
		{"changed", "trunk", "does not hold", altered, Trust{}},
		{"another writer's", "trunk", "does not let write", sealed(signer(t, 2), *b), trusted},
		{"nobody's", "trunk", "no signature", sealed(nil, *b), trusted},
		{"of another scope", "trunk", "expected \"trunk\"", sealed(signer(t, 1), other), Trust{}},
		{"of a scope that is not his", "pr-1", "does not let write", sealed(signer(t, 1), other), trusted},
		{"a record", "", "expected " + bundleType, record, Trust{}},
		{"no JSON", "", "decode", []byte("{"), Trust{}},
		{"of no layer", "", "of layers [1]", wrap(`{"results":{"k":[[1]]}}`), Trust{}},
		{"of a layer below none", "", "of layers [-1]", wrap(`{"layers":[` + layerText + `],"results":{"k":[[-1]]}}`), Trust{}},
		{"without results", "", "0 results", wrap(`{"results":{"k":[]}}`), Trust{}},
		{"bad layer", "", "malformed digest", wrap(`{"layers":[{"digest":"x"}]}`), Trust{}},
		{"bad content", "", "expected sha256", wrap(`{"contents":{"content:x":"y"}}`), Trust{}},
		{"too long", "", "expected at most", bytes.Repeat([]byte(" "), LargestRecord+1), Trust{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := UsableBundle(test.data, test.scope, test.trust); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, expected %q", err, test.want)
			}
		})
	}
	if _, err := UsableBundle(sealed(nil, *b), "trunk", Trust{Writers: trusted.Writers, Unsigned: true}); err != nil {
		t.Errorf("where those without a signature count: %v", err)
	}
}

const layerText = `{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:` +
	`0000000000000000000000000000000000000000000000000000000000000000","diffID":"sha256:` +
	`0000000000000000000000000000000000000000000000000000000000000000","size":1}`
