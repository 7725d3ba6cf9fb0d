package tidy

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	top              = "../.."
	functionLines    = 70
	fileLines        = 500
	makeTargets      = 12
	architectureSize = 300
)

// longFunctions may pass the limit, each for the reason given.
var longFunctions = map[string]string{}

// skippedFolders hold no source of ours.
var skippedFolders = []string{".git", "bin", "bench/out"}

// source is one Go file written by hand.
type source struct {
	path  string // relative to the top of the repository
	text  []byte
	files *token.FileSet
	tree  *ast.File
}

func (s *source) test() bool { return strings.HasSuffix(s.path, "_test.go") }

// at is the place of pos, as "path:line".
func (s *source) at(pos token.Pos) string {
	return fmt.Sprintf("%s:%d", s.path, s.files.Position(pos).Line)
}

// textFiles calls f with the path and content of every text file of ours.
func textFiles(t *testing.T, f func(path string, text []byte)) {
	t.Helper()
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(top, path)
		if err != nil {
			return err
		}
		if d.IsDir() && slices.Contains(skippedFolders, rel) {
			return fs.SkipDir
		}
		if !d.Type().IsRegular() {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil || bytes.IndexByte(text, 0) >= 0 {
			return err
		}
		f(rel, text)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// sources parses every Go file that was written by hand.
func sources(t *testing.T) []*source {
	t.Helper()
	var list []*source
	textFiles(t, func(path string, text []byte) {
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, ".pb.go") || strings.Contains(path, "testdata/") {
			return
		}
		s := &source{path: path, text: text, files: token.NewFileSet()}
		var err error
		if s.tree, err = parser.ParseFile(s.files, path, text, parser.ParseComments); err != nil {
			t.Error(err)
			return
		}
		list = append(list, s)
	})
	if len(list) < 20 {
		t.Fatalf("found %d Go files only", len(list))
	}
	return list
}

// lines is how many lines n stretches over.
func (s *source) lines(n ast.Node) int {
	return s.files.Position(n.End()).Line - s.files.Position(n.Pos()).Line + 1
}

// tableLines is how many lines of f are within tables, which are data.
func (s *source) tableLines(f *ast.FuncDecl) (n int) {
	ast.Inspect(f, func(node ast.Node) bool {
		if table, ok := node.(*ast.CompositeLit); ok {
			n += s.lines(table) - 1
			return false
		}
		return true
	})
	return n
}

func TestSizes(t *testing.T) {
	for _, s := range sources(t) {
		if n := bytes.Count(s.text, []byte("\n")); n > fileLines {
			t.Errorf("%s:%d: the file has %d lines, more than %d", s.path, fileLines, n, fileLines)
		}
		for _, d := range s.tree.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			n := s.lines(f) - s.tableLines(f)
			name := filepath.Dir(s.path) + "." + f.Name.Name
			if _, excepted := longFunctions[name]; n > functionLines && !excepted {
				t.Errorf("%s: %s has %d lines, more than %d", s.at(f.Pos()), f.Name.Name, n, functionLines)
			}
		}
	}
}

func TestPackageComments(t *testing.T) {
	type pkg struct{ documented, files int }
	packages := map[string]*pkg{}
	for _, s := range sources(t) {
		if s.test() {
			continue
		}
		dir := filepath.Dir(s.path)
		if packages[dir] == nil {
			packages[dir] = &pkg{}
		}
		packages[dir].files++
		doc := s.tree.Doc.Text()
		if doc == "" {
			continue
		}
		packages[dir].documented++
		want := "Package " + s.tree.Name.Name + " "
		if s.tree.Name.Name == "main" {
			want = "Command "
		}
		if !strings.HasPrefix(doc, want) {
			t.Errorf("%s: the package comment must begin %q", s.at(s.tree.Doc.Pos()), want)
		}
	}
	for dir, p := range packages {
		if p.documented != 1 {
			t.Errorf("%s: %d of its files have a package comment; one must", dir, p.documented)
		}
	}
}

