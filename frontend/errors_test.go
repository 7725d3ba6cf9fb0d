package frontend

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/llb"
)

func span(l1, c1, l2, c2 int) llb.Range {
	return llb.Range{Start: llb.Position{Line: l1, Character: c1}, End: llb.Position{Line: l2, Character: c2}}
}

func TestSnippet(t *testing.T) {
	text := "FROM alpine\n\n\tRUN mäke \\\n  all\r\nUSER x\nCMD a\x1b[31m\n"
	for _, tt := range []struct {
		name  string
		where llb.Range
		want  string
	}{
		{"word behind a tab and an umlaut", span(3, 11, 3, 12), `Dockerfile:3
--------------------
   1 |     FROM alpine
   2 |
   3 | >>>     RUN mäke \
     |                  ^
   4 |       all
   5 |     USER x
--------------------
`},
		{"lines", span(3, 0, 4, 0), `Dockerfile:3
--------------------
   1 |     FROM alpine
   2 |
   3 | >>>     RUN mäke \
   4 | >>>   all
   5 |     USER x
   6 |     CMD a·[31m
--------------------
`},
		{"first character", span(1, 0, 1, 4), `Dockerfile:1
--------------------
   1 | >>> FROM alpine
     |     ^^^^
   2 |
   3 |         RUN mäke \
--------------------
`},
	} {
		e := &SourceError{File: llb.SourceFile{Name: "Dockerfile", Data: []byte(text)}, Ranges: []llb.Range{tt.where}, Err: errors.New("x")}
		if got := e.Snippet(); got != tt.want {
			t.Errorf("%s:\n%s\nwant:\n%s", tt.name, got, tt.want)
		}
	}
}

func TestSnippetOfOddPlaces(t *testing.T) {
	file := llb.SourceFile{Name: "f", Data: []byte("one\ntwo\n")}
	for _, r := range []llb.Range{span(0, 0, 0, 0), span(99, 0, 99, 0), span(-1, 5, -1, 2), span(2, 900, 2, 901), span(2, 3, 2, 1), span(3, 0, 1, 0)} {
		if s := Snippet(file, []llb.Range{r}); s != "" && !strings.HasPrefix(s, "f:") {
			t.Errorf("%+v: %q", r, s)
		}
	}
	if s := Snippet(file, nil); s != "" {
		t.Errorf("no range: %q", s)
	}
	long := llb.SourceFile{Name: "f", Data: []byte(strings.Repeat(strings.Repeat("x", 5000)+"\n", 500))}
	if s := Snippet(long, []llb.Range{span(1, 0, 500, 0)}); len(s) > 10000 || !strings.Contains(s, "more lines") {
		t.Errorf("snippet of a long file is %d bytes long", len(s))
	}
}

func TestSourceErrorsIn(t *testing.T) {
	one := &SourceError{Err: errors.New("one")}
	two := &SourceError{Err: errors.New("two")}
	if got := SourceErrorsIn(fmt.Errorf("build: %w", SourceErrors{one, two})); len(got) != 2 {
		t.Errorf("found %d of 2", len(got))
	}
	if got := SourceErrorsIn(fmt.Errorf("build: %w", two)); len(got) != 1 || got[0] != two {
		t.Errorf("found %v", got)
	}
	if got := SourceErrorsIn(errors.New("x")); got != nil {
		t.Errorf("found %v", got)
	}
	if !errors.Is(SourceErrors{one, two}, two.Err) {
		t.Error("the causes of several errors are lost")
	}
}
