package main

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cuelang.org/go/encoding/protobuf"

	"github.com/kiln-build/kiln/llb"
)

const ops = "../../llb/pb/ops.proto"

// TestProtos has CUE's importer read every .proto file of Kiln.
func TestProtos(t *testing.T) {
	root := filepath.Join("..", "..")
	read := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && path == filepath.Join(root, "bin") {
			return fs.SkipDir // what is built and installed there is others'
		}
		if err != nil || filepath.Ext(path) != ".proto" {
			return err
		}
		read++
		if _, err := protobuf.Extract(path, nil, &protobuf.Config{Paths: []string{root, filepath.Join(root, "internal", "api")}, Root: root, Module: "github.com/kiln-build/kiln"}); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if read < 15 {
		t.Errorf("read %d .proto files, want all 15 or more", read)
	}
}

func TestDescription(t *testing.T) {
	var out bytes.Buffer
	if err := run(ops, "build.cue", &out); err != nil {
		t.Fatal(err)
	}
	def, err := llb.ReadFrom(&out)
	if err != nil {
		t.Fatal(err)
	}
	g, err := llb.Unmarshal(def.ToPB())
	if err != nil {
		t.Fatal(err)
	}
	const want = `%0 = source docker-image://docker.io/library/alpine:latest  platform=linux/amd64`
	if text := g.Text(); !strings.Contains(text, want) || !strings.Contains(text, "wc -l") {
		t.Errorf("the description makes\n%swhich lacks %s", text, want)
	}
}

func TestBadDescriptions(t *testing.T) {
	for text, want := range map[string]string{
		`steps: a: op: source: identfier: "x"`: "field not allowed",
		"steps: {}\nresult: \"b\"":             `no step "b"`,
		`steps: a: {inputs: ["a"], op: merge: inputs: []}
result: "a"`: "needs itself",
		`steps: a: op: source: identifier: 5
result: "a"`: "conflicting values",
		`steps: a: op: exec: {}
result: "a"`: "exec",
		`steps`: "bad.cue",
	} {
		file := filepath.Join(t.TempDir(), "bad.cue")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := run(ops, file, &out); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error is %v, want one with %q", text, err, want)
		}
		if out.Len() > 0 {
			t.Errorf("%s: wrote a definition", text)
		}
	}
}
