package azblob_test

import (
	"bytes"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/cache/azblob"
	"github.com/kiln-build/kiln/internal/cache/cachetest"
)

var (
	quick  = azblob.Config{Stall: time.Second, Backoff: time.Millisecond}
	secret = base64.StdEncoding.EncodeToString([]byte("verysecret"))
)

func newServer(t *testing.T) (*cachetest.Azure, *cachetest.Faults, map[string]string) {
	t.Helper()
	a := cachetest.NewAzure()
	faults := cachetest.NewFaults(a)
	h := httptest.NewServer(faults)
	t.Cleanup(h.Close)
	t.Cleanup(h.CloseClientConnections)
	return a, faults, map[string]string{
		"account_url": h.URL + "/me", "account_name": "me", "secret_access_key": secret, "container": "caches", "prefix": "some",
	}
}

func blobPath(d digest.Digest) string { return "/me/caches/some/blobs/" + d.String() }

func TestShelf(t *testing.T) {
	cachetest.Places(t, func(t *testing.T) *cachetest.ShelfFixture {
		a, faults, attrs := newServer(t)
		p := azblob.New(quick)
		return &cachetest.ShelfFixture{
			Place: p, Read: attrs, Write: attrs, Fetcher: p, Faults: faults,
			Damage: func(t *testing.T, d digest.Digest) { a.Damage(t, blobPath(d)) },
			Lose:   func(t *testing.T, d digest.Digest) { a.Lose(t, blobPath(d)) },
		}
	})
}

func TestInterleaved(t *testing.T) {
	cachetest.Interleaved(t, func(t *testing.T) *cachetest.Rivals {
		_, faults, attrs := newServer(t)
		c := azblob.Config{Stall: time.Minute, Backoff: time.Millisecond}
		return &cachetest.Rivals{Gate: &faults.Gate, Read: attrs, Write: attrs, Places: [2]cache.Shelves{azblob.New(c), azblob.New(c)}}
	})
}

func TestBare(t *testing.T) {
	a, _, attrs := newServer(t)
	p := azblob.New(quick)
	// Before anything is written there is no container, and no cache.
	if _, err := p.Reader(t.Context(), attrs); err != nil {
		t.Errorf("a cache that is not there yet: %v", err)
	}
	cachetest.Bare(t, p, attrs)
	attrs["name"] = "a;b"
	cachetest.Bare(t, p, attrs)
	for _, name := range []string{"buildkit", "a", "b"} {
		if b := a.Blob("/me/caches/some/manifests/" + name); !bytes.Contains(b, []byte(`"layers":[{"blob":"sha256:`)) {
			t.Errorf("%s is no config: %q", name, b)
		}
	}
}

func TestRefusals(t *testing.T) {
	for want, attrs := range map[string]map[string]string{
		"account_url attribute is required": nil,
		"not a valid url":                   {"account_url": "no url"},
		"no key of an account":              {"account_url": "http://127.0.0.1:1/me", "secret_access_key": "not base64"},
	} {
		p := azblob.New(azblob.Config{Getenv: func(string) string { return "" }})
		if _, err := p.Writer(t.Context(), attrs); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: got %v, expected %q", attrs, err, want)
		}
	}
	env := map[string]string{"BUILDKIT_AZURE_STORAGE_ACCOUNT_URL": "https://nobody.invalid/", "BUILDKIT_AZURE_STORAGE_CONTAINER": "of-env"}
	p := azblob.New(azblob.Config{Getenv: func(k string) string { return env[k] }, Stall: time.Second, Backoff: time.Millisecond})
	shelf, err := p.Shelf(t.Context(), map[string]string{"secret_access_key": secret}, false)
	if err != nil || !strings.Contains(shelf.Origin(), "of-env") {
		t.Errorf("all is in the environment: %v", err)
	}
}

// TestSecrets: neither origins nor errors have credentials.
func TestSecrets(t *testing.T) {
	_, faults, attrs := newServer(t)
	p := azblob.New(azblob.Config{Stall: 100 * time.Millisecond, Backoff: time.Millisecond})
	attrs["account_url"] = strings.Replace(attrs["account_url"], "://", "://user:verysecret@", 1) + "?sig=verysecret"
	shelf, err := p.Shelf(t.Context(), attrs, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, status := range []int{http.StatusForbidden, http.StatusConflict, 0} {
		faults.Fail(100, status, nil)
		_, err = shelf.Records(t.Context(), []string{"aa"})
		if err == nil {
			t.Fatal("no error")
		}
		for _, text := range []string{err.Error(), shelf.Origin()} {
			if strings.Contains(text, "verysecret") || strings.Contains(text, secret) {
				t.Errorf("a secret is told: %s", text)
			}
		}
	}
	if !p.Volatile(shelf.Origin()) {
		t.Errorf("%s may vanish", shelf.Origin())
	}
}
