package dockerfile

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/frontend"
)

// errorsPage is the page that lists the errors. Run the tests with -update to
// write it anew.
const errorsPage = "../../docs/dockerfile-errors.md"

const errorsPageHead = `# Errors of Dockerfiles

This page is written by the tests of ` + "`internal/dockerfile`" + `: each example is a file that
the frontend has read, and each answer what it has said. (` + "`go test ./internal/dockerfile -update`" + `
writes it anew.)

An error has a place, which is marked in the file, says what is wrong there, and what would be right or may have
been meant. A build reports all errors that reading the file finds, and if there are none, all that are found in the
stages that are built. Clients of BuildKit show the same, for each error is a detail of its own on the wire.
`

// TestErrorsPage has each example fail, and compares text, place and suggestion
// with the page.
func TestErrorsPage(t *testing.T) {
	var page bytes.Buffer
	page.WriteString(errorsPageHead)
	for _, part := range []struct {
		title    string
		examples []errorExample
	}{{"Reading the file", syntaxErrorExamples()}, {"Building it", buildErrorExamples()}} {
		fmt.Fprintf(&page, "\n## %s\n", part.title)
		for _, e := range part.examples {
			found := errorsOf(t, e)
			fmt.Fprintf(&page, "\n### %s\n\n", e.title)
			if e.why != "" {
				page.WriteString(e.why + "\n\n")
			}
			page.WriteString("```\n")
			for i, one := range found {
				if i > 0 {
					page.WriteString("\n")
				}
				page.WriteString(one.Snippet() + "error: " + abridge(one.Error()) + "\n")
			}
			page.WriteString("```\n")
		}
	}
	if *update {
		if err := os.WriteFile(errorsPage, page.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	have, err := os.ReadFile(errorsPage)
	if err != nil {
		t.Fatal(err)
	}
	want, got := strings.Split(string(have), "\n"), strings.Split(page.String(), "\n")
	for i := range max(len(want), len(got)) {
		if i >= len(want) || i >= len(got) || want[i] != got[i] {
			t.Fatalf("%s is not fresh from line %d on: write it anew with -update and read what changes\n%s", errorsPage, i+1, strings.Join(got[max(0, i-6):min(len(got), i+6)], "\n"))
		}
	}
}

// abridge keeps lines of the page readable.
func abridge(s string) string {
	if len(s) > 400 {
		return s[:200] + " … " + s[len(s)-200:]
	}
	return s
}

// errorsOf returns the errors of an example. Each must have a place inside the
// file and say what to do.
func errorsOf(t *testing.T, e errorExample) []*frontend.SourceError {
	t.Helper()
	gw := newFakeGateway(map[string]string{"dockerfile/Dockerfile": e.file})
	addBadImages(gw)
	_, err := build(t, gw, e.opts)
	found := frontend.SourceErrorsIn(err)
	if len(found) == 0 {
		t.Errorf("%s: no error with a place: %v", e.title, err)
	}
	lines := strings.Split(e.file, "\n")
	for _, one := range found {
		if len(one.Ranges) != 1 {
			t.Fatalf("%s: %d places: %v", e.title, len(one.Ranges), one)
		}
		start, end := one.Ranges[0].Start, one.Ranges[0].End
		if start.Line < 1 || end.Line > len(lines) || start.Line > end.Line ||
			start.Character > len(lines[start.Line-1]) || end.Character > len(lines[end.Line-1]) {
			t.Errorf("%s: place %v is not in the file", e.title, one.Ranges[0])
		}
		if !strings.HasPrefix(one.Error(), fmt.Sprintf("Dockerfile:%d: ", start.Line)) {
			t.Errorf("%s: text %q does not begin with the place", e.title, one)
		}
		if !teaches.MatchString(one.Error()) {
			t.Errorf("%s: text %q does not say what would be right", e.title, one)
		}
	}
	return found
}

// teaches matches texts that say what would be right, or quote the file's own words.
var teaches = regexp.MustCompile(`expected |did you mean |should be |use --build-arg`)

// addBadImages adds images that no good build is based on.
func addBadImages(gw *fakeGateway) {
	trigger := func(text string) string {
		return plainImage("amd64", func(c *imageConfig) { c.Config.OnBuild = []string{text} })
	}
	gw.images["docker.io/library/wrongonbuild:latest"] = trigger("STOPSIGNAL NOW")
	gw.images["docker.io/library/longonbuild:latest"] = trigger("RUN a\nRUN b")
	gw.images["docker.io/library/emptyonbuild:latest"] = trigger(" ")
	gw.images["docker.io/library/nullconfig:latest"] = "null"
}

// TestErrorsPageIsComplete finds the messages in the code and wants an example
// of each.
func TestErrorsPageIsComplete(t *testing.T) {
	var said strings.Builder
	for _, e := range append(syntaxErrorExamples(), buildErrorExamples()...) {
		for _, one := range errorsOf(t, e) {
			said.WriteString(one.Error() + "\n")
		}
	}
	messages := map[string]string{}
	for _, dir := range []string{".", "syntax"} {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("found no code in %s: %v", dir, err)
		}
		for _, name := range files {
			if !strings.HasSuffix(name, "_test.go") {
				messagesIn(t, name, messages)
			}
		}
	}
	if len(messages) < 70 {
		t.Fatalf("found %d messages in the code, want 70 or more", len(messages))
	}
	// What only another language's table of words could bring up.
	delete(messages, "instruction %s has no grammar")
	delete(messages, "%s cannot be built yet")
	for message, at := range messages {
		if !regexp.MustCompile(messagePattern(message)).MatchString(said.String()) {
			t.Errorf("%s: no example has the message %q", at, message)
		}
	}
}

// messagesIn adds the messages of errors at places of a file, by their formats.
func messagesIn(t *testing.T, name string, messages map[string]string) {
	t.Helper()
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, name, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok || len(call.Args) < 2 {
			return true
		}
		fun, ok := call.Fun.(*ast.SelectorExpr)
		if !ok || (fun.Sel.Name != "fail" && fun.Sel.Name != "errorAt") {
			return true
		}
		if message := firstText(call.Args[1]); message != "" {
			messages[message] = set.Position(call.Pos()).String()
		}
		return true
	})
}

// firstText is the first text in an expression: the format of a message, or the
// part of it that does not change.
func firstText(e ast.Expr) (text string) {
	ast.Inspect(e, func(n ast.Node) bool {
		if lit, ok := n.(*ast.BasicLit); ok && text == "" && lit.Kind == token.STRING {
			text, _ = strconv.Unquote(lit.Value)
		}
		return text == ""
	})
	return text
}

var formatVerb = regexp.MustCompile(`%(\[\d+\])?[a-z]`)

// messagePattern matches what a format becomes.
func messagePattern(format string) string {
	return strings.Join(strings.Split(regexp.QuoteMeta(formatVerb.ReplaceAllString(format, "\x00")), "\x00"), ".*")
}
