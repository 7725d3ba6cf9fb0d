package llb

import (
	"errors"
	"strings"
)

// splitWords splits a line into words as BuildKit's library does: at blanks;
// 'quotes' keep all, "quotes" and the backslash keep what follows it; a word
// that begins with # begins a comment.
func splitWords(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	inWord := false
	quote, escaped, comment := byte(0), false, false
	for i := range len(line) {
		c := line[i]
		switch {
		case comment:
			comment = c != '\n'
		case escaped:
			word.WriteByte(c)
			escaped = false
		case quote == '\'' && c != '\'':
			word.WriteByte(c)
		case c == '\\':
			inWord, escaped = true, true
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word.WriteByte(c)
		case c == '\'' || c == '"':
			inWord, quote = true, c
		case strings.IndexByte(" \t\r\n", c) >= 0:
			if inWord {
				words = append(words, word.String())
				word.Reset()
				inWord = false
			}
		case c == '#' && !inWord:
			comment = true
		default:
			word.WriteByte(c)
			inWord = true
		}
	}
	switch {
	case escaped:
		return nil, errors.New("split command: it ends with a backslash")
	case quote != 0:
		return nil, errors.New("split command: a quote is not closed")
	case inWord:
		words = append(words, word.String())
	}
	return words, nil
}
