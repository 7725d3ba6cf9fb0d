package main

import (
	"context"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
)

// shellBlock is a block of commands in a Markdown file.
var shellBlock = regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")

// TestReadme runs every command of the README, as one would who reads on from
// top to bottom. Those of make are run by .ci/run, which the test holds it to;
// those of buildx, in blocks that are marked so, by the conformance tests.
func TestReadme(t *testing.T) {
	t.Parallel()
	top := filepath.Join("..", "..")
	readme, err := os.ReadFile(filepath.Join(top, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	ci, err := os.ReadFile(filepath.Join(top, ".ci", "run"))
	if err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	blocks := shellBlock.FindAllStringSubmatch(string(readme), -1)
	for _, b := range blocks {
		for line := range strings.Lines(b[1]) {
			target, isMake := strings.CutPrefix(strings.TrimSpace(line), "make ")
			switch {
			case !isMake:
				script.WriteString(line)
			case target != "build" && !strings.Contains(string(ci), "make --no-print-directory "+target): // test makes build
				t.Errorf(".ci/run does not run `make %s` of the README", target)
			}
		}
	}
	if len(blocks) < 6 {
		t.Fatalf("the README has %d blocks of commands", len(blocks))
	}
	runReadme(t, top, script.String())
}

func runReadme(t *testing.T, top, script string) {
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(registry.New())
	defer server.Close()
	run, err := os.MkdirTemp("", "kiln-run-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(run)
	dir := filepath.Join(run, "checkout")
	for _, part := range []string{"examples", "llb"} {
		if err := os.CopyFS(filepath.Join(dir, part), os.DirFS(filepath.Join(top, part))); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"go.mod", "go.sum", "README.md"} {
		text, err := os.ReadFile(filepath.Join(top, file))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, file), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(bin, filepath.Join(dir, "bin")); err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(run, "own")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euxo", "pipefail", "-c", script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "HOME="+run, "DOCKER_CONFIG="+run, "KILN_ROOT="+own, "KILN_HOST=", "BUILDKIT_HOST=",
		"REGISTRY="+strings.TrimPrefix(server.URL, "http://"))
	// In another home the go command would fetch and compile everything anew.
	for _, name := range []string{"GOCACHE", "GOMODCACHE"} {
		value, err := exec.CommandContext(ctx, "go", "env", name).Output()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Env = append(cmd.Env, name+"="+strings.TrimSpace(string(value)))
	}
	log, err := os.Create(filepath.Join(run, "log")) // a pipe would be held open by the daemon
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	err = cmd.Run()
	for _, root := range []string{own, filepath.Join(dir, ".kiln")} {
		if stopErr := stopDaemonsOf(root); stopErr != nil {
			t.Error(stopErr)
		}
	}
	if err != nil {
		text, _ := os.ReadFile(log.Name())
		t.Fatalf("%v\n%s", err, text)
	}
	page, err := os.ReadFile(filepath.Join(dir, "out", "srv", "page"))
	if err != nil || !strings.HasPrefix(string(page), "Hello, you!") {
		t.Errorf("examples/hello made %q, %v", page, err)
	}
}
