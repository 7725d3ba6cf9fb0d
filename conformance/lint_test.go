package conformance

import (
	"context"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/frontend/subrequests/lint"
	"github.com/tonistiigi/fsutil"

	"github.com/kiln-build/kiln/conformance/peer"
)

// ownRules are those of Kiln's rules that BuildKit does not have.
var ownRules = []string{"BrokenOnbuildTrigger", "InvalidJSONForm", "UnknownBuildArg"}

// TestLintRules checks the Dockerfiles of BuildKit's own tests of its rules by
// both daemons: the same rules must remark on the same lines. The words differ.
func TestLintRules(t *testing.T) {
	files := lintFiles(t)
	if len(files) < 40 {
		t.Fatalf("BuildKit's tests have %d Dockerfiles, want 40 or more", len(files))
	}
	remarks := 0
	for i, file := range files {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			dir := t.TempDir()
			if err := peer.WriteFiles(dir, map[string]string{"Dockerfile": file, ".dockerignore": "Dockerfile\n"}); err != nil {
				t.Fatal(err)
			}
			ours, theirs := lintOn(t, shared.kiln, dir), lintOn(t, shared.buildkit, dir)
			remarks += len(theirs)
			if !slices.Equal(ours, theirs) {
				t.Errorf("Kiln says %q, BuildKit %q of\n%s", ours, theirs, file)
			}
		})
	}
	if remarks < 60 {
		t.Errorf("BuildKit has made %d remarks in all, want 60 or more", remarks)
	}
}

// lintOn checks the Dockerfile in dir. It returns "rule:line" of each remark, and
// "error" if the file cannot be built.
func lintOn(t *testing.T, d *peer.Daemon, dir string) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	c := dial(ctx, t, d)
	defer c.Close()
	folder, err := fsutil.NewFS(dir)
	if err != nil {
		t.Fatal(err)
	}
	var report lint.LintResults
	_, err = c.Build(ctx, client.SolveOpt{
		OCIStores:   baseStores(t),
		LocalMounts: map[string]fsutil.FS{"dockerfile": folder, "context": folder},
	}, "conformance", func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		res, err := c.Solve(ctx, gateway.SolveRequest{Frontend: "dockerfile.v0", FrontendOpt: map[string]string{
			"requestid": "frontend.lint", "frontend.caps": "moby.buildkit.frontend.subrequests",
			"context:kiln-image": "oci-layout://base@" + shared.base.Digest,
		}})
		if err != nil {
			return nil, err
		}
		return res, json.Unmarshal(res.Metadata["result.json"], &report)
	}, nil)
	if err != nil {
		t.Fatalf("check on %s: %v", d.Dir, err)
	}
	var out []string
	for _, w := range report.Warnings {
		line := w.Location.Ranges[0].Start.Line
		if w.RuleName == "NoEmptyContinuation" {
			line = 0 // BuildKit has the instruction's last line, Kiln the empty one
		}
		if !slices.Contains(ownRules, w.RuleName) {
			out = append(out, fmt.Sprintf("%s:%d", w.RuleName, line))
		}
	}
	slices.Sort(out)
	if report.Error != nil {
		out = append(out, "error")
	}
	return out
}

// lintFiles are the Dockerfiles in the source of BuildKit's tests, with the base
// image that the daemons here have.
func lintFiles(t *testing.T) []string {
	t.Helper()
	dir, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/moby/buildkit").Output()
	if err != nil {
		t.Fatal(err)
	}
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(strings.TrimSpace(string(dir)), "frontend", "dockerfile", "dockerfile_check_test.go"), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	image := regexp.MustCompile(`(?i)(\s|=)(busybox|alpine|debian)(:[a-z0-9.]+)?(\s|$)`)
	var out []string
	ast.Inspect(file, func(n ast.Node) bool {
		lit, ok := n.(*ast.BasicLit)
		if !ok || lit.Kind != token.STRING || !strings.HasPrefix(lit.Value, "`") {
			return true
		}
		text := strings.Trim(lit.Value, "`")
		if regexp.MustCompile(`(?im)^\s*FROM `).MatchString(text) && !strings.Contains(text, "nanoserver") && !strings.Contains(text, "%s") {
			out = append(out, image.ReplaceAllString(text, "${1}kiln-image${4}"))
		}
		return true
	})
	return out
}
