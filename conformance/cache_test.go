package conformance

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/kiln-build/kiln/conformance/peer"
)

// cacheFile has what is hard about caches: content of the context, a stage that
// another one copies from, a mount of a stage, and steps that need each other.
const cacheFile = `FROM base AS tool
RUN echo tool > /tool
FROM base AS other
COPY data /data
RUN --mount=from=tool,target=/t cat /t/tool /data > /made
FROM base
RUN echo first > /first
COPY --from=other /made /made
COPY data /copied
RUN cat /made /copied > /last
`

// ran are the steps that a build carried out, by the names that both kinds of
// daemon give them; cached are those that it did not.
func ran(t *testing.T, text string) (ran, cached []string) {
	t.Helper()
	names := map[string]string{}
	done := map[string]string{}
	for line := range strings.SplitSeq(text, "\n") {
		m := regexp.MustCompile(`^#(\d+) (.*)$`).FindStringSubmatch(line)
		if m == nil {
			continue
		}
		switch {
		case strings.HasPrefix(m[2], "[") && names[m[1]] == "":
			names[m[1]] = m[2]
		case m[2] == "CACHED":
			done[m[1]] = "cached"
		case strings.HasPrefix(m[2], "DONE ") && done[m[1]] == "":
			done[m[1]] = "ran"
		}
	}
	for n, name := range names {
		if !strings.Contains(name, "RUN ") && !strings.Contains(name, "COPY ") {
			continue
		}
		switch done[n] {
		case "cached":
			cached = append(cached, name)
		case "ran":
			ran = append(ran, name)
		}
	}
	slices.Sort(ran)
	slices.Sort(cached)
	return ran, cached
}

// fresh starts a daemon that knows nothing.
func fresh(t *testing.T, kind string) *peer.Daemon {
	t.Helper()
	bin, err := filepath.Abs(filepath.Join("..", "bin"))
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), kind)
	d := peer.NewKiln(filepath.Join(bin, "kiln"), shared.base, dir)
	if kind == "buildkit" {
		d = peer.NewBuildKit(shared.tools, filepath.Join(bin, "kiln-runc"), shared.base, dir)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if err := d.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Stop)
	return d
}

// buildWith builds with the real buildctl and returns its progress.
func buildWith(t *testing.T, d *peer.Daemon, folder string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	args = append(shared.tools.BuildArgs(d, shared.base, peer.Build{Context: folder}), args...)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = d.Env()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s\ndaemon: %s", strings.Join(args, " "), err, out, d.Log())
	}
	return string(out)
}

// cachePlace is a kind of place for caches, and how it is named to buildctl.
type cachePlace struct {
	name string
	// options return the arguments for the export and for the import.
	options func(t *testing.T) (out, in []string)
	// partial is set where a cache has the layers of the result alone.
	partial bool
}

// distribution starts the registry that most others are made of, and returns
// where it listens.
func distribution(t *testing.T) string {
	t.Helper()
	program, err := filepath.Abs(filepath.Join("..", "bin", "registry"))
	if err != nil {
		t.Fatal(err)
	}
	return onFreePort(t, func(addr string) *exec.Cmd {
		dir := t.TempDir()
		config := "version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: " + dir + "/data}}\nhttp: {addr: '" + addr + "'}\n"
		if err := peer.WriteFiles(dir, map[string]string{"config.yml": config}); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(program, "serve", filepath.Join(dir, "config.yml"))
		cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
		return cmd
	}, func(addr string) bool {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
}

// onFreePort starts a server that cannot be handed a listener, and returns its address. It
// is started anew on another port where it ends, as when somebody took the port meanwhile.
func onFreePort(t *testing.T, command func(addr string) *exec.Cmd, answers func(addr string) bool) string {
	t.Helper()
	var said bytes.Buffer
	for range 5 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := l.Addr().String()
		l.Close()
		cmd := command(addr)
		said.Reset()
		cmd.Stderr = &said
		if err := cmd.Start(); err != nil {
			t.Fatalf("start %s, which `make conformance` builds: %v", cmd.Path, err)
		}
		ended := make(chan struct{})
		go func() {
			_ = cmd.Wait() // it was killed, or ended: said tells why
			close(ended)
		}()
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			<-ended
		})
		if awaitServer(t, addr, ended, answers) {
			return addr
		}
	}
	t.Fatalf("a server ended at each of 5 starts: %s", said.String())
	return ""
}

// awaitServer waits until a server answers; it is false where the server has ended.
func awaitServer(t *testing.T, addr string, ended <-chan struct{}, answers func(addr string) bool) bool {
	t.Helper()
	for late := time.After(2 * time.Minute); ; {
		select {
		case <-ended:
			return false
		case <-late:
			t.Fatalf("nobody answers at %s", addr)
		case <-time.After(20 * time.Millisecond):
			if answers(addr) {
				return true
			}
		}
	}
}

