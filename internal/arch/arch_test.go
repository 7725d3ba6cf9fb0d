package arch

import (
	_ "embed"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/kiln-build/kiln"

// longestChain bounds how deep imports may nest below a package of the policy.
const longestChain = 10

//go:embed policy.txt
var policy string

func TestImports(t *testing.T) {
	rules, err := parse(policy)
	if err != nil {
		t.Fatal(err)
	}
	const format = `{{.ImportPath}} {{join .Imports " "}}`
	cmd := exec.Command("go", "list", "-e", "-f", format, "./...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	imports := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		pkg, list, _ := strings.Cut(strings.TrimSpace(line), " ")
		imports[pkg] = strings.Fields(list)
	}
	if len(imports) < 10 {
		t.Errorf("go list knows %d packages only", len(imports))
	}
	for pkg, list := range imports {
		if onWire(pkg) {
			// Generated code imports what its .proto file does: the wire's
			// layering is BuildKit's. It may see nothing else of the module.
			list = slices.DeleteFunc(list, func(imp string) bool { return onWire(imp) })
		}
		for _, bad := range rules.check(pkg, list) {
			t.Error(bad)
		}
	}
}

// onWire tells whether a package holds the wire's messages.
func onWire(pkg string) bool {
	name := strings.TrimPrefix(pkg, module+"/")
	return name == "llb/pb" || strings.HasPrefix(name, "internal/api/")
}

// TestAloof holds the packages that judge the others to see none of them.
func TestAloof(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{join .Imports " "}} {{join .TestImports " "}}`, ".", "../tidy").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	if strings.Contains(string(out), module) {
		t.Errorf("arch and tidy must import nothing of %s, but import %s", module, out)
	}
}

func TestForbidden(t *testing.T) {
	out, err := exec.Command("go", "list", "-C", "../..", "-e", "-deps", "-test", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for pkg := range strings.Lines(string(out)) {
		if strings.HasPrefix(pkg, "github.com/moby/buildkit") || strings.HasPrefix(pkg, "github.com/docker/buildx") {
			t.Errorf("%s must not be linked: Kiln is no derivative of it", strings.TrimSpace(pkg))
		}
	}
}

func TestPolicyIsFlat(t *testing.T) {
	rules, err := parse(policy)
	if err != nil {
		t.Fatal(err)
	}
	depth := map[string]int{}
	for _, r := range rules {
		for _, a := range r.allow {
			depth[r.pkg] = max(depth[r.pkg], depth[a])
		}
		depth[r.pkg]++
		if depth[r.pkg] > longestChain && r.pkg != "cmd/kiln" {
			t.Errorf("%s stands at the top of a chain of %d imports, more than %d", r.pkg, depth[r.pkg], longestChain)
		}
	}
}

func TestPolicyRejects(t *testing.T) {
	if _, err := parse("a: b\nb:\n"); err == nil {
		t.Error("a line may not look ahead")
	}
	rules, err := parse("low:\nback: low\nback/*: low back\n")
	if err != nil {
		t.Fatal(err)
	}
	for imp, ok := range map[string]bool{"back": true, "low": true, "back/y": false, "new": false} {
		if got := len(rules.check(module+"/back/x", []string{module + "/" + imp})) == 0; got != ok {
			t.Errorf("back/x importing %s: allowed = %v", imp, got)
		}
	}
	for imp, ok := range map[string]bool{"low": true, "back": true, "back/y": false} {
		if got := len(rules.check(module+"/back/x/xtest", []string{module + "/back/x", module + "/" + imp})) == 0; got != ok {
			t.Errorf("back/x/xtest importing %s: allowed = %v", imp, got)
		}
	}
	if len(rules.check(module+"/stray", nil)) == 0 {
		t.Error("a package without a line passes")
	}
}

type rule struct {
	pkg   string
	allow []string
}

type rules []rule

// parse reads the policy's text. A "*" that stands alone allows everything on
// earlier lines.
func parse(text string) (rs rules, err error) {
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		if strings.TrimSpace(line) == "" {
			continue
		}
		pkg, list, _ := strings.Cut(line, ":")
		r := rule{strings.TrimSpace(pkg), strings.Fields(list)}
		if slices.Equal(r.allow, []string{"*"}) {
			r.allow = nil
			for _, e := range rs {
				r.allow = append(r.allow, e.pkg)
			}
		}
		for _, a := range r.allow {
			if !slices.ContainsFunc(rs, func(e rule) bool { return e.pkg == a }) {
				return nil, fmt.Errorf("%s: %s is on no earlier line", r.pkg, a)
			}
		}
		rs = append(rs, r)
	}
	return rs, nil
}

// check returns what the policy has against pkg's imports.
func (rs rules) check(pkg string, imports []string) (bad []string) {
	name := strings.TrimPrefix(pkg, module+"/")
	subject := name
	// A suite for implementations, x/xtest, may import what x may, and x.
	if parent, ok := testSuiteOf(name); ok {
		subject = parent
	}
	if name == "internal/arch" || name == "internal/tidy" {
		return nil // they import nothing of the module: see TestAloof
	}
	r := rs.find(subject)
	if r == nil {
		return []string{pkg + " has no line in the policy"}
	}
	for _, imp := range imports {
		to, ours := strings.CutPrefix(imp, module+"/")
		if !ours || to == name || subject != name && to == subject {
			continue
		}
		// A package's own tests, and those of its implementations, use its suite.
		if suite, ok := testSuiteOf(to); ok && (suite == name || strings.HasPrefix(name, suite+"/")) {
			continue
		}
		if target := rs.find(to); target == nil || !slices.Contains(r.allow, target.pkg) && !slices.Contains(r.allow, folderOf(to)) {
			bad = append(bad, fmt.Sprintf("%s must not import %s", pkg, imp))
		}
	}
	return bad
}

// testSuiteOf tells which package the test package name belongs to.
func testSuiteOf(name string) (string, bool) {
	i := strings.LastIndex(name, "/")
	if i < 0 {
		return "", false
	}
	parent := name[:i]
	return parent, name[i+1:] == parent[strings.LastIndex(parent, "/")+1:]+"test"
}

// folderOf is how the policy names all packages that are where pkg is.
func folderOf(pkg string) string { return pkg[:max(strings.LastIndex(pkg, "/"), 0)] + "/*" }

// find returns the line for a package: its own, or else its folder's.
func (rs rules) find(pkg string) *rule {
	parent := folderOf(pkg)
	i := slices.IndexFunc(rs, func(r rule) bool { return r.pkg == pkg })
	if i < 0 {
		i = slices.IndexFunc(rs, func(r rule) bool { return r.pkg == parent })
	}
	if i < 0 {
		return nil
	}
	return &rs[i]
}
