package syntax

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

var errTooLong = fmt.Errorf("word expands to more than %d bytes: expected shorter variables, or fewer of them", maxExpanded)

var errNoBrace = errors.New("substitution has no '}': expected it before the next blank, or quotes around the word")

// braces takes the rest of "${", up to the closing brace.
func (x *expansion) braces(start int) (string, error) {
	if x.atEnd() {
		return "", errNoBrace
	}
	if strings.IndexByte("{}:", x.in[x.pos]) >= 0 {
		return "", fmt.Errorf("substitution ${%c has no variable: expected a name behind ${", x.in[x.pos])
	}
	name := x.name()
	if x.atEnd() {
		return "", errNoBrace
	}
	r, size := x.peek()
	x.pos += size
	switch r {
	case '}':
		value, ok := x.get(name)
		if !ok && x.SkipUnset {
			return x.in[start:x.pos], nil
		}
		return value, nil
	case ':':
		if x.atEnd() {
			return "", errNoBrace
		}
		r, size = x.peek()
		x.pos += size
		if strings.ContainsRune("-+?", r) {
			return x.choose(start, name, r, true)
		}
		return "", fmt.Errorf("substitution of %s has the modifier %q: expected :-, :+, :?, -, +, ?, #, ##, %%, %%%%, / or //", name, ":"+string(r))
	case '-', '+', '?':
		return x.choose(start, name, r, false)
	case '#', '%':
		return x.trim(start, name, r)
	case '/':
		return x.replace(start, name)
	}
	return "", fmt.Errorf("substitution of %s has the modifier %q: expected :-, :+, :?, -, +, ?, #, ##, %%, %%%%, / or //", name, string(r))
}

// operand takes the text up to a closing character.
func (x *expansion) operand(stop rune, raw bool) (string, error) {
	var out output
	if err := x.until(&out, stop, raw); err != nil {
		return "", err
	}
	return out.text.String(), nil
}

// choose is ${name-word}, ${name+word} and ${name?word}. With a colon, an empty
// variable counts as one that is not set.
func (x *expansion) choose(start int, name string, op rune, colon bool) (string, error) {
	word, err := x.operand('}', false)
	if err != nil {
		return "", err
	}
	value, set := x.get(name)
	if !set && x.SkipUnset {
		return x.in[start:x.pos], nil
	}
	present := set && (!colon || value != "")
	switch {
	case op == '-' && !present:
		return word, nil
	case op == '+' && !present:
		return "", nil
	case op == '+':
		return word, nil
	case op == '?' && !present && word != "":
		return "", fmt.Errorf("%s: %s", name, word)
	case op == '?' && !set:
		return "", fmt.Errorf("%s: is not set: expected an ARG or ENV above, or --build-arg %s=VALUE if there is an ARG", name, name)
	case op == '?' && !present:
		return "", fmt.Errorf("%s: is empty: expected an ARG or ENV above with a value, or --build-arg %s=VALUE if there is an ARG", name, name)
	}
	return value, nil
}

// trim is ${name#pattern} and ${name%pattern}: take what matches off the start
// or the end, as little as possible, or as much with the sign doubled.
func (x *expansion) trim(start int, name string, op rune) (string, error) {
	word, err := x.operand('}', true)
	if err != nil {
		return "", err
	}
	value, set := x.get(name)
	if !set && x.SkipUnset {
		return x.in[start:x.pos], nil
	}
	pattern, greedy := strings.CutPrefix(word, string(op))
	glob, err := parseGlob(pattern)
	if err != nil {
		return "", err
	}
	if op == '#' {
		return trimStart(glob, value, greedy)
	}
	// A regular expression finds the leftmost match. The shortest one at the end
	// is the leftmost of the text backwards.
	slices.Reverse(glob)
	rest, err := trimStart(glob, backwards(value), greedy)
	return backwards(rest), err
}

func trimStart(g glob, value string, greedy bool) (string, error) {
	re, err := g.compile("^", greedy)
	if err != nil {
		return "", err
	}
	if at := re.FindStringIndex(value); at != nil {
		return value[at[1]:], nil
	}
	return value, nil
}

func backwards(s string) string {
	r := []rune(s)
	slices.Reverse(r)
	return string(r)
}

// replace is ${name/pattern/text}, and with two slashes for all matches.
func (x *expansion) replace(start int, name string) (string, error) {
	all := strings.HasPrefix(x.in[x.pos:], "/")
	if all {
		x.pos++
	}
	pattern, err := x.operand('/', true)
	if err != nil {
		return "", err
	}
	text, err := x.operand('}', true)
	if err != nil {
		return "", err
	}
	value, set := x.get(name)
	if !set && x.SkipUnset {
		return x.in[start:x.pos], nil
	}
	glob, err := parseGlob(pattern)
	if err != nil {
		return "", err
	}
	re, err := glob.compile("", true)
	if err != nil {
		return "", err
	}
	if all {
		matches := len(re.FindAllStringIndex(value, -1))
		if matches*len(text) > maxExpanded {
			return "", errTooLong
		}
		return re.ReplaceAllLiteralString(value, text), nil
	}
	if at := re.FindStringIndex(value); at != nil {
		return value[:at[0]] + text + value[at[1]:], nil
	}
	return value, nil
}

// glob is a shell pattern without brackets, a part an element.
type glob []globPart

type globPart struct {
	literal rune
	wild    rune // '*', '?' or 0
}

func parseGlob(pattern string) (glob, error) {
	var g glob
	escaped := false
	for _, r := range pattern {
		switch {
		case escaped:
			if !strings.ContainsRune(`*?\/}`, r) {
				return nil, fmt.Errorf("pattern %q has the escape %q: expected one of \\*, \\?, \\\\, \\/ and \\}", pattern, `\`+string(r))
			}
			g = append(g, globPart{literal: r})
			escaped = false
		case r == '\\':
			escaped = true
		case r == '*' || r == '?':
			g = append(g, globPart{wild: r})
		default:
			g = append(g, globPart{literal: r})
		}
	}
	if escaped {
		return nil, fmt.Errorf("pattern %q ends with an escape: expected one of \\*, \\?, \\\\, \\/ and \\}", pattern)
	}
	return g, nil
}

// compile makes the glob a regular expression behind a prefix.
func (g glob) compile(prefix string, greedy bool) (*regexp.Regexp, error) {
	var b strings.Builder
	b.WriteString("(?s)" + prefix)
	for _, p := range g {
		switch {
		case p.wild == '?':
			b.WriteByte('.')
		case p.wild == '*' && greedy:
			b.WriteString(".*")
		case p.wild == '*':
			b.WriteString(".*?")
		default:
			b.WriteString(regexp.QuoteMeta(string(p.literal)))
		}
	}
	re, err := regexp.Compile(b.String())
	if err != nil {
		return nil, fmt.Errorf("use pattern: %w", err)
	}
	return re, nil
}
