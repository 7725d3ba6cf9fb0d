package earthfile

import (
	"errors"
	"slices"
	"strings"
	"unicode"

	"github.com/kiln-build/kiln/frontend/sdk"
	"github.com/kiln-build/kiln/llb"
)

// line is one command's text: lines that end with a backslash and the one behind
// them are one.
type line struct {
	text     string // without the blanks around it
	at       llb.Range
	indented bool
	pieces   []piece
}

// piece says where in the file the text comes from, from an offset on.
type piece struct {
	offset int
	from   llb.Position
}

// word is a part of a line, with its quotes.
type word struct {
	text   string
	at     llb.Range
	offset int // in the line's text
}

// scan finds the lines that are neither blank nor comments.
func scan(f *sdk.File) []line {
	var out []line
	var open *line
	for i, text := range f.Lines() {
		number := i + 1
		body := strings.TrimSpace(text)
		if strings.HasPrefix(body, "#") || body == "" {
			continue // also between lines that are one
		}
		start := strings.Index(text, body)
		if open == nil || open.text == "" {
			open = &line{at: sdk.Lines(number, number), indented: start > 0}
		} else {
			// The blanks before the rest separate words.
			body, start = strings.TrimRight(text, " \t"), 0
		}
		rest, goesOn := strings.CutSuffix(body, `\`)
		open.pieces = append(open.pieces, piece{len(open.text), llb.Position{Line: number, Character: start}})
		open.text += rest
		open.at.End.Line = number
		if !goesOn {
			out, open = append(out, *open), nil
		}
	}
	if open != nil {
		out = append(out, *open)
	}
	for i := range out {
		out[i].text = strings.TrimRightFunc(out[i].text, unicode.IsSpace)
	}
	return slices.DeleteFunc(out, func(l line) bool { return l.text == "" }) // nothing but a backslash
}

// place is the range of a part of the text. A line that was made of a word has but
// one place.
func (l line) place(offset, length int) llb.Range {
	if len(l.pieces) == 0 {
		return l.at
	}
	n, _ := slices.BinarySearchFunc(l.pieces, offset, func(p piece, offset int) int {
		if p.offset <= offset {
			return -1
		}
		return 1
	})
	p := l.pieces[max(n-1, 0)]
	from := llb.Position{Line: p.from.Line, Character: p.from.Character + offset - p.offset}
	return llb.Range{Start: from, End: llb.Position{Line: from.Line, Character: from.Character + length}}
}

// words splits the text from an offset on at blanks that are in no quotes and no
// parentheses. A word that starts with "#" starts a comment.
func (l line) words(from int) ([]word, error) {
	var out []word
	for pos := from; pos < len(l.text); {
		if l.text[pos] == ' ' || l.text[pos] == '\t' {
			pos++
			continue
		}
		if l.text[pos] == '#' {
			break
		}
		end, err := wordEnd(l.text, pos)
		if err != nil {
			return out, err
		}
		out = append(out, word{l.text[pos:end], l.place(pos, end-pos), pos})
		pos = end
	}
	return out, nil
}

// wordEnd is where the word ends that starts at pos.
func wordEnd(text string, pos int) (int, error) {
	if text[pos] == '(' {
		return parenthesized(text, pos)
	}
	for pos < len(text) && text[pos] != ' ' && text[pos] != '\t' {
		var err error
		if pos, err = unit(text, pos); err != nil {
			return 0, err
		}
	}
	return pos, nil
}

// unit is where a character, a quoted text or a substitution ends that starts at pos.
func unit(text string, pos int) (int, error) {
	switch {
	case text[pos] == '\\':
		return min(pos+2, len(text)), nil
	case text[pos] == '\'':
		if n := strings.IndexByte(text[pos+1:], '\''); n >= 0 {
			return pos + n + 2, nil
		}
		return 0, errors.New("single quote has no end: expected another ' in the same command, or a backslash before it")
	case text[pos] == '"':
		return doubleQuoted(text, pos)
	case strings.HasPrefix(text[pos:], "$("):
		return parenthesized(text, pos+1)
	}
	return pos + 1, nil
}

// doubleQuoted is where the text in double quotes ends that starts at pos.
func doubleQuoted(text string, pos int) (int, error) {
	for pos++; pos < len(text); {
		if text[pos] == '"' {
			return pos + 1, nil
		}
		end := pos + 1
		if text[pos] != '\'' {
			var err error
			if end, err = unit(text, pos); err != nil {
				return 0, err
			}
		}
		pos = end
	}
	return 0, errors.New(`double quote has no end: expected another " in the same command, or a backslash before it`)
}

// parenthesized is where the text in parentheses ends that starts at pos.
func parenthesized(text string, pos int) (int, error) {
	for pos++; pos < len(text); {
		if text[pos] == ')' {
			return pos + 1, nil
		}
		var err error
		if text[pos] == '(' {
			pos, err = parenthesized(text, pos)
		} else {
			pos, err = unit(text, pos)
		}
		if err != nil {
			return 0, err
		}
	}
	return 0, errors.New("parenthesis has no end: expected ) in the same command")
}
