package content_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	sessioncontent "github.com/kiln-build/kiln/internal/session/content"
)

// put writes a blob and returns what names it.
func put(t *testing.T, o *sessioncontent.Output, mediaType, text string) ocispecs.Descriptor {
	t.Helper()
	d := ocispecs.Descriptor{MediaType: mediaType, Digest: digest.FromString(text), Size: int64(len(text))}
	if err := content.WriteBlob(t.Context(), o, d.Digest.String(), bytes.NewReader([]byte(text)), d); err != nil {
		t.Fatal(err)
	}
	return d
}

// manifest writes a manifest of one layer.
func manifest(t *testing.T, o *sessioncontent.Output, layer string) ocispecs.Descriptor {
	t.Helper()
	m := ocispecs.Manifest{
		Config: put(t, o, ocispecs.MediaTypeImageConfig, "{}"), Layers: []ocispecs.Descriptor{put(t, o, ocispecs.MediaTypeImageLayer, layer)},
	}
	m.SchemaVersion = 2
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return put(t, o, ocispecs.MediaTypeImageManifest, string(text))
}

// Each name of an image leads to the newest of that name, and the others stay.
func TestOutputNames(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "layout")
	o, err := sessioncontent.NewOutput(dir)
	if err != nil {
		t.Fatal(err)
	}
	finish := func(d ocispecs.Descriptor, names string) {
		t.Helper()
		text, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		if err := o.Finish(base64.StdEncoding.EncodeToString(text), names); err != nil {
			t.Fatal(err)
		}
	}
	old, other, latest := manifest(t, o, "old"), manifest(t, o, "other"), manifest(t, o, "latest")
	finish(old, "example.com/a/b:tag,example.com/c")
	finish(other, "example.com/a/b:tag")
	finish(latest, "")
	l, err := sessioncontent.OpenLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	for tag, want := range map[string]digest.Digest{
		"example.com/a/b:tag": other.Digest, "tag": other.Digest, "example.com/c": old.Digest, "latest": latest.Digest,
	} {
		if d, err := l.Resolve(tag); err != nil || d.Digest != want {
			t.Errorf("%s: %s, %v, want %s", tag, d.Digest, err, want)
		}
	}
	for _, tag := range []string{"", "none"} {
		if d, err := l.Resolve(tag); err == nil {
			t.Errorf("%q is %s", tag, d.Digest)
		}
	}
	for _, bad := range []string{"", "no base64!", base64.StdEncoding.EncodeToString([]byte(`{"digest":"x"}`))} {
		if err := o.Finish(bad, ""); err == nil {
			t.Errorf("%q was taken for a descriptor", bad)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "index.json"), []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := o.Tag(old, "x"); err == nil {
		t.Error("a broken index was replaced")
	}
}

// Several that write at once lose no entry.
func TestOutputTogether(t *testing.T) {
	dir := t.TempDir()
	var work sync.WaitGroup
	tags := []string{"a", "b", "c", "d", "e", "f"}
	for _, tag := range tags {
		work.Go(func() {
			o, err := sessioncontent.NewOutput(dir)
			if err == nil {
				err = o.Tag(ocispecs.Descriptor{Digest: digest.FromString(tag)}, tag)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	work.Wait()
	l, err := sessioncontent.OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	for _, tag := range tags {
		if d, err := l.Resolve(tag); err != nil || d.Digest != digest.FromString(tag) {
			t.Errorf("%s: %v, %v", tag, d, err)
		}
	}
}

// Sweep keeps what the index leads to.
func TestSweep(t *testing.T) {
	o, err := sessioncontent.NewOutput(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	gone := manifest(t, o, "gone")
	if err := o.Tag(gone, "latest"); err != nil {
		t.Fatal(err)
	}
	kept := manifest(t, o, "kept")
	if err := o.Tag(kept, "latest"); err != nil {
		t.Fatal(err)
	}
	if err := o.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	for d, want := range map[digest.Digest]bool{
		gone.Digest: false, digest.FromString("gone"): false, kept.Digest: true, digest.FromString("kept"): true, digest.FromString("{}"): true,
	} {
		if _, err := o.Info(t.Context(), d); (err == nil) != want {
			t.Errorf("blob %s: %v, want it kept: %v", d, err, want)
		}
	}
}
