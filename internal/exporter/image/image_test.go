package image_test

import (
	"context"
	"encoding/json"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	blobs "github.com/kiln-build/kiln/internal/content"
	"github.com/kiln-build/kiln/internal/exporter"
	"github.com/kiln-build/kiln/internal/exporter/exportertest"
	"github.com/kiln-build/kiln/internal/exporter/image"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/registry"
	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/internal/snapshot"
	"github.com/kiln-build/kiln/internal/source"
	imagesource "github.com/kiln-build/kiln/internal/source/image"
	"github.com/kiln-build/kiln/internal/source/sourcetest"
	"github.com/kiln-build/kiln/internal/store"
	"github.com/kiln-build/kiln/llb"
)

var amd64 = ocispecs.Platform{OS: "linux", Architecture: "amd64"}

// machine is a daemon's stores.
type machine struct {
	db       *store.Store
	content  *blobs.Store
	layers   *layer.Store
	client   *registry.Client
	exporter *image.Exporter
	source   *imagesource.Source
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	root := t.TempDir()
	m := &machine{client: registry.New(registry.Config{Attempts: 2, Backoff: time.Millisecond})}
	snapshots, err := snapshot.Open(filepath.Join(root, "snapshots"), snapshot.Auto)
	if err != nil {
		t.Fatal(err)
	}
	if m.content, err = blobs.Open(t.Context(), filepath.Join(root, "content")); err != nil {
		t.Fatal(err)
	}
	if m.db, err = store.Open(root); err != nil {
		t.Fatal(err)
	}
	m.layers, err = layer.NewStore(t.Context(), layer.Config{
		Dir: filepath.Join(root, "layers"), Snapshots: snapshots, Content: m.content, Records: m.db, Fetcher: m.client,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, err := range []error{m.layers.Close(), m.db.Close(), snapshots.Close()} {
			if err != nil {
				t.Error(err)
			}
		}
	})
	m.exporter = image.New(image.Config{
		Layers: m.layers, Content: m.content, Images: m.db, Registry: m.client, Fetcher: m.client,
	})
	m.source = imagesource.New(imagesource.Config{
		Layers: m.layers, Content: m.content, Registry: m.client, Images: m.db, Memo: m.db,
	})
	return m
}

