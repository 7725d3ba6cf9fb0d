package conformance

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestReadmeBuildx runs the README's commands of docker buildx, with a docker
// that has no other commands.
func TestReadmeBuildx(t *testing.T) {
	readme, err := os.ReadFile(filepath.Join("..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?ms)^```sh buildx\n(.*?)^```$").FindAllStringSubmatch(string(readme), -1)
	var script strings.Builder
	for _, b := range blocks {
		script.WriteString(b[1])
	}
	if !strings.Contains(script.String(), "docker buildx build") {
		t.Fatal("the README does not show buildx")
	}
	b := newBuildx(t, shared.kiln)
	bin, dir := t.TempDir(), t.TempDir()
	docker := "#!/bin/sh\n[ \"$1\" = buildx ] || exit 2\nshift\nexec " + b.program + " \"$@\"\n"
	if err := os.WriteFile(filepath.Join(bin, "docker"), []byte(docker), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY Dockerfile /\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(script.String(), `"unix://$PWD/kiln.sock"`, shared.kiln.Addr())
	text = strings.ReplaceAll(text, "--name kiln", "--name readme")
	text = strings.ReplaceAll(text, "--builder kiln", "--builder readme")
	text = strings.ReplaceAll(text, "rm kiln", "rm readme")
	cmd := exec.CommandContext(t.Context(), "bash", "-euxo", "pipefail", "-c", text)
	cmd.Dir = dir
	cmd.Env = append(b.env, "PATH="+bin+":"+os.Getenv("PATH"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if _, err := os.Stat(filepath.Join(dir, "hello.tar")); err != nil {
		t.Error(err)
	}
}
