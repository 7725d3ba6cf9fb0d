package http_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/session/secret"
	"github.com/kiln-build/kiln/internal/session/sessiontest"
	"github.com/kiln-build/kiln/internal/source"
	"github.com/kiln-build/kiln/internal/source/sourcetest"
)

// TestRequests holds the source to what BuildKit's clients count: a file that is
// known is asked about with HEAD, and what a server compressed is decompressed.
func TestRequests(t *testing.T) {
	layers, db := newLayers(t)
	web := newSite(t)
	var log []string
	web.set("", nil)
	serve := func(etag string, body []byte, encoding string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			log = append(log, r.Method+" "+r.Header.Get("Accept-Encoding"))
			w.Header().Set("ETag", etag)
			if r.Header.Get("If-None-Match") == etag {
				w.WriteHeader(http.StatusNotModified)
				return
			}
			if encoding != "" {
				w.Header().Set("Content-Encoding", encoding)
			}
			_, _ = w.Write(body)
		}
	}
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	if _, err := z.Write([]byte("content")); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		handler http.HandlerFunc
		want    string
	}{
		{serve(`"1"`, []byte("content"), ""), "GET gzip"},
		{serve(`"1"`, []byte("content"), ""), "HEAD gzip"},
		{serve(`"2"`, zipped.Bytes(), "gzip"), "HEAD gzip, GET gzip"},
	} {
		log = nil
		web.set("", step.handler)
		_, ref, err := get(t.Context(), newSource(layers, db), op(web.url+"/f"))
		if err != nil {
			t.Fatal(err)
		}
		if got := sourcetest.Files(t, layers, ref); got["f"] != "content" {
			t.Errorf("got %v", got)
		}
		if got := strings.Join(log, ", "); got != step.want {
			t.Errorf("requests %s, want %s", got, step.want)
		}
	}
}

