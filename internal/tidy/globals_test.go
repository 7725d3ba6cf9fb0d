package tidy

import (
	"go/ast"
	"go/token"
	"slices"
	"strings"
	"testing"
)

// TestGlobals holds package-level variables to values that nobody changes:
// nothing assigns to them, takes their address or deletes from them, and they
// hold an error, a compiled pattern, a table (a composite literal) or embedded
// files. All other state belongs to a value that somebody makes and closes.
func TestGlobals(t *testing.T) {
	packages := map[string][]*source{}
	for _, s := range sources(t) {
		if !s.test() {
			key := s.path[:strings.LastIndex(s.path, "/")+1]
			packages[key] = append(packages[key], s)
		}
	}
	for _, files := range packages {
		globals := map[string]bool{}
		for _, s := range files {
			for _, d := range s.tree.Decls {
				g, ok := d.(*ast.GenDecl)
				if !ok || g.Tok != token.VAR {
					continue
				}
				for _, spec := range g.Specs {
					checkGlobal(t, s, g, spec.(*ast.ValueSpec), globals)
				}
			}
		}
		for _, s := range files {
			checkAssignments(t, s, globals)
		}
	}
}

// checkGlobal reports a variable of a forbidden kind and notes its name.
func checkGlobal(t *testing.T, s *source, g *ast.GenDecl, v *ast.ValueSpec, globals map[string]bool) {
	embedded := strings.Contains(commentText(g.Doc)+commentText(v.Doc), "//go:embed ")
	for i, name := range v.Names {
		if name.Name == "_" {
			continue // a check by the compiler
		}
		globals[name.Name] = true
		if embedded {
			continue
		}
		if i >= len(v.Values) || !constant(v.Values[i]) {
			t.Errorf("%s: package variable %s is neither error, pattern, table nor embedded file", s.at(name.Pos()), name.Name)
		}
	}
}

// commentText is the comment as it stands, directives too.
func commentText(c *ast.CommentGroup) (text string) {
	if c == nil {
		return ""
	}
	for _, line := range c.List {
		text += line.Text + "\n"
	}
	return text
}

// makers are the functions whose result may be kept in a package variable.
var makers = []string{
	"errors.New", "fmt.Errorf", "regexp.MustCompile", "strings.NewReplacer",
	"base32.NewEncoding", "digest.FromBytes", "digest.FromString",
}

func constant(value ast.Expr) bool {
	switch x := value.(type) {
	case *ast.CompositeLit, *ast.BasicLit, *ast.FuncLit:
		return true
	case *ast.UnaryExpr:
		_, literal := x.X.(*ast.CompositeLit)
		return x.Op == token.AND && literal
	case *ast.CallExpr:
		if array, ok := x.Fun.(*ast.ArrayType); ok && array.Len == nil {
			return true // []byte("...")
		}
		return slices.Contains(makers, calledName(x.Fun)) || chained(x, "WithPadding")
	}
	return false
}

// chained tells whether call is a method call of that name.
func chained(call *ast.CallExpr, name string) bool {
	sel, ok := call.Fun.(*ast.SelectorExpr)
	return ok && sel.Sel.Name == name
}

func calledName(f ast.Expr) string {
	switch f := f.(type) {
	case *ast.Ident:
		return f.Name
	case *ast.SelectorExpr:
		if pkg, ok := f.X.(*ast.Ident); ok {
			return pkg.Name + "." + f.Sel.Name
		}
	}
	return ""
}

// checkAssignments reports what changes a package variable. The parser resolves
// names inside one file, so a name that a function declares itself is known;
// one that stays unresolved, or resolves to the file's own variable, is global.
func checkAssignments(t *testing.T, s *source, globals map[string]bool) {
	global := func(e ast.Expr) (*ast.Ident, bool) {
		for {
			switch x := e.(type) {
			case *ast.IndexExpr:
				e = x.X
				continue
			case *ast.SelectorExpr:
				e = x.X
				continue
			case *ast.Ident:
				if !globals[x.Name] {
					return nil, false
				}
				return x, x.Obj == nil || s.tree.Scope.Lookup(x.Name) == x.Obj
			}
			return nil, false
		}
	}
	report := func(e ast.Expr) {
		if name, yes := global(e); yes {
			t.Errorf("%s: changes package variable %s", s.at(e.Pos()), name.Name)
		}
	}
	ast.Inspect(s.tree, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			if n.Tok != token.DEFINE {
				for _, e := range n.Lhs {
					report(e)
				}
			}
		case *ast.IncDecStmt:
			report(n.X)
		case *ast.CallExpr:
			if name := calledName(n.Fun); (name == "delete" || name == "clear") && len(n.Args) > 0 {
				report(n.Args[0])
			}
		}
		return true
	})
}
