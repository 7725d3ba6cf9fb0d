package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
)

// exampleRun is a daemon and a registry, for programs that write LLB.
type exampleRun struct {
	t        *testing.T
	dir      string
	kiln     string
	env      []string
	registry string // host and port
}

// TestExamples pipes what the programs in examples write into builds.
func TestExamples(t *testing.T) {
	t.Parallel()
	r := newExampleRun(t)
	t.Run("readme", r.testReadme)
	t.Run("cue", r.testCUE)
	t.Run("fromsource", r.testFromSource)
	t.Run("frontend", r.testFrontendProgram)
}

func newExampleRun(t *testing.T) *exampleRun {
	t.Helper()
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	layout, err := baseImage(t)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "kiln-run-")
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	r := &exampleRun{
		t: t, dir: dir, kiln: filepath.Join(bin, "kiln"), registry: strings.TrimPrefix(server.URL, "http://"),
		env: append(os.Environ(), "KILN_HOST=unix://"+dir+"/sock", "DOCKER_CONFIG="+dir, "BUILDKIT_HOST="),
	}
	s := &scriptState{run: dir}
	t.Cleanup(func() {
		if err := errors.Join(s.stop(), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
		server.Close()
	})
	if err := s.start(r.kiln, r.env, "oci"); err != nil {
		t.Fatal(err)
	}
	r.write(t, "base/Dockerfile", "FROM base\n")
	r.run(t, nil, r.kiln, "build", "--build-context", "base=oci-layout://"+layout, "-t", r.registry+"/base", "--push", filepath.Join(dir, "base"))
	return r
}

func (r *exampleRun) write(t *testing.T, name, text string) {
	t.Helper()
	file := filepath.Join(r.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// run runs a command and returns what it wrote to its standard output.
func (r *exampleRun) run(t *testing.T, stdin []byte, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Env, cmd.Stdin = r.env, bytes.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.Bytes()
}

// program runs a program of examples and returns the LLB that it writes.
func (r *exampleRun) program(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	dir := filepath.Join("..", "..", "examples", name)
	return r.run(t, nil, append([]string{"go", "-C", dir, "run", "."}, args...)...)
}

// want checks a file of a result.
func (r *exampleRun) want(t *testing.T, file, text string) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(r.dir, file))
	if err != nil || string(got) != text {
		t.Errorf("%s is %q, %v, want %q", file, got, err, text)
	}
}

func (r *exampleRun) testReadme(t *testing.T) {
	r.write(t, "context/README.md", "one\ntwo\n")
	wire := r.program(t, "readme", "-base", r.registry+"/base")
	context := "context=" + filepath.Join(r.dir, "context")
	r.run(t, wire, r.kiln, "build", "--local", context, "--output", "type=image,name="+r.registry+"/readme,push=true")
	r.write(t, "check/Dockerfile", "FROM "+r.registry+"/readme AS made\nFROM scratch\nCOPY --from=made /README.md /lines /\n")
	r.run(t, nil, r.kiln, "build", "-o", filepath.Join(r.dir, "made"), filepath.Join(r.dir, "check"))
	r.want(t, "made/README.md", "one\ntwo\n")
	r.want(t, "made/lines", "2\n")

	// The graph as JSON, by BuildKit's names.
	dec := json.NewDecoder(bytes.NewReader(r.run(t, wire, r.kiln, "debug", "dump-llb")))
	var kinds []string
	for {
		var op struct {
			Op struct {
				Op map[string]json.RawMessage
			}
			Digest     string
			OpMetadata struct{ Caps map[string]bool }
		}
		err := dec.Decode(&op)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(op.Digest, "sha256:") || len(op.OpMetadata.Caps) == 0 {
			t.Errorf("an operation has digest %q and capabilities %v", op.Digest, op.OpMetadata.Caps)
		}
		for kind := range op.Op.Op {
			kinds = append(kinds, kind)
		}
	}
	if got := strings.Join(kinds, " "); got != "source source file exec" && !strings.EqualFold(got, "source source file exec") {
		t.Errorf("dump-llb lists the operations %q", got)
	}
}

