package upload_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/kiln-build/kiln/internal/session/sessiontest"
	"github.com/kiln-build/kiln/internal/session/upload"
)

func TestUpload(t *testing.T) {
	p := upload.NewProvider()
	content := bytes.Repeat([]byte("tar"), 1<<20)
	if u := p.Add("context", bytes.NewReader(content)); u != "http://buildkit-session/context" {
		t.Errorf("URL %s", u)
	}
	p.Add("empty", bytes.NewReader(nil))
	p.Add("broken", io.MultiReader(bytes.NewReader(content), iotest.ErrReader(errors.New("pulled the plug"))))
	ctx := sessiontest.Context(context.Background(), sessiontest.Connect(t), sessiontest.Connect(t, p))
	for path, want := range map[string][]byte{"/context": content, "/empty": nil} {
		r, err := upload.Open(ctx, path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v, want %d", path, len(got), err, len(want))
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if _, err := upload.Open(ctx, path); err == nil {
			t.Errorf("%s was sent twice", path)
		}
	}
	r, err := upload.Open(ctx, "/broken")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, r); err == nil {
		t.Errorf("a broken upload of %d bytes was taken as whole", n)
	}
}
