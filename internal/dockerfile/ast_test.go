package dockerfile

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/kiln-build/kiln/frontend"
)

// rebuilt is the file of a tree: the texts of its tokens.
func rebuilt(t *testing.T, data []byte) (string, astFile) {
	t.Helper()
	text, _ := AST("Dockerfile", data)
	var file astFile
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	var b strings.Builder
	for _, n := range file.Nodes {
		for _, token := range n.Tokens {
			if token.Start.Offset != b.Len() {
				t.Fatalf("token %q is at %d, not %d", token.Text, token.Start.Offset, b.Len())
			}
			if token.Bytes != nil {
				b.Write(token.Bytes)
			} else {
				b.WriteString(token.Text)
			}
		}
	}
	return b.String(), file
}

// TestASTRebuilds rebuilds all files that there are for tests from their JSON.
func TestASTRebuilds(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) < 40 {
		t.Fatalf("found %d archives: %v", len(paths), err)
	}
	var files []string
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range txtar.Parse(data).Files {
			files = append(files, string(f.Data))
		}
	}
	for _, e := range append(syntaxErrorExamples(), buildErrorExamples()...) {
		if len(e.file) < 1<<16 {
			files = append(files, e.file)
		}
	}
	for _, text := range files {
		if got, _ := rebuilt(t, []byte(text)); got != text {
			t.Fatalf("got %q\nwant %q", got, text)
		}
	}
}

// TestASTMeaning checks what a tree says of instructions.
func TestASTMeaning(t *testing.T) {
	text := "# syntax=docker/dockerfile:1\n# kiln=run-limits\n# base is the base\nFROM --platform=$P alpine AS base\n" +
		"ENV A=b C=\"d e\"\nENV old style\nARG X Y=1\nRUN --timeout=5s [\"make\", \"all\"]\nCOPY --link a <<-E /b/\n\ttext\n\tE\n" +
		"ONBUILD RUN --network=none true\nHEALTHCHECK NONE\nBAD\n"
	_, file := rebuilt(t, []byte(text))
	_, err := AST("Dockerfile", []byte(text))
	if found := frontend.SourceErrorsIn(err); len(found) != 1 || len(file.Errors) != 1 || file.Errors[0].Span.Start != (astPosition{len(text) - 4, 14, 0}) {
		t.Errorf("errors %v and %+v", err, file.Errors)
	}
	var got []string
	for _, n := range file.Nodes {
		if n.Directive != nil {
			got = append(got, n.Directive.Name+"="+n.Directive.Value)
		}
		if n.Instruction != nil {
			got = append(got, n.Instruction.say())
		}
	}
	want := `syntax=docker/dockerfile:1
kiln=run-limits
FROM #base is the base --platform=$P "alpine" "AS" "base"
ENV A=b C="d e"
ENV old:style
ARG X Y=1
RUN --timeout=5s exec "make" "all"
COPY --link "a" "/b/" <<E:"\ttext\n"
ONBUILD (RUN --network=none shell "true")
HEALTHCHECK`
	if strings.Join(got, "\n") != want {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
}

func (i *astInstruction) say() string {
	out := i.Verb
	for _, c := range i.Comments {
		out += " #" + c.Value
	}
	for _, f := range i.Flags {
		out += " --" + f.Name
		if f.Value != nil {
			out += "=" + f.Value.Value
		}
	}
	if i.Form != "" {
		out += " " + i.Form
	}
	for _, a := range i.Arguments {
		out += ` "` + a.Value + `"`
	}
	for _, p := range i.Pairs {
		out += " " + p.Key.Value
		switch {
		case p.Legacy:
			out += ":" + p.Value.Value
		case p.Value != nil:
			out += "=" + p.Value.Value
		}
	}
	for _, d := range i.Heredocs {
		quoted, err := json.Marshal(d.Content)
		if err != nil {
			return err.Error()
		}
		out += " <<" + d.Name + ":" + string(quoted)
	}
	if i.Trigger != nil {
		out += " (" + i.Trigger.say() + ")"
	}
	return out
}
