package http_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/layer/layertest"
	"github.com/kiln-build/kiln/internal/session/secret"
	"github.com/kiln-build/kiln/internal/session/sessiontest"
	"github.com/kiln-build/kiln/internal/session/upload"
	"github.com/kiln-build/kiln/internal/source"
	httpsource "github.com/kiln-build/kiln/internal/source/http"
	"github.com/kiln-build/kiln/internal/source/sourcetest"
	"github.com/kiln-build/kiln/internal/store"
	"github.com/kiln-build/kiln/llb"
)

// newLayers opens an empty layer store and its database.
func newLayers(t *testing.T) (*layer.Store, *store.Store) {
	t.Helper()
	root := t.TempDir()
	db, err := store.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	layertest.Closing(t, db.Close)
	return layertest.Open(t, root, db), db
}

// site serves one file, with a validator, unless told otherwise.
type site struct {
	url     string
	mu      sync.Mutex
	body    string
	handler http.HandlerFunc
	log     []string // method, path, Authorization, status
}

func newSite(t *testing.T) *site {
	s := &site{body: "hello"}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, r.Method+" "+r.URL.Path+" "+r.Header.Get("Authorization")+r.Header.Get("If-None-Match"))
	if s.handler != nil {
		s.handler(w, r)
		return
	}
	w.Header().Set("ETag", `"`+digest.FromString(s.body).Encoded()[:8]+`"`)
	http.ServeContent(w, r, "", time.Unix(1_000_000, 0), strings.NewReader(s.body))
}

func (s *site) set(body string, h http.HandlerFunc) {
	s.mu.Lock()
	s.body, s.handler, s.log = body, h, nil
	s.mu.Unlock()
}

func (s *site) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.log...)
}

func newSource(layers *layer.Store, memo source.Memo) *httpsource.Source {
	return httpsource.New(httpsource.Config{
		Layers: layers, Memo: memo, MaxBytes: 1 << 20, Stall: 300 * time.Millisecond, Backoff: time.Millisecond,
	})
}

func op(url string, attrs ...string) *llb.SourceOp {
	o := &llb.SourceOp{Identifier: url, Attrs: map[string]string{}}
	for i := 0; i < len(attrs); i += 2 {
		o.Attrs[attrs[i]] = attrs[i+1]
	}
	return o
}

// get resolves and fetches.
func get(ctx context.Context, s *httpsource.Source, o *llb.SourceOp) (*source.Pin, *layer.Ref, error) {
	pin, err := s.Resolve(ctx, o, source.Options{})
	if err != nil {
		return nil, nil, err
	}
	ref, err := s.Fetch(ctx, pin)
	return pin, ref, err
}

func TestSuite(t *testing.T) {
	sourcetest.Run(t, func(t *testing.T) sourcetest.Subject {
		layers, db := newLayers(t)
		web := newSite(t)
		return sourcetest.Subject{
			Source: newSource(layers, db), Layers: layers, Context: t.Context(), Op: op(web.url + "/dir/file.txt"),
			Files: map[string]string{"file.txt": "hello"},
			Change: func(*testing.T) map[string]string {
				web.set("changed", nil)
				return map[string]string{"file.txt": "changed"}
			},
		}
	})
}

func TestSuiteWithChecksum(t *testing.T) {
	sourcetest.Run(t, func(t *testing.T) sourcetest.Subject {
		layers, db := newLayers(t)
		return sourcetest.Subject{
			Source: newSource(layers, db), Layers: layers, Context: t.Context(),
			Op:    op(newSite(t).url+"/file", "http.checksum", digest.FromString("hello").String()),
			Files: map[string]string{"file": "hello"},
		}
	})
}

func TestAttributesAndRevalidation(t *testing.T) {
	layers, db := newLayers(t)
	web := newSite(t)
	s := newSource(layers, db)
	o := op(web.url+"/x", "http.filename", "run.sh", "http.perm", "0755", "http.uid", "7", "http.gid", "8")
	pin, ref, err := get(t.Context(), s, o)
	if err != nil {
		t.Fatal(err)
	}
	if pin.Name != "run.sh" || pin.Digest != digest.FromString("hello") || !pin.LastModified.Equal(time.Unix(1_000_000, 0)) {
		t.Errorf("pin %+v", pin)
	}
	dir, release, err := layers.Mount(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, "run.sh"))
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	if info.Mode() != 0o755 || st.Uid != 7 || st.Gid != 8 || !info.ModTime().Equal(time.Unix(1_000_000, 0)) {
		t.Errorf("mode %v, owner %d:%d, time %v", info.Mode(), st.Uid, st.Gid, info.ModTime())
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	// A new daemon asks whether the file is still the one, and does not load it.
	web.set("hello", nil)
	again, sameRef, err := get(t.Context(), newSource(layers, db), o)
	if err != nil {
		t.Fatal(err)
	}
	if again.Key != pin.Key || sameRef.ID() != ref.ID() {
		t.Errorf("key %s, before %s", again.Key, pin.Key)
	}
	if log := web.requests(); len(log) != 1 || !strings.Contains(log[0], `"`) {
		t.Errorf("requests %v, want one with a validator", log)
	}
}

func TestChecksum(t *testing.T) {
	layers, db := newLayers(t)
	web := newSite(t)
	s := newSource(layers, db)
	good := op(web.url+"/x", "http.checksum", digest.FromString("hello").String())
	for range 2 {
		if _, _, err := get(t.Context(), s, good); err != nil {
			t.Fatal(err)
		}
	}
	if log := web.requests(); len(log) != 1 {
		t.Errorf("requests %v, want one", log)
	}
	bad := op(web.url+"/x", "http.checksum", digest.FromString("other").String())
	if _, _, err := get(t.Context(), s, bad); err == nil || !strings.Contains(err.Error(), digest.FromString("hello").String()) {
		t.Errorf("got %v", err)
	}
}

