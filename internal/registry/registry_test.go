package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// fault may answer a request itself; it returns false to let it pass.
type fault func(w http.ResponseWriter, r *http.Request) bool

// testRegistry is a registry on loopback whose answers can be spoiled.
type testRegistry struct {
	host string
	mu   sync.Mutex
	f    fault
	log  []string
}

func newTestRegistry(t *testing.T) *testRegistry {
	t.Helper()
	r := &testRegistry{}
	inner := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		f := r.f
		r.log = append(r.log, req.Method+" "+req.URL.RequestURI())
		r.mu.Unlock()
		if f != nil && f(w, req) {
			return
		}
		inner.ServeHTTP(w, req)
	}))
	t.Cleanup(s.Close)
	r.host = s.Listener.Addr().String()
	return r
}

func (r *testRegistry) spoil(f fault) {
	r.mu.Lock()
	r.f, r.log = f, nil
	r.mu.Unlock()
}

func (r *testRegistry) count(method, part string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.log {
		if strings.HasPrefix(l, method+" ") && strings.Contains(l, part) {
			n++
		}
	}
	return n
}

func testClient(logins ...Login) *Client {
	return New(Config{
		Backoff: time.Millisecond, Stall: 300 * time.Millisecond, MaxPause: time.Second, Attempts: 3,
		Logins: func(context.Context) []Login { return logins },
	})
}

// testImage is an image with one layer of random bytes.
type testImage struct {
	layer, config []byte
	manifest      Manifest
	blobs         []Blob
}

func newTestImage(size int) testImage {
	rng := rand.New(rand.NewPCG(1, uint64(size)))
	layer := make([]byte, size)
	for i := range layer {
		layer[i] = byte(rng.Uint32())
	}
	img := testImage{layer: layer, config: []byte(`{"architecture":"amd64","os":"linux"}`)}
	open := func(b []byte) func(context.Context) (io.ReadCloser, error) {
		return func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
	}
	m := ocispecs.Manifest{MediaType: ocispecs.MediaTypeImageManifest, Config: descOf(ocispecs.MediaTypeImageConfig, img.config)}
	m.SchemaVersion = 2
	m.Layers = []ocispecs.Descriptor{descOf(ocispecs.MediaTypeImageLayerGzip, layer)}
	data, _ := json.Marshal(m) // of plain structs
	img.manifest = Manifest{Desc: descOf(ocispecs.MediaTypeImageManifest, data), Data: data}
	img.blobs = []Blob{{Desc: m.Config, Open: open(img.config)}, {Desc: m.Layers[0], Open: open(layer)}}
	return img
}

func descOf(mediaType string, b []byte) ocispecs.Descriptor {
	return ocispecs.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
}

func (i testImage) push(t *testing.T, c *Client, ref string) {
	t.Helper()
	if err := c.Push(t.Context(), Push{Ref: ref, Blobs: i.blobs, Manifests: []Manifest{i.manifest}}); err != nil {
		t.Fatal(err)
	}
}

func (i testImage) pull(ctx context.Context, c *Client, ref string) error {
	desc, err := c.Resolve(ctx, ref)
	if err != nil {
		return err
	}
	if desc.Digest != i.manifest.Desc.Digest {
		return fmt.Errorf("resolved to %s, want %s", desc.Digest, i.manifest.Desc.Digest)
	}
	data, err := c.ReadAll(ctx, ref, desc)
	if err != nil {
		return err
	}
	if !bytes.Equal(data, i.manifest.Data) {
		return errors.New("manifest differs")
	}
	rc, err := c.Fetch(ctx, ref, i.blobs[1].Desc)
	if err != nil {
		return err
	}
	defer rc.Close()
	got, err := io.ReadAll(rc)
	if err == nil && !bytes.Equal(got, i.layer) {
		return errors.New("layer differs")
	}
	return err
}

