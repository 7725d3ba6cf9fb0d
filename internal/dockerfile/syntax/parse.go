package syntax

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// MaxSize is how long a build file may be, in bytes. It is far more than
// anybody writes and little enough to keep all of it in memory several times.
const MaxSize = 16 << 20

// maxLine is how long a line may be, in bytes. No program takes an argument of
// this length.
const maxLine = 1 << 20

// maxErrors is how many errors are reported of one file.
const maxErrors = 50

// blanks separate the words of an instruction.
const blanks = "\t\v\f\r "

// Parse reads a build file. It reports all errors that it finds, as [Errors],
// and returns what it understood besides them.
func Parse(src *Source, words Words) (*File, error) { return parse(src, words, nil) }

func parse(src *Source, words Words, lines *[]line) (*File, error) {
	p := &parser{
		scanner: scanner{src: src, escape: '\\', lines: lines},
		words:   words,
		file:    &File{Source: src, Escape: '\\'},
	}
	if p.readable() {
		p.directives()
		for len(p.errors) < maxErrors {
			line, ok := p.scanner.next()
			if !ok {
				break
			}
			p.instruction(line)
		}
		p.complete()
	}
	if len(p.errors) > 0 {
		return p.file, p.errors
	}
	return p.file, nil
}

// ParseTrigger reads an ONBUILD trigger that an image brought along.
func ParseTrigger(trigger string, words Words, extensions Extensions) (Instruction, error) {
	src := NewSource("ONBUILD", []byte(trigger))
	p := &parser{scanner: scanner{src: src, escape: '\\'}, words: words, file: &File{Source: src, Escape: '\\', Extensions: extensions}}
	line, ok := p.scanner.next()
	if !ok {
		return nil, &Error{Source: src, Message: "ONBUILD trigger is empty", Expected: "an instruction"}
	}
	inst := p.parseLine(line, 0, len(line.text))
	if _, more := p.scanner.next(); more && len(p.errors) == 0 {
		p.fail(line.span, "ONBUILD trigger has several instructions", "one", "")
	}
	if inst != nil && len(p.errors) == 0 {
		(&statement{parser: p}).checkTrigger(inst.head().Word)
	}
	if len(p.errors) > 0 {
		return nil, p.errors
	}
	return inst, nil
}

type parser struct {
	scanner   scanner
	words     Words
	file      *File
	errors    Errors
	homeless  bool // an instruction above the first FROM was reported
	badBefore bool // the first FROM itself was bad, so no complaints about what follows
}

// fail reports an error.
func (p *parser) fail(at Span, message, expected, suggest string) {
	if len(p.errors) < maxErrors {
		p.errors = append(p.errors, &Error{
			Source: p.file.Source, Span: at, Message: message, Expected: expected, Suggest: suggest,
		})
	}
}

// readable reports whether the file can be a text at all.
func (p *parser) readable() bool {
	data := p.file.Source.Data
	switch {
	case len(data) > MaxSize:
		p.fail(Span{}, fmt.Sprintf("file is %d bytes long", len(data)), fmt.Sprintf("at most %d", MaxSize), "")
		return false
	case bytes.HasPrefix(data, []byte("\xff\xfe")) || bytes.HasPrefix(data, []byte("\xfe\xff")):
		p.fail(Span{0, 2}, "file is in UTF-16", "text in UTF-8", "")
		return false
	}
	if i := bytes.IndexByte(data, 0); i >= 0 {
		p.fail(Span{i, i + 1}, fmt.Sprintf("byte 0x00 at offset %d", i), "text in UTF-8, this seems to be a binary file", "")
		return false
	}
	if i := p.file.Source.longLine(maxLine); i >= 0 {
		p.fail(Span{i, i + maxLine}, fmt.Sprintf("line is longer than %d bytes", maxLine), "the text in a file of the context", "")
		return false
	}
	return true
}

// complete checks what can only be seen at the end.
func (p *parser) complete() {
	if len(p.file.Stages) > 0 || len(p.errors) > 0 {
		return
	}
	message := "dockerfile contains no stages to build"
	if len(p.file.Global) == 0 {
		message = "file has no instructions"
	}
	end := len(bytes.TrimRight(p.file.Source.Data, "\r\n"))
	p.fail(Span{end, end}, message, p.words.Name(VerbFrom)+" with a base image", "")
}

