package frontendtest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"github.com/kiln-build/kiln/frontend"
)

// Golden holds what files become against what is in testdata/*.txtar: archives
// with options as KEY=VALUE in the comment, the file, and what become is to make
// of it. With update, that is written.
func Golden(t *testing.T, update bool, become func(t *testing.T, file string, opts map[string]string) string) {
	t.Helper()
	names, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(names) == 0 {
		t.Fatal("no test data", err)
	}
	for _, name := range names {
		t.Run(filepath.Base(name), func(t *testing.T) {
			archive, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			opts := map[string]string{}
			for kv := range strings.FieldsSeq(string(archive.Comment)) {
				k, v, _ := strings.Cut(kv, "=")
				opts[k] = v
			}
			got := become(t, string(archive.Files[0].Data), opts)
			if update {
				archive.Files = append(archive.Files[:1], txtar.File{Name: "want", Data: []byte(got)})
				if err := os.WriteFile(name, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if len(archive.Files) != 2 || string(archive.Files[1].Data) != got {
				t.Errorf("got\n%s", got)
			}
		})
	}
}

// Text is a result's graphs and configs as text, without what is of one request
// alone and without places in files.
func Text(t *testing.T, res *frontend.Result) string {
	t.Helper()
	var b strings.Builder
	for _, p := range res.Platforms {
		var config struct{ Config json.RawMessage }
		if err := json.Unmarshal(p.Config, &config); err != nil {
			t.Fatal(err)
		}
		g := *p.Graph
		g.Sources.Files, g.Sources.Locations = nil, nil
		b.WriteString(p.ID + "\n" + g.Text() + "config " + string(config.Config) + "\n")
	}
	unique := regexp.MustCompile(`local.unique=\w+`)
	return strings.TrimLeft(unique.ReplaceAllString(b.String(), "local.unique=ID"), "\n")
}