func TestPackageNames(t *testing.T) {
	for _, s := range sources(t) {
		switch name := strings.TrimSuffix(s.tree.Name.Name, "_test"); name {
		case "util", "utils", "common", "helper", "helpers", "types", "misc", "base", "shared":
			t.Errorf("%s: package %s says nothing of what it holds", s.at(s.tree.Name.Pos()), name)
		}
	}
}

func TestDocComments(t *testing.T) {
	for _, s := range sources(t) {
		if s.test() || s.tree.Name.Name == "main" {
			continue
		}
		for _, d := range s.tree.Decls {
			for _, name := range undocumented(d) {
				t.Errorf("%s: exported %s has no doc comment", s.at(name.Pos()), name.Name)
			}
		}
	}
}

// undocumented returns the exported names that d declares without a comment.
func undocumented(d ast.Decl) (names []*ast.Ident) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Name.IsExported() && d.Doc.Text() == "" && exportedReceiver(d) {
			names = append(names, d.Name)
		}
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			switch spec := spec.(type) {
			case *ast.TypeSpec:
				if spec.Name.IsExported() && d.Doc.Text() == "" && spec.Doc.Text() == "" {
					names = append(names, spec.Name)
				}
			case *ast.ValueSpec:
				// A comment above a group speaks for each member.
				if d.Doc.Text() != "" || spec.Doc.Text() != "" || spec.Comment.Text() != "" {
					continue
				}
				for _, name := range spec.Names {
					if name.IsExported() {
						names = append(names, name)
					}
				}
			}
		}
	}
	return names
}

// exportedReceiver tells whether f is a function, or a method of a type that
// others can see.
func exportedReceiver(f *ast.FuncDecl) bool {
	if f.Recv == nil {
		return true
	}
	typ := f.Recv.List[0].Type
	for {
		switch x := typ.(type) {
		case *ast.StarExpr:
			typ = x.X
		case *ast.IndexExpr:
			typ = x.X
		case *ast.IndexListExpr:
			typ = x.X
		case *ast.Ident:
			return x.IsExported()
		default:
			return false
		}
	}
}

func TestNoInit(t *testing.T) {
	for _, s := range sources(t) {
		for _, d := range s.tree.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Name.Name == "init" && f.Recv == nil {
				t.Errorf("%s: func init hides work from its readers", s.at(f.Pos()))
			}
		}
	}
}

func TestNoPanic(t *testing.T) {
	for _, s := range sources(t) {
		if s.test() {
			continue
		}
		ast.Inspect(s.tree, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if name, ok := call.Fun.(*ast.Ident); ok && name.Name == "panic" {
				t.Errorf("%s: panic outside a test", s.at(call.Pos()))
			}
			return true
		})
	}
}

func TestNoSkip(t *testing.T) {
	for _, s := range sources(t) {
		ast.Inspect(s.tree, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if ok && s.test() && slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, sel.Sel.Name) {
				t.Errorf("%s: a check that cannot run must say so and fail", s.at(call.Pos()))
			}
			return true
		})
	}
}

// Words are put together here, so that this file does not offend itself.
var (
	unfinished = regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X)\b|"to be ` + `written"|"not ` + `implemented`)
	machine    = regexp.MustCompile(`(^|[\s"'=(:` + "`" + `])/(wo` + `rk|ro` + `ot/go|tmp/(bk|lint|tools))/`)
	registries = regexp.MustCompile(`prox` + `y\.golang\.org|sum\.gol` + `ang\.org|goprox` + `y\.(io|cn)|deb\.deb` + `ian\.org|archive\.ubun` + `tu\.com|registry\.np` + `mjs\.org|py` + `pi\.org`)
)

