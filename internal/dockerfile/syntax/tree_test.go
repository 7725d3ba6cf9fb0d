package syntax

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

// checkTree checks that a tree leaves nothing of the file out.
func checkTree(t *testing.T, name string, data []byte) *Tree {
	t.Helper()
	src := NewSource("Dockerfile", data)
	tree, err := ParseTree(src, DockerfileWords())
	if _, plain := Parse(src, DockerfileWords()); fmt.Sprint(plain) != fmt.Sprint(err) {
		t.Fatalf("%s: error %v, without the tree %v", name, err, plain)
	}
	at := 0
	for _, n := range tree.Nodes {
		if n.Span.Start != at || n.Span.End <= at || len(n.Tokens) == 0 {
			t.Fatalf("%s: a node is at %v, the one before ends at %d", name, n.Span, at)
		}
		for _, token := range n.Tokens {
			if token.Span.Start != at || token.Span.End <= at {
				t.Fatalf("%s: %s is at %v, what is before ends at %d", name, token.Kind, token.Span, at)
			}
			at = token.Span.End
		}
		if n.Span.End != at {
			t.Fatalf("%s: a node is at %v, its tokens end at %d", name, n.Span, at)
		}
	}
	if at != len(data) {
		t.Fatalf("%s: the tree ends at %d of %d bytes", name, at, len(data))
	}
	return tree
}

// TestTreeTokens checks what parts of a file are told apart.
func TestTreeTokens(t *testing.T) {
	text := "\ufeff# escape=`\n# a comment\n\n  From --platform=$P x as y  \r\n\\\n" +
		"RUN --mount=type=`\ncache,target=/x `  \n  # inside\n\n a `\n b <<E <<-F\nE\n\tF\nF\nONBUILD COPY --link a /\nnope x"
	tree := checkTree(t, "tokens", []byte(text))
	var got []string
	for _, n := range tree.Nodes {
		line := string(n.Kind)
		if n.Instruction != nil {
			line += " " + n.Instruction.head().Verb.String()
		}
		for _, token := range n.Tokens {
			line += fmt.Sprintf(" %s:%q", token.Kind, text[token.Span.Start:token.Span.End])
		}
		got = append(got, line)
	}
	want := []string{
		`mark mark:"\ufeff"`,
		"directive directive:\"# escape=`\" newline:\"\\n\"",
		`comment comment:"# a comment" newline:"\n"`,
		`blank newline:"\n"`,
		`instruction FROM space:"  " word:"From" space:" " flag:"--platform=$P" space:" " text:"x as y" space:"  " newline:"\r\n"`,
		`instruction text:"\\" newline:"\n"`,
		"instruction RUN word:\"RUN\" space:\" \" flag:\"--mount=type=\" continuation:\"`\\n\" flag:\"cache,target=/x\" space:\" \"" +
			" continuation:\"`  \\n\" space:\"  \" comment:\"# inside\" newline:\"\\n\" newline:\"\\n\" space:\" \" text:\"a\" space:\" \"" +
			" continuation:\"`\\n\" space:\" \" text:\"b <<E <<-F\" newline:\"\\n\" heredoc-end:\"E\" newline:\"\\n\" heredoc-end:\"\\tF\" newline:\"\\n\"",
		`instruction text:"F" newline:"\n"`,
		`instruction ONBUILD word:"ONBUILD" space:" " word:"COPY" space:" " flag:"--link" space:" " text:"a /" newline:"\n"`,
		`instruction text:"nope x"`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestTreeIsWhole rebuilds all files that there are for tests.
func TestTreeIsWhole(t *testing.T) {
	paths, err := filepath.Glob("../testdata/*.txtar")
	if err != nil || len(paths) < 40 {
		t.Fatalf("found %d archives: %v", len(paths), err)
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		checkTree(t, path, data) // an archive is junk, too
		for _, f := range txtar.Parse(data).Files {
			checkTree(t, path+"/"+f.Name, f.Data)
			checkTree(t, path+"/"+f.Name+" with CRLF", []byte(strings.ReplaceAll(string(f.Data), "\n", "\r\n")))
			checkTree(t, path+"/"+f.Name+" without end", []byte(strings.TrimRight(string(f.Data), "\n")))
		}
	}
	for name, file := range hostileFiles() {
		checkTree(t, name, []byte(file(4000)))
	}
}

func FuzzTree(f *testing.F) {
	for name, file := range hostileFiles() {
		_ = name
		f.Add([]byte(file(200)))
	}
	f.Add([]byte("# escape=`\nFROM a\nRUN x `\n\n # c\n y <<E\r\nz\r\nE\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) { checkTree(t, "fuzz", data) })
}
