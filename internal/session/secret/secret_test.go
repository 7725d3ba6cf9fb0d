package secret_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/kiln-build/kiln/internal/session/secret"
	"github.com/kiln-build/kiln/internal/session/sessiontest"
)

func TestSecret(t *testing.T) {
	file := filepath.Join(t.TempDir(), "s")
	if err := os.WriteFile(file, []byte("from file"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KILN_TEST_SECRET", "from env")
	p, err := secret.NewProvider([]secret.Source{{ID: "f", File: file}, {ID: "e", Env: "KILN_TEST_SECRET"}})
	if err != nil {
		t.Fatal(err)
	}
	// A session without secrets is passed over.
	ctx := sessiontest.Context(context.Background(), sessiontest.Connect(t), sessiontest.Connect(t, p))
	for id, want := range map[string]string{"f": "from file", "e": "from env"} {
		if got, err := (secret.Daemon{}).Secret(ctx, id); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v, want %q", id, got, err, want)
		}
	}
	if _, err := (secret.Daemon{}).Secret(ctx, "other"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("unknown secret: %v, want ErrNotExist", err)
	}
	if err := os.WriteFile(file, make([]byte, secret.MaxSize+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := (secret.Daemon{}).Secret(ctx, "f"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("secret that grew too large: %v", err)
	}
}

func TestBadSources(t *testing.T) {
	large := filepath.Join(t.TempDir(), "large")
	if err := os.WriteFile(large, make([]byte, secret.MaxSize+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, s := range []secret.Source{
		{File: large}, {ID: "a", File: large}, {ID: "a", File: large + "x"},
		{ID: "a", File: t.TempDir()}, {ID: "a", Env: "KILN_TEST_NOT_SET"},
	} {
		if _, err := secret.NewProvider([]secret.Source{s}); err == nil {
			t.Errorf("%+v was taken", s)
		}
	}
}

func TestUnsetVariable(t *testing.T) {
	unset := secret.Source{ID: "s", Env: "KILN_TEST_NEVER_SET"}
	if _, err := secret.NewProvider([]secret.Source{unset}); err == nil {
		t.Error("a variable that is not set was taken")
	}
	unset.EmptyIfUnset = true
	p, err := secret.NewProvider([]secret.Source{unset})
	if err != nil {
		t.Fatal(err)
	}
	ctx := sessiontest.Context(t.Context(), sessiontest.Connect(t, p))
	if data, err := (secret.Daemon{}).Secret(ctx, "s"); err != nil || len(data) != 0 {
		t.Errorf("secret %q, %v", data, err)
	}
}
