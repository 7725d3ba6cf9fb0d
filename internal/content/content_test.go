package content

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

func open(t *testing.T) (*Store, string) {
	t.Helper()
	root := t.TempDir()
	s, err := Open(context.Background(), root)
	if err != nil {
		t.Fatal(err)
	}
	return s, root
}

// debris says whether something half-written is left.
func debris(t *testing.T, root string) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(root, "ingest", "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left are %v (%v)", left, err)
	}
}

func TestIngestTakesOnlyWhatIsPromised(t *testing.T) {
	s, root := open(t)
	ctx := context.Background()
	text := strings.Repeat("text", 1000)
	good := ocispecs.Descriptor{Digest: digest.FromString(text), Size: int64(len(text))}
	other := digest.SHA512.FromString(text)
	for name, tc := range map[string]struct {
		desc ocispecs.Descriptor
		r    io.Reader
		want error
		text string
	}{
		"shorter":      {good, strings.NewReader(text[1:]), ErrWrongContent, "fewer"},
		"longer":       {good, strings.NewReader(text + "."), ErrWrongContent, "more"},
		"endless":      {good, neverEnding{}, ErrWrongContent, "more"},
		"other":        {good, strings.NewReader("T" + text[1:]), ErrWrongContent, "its digest is"},
		"breaks off":   {good, io.MultiReader(strings.NewReader("te"), iotest.ErrReader(io.ErrUnexpectedEOF)), io.ErrUnexpectedEOF, "after 2 of 4000 bytes"},
		"sha512 other": {ocispecs.Descriptor{Digest: other, Size: good.Size}, strings.NewReader("T" + text[1:]), nil, "digest"},
		"bad digest":   {ocispecs.Descriptor{Digest: "sha256:../../x", Size: 1}, strings.NewReader("x"), nil, "digest"},
	} {
		err := Ingest(ctx, s, tc.desc, tc.r)
		if err == nil || tc.want != nil && !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: error is %v", name, err)
		}
		if Has(ctx, s, tc.desc.Digest) {
			t.Errorf("%s: it is kept", name)
		}
		debris(t, root)
	}
	for range 2 { // a second time is no error
		if err := Ingest(ctx, s, good, strings.NewReader(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := Ingest(ctx, s, ocispecs.Descriptor{Digest: other, Size: good.Size}, strings.NewReader(text)); err != nil {
		t.Fatal(err)
	}
	if data, err := Read(ctx, s, good, 1<<20); err != nil || string(data) != text {
		t.Errorf("read gives %d bytes (%v)", len(data), err)
	}
	debris(t, root)
}

type neverEnding struct{}

func (neverEnding) Read(p []byte) (int, error) { return len(p), nil }

func TestReadVerifies(t *testing.T) {
	s, root := open(t)
	ctx := context.Background()
	d, err := Write(ctx, s, "text/plain", []byte("some text"))
	if err != nil || d.Size != 9 || d.Digest != digest.FromString("some text") {
		t.Fatalf("descriptor is %+v (%v)", d, err)
	}
	if _, err := Read(ctx, s, d, 8); err == nil {
		t.Error("more is read than the limit")
	}
	if _, err := Read(ctx, s, ocispecs.Descriptor{Digest: "nonsense"}, 8); err == nil {
		t.Error("a digest that is none is read")
	}
	p := filepath.Join(root, "blobs", "sha256", d.Digest.Encoded())
	if err := errors.Join(os.Chmod(p, 0o600), os.WriteFile(p, []byte("other txt"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(ctx, s, d, 100); !errors.Is(err, ErrWrongContent) {
		t.Errorf("a blob that went bad gives %v", err)
	}
}

func TestOpenForgetsTheHalfWritten(t *testing.T) {
	s, root := open(t)
	ctx := context.Background()
	w, err := NewWriter(s)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(w, bytes.NewReader(make([]byte, 1000))); err != nil {
		t.Fatal(err)
	}
	// And one that a process began just before it was killed.
	if err := os.Mkdir(filepath.Join(root, "ingest", "new"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(ctx, root); err != nil {
		t.Fatal(err)
	}
	debris(t, root)
	if err := w.Close(); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
