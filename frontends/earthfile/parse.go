package earthfile

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/frontend/sdk"
	"github.com/kiln-build/kiln/llb"
)

// maxSize is how long a file may be, in bytes, and maxNesting how deep IF and FOR
// may be in each other.
const (
	maxSize    = 1 << 20
	maxNesting = 64
)

// earthfile is a file, read.
type earthfile struct {
	base    []*command // the base recipe: what all targets start with
	recipes map[string]*recipe
	names   []string // of targets, in the order of the file
}

// recipe is a target or a function.
type recipe struct {
	name     string
	at       llb.Range
	function bool
	body     []*command
}

// command is a command of a recipe.
type command struct {
	grammar
	verb     string
	at       llb.Range // all of it
	flags    []setting
	words    []word // behind the flags
	raw      string // the same as text
	branches []branch
	body     []*command // of FOR
}

// setting is a flag of a command, its value with quotes.
type setting struct {
	name  string
	value word
}

// branch is one way that IF may go.
type branch struct {
	condition *command // nil for ELSE
	body      []*command
}

// parser reads lines.
type parser struct {
	file     *sdk.File
	lines    []line
	pos      int
	language map[string]grammar
	errors   frontend.SourceErrors
}

// parse reads a file, and reports all errors that it finds.
func parse(f *sdk.File) (*earthfile, error) {
	if len(f.Data) > maxSize {
		return nil, fmt.Errorf("%s is %d bytes long, expected at most %d", f.Name, len(f.Data), maxSize)
	}
	p := &parser{file: f, lines: scan(f), language: language()}
	out := &earthfile{recipes: map[string]*recipe{}}
	p.version()
	out.base = p.block(0, false)
	for p.pos < len(p.lines) {
		p.recipe(out)
	}
	switch len(p.errors) {
	case 0:
		return out, nil
	case 1:
		return nil, p.errors[0]
	}
	return nil, p.errors
}

// fail reports an error.
func (p *parser) fail(at llb.Range, format string, args ...any) {
	var e *frontend.SourceError
	if errors.As(p.file.Errorf(at, format, args...), &e) {
		p.errors = append(p.errors, e)
	}
}

// version reads VERSION. Its flags turn on what is always on here.
func (p *parser) version() {
	const want = "expected VERSION 0.8 as the file's first command"
	if len(p.lines) == 0 {
		p.fail(sdk.Lines(1, 1), "file is empty: %s, and targets", want)
		return
	}
	l := p.lines[0]
	words, err := l.words(0)
	if err != nil || len(words) == 0 || words[0].text != "VERSION" {
		p.fail(l.at, "file has no VERSION: %s", want)
		return
	}
	p.pos = 1
	words = slices.DeleteFunc(words[1:], func(w word) bool { return strings.HasPrefix(w.text, "--") })
	switch {
	case len(words) != 1:
		p.fail(l.at, "VERSION has %d versions: %s", len(words), want)
	case words[0].text != "0.7" && words[0].text != "0.8":
		p.fail(words[0].at, "version %s is not supported: expected 0.7 or 0.8", words[0].text)
	}
}

// heading is the name of the recipe that a line starts, or "".
func heading(l line) (word, bool) {
	words, err := l.words(0)
	if err != nil || l.indented || len(words) != 1 {
		return word{}, false
	}
	name, ok := strings.CutSuffix(words[0].text, ":")
	return word{name, l.place(0, len(name)), 0}, ok
}