func TestPushAndPull(t *testing.T) {
	r, c, img := newTestRegistry(t), testClient(), newTestImage(3<<20)
	ref := r.host + "/demo/app:v1"
	img.push(t, c, ref)
	if err := img.pull(t.Context(), c, ref); err != nil {
		t.Fatal(err)
	}
	r.spoil(nil)
	img.push(t, c, ref)
	if n := r.count("PUT", "") + r.count("POST", "") + r.count("PATCH", ""); n != 0 {
		t.Fatalf("the second push sent %d requests with content, want none", n)
	}
}

func TestPushMountsFromOrigin(t *testing.T) {
	r, c, img := newTestRegistry(t), testClient(), newTestImage(1000)
	img.push(t, c, r.host+"/base:v1")
	blobs := append([]Blob(nil), img.blobs...)
	blobs[1].Origin = r.host + "/base@" + img.manifest.Desc.Digest.String()
	blobs[1].Open = func(context.Context) (io.ReadCloser, error) { return nil, errors.New("read without need") }
	var mounted atomic.Bool
	r.spoil(func(w http.ResponseWriter, req *http.Request) bool {
		// The registry used here shares blobs among repositories: hide them.
		if req.Method == http.MethodHead && strings.Contains(req.URL.Path, "/app/blobs/") {
			w.WriteHeader(http.StatusNotFound)
			return true
		}
		if req.URL.Query().Get("mount") == blobs[1].Desc.Digest.String() && req.URL.Query().Get("from") == "base" {
			mounted.Store(true)
			w.WriteHeader(http.StatusCreated)
			return true
		}
		return false
	})
	if err := c.Push(t.Context(), Push{Ref: r.host + "/app:v1", Blobs: blobs, Manifests: []Manifest{img.manifest}}); err != nil {
		t.Fatal(err)
	}
	if !mounted.Load() {
		t.Fatal("the layer was not mounted")
	}
}

// once makes a fault happen the first n times that f wants it.
func times(n int32, f fault) fault {
	var seen atomic.Int32
	return func(w http.ResponseWriter, r *http.Request) bool {
		if seen.Load() >= n || !f(w, r) {
			return false
		}
		seen.Add(1)
		return true
	}
}

func status(code int, header ...string) fault {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
		return true
	}
}

func onBlob(f fault) fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		return strings.Contains(r.URL.Path, "/blobs/") && r.Method == http.MethodGet && f(w, r)
	}
}

// cut sends the blob from where it is asked for, up to n bytes, and resets the connection.
func cut(layer []byte, n int) fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		start := 0
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &start); err == nil {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, len(layer)-1, len(layer)))
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(layer)-start))
		if start > 0 {
			w.WriteHeader(http.StatusPartialContent)
		}
		_, _ = w.Write(layer[start:min(start+n, len(layer))])
		if start+n < len(layer) {
			w.(http.Flusher).Flush()
			conn, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				_ = conn.(*net.TCPConn).SetLinger(0)
				_ = conn.Close()
			}
		}
		return true
	}
}

func hang(w http.ResponseWriter, r *http.Request) bool {
	<-r.Context().Done()
	return true
}

