package syntax

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Variables are what "$NAME" stands for.
type Variables interface {
	Get(name string) (value string, ok bool)
}

// NoVariables has no variables.
type NoVariables struct{}

// Get finds nothing.
func (NoVariables) Get(string) (string, bool) { return "", false }

// Limits that keep a hostile file from eating the memory: nested substitutions,
// and the length in bytes of what a word becomes.
const (
	maxDepth    = 64
	maxExpanded = 1 << 20
)

// Expander replaces variables and takes off quotes, as a shell does. It knows
// $x, ${x}, and in braces the modifiers :- - :+ + :? ? # ## % %% / and //.
type Expander struct {
	Escape     rune // takes the meaning from the next character
	KeepQuotes bool // leave quotes in the result
	PlainQuote bool // quotes mean nothing
	SkipUnset  bool // leave variables that are not set as they are written
}

// Expanded is the result of an expansion.
type Expanded struct {
	Text  string
	Used  []string // the variables that were found, each once
	Unset []string // those that were not

	soft []int // byte offsets in Text of blanks that separate words
}

// Words splits the result at blanks that were neither quoted nor escaped.
func (x Expanded) Words() []string {
	var out []string
	start := 0
	for _, at := range append(x.soft, len(x.Text)) {
		if at > start {
			out = append(out, x.Text[start:at])
		}
		_, size := utf8.DecodeRuneInString(x.Text[min(at, len(x.Text)):])
		start = at + size
	}
	return out
}

// Expand expands a word.
func (e Expander) Expand(word string, vars Variables) (Expanded, error) {
	if !strings.ContainsAny(word, "$'\"\\`") && !strings.ContainsFunc(word, unicode.IsSpace) {
		return Expanded{Text: word}, nil
	}
	x := &expansion{Expander: e, in: word, vars: vars, seen: map[string]bool{}}
	var out output
	if err := x.until(&out, 0, false); err != nil {
		return Expanded{}, err
	}
	return Expanded{Text: out.text.String(), Used: x.used, Unset: x.unset, soft: out.soft}, nil
}

// expansion is a word being expanded.
type expansion struct {
	Expander
	in          string
	pos         int
	depth       int
	vars        Variables
	seen        map[string]bool
	used, unset []string
}

// output collects a result and where its blanks separate words.
type output struct {
	text strings.Builder
	soft []int
}

func (o *output) hard(s string) error {
	if o.text.Len()+len(s) > maxExpanded {
		return errTooLong
	}
	o.text.WriteString(s)
	return nil
}

// split adds text whose blanks separate words.
func (o *output) split(s string) error {
	for i, r := range s {
		if unicode.IsSpace(r) {
			o.soft = append(o.soft, o.text.Len()+i)
		}
	}
	return o.hard(s)
}

func (x *expansion) peek() (r rune, size int) { return utf8.DecodeRuneInString(x.in[x.pos:]) }

func (x *expansion) atEnd() bool { return x.pos >= len(x.in) }

// until expands up to the character stop, which it skips; 0 stands for the end.
// With raw, escapes stay in the result, for patterns to see.
func (x *expansion) until(out *output, stop rune, raw bool) error {
	for !x.atEnd() {
		r, size := x.peek()
		var err error
		switch {
		case stop != 0 && r == stop:
			x.pos += size
			return nil
		case r == '\'' && !x.PlainQuote:
			err = x.single(out)
		case r == '"' && !x.PlainQuote:
			err = x.double(out, raw)
		case r == '$':
			var value string
			if value, err = x.dollar(); err == nil {
				err = out.split(value)
			}
		case r == x.Escape:
			err = x.escaped(out, raw)
		default:
			err = out.split(x.in[x.pos : x.pos+size])
			x.pos += size
		}
		if err != nil {
			return err
		}
	}
	switch stop {
	case 0:
		return nil
	case '}':
		return errNoBrace
	}
	return fmt.Errorf("substitution has no %q: expected ${NAME/PATTERN/TEXT}", stop)
}

