package conformance

import (
	"context"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/tonistiigi/fsutil"

	"github.com/kiln-build/kiln/conformance/peer"
)

// frontendProgram is the file of the frontend in its image; processes are
// counted by it.
const frontendProgram = "asimage-program"

// frontends are the same program in images that differ by their labels, in a
// registry of this machine.
type frontends struct {
	host       string
	open, tame string // with all capabilities; without any, and without network
}

// makeFrontends has Kiln build the images and push them.
func makeFrontends(t *testing.T) frontends {
	t.Helper()
	f := frontends{host: serveRegistry(t)}
	f.open, f.tame = f.host+"/test/frontend:open", f.host+"/test/frontend:tame"
	dir := t.TempDir()
	compile(t, "./asimage", filepath.Join(dir, frontendProgram))
	const text = "FROM scratch\nENV FROM_IMAGE=yes\nWORKDIR /work\nCOPY " + frontendProgram + " /\n" +
		"ENTRYPOINT [\"/" + frontendProgram + "\", \"argument\"]\nCMD [\"unused\"]\n"
	for name, labels := range map[string]string{
		f.open: "LABEL moby.buildkit.frontend.caps=moby.buildkit.frontend.inputs,moby.buildkit.frontend.subrequests+x\n",
		f.tame: "LABEL moby.buildkit.frontend.network.none=true\n",
	} {
		push(t, dir, text+labels, name)
	}
	return f
}

// serveRegistry serves an empty registry and returns its address.
func serveRegistry(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

// compile makes a static program.
func compile(t *testing.T, pkg, into string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-trimpath", "-o", into, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v: %s", pkg, err, out)
	}
}

// push has Kiln build an image and push it.
func push(t *testing.T, dir, dockerfile, name string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o600); err != nil {
		t.Fatal(err)
	}
	buildctl(t, "build", "--frontend=dockerfile.v0", "--local=context="+dir, "--local=dockerfile="+dir,
		"--output=type=image,push=true,registry.insecure=true,name="+name)
}

// frontendRun is one use of a frontend.
type frontendRun struct {
	frontend   string // "" is gateway.v0
	image      string
	attrs      map[string]string
	given      bool   // the input "given"
	dockerfile string // of the client's folder
}

// frontendEnd is how a run ended, as far as builders must agree.
type frontendEnd struct {
	files   map[string]string
	err     string
	sources []string // of the error
	log     string
}

func (r frontendRun) on(ctx context.Context, t *testing.T, d *peer.Daemon) frontendEnd {
	t.Helper()
	c := dial(ctx, t, d)
	defer c.Close()
	local := t.TempDir()
	if err := os.WriteFile(filepath.Join(local, "Dockerfile"), []byte(r.dockerfile), 0o600); err != nil {
		t.Fatal(err)
	}
	folder, err := fsutil.NewFS(local)
	if err != nil {
		t.Fatal(err)
	}
	into := t.TempDir()
	opt := client.SolveOpt{
		Frontend: r.frontend, FrontendAttrs: maps.Clone(r.attrs), OCIStores: baseStores(t),
		LocalMounts: map[string]fsutil.FS{"dockerfile": folder, "context": folder},
		Exports:     []client.ExportEntry{{Type: client.ExporterLocal, OutputDir: into}},
	}
	if opt.Frontend == "" {
		opt.Frontend, opt.FrontendAttrs["source"] = "gateway.v0", r.image
	}
	opt.FrontendAttrs["base"] = shared.base.Digest
	if r.given {
		opt.FrontendInputs = map[string]llb.State{"given": llb.Scratch().File(llb.Mkfile("/input", 0o644, []byte("given")))}
	}
	var end frontendEnd
	status := make(chan *client.SolveStatus)
	var seen sync.WaitGroup
	seen.Go(func() {
		for s := range status {
			for _, l := range s.Logs {
				end.log += string(l.Data)
			}
		}
	})
	_, err = c.Solve(ctx, nil, opt, status)
	seen.Wait()
	if err != nil {
		end.err = err.Error()
		for _, s := range errdefs.Sources(err) {
			end.sources = append(end.sources, fmt.Sprintf("%s:%v", s.Info.Filename, s.Ranges))
		}
		return end
	}
	end.files = map[string]string{}
	for name := range walk(t, into) {
		if data, err := os.ReadFile(filepath.Join(into, name)); err == nil {
			end.files[name] = string(data)
		}
	}
	return end
}

