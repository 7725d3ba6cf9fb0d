package cache_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/solver"
)

func identity(t testing.TB, fill byte) *cache.Identity {
	t.Helper()
	id, err := cache.NewIdentity(bytes.Repeat([]byte{fill}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func recordLayer(text string) cache.RecordLayer {
	return cache.RecordLayer{
		MediaType: ocispecs.MediaTypeImageLayerGzip, Digest: digest.FromString(text), Size: int64(len(text)),
		DiffID: digest.FromString("files of " + text), Description: "RUN " + text,
	}
}

func resultRecord(k solver.Key, layers ...string) cache.Record {
	r := cache.Record{Subject: cache.ResultSubject(k), Outputs: make([]cache.RecordOutput, 1), SavedAt: time.Unix(1, 0)}
	for _, l := range layers {
		r.Outputs[0].Layers = append(r.Outputs[0].Layers, recordLayer(l))
	}
	return r
}

func seal(t testing.TB, id *cache.Identity, r cache.Record) []byte {
	t.Helper()
	data, err := id.Seal(r)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// usable is what a reader makes of bytes found under the name of a step.
func usable(data []byte, k solver.Key, scope string, t cache.Trust) (*cache.Record, error) {
	return cache.Usable(data, cache.ResultSubject(k), scope, t)
}

// payload decodes what is signed, lets change change it, and puts it back under
// the old signature.
func payload(t *testing.T, data []byte, change func(*cache.Record)) []byte {
	t.Helper()
	var e map[string]json.RawMessage
	var text []byte
	var r cache.Record
	for _, err := range []error{json.Unmarshal(data, &e), json.Unmarshal(e["payload"], &text), json.Unmarshal(text, &r)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	change(&r)
	text, _ = json.Marshal(r)
	e["payload"], _ = json.Marshal(text)
	out, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestForgedRecords(t *testing.T) {
	us, stranger := identity(t, 1), identity(t, 2)
	good := seal(t, us, resultRecord("key", "base", "top"))
	if r, err := usable(good, "key", "", cache.Trust{}); err != nil || r.Writer != us.Public() || len(r.Blobs()) != 2 {
		t.Fatalf("a good record gives %+v, %v", r, err)
	}
	trusting := cache.Trust{Writers: []cache.TrustedWriter{{Name: "us", Key: us.Public(), Scopes: []string{"", "pr-*"}}}}
	if _, err := usable(good, "key", "", trusting); err != nil {
		t.Errorf("a record of ours: %v", err)
	}
	swap := func(r *cache.Record) {
		l := r.Outputs[0].Layers
		l[0], l[1] = l[1], l[0]
	}
	scoped := resultRecord("key", "top")
	scoped.Scope = "release"
	for _, c := range []struct {
		name  string
		data  []byte
		key   solver.Key
		scope string
		trust cache.Trust
		want  string
	}{
		{"corrupted signature", bytes.Replace(good, []byte(`"sig":"`), []byte(`"sig":"AAAA`), 1), "key", "", cache.Trust{}, "does not hold"},
		{"swapped layers", payload(t, good, swap), "key", "", cache.Trust{}, "does not hold"},
		{"another digest", payload(t, good, func(r *cache.Record) { r.Outputs[0].Layers[1].Digest = digest.FromString("evil") }), "key", "", cache.Trust{}, "does not hold"},
		{"another writer's name", payload(t, good, func(r *cache.Record) { r.Writer = stranger.Public() }), "key", "", cache.Trust{}, "expected one of"},
		{"signature taken off, writer kept", bytes.Replace(good, []byte(`"signatures"`), []byte(`"signature"`), 1), "key", "", cache.Trust{}, "expected one of"},
		{"another key's record under this name", good, "other", "", cache.Trust{}, "was found under the name of"},
		{"another scope's record under this name", good, "key", "release", cache.Trust{}, "was found under the name of"},
		{"a stranger's", seal(t, stranger, resultRecord("key", "top")), "key", "", trusting, "does not let write"},
		{"nobody's", seal(t, nil, resultRecord("key", "top")), "key", "", trusting, "has no signature"},
		{"ours in a scope that we may not write", seal(t, us, scoped), "key", "release", trusting, "does not let write"},
		{"an empty file", nil, "key", "", cache.Trust{}, "decode record"},
		{"a page of a proxy", []byte("<html>login</html>"), "key", "", cache.Trust{}, "decode record"},
	} {
		if r, err := usable(c.data, c.key, c.scope, c.trust); err == nil || r != nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %+v, error %v, expected one with %q", c.name, r, err, c.want)
		}
	}
	// A digest's record must not pass for a step's, nor the other way round.
	d := seal(t, us, cache.Record{Subject: cache.ContentSubject(solver.Ingredient{Key: "key"}), Content: digest.FromString("c").String()})
	if _, err := usable(d, "key", "", cache.Trust{}); err == nil {
		t.Error("a content digest passes for a result")
	}
}

func TestTrust(t *testing.T) {
	us, them := identity(t, 1), identity(t, 2)
	both := cache.Trust{Writers: []cache.TrustedWriter{{Name: "us", Key: us.Public()}, {Name: "them", Key: them.Public()}}}
	ours, theirs := seal(t, us, resultRecord("k", "l")), seal(t, them, resultRecord("k", "l"))
	for _, c := range []struct {
		policy       cache.Trust
		attr         string
		ours, theirs bool
	}{
		{cache.Trust{}, "", true, true},
		{cache.Trust{}, us.Public(), true, false},
		{both, "", true, true},
		{both, "them", false, true},
		{both, us.Public() + ";" + them.Public(), true, true},
		{both, "somebody", false, false},
		{cache.Trust{Writers: both.Writers[:1]}, them.Public(), false, false}, // a user cannot widen it
	} {
		p, err := c.policy.Narrow(map[string]string{"trust": c.attr})
		if err != nil {
			t.Fatal(err)
		}
		_, err1 := usable(ours, "k", "", p)
		_, err2 := usable(theirs, "k", "", p)
		if (err1 == nil) != c.ours || (err2 == nil) != c.theirs {
			t.Errorf("trust=%q: ours %v, theirs %v", c.attr, err1, err2)
		}
	}
	if _, err := (cache.Trust{}).Narrow(map[string]string{"trust": "us"}); err == nil {
		t.Error("a name that no policy has is taken")
	}
	p := cache.Trust{WriteScopes: []string{"pr-*"}, ReadScopes: []string{"pr-*", "trunk"}}
	if p.Writes("trunk") || !p.Writes("pr-1") || !p.Reads("trunk") || p.Reads("other") {
		t.Error("scopes are not held to")
	}
}

// What any bytes are decoded to is a record that can be written again, and no
// change to a signed one passes.
func FuzzRecord(f *testing.F) {
	id := identity(f, 1)
	signed := seal(f, id, resultRecord("key", "base", "top"))
	f.Add(signed)
	f.Add(seal(f, nil, resultRecord("key")))
	f.Add(seal(f, id, cache.Record{Subject: "content:k@0:/src", Content: digest.FromString("c").String()}))
	f.Add([]byte(`{"payloadType":"application/vnd.kiln.cache.record.v1+json","payload":"e30="}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := cache.OpenRecord(data)
		if err != nil {
			return
		}
		if r.Writer == id.Public() && r.Subject == "result:key" && (len(r.Blobs()) != 2 || r.Blobs()[1].Digest != digest.FromString("top")) {
			t.Fatalf("a changed record has our signature: %+v", r)
		}
		if _, err := id.Seal(*r); err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
	})
}
