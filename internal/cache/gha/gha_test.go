package gha_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/cache/cachetest"
	"github.com/kiln-build/kiln/internal/cache/gha"
)

func config(a *cachetest.Actions) gha.Config {
	return gha.Config{Stall: time.Second, Backoff: time.Millisecond, Locked: 500 * time.Millisecond, API: a.URL}
}

func attrs(a *cachetest.Actions, version string) map[string]string {
	at := map[string]string{"token": cachetest.Token("refs/heads/branch", "refs/heads/main"), "url": a.URL, "timeout": "10s"}
	if version == "2" {
		at["url_v2"] = a.URL + "/"
	}
	return at
}

func blobKey(d digest.Digest) string { return "buildkit-blob-1-" + d.String() }

func TestShelf(t *testing.T) {
	for _, version := range []string{"1", "2"} {
		t.Run("v"+version, func(t *testing.T) {
			cachetest.Places(t, func(t *testing.T) *cachetest.ShelfFixture {
				a := cachetest.NewActions(t)
				p := gha.New(config(a))
				return &cachetest.ShelfFixture{
					Place: p, Read: attrs(a, version), Write: attrs(a, version), Fetcher: p, Faults: a.Faults,
					Damage: func(t *testing.T, d digest.Digest) { a.Damage(t, blobKey(d)) },
					Lose:   func(t *testing.T, d digest.Digest) { a.Lose(t, blobKey(d)) },
				}
			})
		})
	}
}

// TestInterleaved: who has reserved a key and does not go on is left alone after a
// while.
func TestInterleaved(t *testing.T) {
	for _, version := range []string{"1", "2"} {
		t.Run("v"+version, func(t *testing.T) {
			cachetest.Interleaved(t, func(t *testing.T) *cachetest.Rivals {
				a := cachetest.NewActions(t)
				c := config(a)
				c.Stall, c.Locked = time.Minute, 10*time.Millisecond
				at := attrs(a, version)
				return &cachetest.Rivals{Gate: &a.Faults.Gate, Read: at, Write: at, Places: [2]cache.Shelves{gha.New(c), gha.New(c)}}
			})
		})
	}
}

func TestBare(t *testing.T) {
	for _, version := range []string{"1", "2"} {
		a := cachetest.NewActions(t)
		at := attrs(a, version)
		cachetest.Bare(t, gha.New(config(a)), at)
		at["scope"] = "other"
		cachetest.Bare(t, gha.New(config(a)), at)
		// The second number: each was written twice.
		for _, key := range []string{"index-buildkit-1-" + digest.FromString("refs/heads/branch").Encoded()[:8] + "#2",
			"index-other-1-" + digest.FromString("refs/heads/branch").Encoded()[:8] + "#2"} {
			if !slices.Contains(a.Keys(), key) {
				t.Errorf("there is no %s among %q", key, a.Keys())
			}
		}
	}
}

// TestScopes: a branch reads the trunk's records, and the trunk not the branch's.
func TestScopes(t *testing.T) {
	a := cachetest.NewActions(t)
	p := gha.New(config(a))
	put := func(record string, scopes ...string) {
		at := attrs(a, "2")
		at["token"] = cachetest.Token(scopes...)
		s, err := p.Shelf(t.Context(), at, true)
		if err != nil {
			t.Fatal(err)
		}
		if stored, err := s.Put(t.Context(), record, []byte(scopes[0]), nil, false); err != nil || !stored {
			t.Errorf("%v: %v (%v)", scopes, stored, err)
		}
	}
	put("aa", "refs/heads/main")
	put("bb", "refs/heads/branch", "refs/heads/main")
	for want, scopes := range map[int][]string{1: {"refs/heads/main"}, 2: {"refs/heads/branch", "refs/heads/main"}} {
		at := attrs(a, "2")
		at["token"] = cachetest.Token(scopes...)
		s, err := p.Shelf(t.Context(), at, false)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.Records(t.Context(), []string{"aa", "bb"}); err != nil || len(got) != want {
			t.Errorf("%v reads %q (%v), expected %d", scopes, got, err, want)
		}
	}
}