func cachePlaces() []cachePlace {
	host := func(t *testing.T) string {
		s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
		t.Cleanup(s.Close)
		return s.Listener.Addr().String()
	}
	place := func(name string, partial bool, export, imported func(where string) []string, where func(*testing.T) string) cachePlace {
		return cachePlace{name, func(t *testing.T) (out, in []string) {
			w := where(t)
			return export(w), imported(w)
		}, partial}
	}
	to := func(format string) func(string) []string {
		return func(w string) []string {
			return strings.Fields(fmt.Sprintf(strings.ReplaceAll(format, "WHERE", "%[1]s"), w))
		}
	}
	folder := func(t *testing.T) string { return filepath.Join(t.TempDir(), "cache") }
	fromRegistry := to("--import-cache type=registry,ref=WHERE/cache:x")
	return []cachePlace{
		place("registry", false, to("--export-cache type=registry,ref=WHERE/cache:x,mode=max"), fromRegistry, distribution),
		place("registry as index", false, to("--export-cache type=registry,ref=WHERE/cache:x,mode=max,image-manifest=false"), fromRegistry, host),
		place("registry min zstd", true, to("--export-cache type=registry,ref=WHERE/cache:x,mode=min,compression=zstd"), fromRegistry, host),
		place("local", false, to("--export-cache type=local,dest=WHERE,mode=max"), to("--import-cache type=local,src=WHERE"), folder),
		place("inline", true, to("--export-cache type=inline --output type=image,name=WHERE/cache:x,push=true"), fromRegistry, host),
		place("inline max", true, to("--export-cache type=inline,mode=max --output type=image,name=WHERE/cache:x,push=true"), fromRegistry, host),
	}
}

// TestCacheExchange has each kind of daemon use a cache that each kind has
// written, from a state that knows nothing.
func TestCacheExchange(t *testing.T) {
	for _, place := range cachePlaces() {
		exchange(t, place)
	}
}

func exchange(t *testing.T, place cachePlace) {
	for _, pair := range [][2]string{{"kiln", "kiln"}, {"buildkit", "kiln"}, {"kiln", "buildkit"}} {
		t.Run(place.name+"/"+pair[0]+" to "+pair[1], func(t *testing.T) {
			folder := t.TempDir()
			if err := peer.WriteFiles(folder, map[string]string{"Dockerfile": cacheFile, "data": "the data"}); err != nil {
				t.Fatal(err)
			}
			out, in := place.options(t)
			first := buildWith(t, fresh(t, pair[0]), folder, out...)
			again := buildWith(t, fresh(t, pair[1]), folder, in...)
			did, cached := ran(t, again)
			if !strings.Contains(again, "importing cache manifest from") {
				t.Errorf("the import is not told:\n%s", again)
			}
			if strings.Contains(first+again, secretKey) {
				t.Errorf("a secret is told:\n%s\n%s", first, again)
			}
			// The last four steps are the result's own.
			if len(cached) < 4 || !place.partial && len(did) > 0 {
				t.Errorf("%d steps ran again (%q), %d were cached (%q)\n--- first:\n%s\n--- again:\n%s", len(did), did, len(cached), cached, first, again)
			}
		})
	}
}

// TestCacheChanged uses a cache for another context: what depends on it runs.
func TestCacheChanged(t *testing.T) {
	place := cachePlaces()[0]
	out, in := place.options(t)
	folder := t.TempDir()
	files := map[string]string{"Dockerfile": cacheFile, "data": "the data"}
	if err := peer.WriteFiles(folder, files); err != nil {
		t.Fatal(err)
	}
	buildWith(t, fresh(t, "kiln"), folder, out...)
	files["data"] = "other data"
	if err := peer.WriteFiles(folder, files); err != nil {
		t.Fatal(err)
	}
	dest := t.TempDir()
	did, cached := ran(t, buildWith(t, fresh(t, "kiln"), folder, append(in, "--output", "type=local,dest="+dest)...))
	if len(did) != 5 || len(cached) != 2 {
		t.Errorf("ran %q, expected 5 steps; cached %q, expected 2", did, cached)
	}
	if _, ok := walk(t, dest)["last"]; !ok {
		t.Error("the result lacks /last")
	}
}

// TestCacheTrouble has caches that cannot be read or written: an import is
// never a build's failure, an export is unless the user does not mind.
func TestCacheTrouble(t *testing.T) {
	folder := t.TempDir()
	if err := peer.WriteFiles(folder, map[string]string{"Dockerfile": "FROM base\nRUN echo " + t.Name() + " > /x\n"}); err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(http.NotFoundHandler())
	defer s.Close()
	nobody := s.Listener.Addr().String() + "/none/such:x"
	out := buildWith(t, shared.kiln, folder, "--import-cache", "type=registry,ref="+nobody)
	if !strings.Contains(out, "importing cache manifest from "+nobody) {
		t.Errorf("an import that failed is not told:\n%s", out)
	}
	buildWith(t, shared.kiln, folder, "--export-cache", "type=registry,ref="+nobody+",ignore-error=true")
	buildWith(t, shared.kiln, folder, "--export-cache", "type=nonsense,ignore-error=true")
	args := shared.tools.BuildArgs(shared.kiln, shared.base, peer.Build{Context: folder})
	failing(t, shared.kiln, append(slices.Clone(args), "--export-cache", "type=registry,ref="+nobody)...)
	text := failing(t, shared.kiln, append(args, "--export-cache", "type=nonsense")...)
	if !strings.Contains(text, `unknown cache exporter: "nonsense"`) {
		t.Errorf("an unknown kind of cache: %s", text)
	}
}
