package registry_test

import (
	"bytes"
	"context"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/cache/cachetest"
	cacheregistry "github.com/kiln-build/kiln/internal/cache/registry"
	"github.com/kiln-build/kiln/internal/registry"
)

func TestShelf(t *testing.T) {
	cachetest.Places(t, func(t *testing.T) *cachetest.ShelfFixture {
		blobs := newBlobs()
		faults := cachetest.NewFaults(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)), ggcr.WithBlobHandler(blobs)))
		s := httptest.NewServer(faults)
		t.Cleanup(s.Close)
		t.Cleanup(s.CloseClientConnections)
		client := registry.New(registry.Config{Backoff: time.Millisecond, Attempts: 3, Stall: time.Second})
		attrs := map[string]string{"ref": s.Listener.Addr().String() + "/some/cache:tag"}
		return &cachetest.ShelfFixture{
			Place: cacheregistry.New(client), Read: attrs, Write: attrs, Fetcher: client,
			Damage: blobs.damage, Lose: blobs.lose, Faults: faults,
		}
	})
}

// TestInterleaved: the protocol has no way to put a tag only if there is none, and
// nobody loses by it.
func TestInterleaved(t *testing.T) {
	cachetest.Interleaved(t, func(t *testing.T) *cachetest.Rivals {
		faults := cachetest.NewFaults(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
		s := httptest.NewServer(faults)
		t.Cleanup(s.Close)
		attrs := map[string]string{"ref": s.Listener.Addr().String() + "/some/cache:tag"}
		r := &cachetest.Rivals{Gate: &faults.Gate, Read: attrs, Write: attrs}
		for i := range r.Places {
			r.Places[i] = cacheregistry.New(registry.New(registry.Config{Attempts: 1, Stall: time.Minute}))
		}
		return r
	})
}

// TestShelvesApart: caches by key of different tags have nothing in common, and
// none is in the way of a tag of the user's.
func TestShelvesApart(t *testing.T) {
	s := httptest.NewServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(s.Close)
	p := cacheregistry.New(registry.New(registry.Config{Attempts: 1}))
	for i, tag := range []string{"a", "b"} {
		shelf, err := p.Shelf(t.Context(), map[string]string{"ref": s.Listener.Addr().String() + "/r:" + tag}, true)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := shelf.Records(t.Context(), []string{"aa"}); err != nil || len(got) != 0 {
			t.Errorf("%s begins with %v (%v)", tag, got, err)
		}
		if stored, err := shelf.Put(t.Context(), "aa", []byte(tag), nil, i == 0); err != nil || !stored {
			t.Errorf("%s: %v (%v)", tag, stored, err)
		}
	}
	for _, ref := range []string{"h/r@" + digest.FromString("x").String(), "h/r:t@" + digest.FromString("x").String()} {
		if _, err := p.Shelf(t.Context(), map[string]string{"ref": ref}, true); err == nil || !strings.Contains(err.Error(), "give a tag") {
			t.Errorf("%s: got %v", ref, err)
		}
	}
}

// TestShelfLogin: what needs a login says so once, for many questions at a time.
func TestShelfLogin(t *testing.T) {
	next := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, secret, _ := r.BasicAuth(); user != "me" || secret != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	for secret, ok := range map[string]bool{"secret": true, "wrong": false} {
		shelf, err := cacheregistry.New(registry.New(registry.Config{Attempts: 1, Logins: logins("me", secret)})).
			Shelf(t.Context(), map[string]string{"ref": s.Listener.Addr().String() + "/r:t"}, true)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, c := range "0123456789abcdef" {
			names = append(names, string(c))
		}
		got, err := shelf.Records(t.Context(), names)
		if (err == nil) != ok || len(got) != 0 {
			t.Errorf("with the password %q: got %v, %v", secret, got, err)
		}
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("the error has the password: %v", err)
		}
	}
}

// login is somebody's credentials.
type login struct{ user, secret string }

func logins(user, secret string) func(context.Context) []registry.Login {
	return func(context.Context) []registry.Login { return []registry.Login{login{user, secret}} }
}

func (l login) ID() string                               { return l.secret }
func (l login) Authority(context.Context, string) string { return "" }
func (l login) Credentials(context.Context, string) (string, string, error) {
	return l.user, l.secret, nil
}
func (l login) Token(context.Context, registry.TokenRequest) (registry.Token, error) {
	return registry.Token{}, registry.ErrNoTokens
}

// blobs are those of a registry.
type blobs struct {
	mu   sync.Mutex
	kept map[string][]byte // by digest
}

func newBlobs() *blobs { return &blobs{kept: map[string][]byte{}} }

func (b *blobs) Get(_ context.Context, _ string, h v1.Hash) (io.ReadCloser, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if data, ok := b.kept[h.String()]; ok {
		return io.NopCloser(bytes.NewReader(data)), nil
	}
	return nil, ggcr.ErrNotFound
}

func (b *blobs) Stat(_ context.Context, _ string, h v1.Hash) (int64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if data, ok := b.kept[h.String()]; ok {
		return int64(len(data)), nil
	}
	return 0, ggcr.ErrNotFound
}

func (b *blobs) Put(_ context.Context, _ string, h v1.Hash, rc io.ReadCloser) error {
	data, err := io.ReadAll(rc)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.kept[h.String()] = data
	return nil
}

func (b *blobs) damage(_ *testing.T, d digest.Digest) {
	b.mu.Lock()
	defer b.mu.Unlock()
	data := bytes.Clone(b.kept[d.String()])
	data[len(data)/2]++
	b.kept[d.String()] = data
}

func (b *blobs) lose(_ *testing.T, d digest.Digest) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.kept, d.String())
}