func (r *exampleRun) testCUE(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "examples", "cue", "build.cue"))
	if err != nil {
		t.Fatal(err)
	}
	r.write(t, "build.cue", strings.ReplaceAll(string(text), "docker.io/library/alpine:latest", r.registry+"/base:latest"))
	r.write(t, "described/README.md", "one\ntwo\nthree\n")
	wire := r.program(t, "cue", filepath.Join(r.dir, "build.cue"))
	r.run(t, wire, r.kiln, "build", "--local", "context="+filepath.Join(r.dir, "described"), "--output", filepath.Join(r.dir, "cue"))
	r.want(t, "cue/lines", "3\n")
}

// testFromSource builds stand-ins of Kiln and runc from repositories on a server
// of its own, with this machine's Go in place of the image that has it.
func (r *exampleRun) testFromSource(t *testing.T) {
	site := httptest.NewServer(http.FileServer(http.Dir(filepath.Join(r.dir, "repos"))))
	defer site.Close()
	for name, pkg := range map[string]string{"kiln": "cmd/kiln/", "runc": ""} {
		at := "repos/" + name + "/"
		r.write(t, at+"go.mod", "module example.com/"+name+"\n\ngo 1.24\n")
		r.write(t, at+pkg+"main.go", "package main\n\nimport \"os\"\n\nfunc main() { os.Stdout.WriteString(\""+name+" from source\\n\") }\n")
		for _, args := range [][]string{
			{"init", "-q", "-b", "main"}, {"add", "."}, {"commit", "-q", "-m", "one"}, {"tag", "v1"}, {"update-server-info"},
		} {
			identity := []string{"git", "-C", filepath.Join(r.dir, at), "-c", "user.name=t", "-c", "user.email=t@example.com"}
			r.run(t, nil, append(identity, args...)...)
		}
	}
	golang := filepath.Join(r.dir, "golang")
	copyGo(t, filepath.Join(golang, "usr", "local", "go"))
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(golang, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(golang, "tmp"), 0o777); err != nil {
		t.Fatal(err)
	}
	r.run(t, nil, "cp", busybox, filepath.Join(golang, "bin", "busybox"))
	for _, applet := range []string{"sh", "mkdir", "cp"} {
		if err := os.Symlink("busybox", filepath.Join(golang, "bin", applet)); err != nil {
			t.Fatal(err)
		}
	}
	wire := r.program(t, "fromsource", "-go", "local:golang", "-packages", "", "-goproxy", "off",
		"-kiln-repo", site.URL+"/kiln/.git", "-runc", "v1", "-runc-repo", site.URL+"/runc/.git")
	out := filepath.Join(r.dir, "programs")
	r.run(t, wire, r.kiln, "build", "--local", "golang="+golang, "--output", out)
	for program, want := range map[string]string{"kiln": "kiln from source\n", "kiln-runc": "runc from source\n"} {
		if got := r.run(t, nil, filepath.Join(out, "bin", program)); string(got) != want {
			t.Errorf("%s says %q, want %q", program, got, want)
		}
	}
}

// copyGo copies the Go distribution that runs the tests, without what compiling
// does not need.
func copyGo(t *testing.T, to string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	root := os.DirFS(strings.TrimSpace(string(out)))
	tools := "pkg/tool/" + runtime.GOOS + "_" + runtime.GOARCH
	err = fs.WalkDir(root, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			switch {
			case path == ".", path == "bin", path == "pkg", path == "pkg/tool", strings.HasPrefix(path, "pkg/include"), path == tools:
			case d.Name() != "testdata" && (path == "src" || strings.HasPrefix(path, "src/")) && path != "src/cmd":
			default:
				return fs.SkipDir
			}
			return os.MkdirAll(filepath.Join(to, path), 0o755)
		}
		if !d.Type().IsRegular() || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		text, err := fs.ReadFile(root, path)
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if strings.HasPrefix(path, "bin/") || strings.HasPrefix(path, tools) {
			mode = 0o755
		}
		return os.WriteFile(filepath.Join(to, path), text, mode)
	})
	if err != nil {
		t.Fatal(err)
	}
}