// instruction reads a logical line and its heredocs and puts it into the file.
func (p *parser) instruction(line *logicalLine) {
	inst := p.parseLine(line, 0, len(line.text))
	p.scanner.noteInstruction(inst)
	if inst == nil {
		first, _, _ := strings.Cut(strings.TrimSpace(line.text), " ")
		from := p.words.Name(VerbFrom)
		if strings.EqualFold(first, from) || p.words.suggest(first) == from {
			p.badBefore = true
		}
		return
	}
	switch i := inst.(type) {
	case *From:
		p.file.Stages = append(p.file.Stages, &Stage{From: i})
		return
	case *Arg:
		if len(p.file.Stages) == 0 {
			p.file.Global = append(p.file.Global, i)
			return
		}
	}
	if len(p.file.Stages) == 0 {
		if !p.homeless && !p.badBefore {
			p.homeless = true
			p.fail(inst.head().Word.Span, fmt.Sprintf("%s stands above the first %s", inst.head().Word.Value, p.words.Name(VerbFrom)),
				fmt.Sprintf("%s or %s", p.words.Name(VerbFrom), p.words.Name(VerbArg)), "")
		}
		return
	}
	stage := p.file.Stages[len(p.file.Stages)-1]
	stage.Instructions = append(stage.Instructions, inst)
}

// statement is an instruction being parsed.
type statement struct {
	*parser
	Head
	line *logicalLine
	args string // the arguments, trimmed
	from int    // where they start in the line's text
	docs []Heredoc
	bad  bool // an error was found
	// unreadable says that an error is of a kind that keeps an instruction from
	// being a trigger, too: it cannot be taken apart.
	unreadable bool
}

// fail reports an error in the statement.
func (s *statement) fail(at Span, message, expected, suggest string) {
	s.bad = true
	s.parser.fail(at, message, expected, suggest)
}

// text is a token of the arguments.
func (s *statement) text(start, end int) Text {
	return Text{Value: s.args[start:end], Span: s.line.at(s.from+start, s.from+end)}
}

// all is the arguments as one token.
func (s *statement) all() Text { return s.text(0, len(s.args)) }

// parseLine parses the instruction that is the stretch of a line's text, and
// reads its heredocs. It returns nil if there were errors.
func (p *parser) parseLine(line *logicalLine, start, end int) Instruction {
	return (&statement{parser: p, line: line}).read(start, end)
}

// read is parseLine into a statement, which keeps what it found if it fails.
func (s *statement) read(start, end int) Instruction {
	line := s.line
	for start < end && isSpace(line.text[start]) {
		start++
	}
	end = start + len(strings.TrimSpace(line.text[start:end]))
	s.Code = line.text[start:end]
	s.Line, s.Span = line.at(start, end), line.at(start, end)
	s.Comments, s.Blanks = line.comments, line.blanks
	if !utf8.ValidString(s.Code) {
		s.unreadable = true
		s.fail(s.Line, "instruction is not text", "UTF-8", "")
		return nil
	}
	word := s.Code
	if i := strings.IndexAny(s.Code, blanks); i >= 0 {
		word = s.Code[:i]
	}
	s.Word = Text{Value: word, Span: line.at(start, start+len(word))}
	verb, known := s.parser.words[strings.ToUpper(word)]
	if !known {
		suggest, expected := s.parser.words.suggest(word), ""
		if suggest == "" {
			expected = fmt.Sprintf("an instruction such as %s, or # before a comment", s.parser.words.Name(VerbRun))
		}
		s.fail(s.Word.Span, "unknown instruction: "+plain(word), expected, suggest)
		return nil
	}
	s.Verb = verb
	s.flags(start+len(word), end)
	s.heredocs()
	inst := s.parse()
	if s.bad {
		return nil
	}
	return inst
}

// quote quotes a word for a message, cut if it is long.
func quote(word string) string {
	if utf8.RuneCountInString(word) > 40 {
		word = string([]rune(word)[:40]) + "…"
	}
	return fmt.Sprintf("%q", word)
}

// plain is quote without the quotes, for texts that are known so.
func plain(word string) string {
	word = quote(word)
	return word[1 : len(word)-1]
}

func isSpace(c byte) bool { return c == ' ' || (c >= '\t' && c <= '\r') }

