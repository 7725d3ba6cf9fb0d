package conformance

import (
	"encoding/json"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// stepsFile is a build file in the language of the example, with stand-ins for its names.
const stepsFile = "# syntax=FRONTEND\nBASE\necho one > /one\necho two > /two\n"

// TestSDKExample makes an image of the frontend that package sdk has as its example,
// and builds a file of its language through the first line: by buildctl and by buildx, on
// Kiln and on BuildKit. All results must be the same, to the digest.
func TestSDKExample(t *testing.T) {
	run := readyRun{registry: serveRegistry(t)}
	run.pushBase(t)
	dir, file := t.TempDir(), "build.steps"
	compileExample(t, filepath.Join(dir, "steps"))
	image := run.registry + "/frontends/steps"
	push(t, dir, "FROM scratch\nCOPY steps /\nLABEL moby.buildkit.frontend.network.none=true\n"+
		"LABEL moby.buildkit.frontend.caps=moby.buildkit.frontend.inputs,moby.buildkit.frontend.contexts\nENTRYPOINT [\"/steps\"]\n", image)
	text := strings.NewReplacer("FRONTEND", pinnedImage(t, image), "BASE", "ubuntu:16.04").Replace(stepsFile)
	if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	first := run.buildctl(t, shared.kiln, dir, file)
	for _, f := range []string{"one", "two"} {
		if got := first.files[f]; !strings.Contains(got, "size 4 ") {
			t.Errorf("the image's file %s is %q, expected 4 bytes", f, got)
		}
	}
	for way, got := range map[string]made{
		"BuildKit by buildctl": run.buildctl(t, shared.buildkit, dir, file),
		"BuildKit by buildx":   run.buildx(t, shared.buildkit, dir, file),
		"Kiln by buildx":       run.buildx(t, shared.kiln, dir, file),
		"Kiln, on this side":   run.beside(t, dir, file, filepath.Join(dir, "steps")),
	} {
		if got.digest != first.digest {
			t.Errorf("on %s it is %s, on Kiln by buildctl %s", way, got.digest, first.digest)
			compareFiles(t, first.files, got.files)
		}
	}
}

// beside builds on Kiln with a frontend that runs here, as a client of the build.
func (r readyRun) beside(t *testing.T, dir, file, program string) made {
	t.Helper()
	dest := filepath.Join(t.TempDir(), "image.tar")
	kiln, err := filepath.Abs(filepath.Join("..", "bin", "kiln"))
	if err != nil {
		t.Fatal(err)
	}
	command(t, shared.kiln, kiln, "--host", shared.kiln.Addr(), "frontend", "run", program, "--",
		"--provenance=false", "--build-context", "ubuntu:16.04=docker-image://"+r.base(), "--build-arg", readyEpoch,
		"-f", filepath.Join(dir, file), "--output", readyOutput+dest, dir)
	return made{open(t, dest), parts(t, dest)}
}

// compileExample makes a program of the example: its function, and the main of which
// the example's comment tells.
func compileExample(t *testing.T, into string) {
	t.Helper()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	files := token.NewFileSet()
	example, err := parser.ParseFile(files, filepath.Join(root, "frontend", "sdk", "example_test.go"), nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	const main = "sdk.Main(sdk.Func(steps))"
	var used, body strings.Builder
	for _, d := range example.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok || f.Name.Name != "steps" {
			continue
		}
		if !strings.Contains(f.Doc.Text(), main) {
			t.Errorf("the example says %q, expected it to name %s", f.Doc.Text(), main)
		}
		if err := format.Node(&body, files, f); err != nil {
			t.Fatal(err)
		}
	}
	for _, i := range example.Imports {
		path, err := strconv.Unquote(i.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		short := filepath.Base(path)
		if i.Name != nil {
			short = i.Name.Name
		}
		if strings.Contains(body.String()+main, short+".") {
			used.WriteString("import " + short + " " + i.Path.Value + "\n")
		}
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "main.go")
	if err := os.WriteFile(program, []byte("package main\n"+used.String()+body.String()+"\nfunc main() { "+main+" }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// As a package of the repository, in which there is none.
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(root, "frontend", "sdk", "example", "main.go"): program}})
	if err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(at, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-trimpath", "-overlay", at, "-o", into, "./frontend/sdk/example")
	cmd.Dir, cmd.Env = root, slices.Concat(os.Environ(), []string{"CGO_ENABLED=0"})
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the example: %v: %s", err, out)
	}
}

// pinnedImage is an image's name with its digest.
func pinnedImage(t *testing.T, image string) string {
	t.Helper()
	ref, err := name.ParseReference(image)
	if err != nil {
		t.Fatal(err)
	}
	desc, err := remote.Head(ref)
	if err != nil {
		t.Fatal(err)
	}
	return image + "@" + desc.Digest.String()
}