// recipe reads a target or a function.
func (p *parser) recipe(out *earthfile) {
	name, _ := heading(p.lines[p.pos])
	p.pos++
	r := &recipe{name: name.text, at: name.at}
	if !regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._-]*$`).MatchString(name.text) {
		p.fail(name.at, "target has the name %q: expected letters, digits, '.', '_' and '-', beginning with a letter", name.text)
	}
	if name.text == "base" {
		p.fail(name.at, "target is called base, which stands for the commands above all targets: expected another name")
	}
	if p.pos < len(p.lines) && p.lines[p.pos].indented && (p.lines[p.pos].text == "FUNCTION" || p.lines[p.pos].text == "COMMAND") {
		r.function = true
		p.pos++
	}
	r.body = p.block(0, true)
	if before := out.recipes[name.text]; before != nil {
		p.fail(name.at, "target %s stands here twice: expected another name than on line %d", name.text, before.at.Start.Line)
		return
	}
	out.recipes[name.text] = r
	if !r.function {
		out.names = append(out.names, name.text)
	}
}

// block reads commands, up to the next recipe or, in IF and FOR, the word that ends
// or parts them.
func (p *parser) block(depth int, indented bool) []*command {
	var out []*command
	for p.pos < len(p.lines) {
		l := p.lines[p.pos]
		if _, ok := heading(l); ok {
			break
		}
		verb := p.verb(l)
		if depth > 0 && (verb == "END" || strings.HasPrefix(verb, "ELSE")) {
			break
		}
		p.pos++
		if l.indented != indented && depth == 0 {
			if indented {
				p.fail(l.at, "command of a target is not indented: expected blanks before %s", verb)
			} else {
				p.fail(l.at, "command above all targets is indented: expected %s at the start of the line, or a target NAME: above", verb)
			}
			continue
		}
		if c := p.command(l, verb, depth); c != nil {
			out = append(out, c)
		}
	}
	return out
}

// verb is the command's name, of two words if it has them.
func (p *parser) verb(l line) string {
	first, rest, _ := strings.Cut(strings.ReplaceAll(l.text, "\t", " "), " ")
	second, _, _ := strings.Cut(strings.TrimLeft(rest, " "), " ")
	both := first + " " + second
	if _, ok := p.language[both]; ok || refused()[both] != "" || both == "ELSE IF" {
		return both
	}
	return first
}

// command reads a command and what belongs to it; nil if it is none.
func (p *parser) command(l line, verb string, depth int) *command {
	at := l.place(0, len(strings.Fields(l.text)[0]))
	if why := refused()[verb]; why != "" {
		p.fail(at, "%s %s", verb, why)
		if verb == "WITH DOCKER" || verb == "TRY" {
			p.skip(depth)
		}
		return nil
	}
	switch g, ok := p.language[verb]; {
	case ok:
		c := p.parts(l, verb, g)
		if c != nil {
			p.inner(c, depth)
		}
		return c
	case verb == "END" || strings.HasPrefix(verb, "ELSE"):
		p.fail(at, "%s belongs to no command: expected IF or FOR above", verb)
	case verb == "FUNCTION" || verb == "COMMAND":
		p.fail(at, "%s stands behind other commands: expected it as the first one of a function NAME:", verb)
	case verb == "VERSION":
		p.fail(at, "VERSION stands behind other commands: expected it once, as the file's first one")
	case verb == "SAVE":
		p.fail(at, "SAVE says not what: expected SAVE ARTIFACT or SAVE IMAGE")
	default:
		p.fail(at, "unknown command: %s: %s", verb, expected(verb, known()))
	}
	return nil
}

// skip passes over what belongs to a command that was refused.
func (p *parser) skip(depth int) {
	was := len(p.errors)
	p.block(depth+1, true)
	p.errors = p.errors[:was] // one is enough
	if p.pos < len(p.lines) && p.verb(p.lines[p.pos]) == "END" {
		p.pos++
	}
}

// inner reads what is between IF, FOR or WAIT and END.
func (p *parser) inner(c *command, depth int) {
	if c.verb != "IF" && c.verb != "FOR" && c.verb != "WAIT" {
		return
	}
	if depth >= maxNesting {
		p.fail(c.at, "%s is nested more than %d deep: expected less, or a function for the inner ones", c.verb, maxNesting)
		p.pos = len(p.lines)
		return
	}
	body := p.block(depth+1, true)
	if c.verb != "IF" {
		c.body = body
	} else {
		c.branches = []branch{{c, body}}
	}
	for p.pos < len(p.lines) {
		l := p.lines[p.pos]
		verb := p.verb(l)
		if verb != "END" && !strings.HasPrefix(verb, "ELSE") {
			break
		}
		p.pos++
		last := len(c.branches) == 0 || c.branches[len(c.branches)-1].condition == nil
		switch {
		case verb == "END":
			return
		case last:
			p.fail(l.at, "%s stands behind %s: expected END", verb, map[bool]string{true: c.verb, false: "ELSE"}[c.verb != "IF"])
			p.block(depth+1, true)
		case verb == "ELSE IF":
			condition := p.parts(l, verb, c.grammar)
			body := p.block(depth+1, true)
			if condition != nil {
				c.branches = append(c.branches, branch{condition, body})
			}
		default:
			c.branches = append(c.branches, branch{nil, p.block(depth+1, true)})
		}
	}
	p.fail(c.at, "%s has no END: expected it before the next target", c.verb)
}

// parts reads a command's flags and words; nil if they are wrong.
func (p *parser) parts(l line, verb string, g grammar) *command {
	c := &command{grammar: g, verb: verb, at: l.at}
	start := 0
	for part := range strings.FieldsSeq(verb) {
		start += strings.Index(l.text[start:], part) + len(part)
	}
	start, ok := p.flags(l, c, start)
	if !ok {
		return nil
	}
	c.raw = strings.TrimSpace(l.text[start:])
	if g.raw {
		if c.raw == "" {
			p.fail(c.at, "%s says nothing: expected a command behind it", verb)
			return nil
		}
		return c
	}
	var err error
	if c.words, err = l.words(start); err != nil {
		p.fail(c.at, "%w", err)
		return nil
	}
	if len(c.words) == 0 && verb != "SAVE IMAGE" && verb != "WAIT" {
		p.fail(c.at, "%s says nothing: expected %s", verb, usage()[verb])
		return nil
	}
	c.raw = ""
	if n := len(c.words); n > 0 { // without a comment behind it
		c.raw = strings.TrimSpace(l.text[start : c.words[n-1].offset+len(c.words[n-1].text)])
	}
	return c
}

// dashes is how many dashes are before the flag that a text starts with; 0 if it
// starts with none. A flag of one letter may have one.
func (g grammar) dashes(text string) int {
	if strings.HasPrefix(text, "--") {
		return 2
	}
	name, isFlag := strings.CutPrefix(text, "-")
	if i := strings.IndexAny(name, " \t="); isFlag && i == 1 {
		if _, ok := g.flags[name[:i]]; ok {
			return 1
		}
	}
	return 0
}

// flags reads the flags that a command starts with, and returns where they end.
func (p *parser) flags(l line, c *command, pos int) (int, bool) {
	for {
		rest := strings.TrimLeft(l.text[pos:], " \t")
		dashes := c.grammar.dashes(rest)
		if dashes == 0 {
			return pos, true
		}
		pos = len(l.text) - len(rest)
		end, err := wordEnd(l.text, pos)
		if err != nil {
			p.fail(l.at, "%w", err)
			return 0, false
		}
		if l.text[pos:end] == "--" { // no flag is behind it
			return end, true
		}
		at := l.place(pos, end-pos)
		name, value, hasValue := strings.Cut(l.text[pos+dashes:end], "=")
		kind, ok := c.grammar.flags[name]
		verb := strings.TrimPrefix(c.verb, "ELSE ")
		if !ok {
			if why := refusedFlags()[verb+" --"+name]; why != "" {
				p.fail(at, "%s --%s %s", verb, name, why)
			} else {
				p.fail(at, "%s has the unknown flag --%s: %s", verb, name, expected(name, slices.Collect(maps.Keys(c.grammar.flags))))
			}
			return 0, false
		}
		f := setting{name, word{value, at, pos}}
		if pos = end; kind != flagBool && !hasValue { // then it is the next word
			rest := strings.TrimLeft(l.text[pos:], " \t")
			pos = len(l.text) - len(rest)
			if rest == "" {
				p.fail(at, "%s --%s has no value: expected --%s=VALUE", verb, name, name)
				return 0, false
			}
			if end, err = wordEnd(l.text, pos); err != nil {
				p.fail(l.at, "%w", err)
				return 0, false
			}
			f.value.text, pos = l.text[pos:end], end
		}
		c.flags = append(c.flags, f)
	}
}
