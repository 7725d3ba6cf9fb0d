package syntax

import (
	"fmt"
	"regexp"
	"strings"
)

// heredocWord is a whole shell word that starts a heredoc.
var heredocWord = regexp.MustCompile(`^[0-9]*<<(-?)[\t\r ]*([^<]*)$`)

// heredocs reads the documents that the statement's line announces.
func (s *statement) heredocs() {
	switch s.Verb {
	case VerbRun, VerbCopy, VerbAdd:
	default:
		return
	}
	if !strings.Contains(s.args, "<<") || isJSONList(s.args) {
		return
	}
	for _, w := range shellWords(s.args) {
		doc, ok := parseHeredoc(s.args[w.Start:w.End])
		if !ok {
			continue
		}
		doc.Word = s.line.at(s.from+w.Start, s.from+w.End)
		doc.Name.Span = doc.Word
		body, ok := s.scanner.heredocBody(doc.Name.Value, doc.Chomp)
		if !ok {
			s.fail(doc.Word, fmt.Sprintf("heredoc %s has no end", quote(doc.Name.Value)),
				fmt.Sprintf("a line that is just %s", quote(doc.Name.Value)), "")
			return
		}
		doc.Body = body
		doc.Content = string(s.file.Source.Data[body.Start:body.End])
		s.docs = append(s.docs, doc)
		s.Span.End = max(s.Span.End, lineEnd(s.file.Source, body.End))
	}
}

// lineEnd is where the line at offset ends, without its newline.
func lineEnd(src *Source, offset int) int {
	for offset < len(src.Data) && src.Data[offset] != '\n' {
		offset++
	}
	return offset
}

// parseHeredoc reads a word such as <<EOF, <<-EOF, <<"EOF" or 3<<EOF.
func parseHeredoc(word string) (Heredoc, bool) {
	m := heredocWord.FindStringSubmatch(word)
	if m == nil || m[2] == "" {
		return Heredoc{}, false
	}
	quoted := strings.ContainsAny(m[2], `"'`)
	x, err := Expander{Escape: '\\', SkipUnset: true}.Expand(m[2], NoVariables{})
	if err != nil || len(x.Words()) != 1 {
		return Heredoc{}, false
	}
	return Heredoc{Name: Text{Value: x.Words()[0]}, Chomp: m[1] == "-", Expand: !quoted}, true
}

// IsHeredoc reports whether a word starts a heredoc.
func IsHeredoc(word string) bool {
	_, ok := parseHeredoc(word)
	return ok
}

// ChompTabs takes the tabs off the start of each line.
func ChompTabs(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(strings.TrimLeft(line, "\t"))
	}
	return b.String()
}

// shellWords splits a line as a shell would. Quotes and escapes stay in the
// words, and blanks behind "<<" belong to the word. A line with open quotes has
// no words.
func shellWords(line string) []Span {
	var words []Span
	start := -1
	end := func(at int) {
		if start >= 0 {
			words = append(words, Span{start, at})
			start = -1
		}
	}
	for i := 0; i < len(line); i++ {
		if isSpace(line[i]) {
			end(i)
			continue
		}
		if start < 0 {
			start = i
		}
		next := skipWordPart(line, i)
		if next < 0 {
			return nil
		}
		i = next
	}
	end(len(line))
	return words
}

// skipWordPart returns the last byte of the quoted, escaped or plain part of a
// word that starts at i, -1 if it does not end.
func skipWordPart(line string, i int) int {
	switch c := line[i]; {
	case c == '\\':
		return i + 1
	case c == '\'':
		n := strings.IndexByte(line[i+1:], '\'')
		if n < 0 {
			return -1
		}
		return i + 1 + n
	case c == '"':
		for j := i + 1; j < len(line); j++ {
			switch line[j] {
			case '\\':
				j++
			case '"':
				return j
			}
		}
		return -1
	case c == '<' && strings.HasPrefix(line[i:], "<<"):
		i++
		for i+1 < len(line) && strings.IndexByte("\t\r ", line[i+1]) >= 0 {
			i++
		}
	}
	return i
}
