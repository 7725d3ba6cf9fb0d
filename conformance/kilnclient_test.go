package conformance

import (
	"context"
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kiln-build/kiln/conformance/peer"
)

// TestKilnClient runs one program with Kiln's client library, which goes through what
// it can do, on both daemons: the same must come of it. The program is one of its own,
// since the messages of two libraries cannot live in one.
func TestKilnClient(t *testing.T) {
	program := filepath.Join(t.TempDir(), "kilnclient")
	sources, err := filepath.Glob("testdata/kilnclient/*.go")
	if err != nil || len(sources) == 0 {
		t.Fatalf("the program's files: %v, %v", sources, err)
	}
	args := []string{"build", "-C", "..", "-trimpath", "-o", program}
	for _, s := range sources {
		args = append(args, filepath.Join("conformance", s))
	}
	build := exec.CommandContext(t.Context(), "go", args...)
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as `make build` does, which has compiled most of it
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the program: %v\n%s", err, out)
	}
	results := map[string]map[string]any{}
	for _, d := range []*peer.Daemon{shared.kiln, shared.buildkit} {
		text := runFor(t, 8*time.Minute, d, program, d.Addr(), shared.base.Dir, shared.base.Digest)
		got := map[string]any{}
		if err := json.Unmarshal([]byte(text), &got); err != nil {
			t.Fatalf("%s: decode %q: %v", d.Name, text, err)
		}
		if len(got) < 15 {
			t.Fatalf("%s: only %d cases ran", d.Name, len(got))
		}
		results[d.Name] = got
	}
	for _, name := range slices.Sorted(maps.Keys(results["buildkit"])) {
		ours, theirs := results["kiln"][name], results["buildkit"][name]
		if text, ok := theirs.(string); ok && strings.HasPrefix(text, "error: ") {
			t.Errorf("%s on buildkitd: %s", name, text)
		}
		if !reflect.DeepEqual(ours, theirs) {
			t.Errorf("%s: on kiln\n%v\non buildkitd\n%v", name, ours, theirs)
		}
	}
}

// runFor runs a program for a while at most, and returns what it printed.
func runFor(t *testing.T, limit time.Duration, d *peer.Daemon, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.WaitDelay = 5 * time.Second
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s\ndaemon: %s", strings.Join(args, " "), err, stderr.String(), d.Log())
	}
	return string(out)
}

// ctl is a program called buildctl: BuildKit's, or Kiln's under that name.
type ctl struct{ name, path string }

func bothCtl(t *testing.T) (theirs, ours ctl) {
	t.Helper()
	kiln, err := filepath.Abs(filepath.Join("..", "bin", "kiln"))
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "buildctl")
	if err := os.Symlink(kiln, link); err != nil {
		t.Fatal(err)
	}
	return ctl{"buildctl", shared.tools.Buildctl}, ctl{"kiln as buildctl", link}
}

// said is what a command printed, and its exit code.
type said struct {
	stdout, stderr string
	code           int
}

