// Package suite runs BuildKit's own integration tests against Kiln: the tests
// start Kiln by the names buildkitd and buildctl and notice no difference.
//
// What cannot run here, or is not meant to hold, is in excluded.txt, each with
// its reason. Nothing else may be skipped: a test that BuildKit's suite skips
// and that is not listed there fails.
package suite

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kiln-build/kiln/conformance/mirror"
)

const module = "github.com/moby/buildkit"

// suites are packages of BuildKit with tests for a daemon. A test's full name
// has to match run.
var suites = []struct {
	name, dir, run string
	env            string // a variable, "" for none
	atLeast        int    // so many tests, or something is wrong with the harness
}{
	{name: "client", dir: "client", run: "^(TestIntegration|TestClientGatewayIntegration)$/.*/^worker=oci$", atLeast: 200},
	{
		name: "dockerfile", dir: "frontend/dockerfile", run: "^TestIntegration$/.*/^worker=oci$",
		env: "FRONTEND_BUILTIN_ONLY=1", atLeast: 200,
	},
	{ // BuildKit's own frontend, in the client: of its tests those that the other skips
		name: "frontend-client", dir: "frontend/dockerfile", run: "^TestIntegration$/^Test(FrontendSubrequests|Outline.*|Targets.*|Client.*Provenance)$/^worker=oci$",
		env: "FRONTEND_CLIENT_ONLY=1", atLeast: 5,
	},
	{name: "buildctl", dir: "cmd/buildctl", run: "^TestCLIIntegration$/.*/^worker=oci$", atLeast: 6},
	{name: "frontend", dir: "frontend", run: "^TestFrontendIntegration$/.*/^worker=oci$", atLeast: 1},
	{name: "solver", dir: "solver", run: "^TestJobsIntegration$/.*/^worker=oci$", atLeast: 1},
}

func TestBuildKit(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 35*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "suite") // t.TempDir is too long for the sockets below it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	env, err := prepare(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	excluded, err := readExcluded("excluded.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range suites {
		t.Run(s.name, func(t *testing.T) {
			sources, err := moduleDir(ctx, s.dir)
			if err != nil {
				t.Fatal(err)
			}
			checkExcluded(t, sources, excluded[s.name])
			program := filepath.Join(dir, s.name+".test")
			build := exec.CommandContext(ctx, "go", "test", "-c", "-o", program, module+"/"+s.dir)
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("build the tests of %s: %v\n%s", s.dir, err, out)
			}
			args := []string{"-test.v", "-test.timeout", "30m", "-test.run", s.run}
			if skip := skipPattern(excluded[s.name]); skip != "" {
				args = append(args, "-test.skip", skip)
			}
			cmd := exec.CommandContext(ctx, program, args...)
			cmd.Dir, cmd.Env = sources, slices.Concat(env, slices.DeleteFunc([]string{s.env}, func(v string) bool { return v == "" }))
			out, err := cmd.CombinedOutput()
			results := parse(out)
			if len(results) < s.atLeast {
				t.Fatalf("%d tests ran, want at least %d: %v\n%s", len(results), s.atLeast, err, tail(out))
			}
			report(t, results)
			if err != nil && !t.Failed() {
				t.Errorf("the tests ended with %v\n%s", err, tail(out))
			}
		})
	}
}

// prepare makes the programs that the tests look for on PATH and the images
// they pull, and returns their environment.
func prepare(ctx context.Context, dir string) ([]string, error) {
	bin, err := filepath.Abs(filepath.Join("..", "..", "bin"))
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "path")
	tmp := filepath.Join(dir, "t")
	for _, d := range []string{path, tmp} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return nil, err
		}
	}
	for name, program := range map[string]string{
		"buildkitd": "kiln", "buildctl": "kiln", "kiln-runc": "kiln-runc", "buildkit-runc": "kiln-runc", "registry": "registry",
		"azurite-blob": "azurite-blob",
	} {
		if _, err := os.Stat(filepath.Join(bin, program)); err != nil {
			return nil, fmt.Errorf("the suite tests the programs of `make build bin/registry bin/azurite-blob`: %w", err)
		}
		if err := os.Symlink(filepath.Join(bin, program), filepath.Join(path, name)); err != nil {
			return nil, err
		}
	}
	// An S3 server and its client, by the names that the suite looks for.
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(path, "silo"), "../silo").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the S3 server: %w\n%s", err, out)
	}
	if err := os.Symlink("silo", filepath.Join(path, "mc")); err != nil {
		return nil, err
	}
	if err := os.Setenv("PATH", path+string(os.PathListSeparator)+os.Getenv("PATH")); err != nil {
		return nil, err
	}
	images := filepath.Join(dir, "mirror")
	if err := mirror.Write(ctx, images); err != nil {
		return nil, err
	}
	signatures := filepath.Join(dir, "signatures")
	if err := writeSignatures(signatures); err != nil {
		return nil, err
	}
	return append(os.Environ(), "TMPDIR="+tmp, "BUILDKIT_REGISTRY_MIRROR_DIR="+images, "BUILDKIT_TEST_SIGN_FIXTURES="+signatures), nil
}

