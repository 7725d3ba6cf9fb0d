package conformance

import (
	"encoding/json"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/conformance/peer"
)

func TestDebugWorkers(t *testing.T) {
	out := buildctl(t, "debug", "workers")
	if !strings.Contains(out, "linux/"+runtime.GOARCH) {
		t.Errorf("no worker for this machine's platform:\n%s", out)
	}
	var workers []struct {
		ID        string `json:"id"`
		Platforms []struct {
			OS           string `json:"os"`
			Architecture string `json:"architecture"`
		} `json:"platforms"`
	}
	text := buildctl(t, "debug", "workers", "--format", "{{json .}}")
	if err := json.Unmarshal([]byte(text), &workers); err != nil {
		t.Fatalf("decode workers: %v\n%s", err, text)
	}
	if len(workers) == 0 || workers[0].ID == "" || len(workers[0].Platforms) == 0 {
		t.Errorf("workers lack an id or platforms: %s", text)
	}
}

func TestDebugInfo(t *testing.T) {
	if out := buildctl(t, "debug", "info"); !strings.Contains(out, "BuildKit") {
		t.Errorf("no version is told:\n%s", out)
	}
}

// TestBuildctlBuild builds the same with the real buildctl and with Kiln's own
// client: the daemon must make the same of both.
func TestBuildctlBuild(t *testing.T) {
	context := unpack(t, "run.txtar")
	args := []string{"SOURCE_DATE_EPOCH=1700000000"}
	ours := filepath.Join(t.TempDir(), "ours.tar")
	theirs := filepath.Join(t.TempDir(), "theirs.tar")
	command(t, shared.kiln, shared.tools.BuildArgs(shared.kiln, shared.base,
		peer.Build{Context: context, Output: "type=oci,dest=" + theirs, Args: args})...)
	command(t, shared.kiln, shared.kiln.BuildArgs(
		peer.Build{Context: context, Output: "type=oci,dest=" + ours, Args: args})...)
	if a, b := open(t, ours), open(t, theirs); a.digest != b.digest {
		t.Errorf("through kiln the image is %s, through buildctl %s", a.digest, b.digest)
	}
}

func TestBuildctlLocalOutput(t *testing.T) {
	context := unpack(t, "run.txtar")
	dest := t.TempDir()
	command(t, shared.kiln, shared.tools.BuildArgs(shared.kiln, shared.base,
		peer.Build{Context: context, Output: "type=local,dest=" + dest})...)
	got := walk(t, dest)
	for _, name := range []string{"bin/busybox", "made"} {
		if _, ok := got[name]; !ok {
			t.Errorf("the local output lacks %s", name)
		}
	}
}

func TestUsageAndPrune(t *testing.T) {
	context := unpack(t, "run.txtar")
	command(t, shared.kiln, shared.tools.BuildArgs(shared.kiln, shared.base, peer.Build{Context: context})...)
	usage := func() string {
		return regexp.MustCompile(`(?m)^Total:\s+(.*)$`).FindString(buildctl(t, "du"))
	}
	before := usage()
	if before == "" || regexp.MustCompile(`:\s+0B?$`).MatchString(before) {
		t.Fatalf("after a build, du shows %q", before)
	}
	if out := buildctl(t, "prune", "--all"); !regexp.MustCompile(`(?m)^Total:\s+[1-9]`).MatchString(out) {
		t.Errorf("prune --all says:\n%s", out)
	}
	if after := usage(); !regexp.MustCompile(`:\s+0B?$`).MatchString(after) {
		t.Errorf("after prune --all, du shows %q", after)
	}
	// What was pruned is built again.
	dest := t.TempDir()
	command(t, shared.kiln, shared.kiln.BuildArgs(peer.Build{Context: context, Output: "type=local,dest=" + dest})...)
	if _, ok := walk(t, dest)["made"]; !ok {
		t.Error("the build after prune made something else")
	}
}

// TestBuildctlProcessErrors compares what buildctl says of processes that cannot be
// started, or end badly.
func TestBuildctlProcessErrors(t *testing.T) {
	for name, lines := range map[string]string{
		"missing":        `RUN ["/nope", "x"]`,
		"not in PATH":    `RUN ["nope"]`,
		"not found":      `RUN nope`,
		"not executable": "RUN echo > /f\nRUN [\"/f\"]",
		"bad format":     "RUN echo x > /f; chmod 755 /f\nRUN [\"/f\"]",
		"interpreter":    "RUN echo '#!/no/such' > /f; chmod 755 /f\nRUN [\"/f\"]",
		"folder":         `RUN ["/bin"]`,
		"killed":         `RUN sh -c 'kill -9 $PPID; kill -9 $$'; kill -15 $$; exit 137`,
		"user":           "USER nobody-knows\nRUN echo",
		"code":           `RUN exit 300`,
		"workdir":        "WORKDIR /bin/busybox\nRUN echo",
	} {
		t.Run(name, func(t *testing.T) {
			context := t.TempDir()
			if err := peer.WriteFiles(context, map[string]string{"Dockerfile": "FROM base\n" + lines + "\n"}); err != nil {
				t.Fatal(err)
			}
			said := map[*peer.Daemon][]string{}
			for _, d := range []*peer.Daemon{shared.kiln, shared.buildkit} {
				out := failing(t, d, shared.tools.BuildArgs(d, shared.base, peer.Build{Context: context})...)
				errors := regexp.MustCompile(`(?m)^(#\d+ ERROR|error): .*$`).FindAllString(out, -1)
				if len(errors) == 0 {
					t.Fatalf("%s says no error:\n%s", d.Name, out)
				}
				if d == shared.kiln && name == "workdir" { // it names the step of what is no process
					errors[len(errors)-1] = strings.Replace(errors[len(errors)-1], "[1/3] WORKDIR /bin/busybox: ", "", 1)
				}
				said[d] = errors
			}
			if ours, theirs := said[shared.kiln], said[shared.buildkit]; !slices.Equal(ours, theirs) {
				t.Errorf("of kiln's daemon:\n%q\nof buildkit's:\n%q", ours, theirs)
			}
		})
	}
}

func TestBuildctlError(t *testing.T) {
	context := t.TempDir()
	if err := peer.WriteFiles(context, map[string]string{"Dockerfile": "FROM base\nRUN echo told && exit 7\n"}); err != nil {
		t.Fatal(err)
	}
	out := failing(t, shared.kiln, shared.tools.BuildArgs(shared.kiln, shared.base, peer.Build{Context: context})...)
	for _, want := range []string{"told", "exit code: 7", "Dockerfile:2"} {
		if !strings.Contains(out, want) {
			t.Errorf("buildctl does not show %q:\n%s", want, out)
		}
	}
}
