package syntax

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
)

// Directive is a line "# name=value" at the top of a file.
type Directive struct {
	Name  string // "syntax", "escape", "check" or "kiln", in lower case
	Value string
	Span  Span
}

var byteOrderMark = []byte("\xef\xbb\xbf")

// directives reads the parser directives at the scanner's position. They end
// at the first line that is none.
func (p *parser) directives() {
	s := &p.scanner
	if bytes.HasPrefix(s.src.Data, byteOrderMark) {
		s.pos = len(byteOrderMark)
	}
	isScript := bytes.HasPrefix(s.src.Data[s.pos:], []byte("#!"))
	if isScript {
		line, start, _ := s.physical() // the line that makes the file a script
		s.note(lineComment, start, start+len(line))
	}
	seen := map[string]bool{}
	for {
		back := s.pos
		line, start, ok := s.physical()
		d, isDirective := directive(line, start, "#")
		if !ok || !isDirective {
			s.pos = back
			p.extensions()
			return
		}
		if isScript && d.Name == "escape" { // docker/dockerfile reads but the others below such a line
			s.note(lineComment, start, start+len(line))
			continue
		}
		s.note(lineDirective, start, start+len(line))
		if seen[d.Name] {
			p.fail(d.Span, fmt.Sprintf("directive %q stands here twice", d.Name), "each directive once", "")
		}
		seen[d.Name] = true
		if d.Name == "escape" {
			p.setEscape(d)
		}
		p.file.Directives = append(p.file.Directives, d)
	}
}

func (p *parser) setEscape(d Directive) {
	if d.Value != "\\" && d.Value != "`" {
		p.fail(d.Span, fmt.Sprintf("escape character %q", d.Value), "\\ or `", "")
		return
	}
	p.scanner.escape = d.Value[0]
	p.file.Escape = rune(d.Value[0])
}

// directive reads a line "<mark> name=value" that is one of the language's.
func directive(line []byte, start int, mark string) (Directive, bool) {
	d, ok := namedDirective(line, start, mark)
	if !ok || !d.known() {
		return Directive{}, false
	}
	return d, true
}

// known reports whether a directive is one of docker/dockerfile's.
func (d Directive) known() bool {
	switch d.Name {
	case "syntax", "escape", "check":
		return true
	}
	return false
}

// namedDirective reads a line "<mark> name=value".
func namedDirective(line []byte, start int, mark string) (Directive, bool) {
	text, ok := strings.CutPrefix(strings.TrimSpace(string(line)), mark)
	if !ok {
		return Directive{}, false
	}
	name, value, ok := strings.Cut(text, "=")
	name, value = strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value)
	if !ok || value == "" {
		return Directive{}, false
	}
	return Directive{Name: name, Value: value, Span: Span{start, start + len(line)}}, true
}

var jsonSyntax = regexp.MustCompile(`^\s*\{`)

// FindSyntax finds the "syntax" directive of any build file: written behind "#" or
// "//", or as the field "syntax" of a JSON object, whose first line is then the
// directive's place.
func FindSyntax(data []byte) (Directive, bool) {
	start := len(data)
	data = bytes.TrimPrefix(data, byteOrderMark)
	if bytes.HasPrefix(data, []byte("#!")) {
		_, data, _ = bytes.Cut(data, []byte("\n"))
	}
	start -= len(data)
	for _, mark := range []string{"#", "//"} {
		at := start
		for rest := data; len(rest) > 0; {
			line, next, _ := bytes.Cut(rest, []byte("\n"))
			d, ok := directive(bytes.TrimSuffix(line, []byte("\r")), at, mark)
			if !ok {
				break
			}
			if d.Name == "syntax" {
				return d, true
			}
			at += len(rest) - len(next)
			rest = next
		}
	}
	var object struct{ Syntax string }
	if jsonSyntax.Match(data) && json.Unmarshal(data, &object) == nil && object.Syntax != "" {
		line, _, _ := bytes.Cut(data, []byte("\n"))
		return Directive{Name: "syntax", Value: object.Syntax, Span: Span{start, start + len(line)}}, true
	}
	return Directive{}, false
}
