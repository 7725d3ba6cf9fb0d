package frontend

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/kiln-build/kiln/llb"
)

// SourceErrors are several errors of build files, in the order of the file.
type SourceErrors []*SourceError

// Error has a line for each error.
func (l SourceErrors) Error() string {
	texts := make([]string, len(l))
	for i, e := range l {
		texts[i] = e.Error()
	}
	return strings.Join(texts, "\n")
}

// Unwrap returns the single errors.
func (l SourceErrors) Unwrap() []error {
	out := make([]error, len(l))
	for i, e := range l {
		out[i] = e
	}
	return out
}

// SourceErrorsIn returns all errors of build files in the tree of err.
func SourceErrorsIn(err error) []*SourceError {
	var list SourceErrors
	if errors.As(err, &list) {
		return list
	}
	var single *SourceError
	if errors.As(err, &single) {
		return []*SourceError{single}
	}
	return nil
}

// UnsupportedError says that a frontend does not have a capability or a subrequest
// that the request asks for. Clients that see it may try another way, so it
// travels as code Unimplemented with a typed detail (BuildKit's solver/errdefs).
type UnsupportedError struct {
	Kind string // "capability" or "subrequest"
	Name string
}

// Error names what is not supported.
func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("unsupported frontend %s %s", e.Kind, e.Name)
}

// contextLines is how many lines a snippet shows above and below an error.
const contextLines = 2

// maxSnippetLines and maxSnippetColumns bound what a snippet shows.
const (
	maxSnippetLines   = 20
	maxSnippetColumns = 160
)

// Snippet is the error for a terminal: the place, the lines around it with the
// wrong ones marked, and below a line the very characters if they are known.
func (e *SourceError) Snippet() string { return Snippet(e.File, e.Ranges) }

// Snippet shows the lines of a file around ranges, and marks the ranges.
func Snippet(file llb.SourceFile, ranges []llb.Range) string {
	if len(ranges) == 0 || len(file.Data) == 0 {
		return ""
	}
	lines := bytes.Split(file.Data, []byte("\n"))
	first, last := ranges[0].Start.Line, ranges[0].End.Line
	for _, r := range ranges {
		first, last = min(first, r.Start.Line), max(last, r.End.Line)
	}
	if first < 1 || first > len(lines) {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s:%d\n", file.Name, first)
	b.WriteString("--------------------\n")
	from := max(1, first-contextLines)
	to := min(len(lines), max(first, last)+contextLines)
	for n := from; n <= to; n++ {
		if n == from+maxSnippetLines {
			fmt.Fprintf(&b, "     | ... %d more lines\n", to-n+1)
			break
		}
		writeLine(&b, n, string(bytes.TrimRight(lines[n-1], "\r")), ranges)
	}
	b.WriteString("--------------------\n")
	return b.String()
}

// writeLine writes one line of a snippet, with a marker below it if a range
// covers only some of its characters.
func writeLine(b *strings.Builder, n int, line string, ranges []llb.Range) {
	sign := "   "
	from, to := -1, -1
	for _, r := range ranges {
		if n < r.Start.Line || n > r.End.Line {
			continue
		}
		sign = ">>>"
		if r.Start.Line == r.End.Line && (r.Start.Character != 0 || r.End.Character != 0) {
			from, to = r.Start.Character, r.End.Character
		}
	}
	text := printable(line)
	if runes := []rune(text); len(runes) > maxSnippetColumns {
		text = string(runes[:maxSnippetColumns]) + "…"
	}
	b.WriteString(strings.TrimRight(fmt.Sprintf("%4d | %s %s", n, sign, text), " ") + "\n")
	if from < 0 || from > len(line) {
		return
	}
	before := utf8.RuneCountInString(printable(line[:from]))
	to = min(max(from, to), len(line))
	width := max(1, utf8.RuneCountInString(printable(line[from:to])))
	if before+width <= maxSnippetColumns {
		fmt.Fprintf(b, "     |     %s%s\n", strings.Repeat(" ", before), strings.Repeat("^", width))
	}
}

// printable makes a line of a foreign file safe to show on a terminal: tabs
// become spaces and control characters a placeholder of the same width.
func printable(line string) string {
	var b strings.Builder
	for _, r := range line {
		switch {
		case r == '\t':
			b.WriteString("    ")
		case r < 0x20 || r == 0x7f || (r >= 0x80 && r < 0xa0) || r == utf8.RuneError:
			b.WriteRune('·')
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