// layer makes a state with one more file.
func (m *machine) layer(t *testing.T, parent *layer.Ref, name, data string) *layer.Ref {
	t.Helper()
	mutable, err := m.layers.New(t.Context(), parent, layer.NewOptions{Description: "make " + name})
	if err != nil {
		t.Fatal(err)
	}
	dir, release, err := mutable.Mount(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	ref, err := mutable.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func input(ref *layer.Ref) exporter.Input {
	return exporter.Input{Platforms: []exporter.Platform{{Platform: amd64, Ref: ref}}}
}

func (m *machine) export(t *testing.T, in exporter.Input, attrs map[string]string) map[string]string {
	t.Helper()
	response, err := m.exporter.Export(t.Context(), in, exporter.Target{Attrs: attrs})
	if err != nil {
		t.Fatal(err)
	}
	return response
}

// pull returns the state of an image, lazily.
func (m *machine) pull(t *testing.T, name string) *layer.Ref {
	t.Helper()
	pin, err := m.source.Resolve(t.Context(), &llb.SourceOp{Identifier: "docker-image://" + name}, source.Options{Platform: amd64})
	if err != nil {
		t.Fatal(err)
	}
	ref, err := m.source.Fetch(t.Context(), pin)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// place is a registry on loopback that remembers requests.
type place struct {
	host string
	mu   sync.Mutex
	log  []string
}

func newPlace(t *testing.T) *place {
	p := &place{}
	inner := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		p.log = append(p.log, r.Method+" "+r.URL.Path)
		p.mu.Unlock()
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	p.host = s.Listener.Addr().String()
	return p
}

func (p *place) requests(method, part string) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.log {
		if strings.HasPrefix(l, method) && strings.Contains(l, part) {
			n++
		}
	}
	return n
}

// documents are a manifest, or an index and the manifests that it lists.
func (m *machine) documents(t *testing.T, d ocispecs.Descriptor) (string, error) {
	b, err := content.ReadBlob(t.Context(), m.content, d)
	var index ocispecs.Index
	if err != nil || json.Unmarshal(b, &index) != nil {
		return string(b), err
	}
	text := string(b)
	for _, child := range index.Manifests {
		more, err := m.documents(t, child)
		if err != nil {
			return "", err
		}
		text += more
	}
	return text, nil
}

func TestSuite(t *testing.T) {
	exportertest.Run(t, func(t *testing.T) exportertest.Subject {
		m := newMachine(t)
		return exportertest.Subject{
			Exporter: m.exporter, Input: input(m.layer(t, nil, "file", "data")), Attrs: map[string]string{"name": "app:v1"},
			Digest: true, Response: []string{"containerimage.digest", "containerimage.config.digest", "image.name"},
			Connect: func(*testing.T) (*session.Caller, func(*testing.T) map[string]string) {
				return nil, func(t *testing.T) map[string]string {
					got := map[string]string{}
					if err := m.db.Images(func(name string, d ocispecs.Descriptor) error {
						text, err := m.documents(t, d)
						got[name] = text
						return err
					}); err != nil {
						t.Fatal(err)
					}
					return got
				}
			},
		}
	})
}

func TestPushThenPullElsewhere(t *testing.T) {
	p, m := newPlace(t), newMachine(t)
	ref := m.layer(t, m.layer(t, nil, "a", "one"), "b", strings.Repeat("two", 1_000_000))
	name := p.host + "/demo/app:v1"
	for _, compression := range []string{"gzip", "zstd", "uncompressed"} {
		m.export(t, input(ref), map[string]string{"name": name, "push": "true", "compression": compression})
		got := sourcetest.Files(t, newMachine(t).layers, nil)
		if len(got) != 0 {
			t.Errorf("a new machine has files: %v", got)
		}
		other := newMachine(t)
		got = sourcetest.Files(t, other.layers, other.pull(t, name))
		if want := map[string]string{"a": "one", "b": strings.Repeat("two", 1_000_000)}; !maps.Equal(got, want) {
			t.Errorf("%s: pulled %d files", compression, len(got))
		}
	}
	before := p.requests("PUT", "/blobs/")
	m.export(t, input(ref), map[string]string{"name": name, "push": "true"})
	if n := p.requests("PUT", "/blobs/") - before; n != 0 {
		t.Errorf("%d blobs were sent again", n)
	}
	if _, err := m.exporter.Export(t.Context(), input(ref), exporter.Target{Attrs: map[string]string{"push": "true"}}); err == nil {
		t.Error("an image without a name was pushed")
	}
}

func TestLazyLayersAreNotPulled(t *testing.T) {
	p, q := newPlace(t), newPlace(t)
	builder := newMachine(t)
	builder.export(t, input(builder.layer(t, nil, "base", "base")), map[string]string{"name": p.host + "/base:v1", "push": "true"})

	m := newMachine(t)
	base := m.pull(t, p.host+"/base:v1")
	m.export(t, input(base), map[string]string{"name": p.host + "/copy:v1", "push": "true"})
	if n := p.requests("GET", "/blobs/") - 1; n > 0 { // the config is read
		t.Errorf("%d layers were downloaded for a push to the same registry", n)
	}
	m.export(t, input(base), map[string]string{"name": q.host + "/copy:v1", "push": "true"})
	if err := m.content.Walk(t.Context(), func(info content.Info) error {
		b, err := content.ReadBlob(t.Context(), m.content, ocispecs.Descriptor{Digest: info.Digest, Size: info.Size})
		if err == nil && !strings.HasPrefix(string(b), "{") {
			t.Errorf("layer %s was kept on its way from one registry to another", info.Digest)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	other := newMachine(t)
	if got := sourcetest.Files(t, other.layers, other.pull(t, q.host+"/copy:v1")); got["base"] != "base" {
		t.Errorf("got %v", got)
	}
}

func TestBuildOnOwnImage(t *testing.T) {
	m := newMachine(t)
	m.export(t, input(m.layer(t, nil, "file", "data")), map[string]string{"name": "myapp"})
	if got := sourcetest.Files(t, m.layers, m.pull(t, "myapp")); got["file"] != "data" {
		t.Errorf("got %v", got)
	}
}

func TestNames(t *testing.T) {
	m := newMachine(t)
	ref := m.layer(t, nil, "file", "data")
	response := m.export(t, input(ref), map[string]string{"name": "app:v1,app:v2", "name-canonical": "true", "dangling-name-prefix": "none", "danging-name-empty-only": "true"})
	d := response["containerimage.digest"]
	m.export(t, input(ref), map[string]string{"dangling-name-prefix": "dangling", "danging-name-empty-only": "true"})
	got := map[string]bool{}
	if err := m.db.Images(func(name string, _ ocispecs.Descriptor) error { got[name] = true; return nil }); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"docker.io/library/app:v1", "docker.io/library/app:v2", "docker.io/library/app@" + d} {
		if !got[want] {
			t.Errorf("no image %s in %v", want, got)
		}
	}
	if len(got) != 4 {
		t.Errorf("images %v", got)
	}
}

// TestSameOnAnotherMachine builds the same at other times and places.
func TestSameOnAnotherMachine(t *testing.T) {
	epoch := time.Unix(1_000_000_000, 0)
	var first string
	for range 2 {
		m := newMachine(t)
		in := input(m.layer(t, m.layer(t, nil, "a", "one"), "b", "two"))
		in.Epoch = &epoch
		got := m.export(t, in, map[string]string{"name": "app"})["containerimage.digest"]
		if first != "" && got != first {
			t.Errorf("digest %s, before %s", got, first)
		}
		first = got
		time.Sleep(1100 * time.Millisecond) // times in layers count in seconds
	}
}

func TestPushFails(t *testing.T) {
	m := newMachine(t)
	_, err := m.exporter.Export(t.Context(), input(m.layer(t, nil, "a", "b")), exporter.Target{
		Attrs: map[string]string{"name": "127.0.0.1:1/app:v1", "push": "true"},
	})
	if err == nil || !strings.Contains(err.Error(), "push 127.0.0.1:1/app:v1") || !strings.Contains(err.Error(), "cannot be reached") {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.exporter.Export(ctx, input(nil), exporter.Target{Attrs: map[string]string{"name": digest.FromString("").Encoded()}}); err == nil {
		t.Error("64 hex digits are no name")
	}
}