// flags reads the flags and finds where the arguments start.
func (s *statement) flags(start, end int) {
	text := s.line.text
	pos := start
	for {
		for pos < end && isSpace(text[pos]) {
			pos++
		}
		if !strings.HasPrefix(text[pos:end], "--") {
			break
		}
		word, next := s.unquoted(pos, end)
		if word == "--" {
			pos = next
			for pos < end && isSpace(text[pos]) {
				pos++
			}
			break
		}
		flag := Flag{Span: s.line.at(pos, next)}
		flag.Name, flag.Value.Value, flag.HasValue = strings.Cut(word[2:], "=")
		flag.Value.Span = flag.Span
		if i := strings.IndexByte(text[pos:next], '='); i >= 0 {
			flag.Value.Span = s.line.at(pos+i+1, next)
		}
		s.Flags = append(s.Flags, flag)
		pos = next
	}
	s.from, s.args = pos, text[pos:end]
	s.checkFlags()
}

// unquoted reads a word, taking off quotes and escapes.
func (s *statement) unquoted(pos, end int) (word string, next int) {
	var b strings.Builder
	var quoted byte
	text, escape := s.line.text, s.scanner.escape
	for ; pos < end; pos++ {
		c := text[pos]
		switch {
		case c == escape:
			if pos+1 < end {
				pos++
				b.WriteByte(text[pos])
			}
		case quoted != 0:
			if c == quoted {
				quoted = 0
			} else {
				b.WriteByte(c)
			}
		case c == '"' || c == '\'':
			quoted = c
		case isSpace(c):
			return b.String(), pos
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), pos
}

// checkFlags compares the flags with those that the instruction takes.
func (s *statement) checkFlags() {
	table := s.file.Extensions.flagsOf(s.Verb)
	seen := map[string]bool{}
	for _, f := range s.Flags {
		kind, known := table[f.Name]
		switch {
		case !known:
			s.unknownFlag(f, table)
		case seen[f.Name] && kind != flagList:
			s.fail(f.Span, fmt.Sprintf("flag --%s stands here twice", f.Name), "it once", "")
		case kind == flagBool && f.HasValue && !isBool(f.Value.Value):
			s.fail(f.Value.Span, fmt.Sprintf("flag --%s has the value %s", f.Name, quote(f.Value.Value)), "true or false", "")
		case kind != flagBool && !f.HasValue:
			s.fail(f.Span, fmt.Sprintf("flag --%s has no value", f.Name), fmt.Sprintf("--%s=VALUE", f.Name), "")
		}
		seen[f.Name] = true
	}
}

func (s *statement) unknownFlag(f Flag, table map[string]flagKind) {
	names := make([]string, 0, len(table))
	for name := range table {
		names = append(names, name)
	}
	suggest := Suggest(f.Name, names)
	slices.Sort(names)
	expected := ""
	_, extended := Extensions{RunLimits: true}.flagsOf(s.Verb)[f.Name]
	switch {
	case extended:
		suggest, expected = "", fmt.Sprintf("the line %q at the top of the file, for it is an extension", "# "+extensionDirective+"="+extensionRunLimits)
	case len(names) == 0:
		expected = "no flag"
	case suggest == "":
		expected = "one of --" + strings.Join(names, ", --")
	}
	s.fail(f.Span, fmt.Sprintf("unknown flag: %s for %s", plain("--"+f.Name), s.name()), expected, suggest)
}

func isBool(v string) bool {
	return strings.EqualFold(v, "true") || strings.EqualFold(v, "false")
}

// flag returns the value of a flag, nil if it is not there.
func (s *statement) flag(name string) *Text {
	for i, f := range s.Flags {
		if f.Name == name {
			return &s.Flags[i].Value
		}
	}
	return nil
}

// flagList returns all values of a flag.
func (s *statement) flagList(name string) []Text {
	var out []Text
	for _, f := range s.Flags {
		if f.Name == name {
			out = append(out, f.Value)
		}
	}
	return out
}

// flagBool returns the value of a flag that is true or false, nil if it is not there.
func (s *statement) flagBool(name string) *bool {
	v := s.flag(name)
	if v == nil {
		return nil
	}
	b := !strings.EqualFold(v.Value, "false")
	return &b
}
