package syntax

import (
	"fmt"
	"maps"
	"strings"
)

// Extensions are parts of the language that docker/dockerfile does not have. A
// file has those that it names in a line "# kiln=NAME,...", below its other
// directives. To other builders that line is a comment, and what it allows are
// flags that they do not know and so refuse: no file means one thing here and
// another there.
type Extensions struct {
	RunLimits bool // RUN takes --timeout, --memory and --cpus
}

const (
	extensionDirective = "kiln"
	extensionRunLimits = "run-limits"
)

// flagsOf is the table of the flags that an instruction takes.
func (x Extensions) flagsOf(v Verb) map[string]flagKind {
	table := flagsOf(v)
	if v == VerbRun && x.RunLimits {
		table = maps.Clone(table)
		for _, name := range []string{"timeout", "memory", "cpus"} {
			table[name] = flagString
		}
	}
	return table
}

// extensions reads the line that names the extensions, if the next is one. What
// looks like a directive below it is none to other builders, so it is refused.
func (p *parser) extensions() {
	s := &p.scanner
	back := s.pos
	line, start, ok := s.physical()
	d, is := namedDirective(line, start, "#")
	if !ok || !is || d.Name != extensionDirective {
		s.pos = back
		return
	}
	s.note(lineDirective, start, start+len(line))
	p.file.Directives = append(p.file.Directives, d)
	for name := range strings.SplitSeq(d.Value, ",") {
		switch name = strings.TrimSpace(name); name {
		case extensionRunLimits:
			p.file.Extensions.RunLimits = true
		default:
			p.fail(d.Span, fmt.Sprintf("extension %s is not known", quote(name)), extensionRunLimits, "")
		}
	}
	back = s.pos
	line, start, ok = s.physical()
	if below, is := namedDirective(line, start, "#"); ok && is && (below.known() || below.Name == extensionDirective) {
		p.fail(below.Span, fmt.Sprintf("directive %q stands below %q", below.Name, extensionDirective), "it above, for below that line it is a comment", "")
	}
	s.pos = back
}
