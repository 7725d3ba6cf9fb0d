package image

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/registry"
	"github.com/kiln-build/kiln/internal/session/sessiontest"
	"github.com/kiln-build/kiln/internal/source"
	"github.com/kiln-build/kiln/llb"
)

// recorder takes the layers that would be made.
type recorder struct{ blobs []layer.LazyBlob }

func (r *recorder) FromBlobs(_ context.Context, blobs []layer.LazyBlob) (*layer.Ref, error) {
	r.blobs = blobs
	return nil, nil
}

// names is an image store without images, unless some are put.
type names map[string]ocispecs.Descriptor

func (n names) Image(name string) (ocispecs.Descriptor, bool) {
	d, ok := n[name]
	return d, ok
}

// blobs is content in memory.
type blobs map[digest.Digest][]byte

func (b blobs) ReaderAt(_ context.Context, d ocispecs.Descriptor) (content.ReaderAt, error) {
	data, ok := b[d.Digest]
	if !ok {
		return nil, errdefs.ErrNotFound
	}
	return readerAt{bytes.NewReader(data)}, nil
}

type readerAt struct{ *bytes.Reader }

func (readerAt) Close() error { return nil }

// place is a registry on loopback that can be switched off and counts requests.
type place struct {
	host     string
	requests atomic.Int32
	server   *httptest.Server
}

func newPlace(t *testing.T) *place {
	p := &place{}
	inner := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	p.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.requests.Add(1)
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(p.server.Close)
	p.host = p.server.Listener.Addr().String()
	return p
}

func client() *registry.Client {
	return registry.New(registry.Config{Backoff: time.Millisecond, Attempts: 2, Stall: time.Second})
}

