package syntax

import (
	"bytes"
	"sort"
	"strings"
	"unicode"
)

// Comment is a comment line above an instruction, without its "#".
type Comment struct {
	Text string
	Span Span
}

// logicalLine is an instruction's text: one line of the file, or several that
// were joined by continuation marks. Heredocs are not part of it.
type logicalLine struct {
	text     string
	pieces   []piece
	span     Span // in the file, without the last newline
	comments []Comment
	blanks   []Span // empty lines that a continuation ran over
}

// piece says that the text from offset text on stands in the file at offset file.
type piece struct{ text, file int }

// offset is the place in the file of a byte of the text.
func (l *logicalLine) offset(text int) int {
	i := sort.Search(len(l.pieces), func(i int) bool { return l.pieces[i].text > text }) - 1
	if i < 0 {
		return l.span.Start
	}
	return min(l.pieces[i].file+text-l.pieces[i].text, l.span.End)
}

// at is the place in the file of a stretch of the text.
func (l *logicalLine) at(start, end int) Span {
	if end <= start {
		at := l.offset(start)
		return Span{at, at}
	}
	return Span{l.offset(start), l.offset(end-1) + 1}
}

// scanner cuts a source into logical lines and heredocs.
type scanner struct {
	src      *Source
	pos      int
	escape   byte
	comments []Comment
	lines    *[]line // where what was read is noted, for [Tree]; nil does not
}

// physical returns the next line of the file without its newline, and where it starts.
func (s *scanner) physical() (text []byte, start int, ok bool) {
	if s.pos >= len(s.src.Data) {
		return nil, s.pos, false
	}
	start = s.pos
	rest := s.src.Data[start:]
	if i := bytes.IndexByte(rest, '\n'); i >= 0 {
		rest = rest[:i]
		s.pos = start + i + 1
	} else {
		s.pos = len(s.src.Data)
	}
	return bytes.TrimRight(rest, "\r"), start, true
}

// next returns the next logical line, skipping empty lines and comments.
func (s *scanner) next() (*logicalLine, bool) {
	for {
		text, start, ok := s.physical()
		if !ok {
			return nil, false
		}
		trimmed := bytes.TrimLeftFunc(text, unicode.IsSpace)
		switch {
		case len(trimmed) == 0:
			s.note(lineBlank, start, start)
			continue
		case trimmed[0] == '#':
			s.note(lineComment, start, start+len(text))
			s.comment(trimmed, start+len(text)-len(trimmed))
			continue
		}
		s.note(lineCode, start, start)
		l := s.join(trimmed, start+len(text)-len(trimmed))
		if strings.TrimSpace(l.text) == "" {
			continue // continuation marks and nothing else
		}
		return l, true
	}
}

// comment remembers a comment line for the next instruction. An empty comment
// cuts off those above it.
func (s *scanner) comment(line []byte, start int) {
	text := strings.TrimSpace(string(line[1:]))
	if text == "" {
		s.comments = nil
		return
	}
	s.comments = append(s.comments, Comment{Text: text, Span: Span{start, start + len(line)}})
}

// join reads the lines that continue the given one.
func (s *scanner) join(first []byte, start int) *logicalLine {
	l := &logicalLine{span: Span{start, start + len(first)}, comments: s.comments}
	s.comments = nil
	var text strings.Builder
	add := func(line []byte, start int) (more bool) {
		body, more := s.continued(line)
		l.pieces = append(l.pieces, piece{text: text.Len(), file: start})
		l.span.End = start + len(line)
		text.Write(body)
		s.noteCode(start + len(body))
		return more
	}
	more := add(first, start)
	for more {
		line, start, ok := s.physical()
		if !ok {
			break
		}
		switch trimmed := bytes.TrimLeftFunc(line, unicode.IsSpace); {
		case len(trimmed) == 0:
			s.note(lineInnerBlank, start, start)
			l.blanks = append(l.blanks, Span{start, start + len(line)})
		case trimmed[0] == '#':
			s.note(lineInnerComment, start, start+len(line))
		default:
			s.note(lineInnerCode, start, start)
			more = add(line, start)
		}
	}
	l.text = text.String()
	return l
}

// continued cuts off a continuation mark: a single escape character at the end
// of the line, which may have blanks behind it.
func (s *scanner) continued(line []byte) ([]byte, bool) {
	body := bytes.TrimRight(line, " \t")
	n := len(body)
	if n == 0 || body[n-1] != s.escape || (n > 1 && body[n-2] == s.escape) {
		return line, false
	}
	return body[:n-1], true
}

// heredocBody reads the lines up to the one that is just the terminator.
func (s *scanner) heredocBody(terminator string, chomp bool) (content Span, ok bool) {
	content = Span{s.pos, s.pos}
	for {
		line, start, more := s.physical()
		if !more {
			return content, false
		}
		end := start + len(line)
		if chomp {
			line = bytes.TrimLeft(line, "\t")
		}
		if string(line) == terminator {
			s.note(lineHeredocEnd, start, end)
			return content, true
		}
		s.note(lineHeredoc, start, s.pos)
		content.End = s.pos
	}
}