// TestCompressedBomb counts what comes out, not what comes in, and while it comes.
func TestCompressedBomb(t *testing.T) {
	layers, db := newLayers(t)
	web := newSite(t)
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	if _, err := z.Write(make([]byte, 64<<20)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	web.set("", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = w.Write(bomb.Bytes())
	})
	var read atomic.Int64
	sink := progress.SinkFunc(func(e progress.Event) {
		if e.Status != nil {
			read.Store(max(read.Load(), e.Status.Current))
		}
	})
	err := progress.RunAs(t.Context(), sink, "sha256:"+digest.Digest(strings.Repeat("0", 64)), "download", func(ctx context.Context) error {
		_, _, err := get(ctx, newSource(layers, db), op(web.url+"/f"))
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("got %v", err)
	}
	if n := read.Load(); n == 0 || n > 2<<20 {
		t.Errorf("%d bytes were read, want no more than are allowed and a few", n)
	}
}

func TestOnceInABuild(t *testing.T) {
	layers, db := newLayers(t)
	web := newSite(t)
	provider, err := secret.NewProvider(nil)
	if err != nil {
		t.Fatal(err)
	}
	build := sessiontest.Context(t.Context(), sessiontest.Connect(t, provider))
	s := newSource(layers, db)
	before, err := s.Resolve(build, op(web.url+"/f"), source.Options{})
	if err != nil {
		t.Fatal(err)
	}
	web.set("changed", nil)
	after, ref, err := get(build, s, op(web.url+"/f"))
	if err != nil || after.Key != before.Key || sourcetest.Files(t, layers, ref)["f"] != "hello" {
		t.Errorf("the file changed during a build: %v", err)
	}
	if other, err := s.Resolve(t.Context(), op(web.url+"/f"), source.Options{}); err != nil || other.Key == before.Key {
		t.Errorf("another build sees the old file: %v", err)
	}
}

// TestHostWithoutPort takes secrets by the name of the host alone, as BuildKit does.
func TestHostWithoutPort(t *testing.T) {
	layers, db := newLayers(t)
	web := newSite(t)
	t.Setenv("TOKEN", "sesame")
	provider, err := secret.NewProvider([]secret.Source{{ID: "HTTP_AUTH_TOKEN_127.0.0.1", Env: "TOKEN"}})
	if err != nil {
		t.Fatal(err)
	}
	ctx := sessiontest.Context(t.Context(), sessiontest.Connect(t, provider))
	if _, _, err := get(ctx, newSource(layers, db), op(web.url+"/f")); err != nil {
		t.Fatal(err)
	}
	if log := web.requests(); !strings.Contains(log[0], "Bearer sesame") {
		t.Errorf("requests %v", log)
	}
}

func TestChecksumQuery(t *testing.T) {
	layers, db := newLayers(t)
	web := newSite(t)
	s := newSource(layers, db)
	for _, tc := range []struct {
		query source.ChecksumQuery
		want  digest.Digest
	}{
		{source.ChecksumQuery{Algorithm: digest.SHA256}, digest.FromString("hello")},
		{source.ChecksumQuery{Algorithm: digest.SHA512, Suffix: []byte(" you")}, digest.SHA512.FromString("hello you")},
		{source.ChecksumQuery{Algorithm: digest.SHA384, Suffix: []byte("!")}, digest.SHA384.FromString("hello!")},
	} {
		for _, o := range [][]string{nil, {"http.checksum", digest.FromString("hello").String()}} {
			pin, err := s.Resolve(t.Context(), op(web.url+"/f", o...), source.Options{Checksum: &tc.query})
			if err != nil || pin.Checksum != tc.want || pin.Digest != digest.FromString("hello") {
				t.Errorf("%+v: got %+v, %v", tc.query, pin, err)
			}
		}
	}
	for _, q := range []source.ChecksumQuery{{Algorithm: "md5"}, {Algorithm: ""}, {Algorithm: digest.SHA256, Suffix: make([]byte, 4097)}} {
		if _, err := s.Resolve(t.Context(), op(web.url+"/f"), source.Options{Checksum: &q}); err == nil {
			t.Errorf("%s with %d bytes was taken", q.Algorithm, len(q.Suffix))
		}
	}
}

// newKey makes an OpenPGP key, and returns what signs with it and its public half.
func newKey(t *testing.T) (sign func(string) string, public string) {
	t.Helper()
	e, err := openpgp.NewEntity("Somebody", "", "s@example.com", &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w, err := armor.Encode(&b, openpgp.PublicKeyType, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Serialize(w); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return func(text string) string {
		var b bytes.Buffer
		if err := openpgp.ArmoredDetachSign(&b, e, strings.NewReader(text), nil); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}, b.String()
}

func TestSignature(t *testing.T) {
	layers, db := newLayers(t)
	web := newSite(t)
	sign, public := newKey(t)
	_, other := newKey(t)
	for name, tc := range map[string]struct{ keys, signature, want string }{
		"good":          {public, sign("hello"), ""},
		"second key":    {other + "\n" + public, sign("hello"), ""},
		"wrong key":     {other, sign("hello"), "failed to verify pgp signature"},
		"another file":  {public, sign("bye"), "failed to verify pgp signature"},
		"no signature":  {public, "hello", "failed to verify pgp signature"},
		"no key":        {"hello", sign("hello"), "failed to verify pgp signature"},
		"key alone":     {public, "", "requires both pubkey and signature"},
		"signature":     {"", sign("hello"), "requires both pubkey and signature"},
		"key signs":     {public, public, "failed to verify pgp signature"},
		"huge":          {public, strings.Repeat("a", 2<<20), "failed to verify pgp signature"},
		"with checksum": {public, sign("hello"), ""},
	} {
		o := op(web.url+"/f", "http.sig.pubkey", tc.keys, "http.sig.signature", tc.signature)
		if name == "with checksum" {
			o.Attrs["http.checksum"] = digest.FromString("hello").String()
		}
		_, ref, err := get(t.Context(), newSource(layers, db), o)
		switch {
		case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%s: got %v, want %s", name, err, tc.want)
		case tc.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case tc.want == "" && sourcetest.Files(t, layers, ref)["f"] != "hello":
			t.Errorf("%s: another file", name)
		}
	}
}
