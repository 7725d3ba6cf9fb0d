package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/internal/config"
)

func TestProvenanceEnv(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("a.json", `{"site":"here","rack":{"row":1}}`)
	write("b.json", `{"site":"there"}`)
	write("notes.txt", "not read")
	c := &config.Config{ProvenanceEnvDir: dir}
	got, err := provenanceEnv(c)
	if want := (map[string]any{"site": "there", "rack": map[string]any{"row": 1.0}}); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	write("c.json", `["list"]`)
	if _, err := provenanceEnv(c); err == nil || !strings.Contains(err.Error(), "c.json") {
		t.Errorf("a list was taken: %v", err)
	}
	c.ProvenanceEnvDir = filepath.Join(dir, "none")
	if got, err := provenanceEnv(c); err != nil || len(got) > 0 {
		t.Errorf("no folder: %v, %v", got, err)
	}
}
