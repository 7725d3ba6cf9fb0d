package tidy

import (
	"go/ast"
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// TestSecurityPage: each row of the page on security names tests, and there are
// tests of these names.
func TestSecurityPage(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(top, "docs", "security.md"))
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, s := range sources(t) {
		for _, d := range s.tree.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && s.test() {
				there[f.Name.Name] = true
			}
		}
	}
	rows := regexp.MustCompile(`(?m)^\| ([^|]*) \| ([^|]*) \|$`).FindAllStringSubmatch(string(text), -1)
	if len(rows) < 25 {
		t.Errorf("the page has %d rows", len(rows))
	}
	for _, row := range rows[1:] {
		names := regexp.MustCompile("`((?:Test|Fuzz)[A-Za-z0-9]+)`").FindAllStringSubmatch(row[2], -1)
		if len(names) == 0 {
			t.Errorf("%q has no test", row[1])
		}
		for _, name := range names {
			if !there[name[1]] {
				t.Errorf("%q names %s, which is no test", row[1], name[1])
			}
		}
	}
}