// push makes an image whose config is told apart by mark.
func push(t *testing.T, ref, mark string) digest.Digest {
	t.Helper()
	desc := func(mediaType string, b []byte) ocispecs.Descriptor {
		return ocispecs.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	}
	config := []byte(`{"architecture":"amd64","os":"linux","author":"` + mark + `","rootfs":{"type":"layers","diff_ids":["` + digest.FromString(mark).String() + `"]}}`)
	data := []byte("layer " + mark)
	m := ocispecs.Manifest{
		MediaType: ocispecs.MediaTypeImageManifest, Config: desc(ocispecs.MediaTypeImageConfig, config),
		Layers: []ocispecs.Descriptor{desc(ocispecs.MediaTypeImageLayerGzip, data)},
	}
	m.SchemaVersion = 2
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	open := func(b []byte) func(context.Context) (io.ReadCloser, error) {
		return func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
	}
	d := desc(m.MediaType, raw)
	err = client().Push(t.Context(), registry.Push{
		Ref:       ref,
		Blobs:     []registry.Blob{{Desc: m.Config, Open: open(config)}, {Desc: m.Layers[0], Open: open(data)}},
		Manifests: []registry.Manifest{{Desc: d, Data: raw}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return d.Digest
}

func op(ref string, attrs ...string) *llb.SourceOp {
	o := &llb.SourceOp{Identifier: "docker-image://" + ref, Attrs: map[string]string{}}
	for i := 0; i < len(attrs); i += 2 {
		o.Attrs[attrs[i]] = attrs[i+1]
	}
	return o
}

var amd64 = ocispecs.Platform{OS: "linux", Architecture: "amd64"}

func newSource(memo source.Memo, r *recorder, n names) *Source {
	return New(Config{Layers: r, Content: blobs{}, Registry: client(), Images: n, Memo: memo})
}

func resolve(t *testing.T, ctx context.Context, s *Source, o *llb.SourceOp) *source.Pin {
	t.Helper()
	pin, err := s.Resolve(ctx, o, source.Options{Platform: amd64, WantConfig: true})
	if err != nil {
		t.Fatal(err)
	}
	return pin
}

func TestResolveAndFetch(t *testing.T) {
	p, rec := newPlace(t), &recorder{}
	ref := p.host + "/app:v1"
	dgst := push(t, ref, "one")
	s := newSource(&source.MemoryMemo{}, rec, nil)
	p.requests.Store(0)
	pin := resolve(t, t.Context(), s, op(ref))
	key, err := source.ImageKey(dgst, amd64, 0)
	if err != nil || pin.Key != key || pin.Digest != dgst || !strings.Contains(string(pin.Config), `"one"`) {
		t.Fatalf("pin %+v, %v", pin, err)
	}
	if _, err := s.Fetch(t.Context(), pin); err != nil {
		t.Fatal(err)
	}
	if len(rec.blobs) != 1 || rec.blobs[0].Origin != p.host+"/app@"+dgst.String() || rec.blobs[0].DiffID != digest.FromString("one") {
		t.Errorf("blobs %+v", rec.blobs)
	}
	if n := p.requests.Load(); n != 3 {
		t.Errorf("%d requests, want 3: name, manifest, config", n)
	}
	// A digest that was seen needs no registry, nor does the rest of the build.
	p.requests.Store(0)
	resolve(t, t.Context(), s, op(p.host+"/app@"+dgst.String()))
	if n := p.requests.Load(); n != 1 {
		t.Errorf("first use of the digest: %d requests, want 1", n)
	}
	resolve(t, t.Context(), s, op(p.host+"/app:other@"+dgst.String()))
	if n := p.requests.Load(); n != 1 {
		t.Errorf("second use of the digest: %d requests, want none", n-1)
	}
}

func TestSameWithinABuild(t *testing.T) {
	p := newPlace(t)
	ref := p.host + "/app:v1"
	first := push(t, ref, "one")
	s := newSource(&source.MemoryMemo{}, &recorder{}, nil)
	build := sessiontest.Context(t.Context(), sessiontest.Connect(t))
	resolve(t, build, s, op(ref))
	second := push(t, ref, "two")
	if got := resolve(t, build, s, op(ref)).Digest; got != first {
		t.Error("a tag changed in the middle of a build")
	}
	if got := resolve(t, t.Context(), s, op(ref)).Digest; got != second {
		t.Error("another build does not see the new image")
	}
}

func TestRegistryGone(t *testing.T) {
	p, memo := newPlace(t), &source.MemoryMemo{}
	ref := p.host + "/app:v1"
	dgst := push(t, ref, "one")
	resolve(t, t.Context(), newSource(memo, &recorder{}, nil), op(ref))
	p.server.Close()
	s := newSource(memo, &recorder{}, nil)
	if got := resolve(t, t.Context(), s, op(ref)).Digest; got != dgst {
		t.Error("what the registry said last does not count")
	}
	if _, err := s.Resolve(t.Context(), op(ref, "image.resolvemode", "pull"), source.Options{Platform: amd64}); err == nil {
		t.Error("mode pull needs the registry")
	}
	if _, err := s.Resolve(t.Context(), op(p.host+"/never:seen"), source.Options{Platform: amd64}); err == nil || !strings.Contains(err.Error(), "cannot be reached") {
		t.Errorf("got %v", err)
	}
}

func TestOwnStore(t *testing.T) {
	p := newPlace(t)
	ref := p.host + "/app:v1"
	remote := push(t, ref, "remote")
	local := []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` +
		digest.FromString("{}").String() + `","size":2},"layers":[]}`)
	d := ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageManifest, Digest: digest.FromBytes(local), Size: int64(len(local))}
	s := New(Config{
		Layers: &recorder{}, Content: blobs{d.Digest: local, digest.FromString("{}"): []byte("{}")},
		Registry: client(), Images: names{ref: d, "docker.io/library/myapp:latest": d}, Memo: &source.MemoryMemo{},
	})
	for mode, want := range map[string]digest.Digest{"default": d.Digest, "local": d.Digest, "pull": remote} {
		if got := resolve(t, t.Context(), s, op(ref, "image.resolvemode", mode)).Digest; got != want {
			t.Errorf("mode %s: got %s", mode, got)
		}
	}
	if got := resolve(t, t.Context(), s, op("myapp")).Digest; got != d.Digest {
		t.Error("a short name is not found in the store")
	}
}

// That an image is here says nothing of who may have it by another name.
func TestDigestOfAnotherRepository(t *testing.T) {
	p := newPlace(t)
	dgst := push(t, p.host+"/secret:v1", "one").String()
	s := newSource(&source.MemoryMemo{}, &recorder{}, nil)
	for _, ref := range []string{p.host + "/secret:v1", p.host + "/secret@" + dgst} {
		resolve(t, t.Context(), s, op(ref))
	}
	if _, err := s.Resolve(t.Context(), op(p.host+"/other@"+dgst), source.Options{Platform: amd64}); err == nil {
		t.Error("a repository that is not there has an image")
	}
}

func TestBadOps(t *testing.T) {
	p := newPlace(t)
	dgst := push(t, p.host+"/app:v1", "one")
	s := newSource(&source.MemoryMemo{}, &recorder{}, nil)
	for _, o := range []*llb.SourceOp{
		op("A B"), op(p.host+"/app:v1", "image.resolvemode", "sometimes"), op(p.host+"/app:v1", "image.layerlimit", "-1"),
		op(p.host+"/app:v1", "image.recordtype", "x"), op(p.host+"/app:v1", "image.checksum", "x"),
		op(p.host+"/app:v1", "image.checksum", digest.FromString("other").String()), op(p.host+"/app:v1", "image.new", "x"),
		op(p.host + "/app:v2"), op(p.host + "/app@" + digest.FromString("x").String()), {Identifier: "http://x"},
	} {
		if _, err := s.Resolve(t.Context(), o, source.Options{Platform: amd64}); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
	if _, err := s.Resolve(t.Context(), op(p.host+"/app:v1", "image.checksum", dgst.String()), source.Options{Platform: amd64}); err != nil {
		t.Error(err)
	}
}
