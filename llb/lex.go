package llb

import (
	"fmt"
	"strconv"
	"strings"
)

// token is a word of the text form, with its quotes taken off. A word is any
// run of characters, parts of which may be quoted: name="two words".
type token struct {
	text    string
	literal []bool // by byte of text: was it in quotes
	line    int
	mark    byte // '{', '}' or '\n' in place of a word, else 0
}

// bare reports whether t is the word s without any quotes.
func (t token) bare(s string) bool {
	return t.mark == 0 && t.text == s && !t.quoted()
}

// quoted reports whether any part of t is quoted.
func (t token) quoted() bool {
	for _, l := range t.literal {
		if l {
			return true
		}
	}
	return len(t.text) == 0
}

// starts reports whether t begins with the unquoted character c.
func (t token) starts(c byte) bool {
	return t.text != "" && t.text[0] == c && !t.literal[0]
}

// cut splits t at the first unquoted separator.
func (t token) cut(sep byte) (before, after token, found bool) {
	for i := range len(t.text) {
		if t.text[i] == sep && !t.literal[i] {
			before = token{text: t.text[:i], literal: t.literal[:i], line: t.line}
			after = token{text: t.text[i+1:], literal: t.literal[i+1:], line: t.line}
			return before, after, true
		}
	}
	return t, token{line: t.line}, false
}

// lex splits text into tokens. A line whose first character is '#' is a comment.
func lex(text string) ([]token, error) {
	var tokens []token
	line := 0
	for rest := range strings.Lines(text) {
		line++
		rest = strings.TrimRight(rest, "\r\n")
		if strings.HasPrefix(strings.TrimLeft(rest, " \t"), "#") {
			continue
		}
		for {
			rest = strings.TrimLeft(rest, " \t")
			if rest == "" {
				break
			}
			if c := rest[0]; c == '{' || c == '}' {
				tokens = append(tokens, token{mark: c, line: line})
				rest = rest[1:]
				continue
			}
			t, n, err := lexWord(rest)
			if err != nil {
				return nil, &LineError{line, err}
			}
			t.line = line
			tokens = append(tokens, t)
			rest = rest[n:]
		}
		tokens = append(tokens, token{mark: '\n', line: line})
	}
	return tokens, nil
}

// lexWord reads the word at the start of s and returns its length in s.
func lexWord(s string) (t token, n int, err error) {
	var text strings.Builder
	for n < len(s) {
		switch c := s[n]; c {
		case ' ', '\t', '{', '}':
			t.text = text.String()
			return t, n, nil
		case '"':
			part, err := strconv.QuotedPrefix(s[n:])
			if err != nil {
				return token{}, 0, fmt.Errorf("quoted string %.40s does not end", s[n:])
			}
			value, err := strconv.Unquote(part)
			if err != nil {
				return token{}, 0, fmt.Errorf("quoted string %s: %w", part, err)
			}
			text.WriteString(value)
			for range len(value) {
				t.literal = append(t.literal, true)
			}
			n += len(part)
		default:
			text.WriteByte(c)
			t.literal = append(t.literal, false)
			n++
		}
	}
	t.text = text.String()
	return t, n, nil
}

// word writes s so that lex reads it back, quoted only where it must be.
func word(s string) string {
	if s == "" {
		return `""`
	}
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == '"' || c == '{' || c == '}' || c == '\\' {
			return strconv.Quote(s)
		}
	}
	if s[0] == '#' {
		return strconv.Quote(s)
	}
	return s
}

// key writes the part of a word that stands before sep.
func key(s string, sep byte) string {
	if strings.IndexByte(s, sep) >= 0 {
		return strconv.Quote(s)
	}
	return word(s)
}

// quoteAll writes strings that are always quoted.
func quoteAll(list []string) string {
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = strconv.Quote(s)
	}
	return strings.Join(quoted, " ")
}
