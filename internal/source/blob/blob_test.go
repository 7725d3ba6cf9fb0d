package blob_test

import (
	"context"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	contentstore "github.com/containerd/containerd/v2/core/content"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/layer/layertest"
	"github.com/kiln-build/kiln/internal/registry"
	"github.com/kiln-build/kiln/internal/session"
	sessioncontent "github.com/kiln-build/kiln/internal/session/content"
	"github.com/kiln-build/kiln/internal/session/sessiontest"
	"github.com/kiln-build/kiln/internal/source"
	"github.com/kiln-build/kiln/internal/source/blob"
	"github.com/kiln-build/kiln/internal/source/sourcetest"
	"github.com/kiln-build/kiln/internal/store"
	"github.com/kiln-build/kiln/llb"
)

// newLayers returns an empty layer store.
func newLayers(t *testing.T) *layer.Store {
	t.Helper()
	root := t.TempDir()
	db, err := store.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	layertest.Closing(t, db.Close)
	return layertest.Open(t, root, db)
}

// fromRegistry returns a blob in a registry on loopback.
func fromRegistry(t *testing.T, data string) (blob.Blobs, *llb.SourceOp) {
	t.Helper()
	server := httptest.NewServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	client := registry.New(registry.Config{Backoff: time.Millisecond, Attempts: 2, Stall: 5 * time.Second})
	host := server.Listener.Addr().String()
	d := ocispecs.Descriptor{MediaType: "application/octet-stream", Digest: digest.FromString(data), Size: int64(len(data))}
	manifest := []byte(`{"schemaVersion":2}`)
	err := client.Push(t.Context(), registry.Push{
		Ref: host + "/some/repo:latest",
		Blobs: []registry.Blob{{Desc: d, Open: func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader(data)), nil
		}}},
		Manifests: []registry.Manifest{{Data: manifest, Desc: ocispecs.Descriptor{
			MediaType: ocispecs.MediaTypeImageManifest, Digest: digest.FromBytes(manifest), Size: int64(len(manifest))}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return client, &llb.SourceOp{Identifier: "docker-image+blob://" + host + "/some/repo@" + d.Digest.String(), Attrs: map[string]string{}}
}

func TestSuite(t *testing.T) {
	sourcetest.Run(t, func(t *testing.T) sourcetest.Subject {
		blobs, op := fromRegistry(t, "the blob")
		op.Attrs["http.filename"] = "data.bin"
		layers := newLayers(t)
		return sourcetest.Subject{
			Source: blob.New(blob.Config{Layers: layers, Blobs: blobs, Sessions: session.NewManager(), Memo: &source.MemoryMemo{}}),
			Layers: layers, Context: t.Context(), Op: op, Files: map[string]string{"data.bin": "the blob"},
		}
	})
}

// TestFile checks name, mode, owner and time of the file.
func TestFile(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("files of other owners need root: run this test as root")
	}
	blobs, op := fromRegistry(t, "x")
	layers := newLayers(t)
	s := blob.New(blob.Config{Layers: layers, Blobs: blobs, Sessions: session.NewManager(), Memo: &source.MemoryMemo{}})
	d := op.Identifier[strings.LastIndexByte(op.Identifier, ':')+1:]
	for _, test := range []struct {
		attrs    map[string]string
		name     string
		mode     os.FileMode
		uid, gid uint32
	}{
		{nil, d, 0o600, 0, 0},
		{map[string]string{"http.filename": "f", "http.perm": "0755", "http.uid": "12", "http.gid": "34"}, "f", 0o755, 12, 34},
	} {
		pin, err := s.Resolve(t.Context(), &llb.SourceOp{Identifier: op.Identifier, Attrs: test.attrs}, source.Options{})
		if err != nil {
			t.Fatal(err)
		}
		ref, err := s.Fetch(t.Context(), pin)
		if err != nil {
			t.Fatal(err)
		}
		dir, release, err := layers.Mount(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		fi, err := os.Stat(filepath.Join(dir, test.name))
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode() != test.mode || fi.ModTime().Unix() != 0 {
			t.Errorf("%s: mode %v, time %v", test.name, fi.Mode(), fi.ModTime())
		}
		if uid, gid := owner(fi); uid != test.uid || gid != test.gid {
			t.Errorf("%s: owner %d:%d, expected %d:%d", test.name, uid, gid, test.uid, test.gid)
		}
		if err := release(); err != nil {
			t.Fatal(err)
		}
	}
}

// lying serves other bytes than those asked for.
type lying struct{}

func (lying) OpenBlob(context.Context, string, digest.Digest) (io.ReadCloser, int64, error) {
	return io.NopCloser(strings.NewReader("something else")), 14, nil
}

func TestWrongBytes(t *testing.T) {
	layers := newLayers(t)
	s := blob.New(blob.Config{Layers: layers, Blobs: lying{}, Sessions: session.NewManager(), Memo: &source.MemoryMemo{}})
	pin, err := s.Resolve(t.Context(), &llb.SourceOp{Identifier: "docker-image+blob://h/r@" + digest.FromString("right").String()}, source.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Fetch(t.Context(), pin); err == nil || !strings.Contains(err.Error(), "blob digest mismatch") {
		t.Errorf("wrong bytes: got %v", err)
	}
}

// TestLayout brings in a blob of a client's layout, found by the session's id.
func TestLayout(t *testing.T) {
	dir := t.TempDir()
	data := []byte("of a layout")
	d := digest.FromBytes(data)
	p := filepath.Join(dir, "blobs/sha256", d.Encoded())
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{p: data, filepath.Join(dir, "oci-layout"): []byte(`{"imageLayoutVersion":"1.0.0"}`)} {
		if err := os.WriteFile(name, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	l, err := sessioncontent.OpenLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	c := sessiontest.Connect(t, sessioncontent.NewProvider(map[string]contentstore.Store{"oci:local/x": l}))
	layers := newLayers(t)
	s := blob.New(blob.Config{Layers: layers, Blobs: ofSession{}, Sessions: only{c}, Memo: &source.MemoryMemo{}})
	op := &llb.SourceOp{Identifier: "oci-layout+blob://local/x@" + d.String(),
		Attrs: map[string]string{"oci.store": "local/x", "oci.session": c.ID(), "http.filename": "f"}}
	pin, err := s.Resolve(t.Context(), op, source.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ref, err := s.Fetch(t.Context(), pin)
	if err != nil {
		t.Fatal(err)
	}
	if got := sourcetest.Files(t, layers, ref); got["f"] != string(data) {
		t.Errorf("got %v", got)
	}
	delete(op.Attrs, "oci.store")
	if _, err := s.Resolve(t.Context(), op, source.Options{}); err == nil || !strings.Contains(err.Error(), "oci.store") {
		t.Errorf("without a store: got %v", err)
	}
}

// only is the one session that there is.
type only struct{ c *session.Caller }

func (o only) Get(context.Context, string) (*session.Caller, error) { return o.c, nil }

// ofSession opens blobs of the layouts of the context's sessions.
type ofSession struct{}

func (ofSession) OpenBlob(ctx context.Context, origin string, d digest.Digest) (io.ReadCloser, int64, error) {
	id := "oci:" + strings.TrimPrefix(origin, "oci-layout://")
	var b []byte
	err := session.Any(ctx, sessioncontent.MethodRead, func(ctx context.Context, c *session.Caller) error {
		s, err := sessioncontent.Store(c, id)
		if err == nil {
			b, err = contentstore.ReadBlob(ctx, s, ocispecs.Descriptor{Digest: d, Size: 11})
		}
		return err
	})
	return io.NopCloser(strings.NewReader(string(b))), int64(len(b)), err
}