func TestPullSurvives(t *testing.T) {
	img := newTestImage(1 << 20)
	for name, f := range map[string]fault{
		"429 with Retry-After":  times(2, status(429, "Retry-After", "0")),
		"500 twice":             times(2, status(500)),
		"503 on a blob":         times(2, onBlob(status(503))),
		"one hang":              times(1, hang),
		"resets in the middle":  onBlob(cut(img.layer, 300_000)),
		"HEAD is not supported": func(w http.ResponseWriter, r *http.Request) bool { return r.Method == "HEAD" && status(405)(w, r) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, c := newTestRegistry(t), testClient()
			c.cfg.Stall = 3 * time.Second // what a busy machine may take
			img.push(t, c, r.host+"/app:v1")
			r.spoil(f)
			if err := img.pull(t.Context(), c, r.host+"/app:v1"); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestPullErrorsAreClear(t *testing.T) {
	img := newTestImage(1 << 20)
	for name, tc := range map[string]struct {
		f    fault
		want []string
	}{
		"401":        {status(401, "WWW-Authenticate", `Basic realm="x"`), []string{"401", "docker login"}},
		"404":        {status(404), []string{"no such image", "404"}},
		"403":        {status(403), []string{"forbids", "403"}},
		"429":        {status(429, "Retry-After", "3600"), []string{"429", "1h0m0s", "(1 attempts)", "wait a while"}},
		"500":        {status(500), []string{"500", "3 attempts", "try again later"}},
		"hang":       {hang, []string{"did not answer", "no byte came"}},
		"blob hang":  {onBlob(hang), []string{"did not answer"}},
		"resets":     {onBlob(cut(img.layer, 0)), []string{"broke the connection off"}},
		"wrong data": {onBlob(func(w http.ResponseWriter, _ *http.Request) bool { _, _ = w.Write(make([]byte, 1<<20)); return true }), []string{"digest", "damaged"}},
		"too short":  {onBlob(func(w http.ResponseWriter, _ *http.Request) bool { _, _ = w.Write(img.layer[:5]); return true }), []string{"5 of the 1048576 bytes", "damaged"}},
		"too long":   {onBlob(func(w http.ResponseWriter, _ *http.Request) bool { _, _ = w.Write(make([]byte, 2<<20)); return true }), []string{"registry"}},
	} {
		t.Run(name, func(t *testing.T) {
			r, c := newTestRegistry(t), testClient()
			ref := r.host + "/app:v1"
			img.push(t, c, ref)
			r.spoil(tc.f)
			err := img.pull(t.Context(), c, ref)
			if err == nil {
				t.Fatal("the pull succeeded")
			}
			for _, w := range append(tc.want, ref, r.host) {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not say %q", err, w)
				}
			}
		})
	}
	_, err := testClient().Resolve(t.Context(), "127.0.0.1:1/app:v1")
	if err == nil || !strings.Contains(err.Error(), "cannot be reached") {
		t.Errorf("closed port: got %v", err)
	}
}

// An answer that ought to be small is read so far and no further.
func TestEndlessAnswers(t *testing.T) {
	const most = 64 << 20
	var sent atomic.Int64
	endless := func(begin string) http.HandlerFunc {
		return func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Content-Type", ocispecs.MediaTypeImageManifest)
			if req.Method == http.MethodHead {
				return // neither a size nor a digest
			}
			_, err := io.WriteString(w, begin)
			for chunk := bytes.Repeat([]byte("x"), 1<<16); err == nil && sent.Load() < most; sent.Add(int64(len(chunk))) {
				_, err = w.Write(chunk)
			}
		}
	}
	tokens := httptest.NewServer(endless(`{"token":"`))
	t.Cleanup(tokens.Close)
	for name, f := range map[string]fault{
		"manifest": func(w http.ResponseWriter, req *http.Request) bool { endless("{")(w, req); return true },
		"token":    wantsToken(tokens.URL + "/token"),
	} {
		t.Run(name, func(t *testing.T) {
			sent.Store(0)
			r := newTestRegistry(t)
			r.spoil(f)
			_, err := testClient().Resolve(t.Context(), r.host+"/app:v1")
			if err == nil || !strings.Contains(err.Error(), "bytes that are allowed") {
				t.Errorf("got %v, want that the answer is too large", err)
			}
			if sent.Load() >= most {
				t.Error("the answer was read to its end")
			}
		})
	}
}

func TestPushSurvivesAndExplains(t *testing.T) {
	img := newTestImage(1 << 20)
	put := func(f fault) fault {
		return func(w http.ResponseWriter, r *http.Request) bool {
			return r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/blobs/") && f(w, r)
		}
	}
	r, c := newTestRegistry(t), testClient()
	r.spoil(times(2, put(func(w http.ResponseWriter, r *http.Request) bool {
		_, _ = io.CopyN(io.Discard, r.Body, 1000)
		return status(500)(w, r)
	})))
	// The config and the layer each fail once or twice.
	img.push(t, c, r.host+"/app:v1")
	if err := img.pull(t.Context(), c, r.host+"/app:v1"); err != nil {
		t.Fatal(err)
	}
	r.spoil(func(w http.ResponseWriter, r *http.Request) bool {
		return r.Method != http.MethodGet && status(401, "WWW-Authenticate", `Basic realm="x"`)(w, r)
	})
	err := c.Push(t.Context(), Push{Ref: r.host + "/other:v1", Blobs: img.blobs, Manifests: []Manifest{img.manifest}})
	if err == nil || !strings.Contains(err.Error(), "docker login "+r.host) {
		t.Fatalf("got %v", err)
	}
}

// TestPushBeginsWithContent pushes what has to be pulled from the same registry first,
// which may answer nobody while it waits for content.
func TestPushBeginsWithContent(t *testing.T) {
	r, c, img := newTestRegistry(t), testClient(), newTestImage(1<<20)
	img.push(t, c, r.host+"/base:v1")
	r.spoil(func(w http.ResponseWriter, req *http.Request) bool { // its repositories share what they have
		return req.Method == http.MethodHead && status(404)(w, req)
	})
	layer := img.blobs[1]
	promised := Blob{Desc: layer.Desc, Open: func(ctx context.Context) (io.ReadCloser, error) {
		time.Sleep(100 * time.Millisecond) // in which a request would begin
		if n := r.count("PUT", "/blobs/"); n != 0 {
			t.Errorf("%d requests with content began before there was any", n)
		}
		return c.Fetch(ctx, r.host+"/base:v1", layer.Desc)
	}}
	if err := c.Push(t.Context(), Push{Ref: r.host + "/app:v1", Blobs: []Blob{promised}}); err != nil {
		t.Fatal(err)
	}
	if r.count("PUT", "/blobs/") != 1 {
		t.Errorf("the layer was not sent once")
	}
	lost := Blob{Desc: descOf(ocispecs.MediaTypeImageLayerGzip, []byte("lost")), Open: func(context.Context) (io.ReadCloser, error) {
		return nil, io.ErrNoProgress
	}}
	r.spoil(nil)
	if err := c.Push(t.Context(), Push{Ref: r.host + "/app:v1", Blobs: []Blob{lost}}); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("a lost layer: got %v", err)
	}
	if n := r.count("PUT", "/blobs/"); n != 0 {
		t.Errorf("%d requests for a lost layer", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	slow := Blob{Desc: lost.Desc, Open: func(ctx context.Context) (io.ReadCloser, error) {
		cancel()
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	if err := c.Push(ctx, Push{Ref: r.host + "/app:v1", Blobs: []Blob{slow}}); !errors.Is(err, context.Canceled) {
		t.Errorf("a canceled push: got %v", err)
	}
}

func TestParseReference(t *testing.T) {
	for in, want := range map[string]string{
		"alpine":                  "docker.io/library/alpine:latest",
		"localhost:5000/a/b:c":    "localhost:5000/a/b:c",
		"ghcr.io/x/y":             "ghcr.io/x/y:latest",
		"UPPER":                   "",
		"a b":                     "",
		"app:tag:tag":             "",
		"../../etc/passwd":        "",
		strings.Repeat("a", 5000): "",
	} {
		got, err := ParseReference(in)
		if (err != nil) != (want == "") || err == nil && got.String() != want {
			t.Errorf("ParseReference(%.30q) = %v, %v; want %q", in, got, err, want)
		}
	}
}

func FuzzParseReference(f *testing.F) {
	for _, seed := range []string{"alpine", "localhost:5000/a/b:c", "a@sha256:" + strings.Repeat("0", 64), "[::1]:5000/x", "A", "..", "a//b", "\x00"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := ParseReference(s)
		if err != nil {
			return
		}
		again, err := ParseReference(ref.String())
		if err != nil || again.String() != ref.String() {
			t.Errorf("%q became %q, which becomes %v, %v", s, ref, again, err)
		}
		if strings.ContainsAny(ref.String(), "\x00\n \\") || strings.Contains(ref.String(), "..") && !strings.Contains(s, "..") {
			t.Errorf("%q became %q", s, ref)
		}
	})
}