// TestFrontendImages runs the same images as frontends on Kiln and on BuildKit.
func TestFrontendImages(t *testing.T) {
	f := makeFrontends(t)
	mode := func(m string, more ...string) map[string]string {
		attrs := map[string]string{"mode": m}
		for _, kv := range more {
			k, v, _ := strings.Cut(kv, ":=")
			attrs[k] = v
		}
		return attrs
	}
	for name, c := range map[string]struct {
		frontendRun
		file string // of the result, with
		want string // in it, or in the error if there is no file
	}{
		"options":       {frontendRun{image: f.open, attrs: mode("options", "plain:=a b", "with=sign:=c=d", "empty:=")}, "options", `plain true "a b"`},
		"surroundings":  {frontendRun{image: f.open, attrs: mode("surroundings")}, "surroundings", "network true"},
		"no network":    {frontendRun{image: f.tame, attrs: mode("surroundings")}, "surroundings", "network false"},
		"source":        {frontendRun{image: f.open, attrs: mode("fail")}, "", "the second line is wrong"},
		"failed step":   {frontendRun{image: f.open, attrs: mode("fail-step")}, "", "exit code: 7"},
		"platforms":     {frontendRun{image: f.open, attrs: mode("platforms")}, "linux_arm64/arch", "arm64"},
		"files":         {frontendRun{image: f.open, attrs: mode("files")}, "files", "234, 2 entries, f 10 640"},
		"inputs":        {frontendRun{image: f.open, attrs: mode("inputs"), given: true}, "input", "given"},
		"no inputs cap": {frontendRun{image: f.tame, attrs: mode("inputs"), given: true}, "", "unsupported frontend capability moby.buildkit.frontend.inputs"},
		"other cap":     {frontendRun{image: f.open, attrs: mode("options", "frontend.caps:=other.cap")}, "", "unsupported frontend capability other.cap"},
		"known cap":     {frontendRun{image: f.open, attrs: mode("options", "frontend.caps:=moby.buildkit.frontend.subrequests")}, "options", "session true"},
		"container":     {frontendRun{image: f.open, attrs: mode("container")}, "container", "got this"},
		"nested":        {frontendRun{image: f.open, attrs: mode("nested")}, "options", `plain true "inner"`},
		"crash":         {frontendRun{image: f.open, attrs: mode("crash")}, "", "exit code: 3"},
		"crash late":    {frontendRun{image: f.open, attrs: mode("crash-late")}, "", "exit code: 4"},
		"leave":         {frontendRun{image: f.open, attrs: mode("leave")}, "", "no result for incomplete build"},
		"unknown mode":  {frontendRun{image: f.open, attrs: mode("other")}, "", `no mode "other"`},
		"garbage":       {frontendRun{image: f.open, attrs: mode("garbage")}, "", "frontend grpc server closed unexpectedly"},
		"devel":         {frontendRun{image: f.open, attrs: mode("options", "gateway-devel:=")}, "", "development gateway is no longer supported"},
		"context":       {frontendRun{image: "example.invalid/frontend", attrs: mode("options", "context:example.invalid/frontend:=docker-image://"+f.open)}, "options", "session true"},
		"syntax": {frontendRun{frontend: "dockerfile.v0", attrs: mode("options"), dockerfile: "# syntax=" + f.open + " more\nthis is no Dockerfile\n"},
			"options", `cmdline true "` + f.open + ` more"`},
		"slashes":         {frontendRun{frontend: "dockerfile.v0", attrs: mode("options"), dockerfile: "// syntax=" + f.open + "\n{}\n"}, "options", "session true"},
		"syntax argument": {frontendRun{frontend: "dockerfile.v0", attrs: mode("options", "build-arg:BUILDKIT_SYNTAX:="+f.open), dockerfile: "# syntax=other\n"}, "options", "session true"},
		"located syntax":  {frontendRun{frontend: "dockerfile.v0", attrs: mode("crash"), dockerfile: "# syntax=" + f.open + "\n"}, "", "exit code: 3"},
		"syntax arg fails": {frontendRun{frontend: "dockerfile.v0", attrs: mode("crash", "build-arg:BUILDKIT_SYNTAX:="+f.open)},
			"", "failed with build-arg:BUILDKIT_SYNTAX = " + f.open + ": exit code: 3"},
		"located error": {frontendRun{frontend: "dockerfile.v0", attrs: mode("fail"), dockerfile: "# syntax=" + f.open + "\n"}, "", "the second line is wrong"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			ours, theirs := c.on(ctx, t, shared.kiln), c.on(ctx, t, shared.buildkit)
			for who, end := range map[string]frontendEnd{"kiln": ours, "buildkit": theirs} {
				text, ok := end.files[c.file]
				if c.file == "" {
					text, ok = end.err, end.err != ""
				}
				if !ok || !strings.Contains(text, c.want) {
					t.Errorf("%s: got %q and files %q, want %q in %q", who, end.err, end.files, c.want, c.file)
				}
			}
			if !maps.Equal(ours.files, theirs.files) {
				t.Errorf("kiln made %q, buildkit %q", ours.files, theirs.files)
			}
			if !slices.Equal(ours.sources, theirs.sources) {
				t.Errorf("kiln's error is at %q, buildkit's at %q", ours.sources, theirs.sources)
			}
			if ours.err != theirs.err {
				t.Errorf("kiln fails with %q, buildkit with %q", ours.err, theirs.err)
			}
		})
	}
	t.Run("log", func(t *testing.T) {
		end := frontendRun{image: f.open, attrs: mode("crash")}.on(t.Context(), t, shared.kiln)
		if !strings.Contains(end.log, "the frontend gives up") {
			t.Errorf("the log is %q", end.log)
		}
	})
	t.Run("garbage log", func(t *testing.T) {
		end := frontendRun{image: f.open, attrs: mode("garbage")}.on(t.Context(), t, shared.kiln)
		if !strings.Contains(end.log, "to its standard output, which is for calls to the daemon alone") {
			t.Errorf("the log is %q", end.log)
		}
	})
	t.Run("endless", func(t *testing.T) {
		end := frontendRun{image: f.open, attrs: mode("endless")}.on(t.Context(), t, shared.kiln)
		if !strings.Contains(end.err, "frontends call each other") {
			t.Errorf("the error is %q", end.err)
		}
	})
	t.Run("hang", func(t *testing.T) { cancelFrontend(t, frontendRun{image: f.open, attrs: mode("hang")}) })
	if n := await0(t, frontendProgram); n > 0 {
		t.Errorf("%d frontends are left", n)
	}
}

// cancelFrontend cancels a build whose frontend hangs, with a container.
func cancelFrontend(t *testing.T, r frontendRun) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan frontendEnd, 1)
	go func() { ended <- r.on(ctx, t, shared.kiln) }()
	for end := time.Now().Add(2 * time.Minute); running(t, "of-asimage") == 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the frontend's container does not run")
		}
	}
	cancel()
	select {
	case end := <-ended:
		if !strings.Contains(end.err, "cancel") {
			t.Errorf("the error is %q", end.err)
		}
	case <-time.After(2 * time.Minute):
		t.Fatal("the build does not end")
	}
	if n := await0(t, "of-asimage"); n > 0 {
		t.Errorf("%d processes of the frontend's container are left", n)
	}
}

// await0 waits for the processes with a word to end and returns how many do not.
func await0(t *testing.T, word string) (n int) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if n = running(t, word); n == 0 {
			return 0
		}
	}
	return n
}
