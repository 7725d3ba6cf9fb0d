package s3_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	"github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/cache/cachetest"
	"github.com/kiln-build/kiln/internal/cache/s3"
)

// server is an S3 server with an empty bucket.
type server struct {
	*s3mem.Backend
	faults *cachetest.Faults
	attrs  map[string]string
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{Backend: s3mem.New()}
	if err := s.CreateBucket("bucket"); err != nil {
		t.Fatal(err)
	}
	s.faults = cachetest.NewFaults(gofakes3.New(s.Backend, gofakes3.WithLogger(gofakes3.DiscardLog())).Server())
	h := httptest.NewServer(s.faults)
	t.Cleanup(h.Close)
	t.Cleanup(h.CloseClientConnections)
	s.attrs = map[string]string{
		"bucket": "bucket", "region": "nowhere", "endpoint_url": h.URL, "use_path_style": "true",
		"access_key_id": "me", "secret_access_key": "verysecret", "prefix": "some/",
	}
	return s
}

func (s *server) put(t *testing.T, key string, b []byte) {
	t.Helper()
	if _, err := s.PutObject("bucket", key, map[string]string{}, bytes.NewReader(b), int64(len(b)), nil); err != nil {
		t.Fatal(err)
	}
}

func (s *server) get(t *testing.T, key string) []byte {
	t.Helper()
	o, err := s.GetObject("bucket", key, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Contents.Close()
	b, err := io.ReadAll(o.Contents)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func blobKey(d digest.Digest) string { return "some/blobs/" + d.String() }

var quick = s3.Config{Stall: time.Second, MaxBackoff: 10 * time.Millisecond}

func TestShelf(t *testing.T) {
	cachetest.Places(t, func(t *testing.T) *cachetest.ShelfFixture {
		s := newServer(t)
		p := s3.New(quick)
		return &cachetest.ShelfFixture{
			Place: p, Read: s.attrs, Write: s.attrs, Fetcher: p, Faults: s.faults,
			Damage: func(t *testing.T, d digest.Digest) {
				b := s.get(t, blobKey(d))
				b[len(b)/2]++
				s.put(t, blobKey(d), b)
			},
			Lose: func(t *testing.T, d digest.Digest) {
				if _, err := s.DeleteObject("bucket", blobKey(d)); err != nil {
					t.Fatal(err)
				}
			},
		}
	})
}

func TestInterleaved(t *testing.T) {
	cachetest.Interleaved(t, func(t *testing.T) *cachetest.Rivals {
		s := newServer(t)
		c := s3.Config{Stall: time.Minute, MaxBackoff: 10 * time.Millisecond}
		return &cachetest.Rivals{Gate: &s.faults.Gate, Read: s.attrs, Write: s.attrs, Places: [2]cache.Shelves{s3.New(c), s3.New(c)}}
	})
}

func TestBare(t *testing.T) {
	s := newServer(t)
	cachetest.Bare(t, s3.New(quick), s.attrs)
	s.attrs["name"] = "a;b"
	cachetest.Bare(t, s3.New(quick), s.attrs)
	for _, key := range []string{"some/manifests/buildkit", "some/manifests/a", "some/manifests/b"} {
		if !bytes.Contains(s.get(t, key), []byte(`"layers":[{"blob":"sha256:`)) {
			t.Errorf("%s is no config: %q", key, s.get(t, key))
		}
	}
}

func TestRefusals(t *testing.T) {
	for want, attrs := range map[string]map[string]string{
		"region ($AWS_REGION) not set": {"bucket": "b"},
		"bucket ($AWS_BUCKET) not set": {"region": "r"},
		"upload_parallelism must be":   {"bucket": "b", "region": "r", "upload_parallelism": "0"},
		"retry_mode must be":           {"bucket": "b", "region": "r", "retry_mode": "always"},
		"retry_max_attempts must be":   {"bucket": "b", "region": "r", "retry_max_attempts": "many"},
	} {
		p := s3.New(s3.Config{Getenv: func(string) string { return "" }})
		if _, err := p.Writer(t.Context(), attrs); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: got %v, expected %q", attrs, err, want)
		}
	}
	env := map[string]string{"AWS_BUCKET": "b", "AWS_REGION": "r"}
	p := s3.New(s3.Config{Getenv: func(k string) string { return env[k] }})
	if _, err := p.Writer(t.Context(), nil); err != nil {
		t.Errorf("all is in the environment: %v", err)
	}
}

// TestSecrets: neither origins nor errors have credentials.
func TestSecrets(t *testing.T) {
	s := newServer(t)
	p := s3.New(quick)
	s.attrs["endpoint_url"] = strings.Replace(s.attrs["endpoint_url"], "://", "://user:verysecret@", 1)
	s.attrs["session_token"] = "tokensecret"
	shelf, err := p.Shelf(t.Context(), s.attrs, true)
	if err != nil {
		t.Fatal(err)
	}
	s.faults.Fail(100, http.StatusForbidden, nil)
	_, err = shelf.Records(t.Context(), []string{"aa"})
	if err == nil {
		t.Fatal("no error")
	}
	for _, text := range []string{err.Error(), shelf.Origin()} {
		if strings.Contains(text, "verysecret") || strings.Contains(text, "tokensecret") {
			t.Errorf("a secret is told: %s", text)
		}
	}
	if !p.Volatile(shelf.Origin()) {
		t.Errorf("%s may vanish", shelf.Origin())
	}
}
