// Package syntax reads Dockerfiles: it scans lines, parses instructions into a
// tree and expands variables.
//
// It is the first half of the Dockerfile frontend; package dockerfile lowers
// the tree to a graph. It does no I/O. It promises that parsing takes time in
// proportion to the input, never panics, reports every syntax error it finds
// and not just the first, and that each token and error knows its place in the
// file. The words of the language come from a table ([Words]), so that another
// language can keep the grammar and rename the instructions.
package syntax

import (
	"sort"

	"github.com/kiln-build/kiln/llb"
)

// Span is a stretch of a source, in bytes: the first one and the one after the last.
type Span struct{ Start, End int }

// Source is the text of a file.
type Source struct {
	Name string
	Data []byte

	lines []int // where each line starts
}

// NewSource returns the text data of a file called name.
func NewSource(name string, data []byte) *Source {
	s := &Source{Name: name, Data: data, lines: []int{0}}
	for i, c := range data {
		if c == '\n' {
			s.lines = append(s.lines, i+1)
		}
	}
	return s
}

// longLine is the start of the first line longer than limit, -1 if there is none.
func (s *Source) longLine(limit int) int {
	for i, start := range s.lines {
		end := len(s.Data)
		if i+1 < len(s.lines) {
			end = s.lines[i+1]
		}
		if end-start > limit {
			return start
		}
	}
	return -1
}

// Position converts a byte offset. Lines count from 1, characters from 0.
func (s *Source) Position(offset int) llb.Position {
	offset = min(max(offset, 0), len(s.Data))
	line := sort.SearchInts(s.lines, offset+1) - 1
	return llb.Position{Line: line + 1, Character: offset - s.lines[line]}
}

// Range converts a span.
func (s *Source) Range(span Span) llb.Range {
	return llb.Range{Start: s.Position(span.Start), End: s.Position(span.End)}
}

// LineRanges are the whole lines that a span touches, each a range of its own with
// characters 0, as BuildKit's clients expect of an instruction.
func (s *Source) LineRanges(span Span) (out []llb.Range) {
	end := span.End
	if end > span.Start {
		end-- // a span that ends with a newline does not touch the next line
	}
	last := s.Position(end).Line
	for line := s.Position(span.Start).Line; line <= last; line++ {
		out = append(out, llb.Range{Start: llb.Position{Line: line}, End: llb.Position{Line: line}})
	}
	return out
}

// LLB is the source as graphs record it.
func (s *Source) LLB() llb.SourceFile {
	return llb.SourceFile{Name: s.Name, Data: s.Data, Language: "Dockerfile"}
}