func TestWords(t *testing.T) {
	textFiles(t, func(path string, text []byte) {
		n := 0
		for line := range strings.Lines(string(text)) {
			n++
			if strings.HasSuffix(path, ".go") && unfinished.MatchString(line) {
				t.Errorf("%s:%d: something is left open: %s", path, n, strings.TrimSpace(line))
			}
			if machine.MatchString(line) {
				t.Errorf("%s:%d: a path of one machine: %s", path, n, strings.TrimSpace(line))
			}
			if registries.MatchString(line) {
				t.Errorf("%s:%d: the name of a package registry: %s", path, n, strings.TrimSpace(line))
			}
		}
	})
}

func TestMakefile(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(top, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	targets := regexp.MustCompile(`(?m)^[a-z][a-z-]*:`).FindAllString(string(text), -1)
	documented := regexp.MustCompile(`(?m)^[a-z][a-z-]*:.*## `).FindAllString(string(text), -1)
	if len(targets) == 0 || len(targets) > makeTargets {
		t.Errorf("Makefile: %d targets, want 1 to %d", len(targets), makeTargets)
	}
	if len(targets) != len(documented) {
		t.Errorf("Makefile: %d targets, but %d with a line of help", len(targets), len(documented))
	}
}

func TestArchitecture(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(top, "docs/architecture.md"))
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(text, []byte("\n")); n > architectureSize {
		t.Errorf("docs/architecture.md:%d: it has %d lines, more than %d", architectureSize, n, architectureSize)
	}
	// Every folder that it names must be there.
	for _, m := range regexp.MustCompile("`((?:cmd|internal|llb|client|frontend|bench|conformance|docs|examples|tools)(?:/[a-z*]+)*)/?`").FindAllSubmatch(text, -1) {
		if found, err := filepath.Glob(filepath.Join(top, string(m[1]))); err != nil || len(found) == 0 {
			t.Errorf("docs/architecture.md: there is no %s", m[1])
		}
	}
}

// TestNamedDocuments has a reader of this repository find the documents that
// comments name, unless these are BuildKit's.
func TestNamedDocuments(t *testing.T) {
	named := regexp.MustCompile(`(BuildKit's )?((?:docs/[a-z-]+|\b[A-Z]{2,})\.md)\b`)
	for _, s := range sources(t) {
		for _, c := range s.tree.Comments {
			for _, m := range named.FindAllStringSubmatch(commentText(c), -1) {
				if m[1] == "" && !someFile(filepath.Join(top, m[2]), filepath.Join(top, filepath.Dir(s.path), m[2])) {
					t.Errorf("%s: there is no %s", s.at(c.Pos()), m[2])
				}
			}
		}
	}
}

func someFile(paths ...string) bool {
	return slices.ContainsFunc(paths, func(path string) bool {
		_, err := os.Stat(path)
		return err == nil
	})
}

// TestCommandFiles holds cmd/kiln to one file a command, named after it.
func TestCommandFiles(t *testing.T) {
	files := map[string]string{} // by function
	var commands []string
	for _, s := range sources(t) {
		if filepath.Dir(s.path) != "cmd/kiln" || s.test() {
			continue
		}
		for _, d := range s.tree.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Recv != nil {
				continue
			}
			files[f.Name.Name] = s.path
			if f.Name.Name == "commands" {
				commands = calls(f)
			}
		}
	}
	if len(commands) < 2 {
		t.Errorf("cmd/kiln: func commands lists %d commands", len(commands))
	}
	for _, name := range commands {
		if want := "cmd/kiln/" + strings.ToLower(strings.TrimSuffix(name, "Command")) + ".go"; files[name] != want {
			t.Errorf("%s: defines %s, which belongs in %s", files[name], name, want)
		}
	}
}

// calls lists the functions that f calls by name.
func calls(f *ast.FuncDecl) (names []string) {
	ast.Inspect(f, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok {
			if name, ok := call.Fun.(*ast.Ident); ok {
				names = append(names, name.Name)
			}
		}
		return true
	})
	return names
}