func (c ctl) run(t *testing.T, d *peer.Daemon, stdin []byte, args ...string) said {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.path, append([]string{"--addr", d.Addr()}, args...)...)
	cmd.WaitDelay = 5 * time.Second
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Stdin = strings.NewReader(string(stdin))
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatalf("%s: %v", c.name, err)
	}
	return said{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// TestBothBuildctl asks both programs called buildctl the same of both daemons, and
// compares what they print and how they exit.
func TestBothBuildctl(t *testing.T) {
	theirs, ours := bothCtl(t)
	folder := unpack(t, "run.txtar")
	for _, d := range []*peer.Daemon{shared.kiln, shared.buildkit} {
		command(t, d, shared.tools.BuildArgs(d, shared.base, peer.Build{Context: folder})...)
		for _, args := range [][]string{
			{"debug", "workers"}, {"debug", "workers", "--verbose"}, {"debug", "workers", "--format", "{{json .}}"},
			{"debug", "workers", "--format", "{{range .}}{{.ID}} {{len .Platforms}} {{.BuildkitVersion.Package}}{{end}}"},
			{"debug", "info"}, {"debug", "info", "--format", "json"},
			{"du"}, {"du", "--verbose"}, {"du", "--format", "json"}, {"du", "--filter", "type==regular"}, {"du", "--filter", "a((b"},
			{"du", "--format", "{{range .}}{{.ID}} {{.RecordType}} {{.Size}} {{end}}"}, {"du", "--format", "{{"},
			{"debug", "histories"}, {"debug", "histories", "--format", "json"},
			{"debug", "histories", "--format", "{{.Type}} {{.Record.Ref}} {{.Record.NumTotalSteps}} {{.Record.CreatedAt.AsTime}}"},
			{"debug", "ctl"}, {"debug", "ctl", "x"}, {"debug", "ctl", "--pin", "--unpin", "x"}, {"debug", "ctl", "--pin", "--delete", "x"},
			{"debug", "get"}, {"debug", "get", "x"}, {"debug", "logs"}, {"debug", "dump-llb", "/nonexistent"},
			{"no-such-command"}, {"du", "--no-such-flag"}, {"--log-format", "x", "du"}, {"--tlsdir", "/nonexistent", "du"},
			{"--tlscacert", "/nonexistent", "du"},
			{"build", "--output", "x"}, {"build", "--output", "type=local"}, {"build", "--output", "type=image,dest=x"},
			{"build", "--local", "x"}, {"build", "--opt", "x"}, {"build", "--allow", "x"}, {"build", "--allow", "device=a,b"},
			{"build", "--ssh", "default=x,y,raw=true"}, {"build", "--secret", "x"}, {"build", "--secret", "id=x,src=/nonexistent"},
			{"build", "--secret", "src=/nonexistent"}, {"build", "--oci-layout", "x"}, {"build", "--export-cache", "type="},
			{"build", "--import-cache", "type=local", "--frontend", "x"}, {"build", "--export-cache", "type=registry", "--frontend", "x"},
			{"build", "--progress", "x", "--frontend", "x"}, {"build", "--source-policy-file", "/nonexistent", "--frontend", "x"},
			{"build", "--registry-auth-tlscontext", "ca=x"}, {"build"}, {"build", "--frontend", "no-such-frontend"},
		} {
			if want, got := bothSay(t, theirs, ours, d, args); got != want {
				t.Errorf("%s, buildctl %q:\nkiln's says (%d) %s%s\nBuildKit's (%d) %s%s",
					d.Name, args, got.code, got.stdout, got.stderr, want.code, want.stdout, want.stderr)
			}
		}
	}
}

// bothSay is what both programs print of a daemon. Seconds after a build's end daemons
// still add to its record, so where the two differ and the first one now prints
// something else than before, both are asked again.
func bothSay(t *testing.T, theirs, ours ctl, d *peer.Daemon, args []string) (want, got said) {
	t.Helper()
	want = theirs.run(t, d, nil, args...)
	for range 30 {
		if got = ours.run(t, d, nil, args...); got == want {
			break
		}
		before := want
		if want = theirs.run(t, d, nil, args...); want == before {
			break
		}
		time.Sleep(time.Second)
		want = theirs.run(t, d, nil, args...)
	}
	return want, got
}

// TestBothBuildctlDump compares what both print of the same LLB.
func TestBothBuildctlDump(t *testing.T) {
	theirs, ours := bothCtl(t)
	for name, def := range definitions(t, "..", library{
		llb: "github.com/kiln-build/kiln/llb", pb: "github.com/kiln-build/kiln/llb/pb", rename: strings.NewReplacer(),
	}) {
		for _, args := range [][]string{{"debug", "dump-llb"}, {"debug", "dump-llb", "--dot"}} {
			want, got := theirs.run(t, shared.kiln, def, args...), ours.run(t, shared.kiln, def, args...)
			if len(args) == 2 {
				got.stdout = withoutSymlinks(t, got.stdout)
			}
			if want.code != 0 || got != want {
				t.Errorf("%s, %q:\nkiln's says (%d) %s%s\nBuildKit's (%d) %s%s",
					name, args, got.code, got.stdout, got.stderr, want.code, want.stdout, want.stderr)
			}
		}
	}
}

// withoutSymlinks is what dump-llb prints without the actions that make symlinks,
// which BuildKit's JSON has no place for.
func withoutSymlinks(t *testing.T, text string) string {
	t.Helper()
	for {
		start := strings.Index(text, `{"symlink":{`)
		if start < 0 {
			return text
		}
		var action json.RawMessage
		dec := json.NewDecoder(strings.NewReader(text[start:]))
		if err := dec.Decode(&action); err != nil {
			t.Fatal(err)
		}
		text = text[:start] + "{}" + text[start+len(action):]
	}
}

// TestBothBuildctlBuild builds with both on both daemons, with a Dockerfile and with
// LLB, and compares the files, the response of the exporters and the other outputs.
func TestBothBuildctlBuild(t *testing.T) {
	theirs, ours := bothCtl(t)
	folder := unpack(t, "run.txtar")
	for _, d := range []*peer.Daemon{shared.kiln, shared.buildkit} {
		var wantFiles, wantMetadata any
		for _, c := range []ctl{theirs, ours} {
			dir := t.TempDir()
			out, metadata, ref, trace := filepath.Join(dir, "out"), filepath.Join(dir, "m.json"), filepath.Join(dir, "ref"), filepath.Join(dir, "trace")
			s := c.run(t, d, nil, "build", "--progress=rawjson", "--frontend=dockerfile.v0",
				"--local", "context="+folder, "--local", "dockerfile="+folder, "--oci-layout", "base="+shared.base.Dir,
				"--opt", "context:base=oci-layout://base@"+shared.base.Digest, "--opt", "build-arg:SOURCE_DATE_EPOCH=1700000000",
				"--output", "type=local,dest="+out, "--output", "type=oci,dest="+filepath.Join(dir, "image.tar"),
				"--metadata-file", metadata, "--ref-file", ref, "--trace", trace, "--debug-json-cache-metrics", "stdout")
			if s.code != 0 {
				t.Fatalf("%s on %s: exit code %d\n%s", c.name, d.Name, s.code, s.stderr)
			}
			checkStatus(t, c, s.stderr)
			checkStatus(t, c, read(t, trace))
			if r := read(t, ref); len(r) != 25 {
				t.Errorf("%s: the ref is %q", c.name, r)
			}
			if !strings.Contains(s.stdout, `"user_total":`) {
				t.Errorf("%s: no metrics in %q", c.name, s.stdout)
			}
			var m map[string]any
			if err := json.Unmarshal([]byte(read(t, metadata)), &m); err != nil {
				t.Fatal(err)
			}
			files := walk(t, out)
			for name := range files {
				if strings.HasSuffix(name, ".json") {
					delete(files, name) // provenance tells of the time
				}
			}
			if wantFiles == nil {
				wantFiles, wantMetadata = files, m
			} else if !reflect.DeepEqual(wantFiles, any(files)) || !reflect.DeepEqual(wantMetadata, any(m)) {
				t.Errorf("%s: with %s\n%v\n%v\nwith buildctl\n%v\n%v", d.Name, c.name, m, files, wantMetadata, wantFiles)
			}
		}
	}
}

// checkStatus checks lines of JSON about a build.
func checkStatus(t *testing.T, c ctl, text string) {
	t.Helper()
	completed := false
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "{") {
			continue // a log of the program's own
		}
		var s struct {
			Vertexes []struct{ Digest, Name, Completed string }
		}
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			t.Errorf("%s: decode %q: %v", c.name, line, err)
		}
		for _, v := range s.Vertexes {
			completed = completed || v.Completed != ""
		}
	}
	if !completed {
		t.Errorf("%s: the status tells of no step that ended:\n%s", c.name, text)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestBothBuildctlErrors compares what both say of builds that fail.
func TestBothBuildctlErrors(t *testing.T) {
	theirs, ours := bothCtl(t)
	for _, dockerfile := range []string{"FROM base\nRUN exit 7\n", "FROM base\nRUNN x\n", "FROM base AS a\nFROM nostage/x@sha256:0\n"} {
		folder := t.TempDir()
		if err := peer.WriteFiles(folder, map[string]string{"Dockerfile": dockerfile}); err != nil {
			t.Fatal(err)
		}
		for _, d := range []*peer.Daemon{shared.kiln, shared.buildkit} {
			args := []string{
				"build", "--progress=quiet", "--frontend=dockerfile.v0", "--local", "context=" + folder, "--local", "dockerfile=" + folder,
				"--oci-layout", "base=" + shared.base.Dir, "--opt", "context:base=oci-layout://base@" + shared.base.Digest,
			}
			want, got := theirs.run(t, d, nil, args...), ours.run(t, d, nil, args...)
			if got.code != want.code || lastLine(got.stderr) != lastLine(want.stderr) {
				t.Errorf("%q on %s:\nkiln's says (%d) %s\nBuildKit's (%d) %s", dockerfile, d.Name, got.code, got.stderr, want.code, want.stderr)
			}
		}
	}
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}