func moduleDir(ctx context.Context, dir string) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		return "", fmt.Errorf("find the sources of %s: %w", module, err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), dir), nil
}

// readExcluded reads lines such as "client TestFoo: reason", which are of a
// test and all below it.
func readExcluded(name string) (map[string][]string, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	all := map[string][]string{}
	for i, line := range strings.Split(string(text), "\n") {
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		test, reason, ok := strings.Cut(line, ": ")
		suite, test, named := strings.Cut(test, " ")
		if !ok || !named || strings.TrimSpace(reason) == "" {
			return nil, fmt.Errorf("%s:%d: want \"suite TestName: reason\", found %q", name, i+1, line)
		}
		all[suite] = append(all[suite], test)
	}
	return all, nil
}

// checkExcluded makes sure that what is excluded is there: a list of tests
// that were renamed would hide nothing but the truth.
func checkExcluded(t *testing.T, sources string, excluded []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(sources, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	var all bytes.Buffer
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(text)
	}
	for _, e := range excluded {
		test, _, _ := strings.Cut(e, "/")
		if !strings.Contains(all.String(), "func t"+test[1:]+"(") && !strings.Contains(all.String(), `"`+test+`"`) {
			t.Errorf("excluded.txt has %s, which is no test of %s", test, sources)
		}
	}
}

// skipPattern is for -test.skip, which takes a pattern for each level of names.
// Levels below the first are those of the harness's matrix, as "mode=host".
func skipPattern(excluded []string) string {
	var patterns []string
	for _, e := range excluded {
		test, below, _ := strings.Cut(e, "/")
		p := "^Test.*Integration$/^" + test + "$/^worker=oci$"
		if below != "" {
			p += "/^" + strings.ReplaceAll(regexp.QuoteMeta(below), "/", "$/^") + "$"
		}
		patterns = append(patterns, p)
	}
	return strings.Join(patterns, "|")
}

// result is how a test ended that has none below it.
type result struct {
	name, end string // "PASS", "FAIL" or "SKIP"
	output    string // what it printed
}

var (
	ended  = regexp.MustCompile(`^ *--- (PASS|FAIL|SKIP): (\S+) `)
	speaks = regexp.MustCompile(`^=== (?:CONT|NAME|RUN|PAUSE)\s+(\S+)`)
)

// parse reads what a test program printed with -test.v.
func parse(out []byte) []result {
	var all []result
	printed := map[string]*strings.Builder{}
	var current string
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		line := lines.Text()
		if m := speaks.FindStringSubmatch(line); m != nil {
			current = m[1]
			continue
		}
		if m := ended.FindStringSubmatch(line); m != nil {
			all = append(all, result{name: m[2], end: m[1]})
			current = m[2]
			continue
		}
		if line == "PASS" || line == "FAIL" {
			continue // the whole program's
		}
		if printed[current] == nil {
			printed[current] = &strings.Builder{}
		}
		fmt.Fprintln(printed[current], line)
	}
	var leaves []result
	for _, r := range all {
		parent := slices.ContainsFunc(all, func(o result) bool { return strings.HasPrefix(o.name, r.name+"/") })
		if !parent || r.end == "FAIL" && strings.HasSuffix(r.name, "/worker=oci") {
			if b := printed[r.name]; b != nil {
				r.output = b.String()
			}
			leaves = append(leaves, r)
		}
	}
	return leaves
}

// report makes a test of each result.
func report(t *testing.T, results []result) {
	for _, r := range results {
		_, name, _ := strings.Cut(r.name, "/")
		t.Run(strings.Replace(name, "/worker=oci", "", 1), func(t *testing.T) {
			switch r.end {
			case "FAIL":
				t.Error(r.output)
			case "SKIP":
				t.Errorf("BuildKit's suite skips it; list it in excluded.txt, with the reason:\n%s", r.output)
			}
		})
	}
}

// tail is the end of a long output.
func tail(out []byte) string {
	const much = 8 << 10
	if len(out) > much {
		out = out[len(out)-much:]
	}
	return string(out)
}

func TestParse(t *testing.T) {
	got := parse([]byte(`=== RUN   TestA
=== RUN   TestA/X/worker=oci
=== CONT  TestA/X/worker=oci
    said
=== RUN   TestA/Y/worker=oci
--- FAIL: TestA (0.02s)
    --- PASS: TestA/Y/worker=oci (0.31s)
    --- FAIL: TestA/X/worker=oci (1.00s)
FAIL
`))
	if len(got) != 2 || got[0].end != "PASS" || got[1].end != "FAIL" || got[1].output != "    said\n" {
		t.Errorf("%+v", got)
	}
}

func TestSkipPattern(t *testing.T) {
	if got, want := skipPattern([]string{"TestA", "TestB/mode=x.y"}),
		`^Test.*Integration$/^TestA$/^worker=oci$|^Test.*Integration$/^TestB$/^worker=oci$/^mode=x\.y$`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if _, err := readExcluded("missing.txt"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}