func TestBadServers(t *testing.T) {
	layers, db := newLayers(t)
	web := newSite(t)
	s := newSource(layers, db)
	fails := func(n int, code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if n--; n >= 0 {
				w.WriteHeader(code)
				return
			}
			fmt.Fprint(w, "at last")
		}
	}
	broken := func(n int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "7")
			if n--; n >= 0 {
				fmt.Fprint(w, "at")
				return // the server notices and cuts the connection
			}
			fmt.Fprint(w, "at last")
		}
	}
	for name, tc := range map[string]struct {
		h    http.HandlerFunc
		want string // "" succeeds
	}{
		"500 twice":       {fails(2, 500), ""},
		"429 once":        {fails(1, 429), ""},
		"broken off once": {broken(1), ""},
		"500":             {fails(99, 500), "500"},
		"404":             {fails(99, 404), "404"},
		"401":             {fails(99, 401), "HTTP_AUTH_TOKEN_"},
		"broken off":      {broken(99), "EOF"},
		"too long": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(make([]byte, 2<<20))
		}, "more than"},
		"endless": {func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		}, "more than"},
		"silent": {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "sent nothing"},
		"silent in the middle": {func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, "some")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, "sent nothing"},
		"hostile name": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Disposition", `attachment; filename="../../etc/passwd"`)
		}, "not allowed"},
		"redirects for ever": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }, "redirects"},
		"redirect to a file": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
		}, "file"},
	} {
		web.set("", tc.h)
		_, ref, err := get(t.Context(), s, op(web.url+"/"+strings.ReplaceAll(name, " ", "-")))
		if tc.want == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			} else if got := sourcetest.Files(t, layers, ref); got[strings.ReplaceAll(name, " ", "-")] != "at last" {
				t.Errorf("%s: got %v", name, got)
			}
		} else if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), web.url) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
}

// TestRedirectsToLogins has servers name places with a login in them, none of which
// can be got: nobody is told of the login (CVE-2023-26054).
func TestRedirectsToLogins(t *testing.T) {
	layers, db := newLayers(t)
	web := newSite(t)
	s := newSource(layers, db)
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	host := gone.Listener.Addr().String()
	for _, place := range []string{
		"http://me:sesame@" + host + "/x", "http://sesame@" + host + "/x", "http://:sesame@" + host + "/x",
		"http://me:sesame@bad host/x", "ftp://me:sesame@" + host + "/x", "http://me:sesame@" + web.url[len("http://"):] + "/x",
	} {
		web.set("", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", place)
			w.WriteHeader(http.StatusFound)
		})
		_, _, err := get(t.Context(), s, op(web.url+"/file"))
		if err == nil || strings.Contains(err.Error(), "sesame") || !strings.Contains(err.Error(), web.url) {
			t.Errorf("redirected to %s: got %v", place, err)
		}
	}
	own := strings.Replace(web.url, "http://", "http://sesame@", 1)
	web.set("", http.NotFound)
	if _, _, err := get(t.Context(), s, op(own+"/file")); err == nil || strings.Contains(err.Error(), "sesame") {
		t.Errorf("a URL with a token: got %v", err)
	}
}

func TestSecrets(t *testing.T) {
	layers, db := newLayers(t)
	web, other := newSite(t), newSite(t)
	host := strings.TrimPrefix(web.url, "http://")
	t.Setenv("TOKEN", "sesame\n")
	provider, err := secret.NewProvider([]secret.Source{
		{ID: "HTTP_AUTH_TOKEN_" + host, Env: "TOKEN"}, {ID: "mine", Env: "TOKEN"},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx := sessiontest.Context(t.Context(), sessiontest.Connect(t, provider))
	s := newSource(layers, db)
	web.set("", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other.url+"/y", http.StatusFound) })
	if _, _, err := get(ctx, s, op(web.url+"/x")); err != nil {
		t.Fatal(err)
	}
	if log := web.requests(); !strings.Contains(log[0], "Bearer sesame") {
		t.Errorf("requests %v", log)
	}
	if log := other.requests(); strings.Contains(log[0], "sesame") {
		t.Errorf("the token went to another host: %v", log)
	}
	web.set("x", nil)
	if _, _, err := get(ctx, s, op(web.url+"/z", "http.authheadersecret", "mine")); err != nil {
		t.Fatal(err)
	}
	if log := web.requests(); !strings.Contains(log[0], " sesame") {
		t.Errorf("requests %v", log)
	}
	if _, _, err := get(ctx, s, op(web.url+"/z", "http.authheadersecret", "missing")); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("got %v", err)
	}
}

func TestUpload(t *testing.T) {
	layers, db := newLayers(t)
	provider := upload.NewProvider()
	url := provider.Add("context.tar", strings.NewReader("bytes of a tar"))
	ctx := sessiontest.Context(t.Context(), sessiontest.Connect(t, provider))
	s := newSource(layers, db)
	for range 2 { // the client has it only once
		pin, ref, err := get(ctx, s, op(url))
		if err != nil {
			t.Fatal(err)
		}
		if got := sourcetest.Files(t, layers, ref); got["context.tar"] != "bytes of a tar" || pin.Digest != digest.FromString("bytes of a tar") {
			t.Errorf("got %v", got)
		}
	}
	if _, _, err := get(ctx, s, op("http://"+upload.Host+"/other")); err == nil {
		t.Error("what nobody uploads was fetched")
	}
	if _, _, err := get(t.Context(), s, op(url)); err == nil {
		t.Error("an upload was fetched without a session")
	}
}