// escaped takes an escape character and the one behind it.
func (x *expansion) escaped(out *output, raw bool) error {
	start := x.pos
	x.pos += utf8.RuneLen(x.Escape)
	if x.atEnd() {
		if raw {
			return out.hard(x.in[start:x.pos])
		}
		return nil
	}
	from := x.pos
	_, size := x.peek()
	x.pos += size
	if raw {
		from = start
	}
	return out.hard(x.in[from:x.pos])
}

// single takes text in single quotes, in which nothing has a meaning.
func (x *expansion) single(out *output) error {
	n := strings.IndexByte(x.in[x.pos+1:], '\'')
	if n < 0 {
		return errors.New("single quote has no end: expected another ' in the same instruction, or the escape character before it")
	}
	from, to := x.pos+1, x.pos+1+n
	x.pos = to + 1
	if x.KeepQuotes {
		from, to = from-1, to+1
	}
	return out.hard(x.in[from:to])
}

// double takes text in double quotes, in which variables have a meaning, and
// escapes before a quote, a dollar or another escape.
func (x *expansion) double(out *output, raw bool) error {
	quote := ""
	if x.KeepQuotes {
		quote = `"`
	}
	x.pos++
	if err := out.hard(quote); err != nil {
		return err
	}
	for !x.atEnd() {
		r, size := x.peek()
		var err error
		switch r {
		case '"':
			x.pos++
			return out.hard(quote)
		case '$':
			var value string
			if value, err = x.dollar(); err == nil {
				err = out.hard(value)
			}
		case x.Escape:
			err = x.escapedInQuotes(out, raw)
		default:
			err = out.hard(x.in[x.pos : x.pos+size])
			x.pos += size
		}
		if err != nil {
			return err
		}
	}
	return errors.New("double quote has no end: expected another \" in the same instruction, or the escape character before it")
}

func (x *expansion) escapedInQuotes(out *output, raw bool) error {
	escape := string(x.Escape)
	x.pos += len(escape)
	if x.atEnd() {
		return nil
	}
	r, size := x.peek()
	if r != '"' && r != '$' && r != x.Escape {
		if raw { // it means nothing here, and to a pattern neither if it is doubled
			escape += escape
		}
		return out.hard(escape)
	}
	x.pos += size
	if raw {
		return out.hard(escape + string(r))
	}
	return out.hard(string(r))
}

// get looks a variable up and remembers it.
func (x *expansion) get(name string) (string, bool) {
	value, ok := x.vars.Get(name)
	if !x.seen[name] {
		x.seen[name] = true
		if ok {
			x.used = append(x.used, name)
		} else {
			x.unset = append(x.unset, name)
		}
	}
	return value, ok
}

// dollar takes a variable or substitution.
func (x *expansion) dollar() (string, error) {
	start := x.pos
	x.pos++
	if r, _ := x.peek(); x.atEnd() || r != '{' {
		name := x.name()
		if name == "" {
			return "$", nil
		}
		value, ok := x.get(name)
		if !ok && x.SkipUnset {
			return x.in[start:x.pos], nil
		}
		return value, nil
	}
	x.pos++
	if x.depth++; x.depth > maxDepth {
		return "", fmt.Errorf("substitutions are nested more than %d deep: expected fewer, or an ARG or ENV for the inner ones", maxDepth)
	}
	defer func() { x.depth-- }()
	return x.braces(start)
}

// name takes a variable's name: letters, digits and "_", or digits, or one of
// the shell's special characters.
func (x *expansion) name() string {
	r, size := x.peek()
	switch {
	case x.atEnd():
		return ""
	case unicode.IsDigit(r):
		return x.while(unicode.IsDigit)
	case strings.ContainsRune("@*#?-$!", r):
		x.pos += size
		return string(r)
	}
	return x.while(func(r rune) bool { return r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r) })
}

func (x *expansion) while(is func(rune) bool) string {
	start := x.pos
	for !x.atEnd() {
		r, size := x.peek()
		if !is(r) {
			break
		}
		x.pos += size
	}
	return x.in[start:x.pos]
}