// TestCrashed: a key that was reserved and never filled is passed over after a while.
func TestCrashed(t *testing.T) {
	a := cachetest.NewActions(t)
	version := digest.FromString("|go-actionscache-1.0").Encoded()
	a.Reserve(t, "refs/heads/branch", "kiln-buildkit-1-"+digest.FromString("refs/heads/branch").Encoded()[:8]+"-aa#1", version)
	s, err := gha.New(config(a)).Shelf(t.Context(), attrs(a, "2"), true)
	if err != nil {
		t.Fatal(err)
	}
	if stored, err := s.Put(t.Context(), "aa", []byte("record"), nil, false); err != nil || !stored {
		t.Errorf("put gives %v (%v)", stored, err)
	}
	if got, err := s.Records(t.Context(), []string{"aa"}); err != nil || string(got["aa"]) != "record" {
		t.Errorf("got %q (%v)", got, err)
	}
}

// TestList: with a token for GitHub's API, which blobs there are is asked once.
func TestList(t *testing.T) {
	a := cachetest.NewActions(t)
	at := attrs(a, "2")
	at["repository"], at["ghtoken"] = "some/repo", "ghtoken"
	var blobs []ocispecs.Descriptor
	for i := range 150 {
		text := fmt.Sprint("layer ", i)
		blobs = append(blobs, ocispecs.Descriptor{Digest: digest.FromString(text), Size: int64(len(text))})
	}
	w, err := gha.New(config(a)).Shelf(t.Context(), at, true)
	if err != nil {
		t.Fatal(err)
	}
	if missing, err := w.Missing(t.Context(), blobs); err != nil || len(missing) != 150 {
		t.Errorf("%d are missing (%v)", len(missing), err)
	}
	for i := range 120 {
		err := w.Upload(t.Context(), blobs[i], func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader(fmt.Sprint("layer ", i))), nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if missing, err := w.Missing(t.Context(), blobs); err != nil || len(missing) != 30 {
		t.Errorf("after the upload %d are missing (%v)", len(missing), err)
	}
	r, err := gha.New(config(a)).Shelf(t.Context(), at, true)
	if err != nil {
		t.Fatal(err)
	}
	before := a.Listed()
	if missing, err := r.Missing(t.Context(), blobs); err != nil || len(missing) != 30 {
		t.Errorf("%d are missing for another (%v)", len(missing), err)
	}
	if pages := a.Listed() - before; pages != 3 { // two of the branch, one of the trunk
		t.Errorf("%d pages were read, expected 3", pages)
	}
}

func TestRefusals(t *testing.T) {
	good := cachetest.Token("refs/heads/main")
	for want, attrs := range map[string]map[string]string{
		"token not set":               {"url": "http://127.0.0.1:1"},
		"no JSON web token":           {"url": "http://127.0.0.1:1", "token": "secret"},
		"expired":                     {"url": "http://127.0.0.1:1", "token": cachetest.OldToken()},
		"url not set":                 {"token": good},
		"failed to parse api version": {"token": good, "url": "http://127.0.0.1:1", "version": "two"},
		"failed to parse timeout":     {"token": good, "url": "http://127.0.0.1:1", "timeout": "soon"},
	} {
		if _, err := gha.New(gha.Config{}).Writer(t.Context(), attrs); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%v: got %v, expected %q", attrs, err, want)
		}
	}
}

// TestSecrets: neither origins nor errors have tokens or signatures.
func TestSecrets(t *testing.T) {
	a := cachetest.NewActions(t)
	at := attrs(a, "2")
	conf := config(a)
	conf.Stall = 50 * time.Millisecond
	p := gha.New(conf)
	s, err := p.Shelf(t.Context(), at, true)
	if err != nil {
		t.Fatal(err)
	}
	storage := func(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, "/storage/") }
	for _, status := range []int{http.StatusForbidden, http.StatusConflict, 0} {
		a.Faults.Fail(100, status, storage)
		_, err := s.Put(t.Context(), fmt.Sprintf("%04x", status), []byte("record"), nil, false)
		if err == nil {
			t.Fatal("no error")
		}
		for _, text := range []string{err.Error(), s.Origin()} {
			if strings.Contains(text, at["token"]) || strings.Contains(text, "sig=") {
				t.Errorf("a secret is told: %s", text)
			}
		}
	}
	if _, err := gha.New(config(a)).Fetch(t.Context(), s.Origin(), ocispecs.Descriptor{}); err == nil || !strings.Contains(err.Error(), "token") {
		t.Errorf("without a token: got %v", err)
	}
}
