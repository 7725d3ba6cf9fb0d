package llb

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// ParseText reads what [Graph.Text] writes. Lines that begin with '#' are
// comments; inside braces, line ends mean nothing. The graph is verified.
func ParseText(text string) (*Graph, error) { return parseText(text, nil) }

// ParseTextFile is [ParseText] for a build file: unless the text itself says where
// its steps were written, it is in the lines of this file.
func ParseTextFile(name string, data []byte) (*Graph, error) {
	file := SourceFile{Name: name, Data: data, Language: "llb"}
	return parseText(string(data), &file)
}

func parseText(text string, file *SourceFile) (*Graph, error) {
	tokens, err := lex(text)
	if err != nil {
		return nil, err
	}
	p := parser{tokens: tokens, vertices: map[string]*Vertex{}, lines: map[*Vertex]Range{}, graph: &Graph{}}
	for {
		s, ok, err := p.next()
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		if err := p.statement(s); err != nil {
			return nil, &LineError{s.line, err}
		}
	}
	if !p.returned {
		return nil, errors.New(`text has no "return" line`)
	}
	if err := p.graph.Verify(); err != nil {
		return nil, err
	}
	if file != nil && len(p.graph.Sources.Files) == 0 {
		p.graph.Sources = SourceIndex{Files: []SourceFile{*file}, Locations: map[digest.Digest][]Location{}}
		for _, v := range p.graph.Vertices() {
			d := v.Digest()
			p.graph.Sources.Locations[d] = append(p.graph.Sources.Locations[d], Location{Ranges: []Range{p.lines[v]}})
		}
	}
	return p.graph, nil
}

type parser struct {
	tokens   []token
	vertices map[string]*Vertex // by name, such as "%0"
	lines    map[*Vertex]Range  // where they are in the text
	graph    *Graph
	returned bool
}

// statement is a line of text: words, perhaps a body in braces, more words.
type statement struct {
	line    int
	head    []token
	body    []token
	hasBody bool
	tail    []token
	inputs  *inputList
	fixed   bool // inputs were listed, words give their numbers
	parser  *parser
}

func (p *parser) next() (*statement, bool, error) {
	for len(p.tokens) > 0 && p.tokens[0].mark == '\n' {
		p.tokens = p.tokens[1:]
	}
	if len(p.tokens) == 0 {
		return nil, false, nil
	}
	s := &statement{line: p.tokens[0].line, parser: p}
	inside := false
	for i, t := range p.tokens {
		switch {
		case t.mark == '{' && !s.hasBody:
			s.hasBody, inside = true, true
		case t.mark == '}' && inside:
			inside = false
		case t.mark == '{' || t.mark == '}':
			return nil, false, &LineError{t.line, fmt.Errorf("unexpected %q", t.mark)}
		case t.mark == '\n' && !inside:
			p.tokens = p.tokens[i+1:]
			return s, true, nil
		case t.mark == '\n':
		case inside:
			s.body = append(s.body, t)
		case s.hasBody:
			s.tail = append(s.tail, t)
		default:
			s.head = append(s.head, t)
		}
	}
	return nil, false, &LineError{s.line, errors.New("no closing brace")}
}

func (p *parser) statement(s *statement) error {
	if p.returned {
		return errors.New(`text after "return"`)
	}
	if len(s.head) == 0 {
		return errors.New("statement begins with a brace")
	}
	first := s.head[0]
	switch {
	case first.bare("return") && len(s.head) == 2:
		e, err := p.edge(s.head[1])
		p.graph.Root, p.returned = e, true
		return err
	case first.bare("source-file"):
		return p.sourceFile(s.head[1:])
	case first.bare("at"):
		return p.location(s.head[1:])
	case first.starts('%') && len(s.head) >= 3 && s.head[1].bare("="):
		if p.vertices[first.text] != nil {
			return fmt.Errorf("%s is defined twice", first.text)
		}
		v, err := p.vertex(s)
		if err != nil {
			return fmt.Errorf("%s: %w", first.text, err)
		}
		p.vertices[first.text] = v
		p.lines[v] = s.lines()
		return nil
	}
	return fmt.Errorf(`%q begins no statement, expected "%%N = ...", "at", "source-file" or "return"`, first.text)
}

// lines are those that a statement takes.
func (s *statement) lines() Range {
	last := s.line
	for _, part := range [][]token{s.head, s.body, s.tail} {
		for _, t := range part {
			last = max(last, t.line)
		}
	}
	return Range{Start: Position{Line: s.line}, End: Position{Line: last}}
}

func (p *parser) edge(t token) (Edge, error) {
	if t.bare("scratch") {
		return Edge{}, nil
	}
	name, index, found := t.cut('#')
	v := p.vertices[name.text]
	if v == nil {
		return Edge{}, fmt.Errorf("%q is not a vertex defined above", name.text)
	}
	if !found {
		return Edge{Vertex: v}, nil
	}
	n, err := strconv.Atoi(index.text)
	if err != nil {
		return Edge{}, fmt.Errorf("output %q of %s is not a number", index.text, name.text)
	}
	return Edge{Vertex: v, Index: n}, nil
}

// input reads the name of an input and returns its number.
func (s *statement) input(t token) (int, error) {
	if t.bare("scratch") {
		return None, nil
	}
	if t.starts('@') && s.fixed {
		n, err := strconv.Atoi(t.text[1:])
		if err != nil || n < 0 || n >= len(s.inputs.edges) {
			return 0, fmt.Errorf("input %s is none of the %d listed", t.text, len(s.inputs.edges))
		}
		return n, nil
	}
	e, err := s.parser.edge(t)
	if err != nil {
		return 0, err
	}
	if s.fixed {
		return 0, fmt.Errorf("input %s must be given by number, as inputs are listed", t.text)
	}
	return s.inputs.add(e), nil
}

// isInput reports whether t looks like the name of an input.
func isInput(t token) bool {
	return t.starts('%') || t.starts('@') || t.bare("scratch")
}

// takeInput reads the input that the head begins with, if it does.
func (s *statement) takeInput() (n int, found bool, err error) {
	if len(s.head) == 0 || !isInput(s.head[0]) {
		return None, false, nil
	}
	n, err = s.input(s.head[0])
	s.head = s.head[1:]
	return n, true, err
}

// takeWord reads the word that the head begins with.
func (s *statement) takeWord(what string) (string, error) {
	if len(s.head) == 0 {
		return "", fmt.Errorf("%s is missing", what)
	}
	t := s.head[0]
	s.head = s.head[1:]
	return t.text, nil
}

func (p *parser) vertex(s *statement) (*Vertex, error) {
	kind := s.head[2]
	s.head = s.head[3:]
	s.inputs = &inputList{repeat: repeatsInputs(kind.text)}
	if err := s.listedInputs(); err != nil {
		return nil, err
	}
	parse, ok := map[string]func(*statement) (Op, error){
		"source": parseSource, "exec": parseExec, "file": parseFile, "build": parseBuild,
		"merge": parseMerge, "diff": parseDiff, "passthrough": parsePassthrough,
	}[kind.text]
	if !ok {
		return nil, fmt.Errorf("operation %q is unknown", kind.text)
	}
	op, err := parse(s)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kind.text, err)
	}
	if len(s.body) > 0 {
		return nil, fmt.Errorf("%s: unexpected %q", kind.text, s.body[0].text)
	}
	v := &Vertex{Op: op, Inputs: s.inputs.edges}
	for _, t := range append(s.head, s.tail...) {
		if err := v.parseProperty(t); err != nil {
			return nil, err
		}
	}
	return v, nil
}

func (s *statement) listedInputs() error {
	if len(s.head) == 0 {
		return nil
	}
	name, list, found := s.head[0].cut('=')
	if !found || !name.bare("inputs") {
		return nil
	}
	s.head = s.head[1:]
	s.fixed = true
	for more := list.text != ""; more; {
		var one token
		one, list, more = list.cut(',')
		e, err := s.parser.edge(one)
		if err != nil {
			return err
		}
		s.inputs.edges = append(s.inputs.edges, e)
	}
	return nil
}

func (v *Vertex) parseProperty(t token) error {
	name, value, hasValue := t.cut('=')
	if desc, ok := strings.CutPrefix(name.text, "desc:"); ok && hasValue {
		v.describe(desc, value.text)
		return nil
	}
	switch {
	case name.quoted():
		return fmt.Errorf("unexpected %q", t.text)
	case !hasValue:
		return v.parseFlag(name.text)
	}
	switch name.text {
	case "platform":
		return v.parsePlatform(value.text)
	case "osversion":
		return v.ofPlatform(func(p *ocispecs.Platform) { p.OSVersion = value.text })
	case "osfeature":
		return v.ofPlatform(func(p *ocispecs.Platform) { p.OSFeatures = append(p.OSFeatures, value.text) })
	case "worker":
		v.Workers = append(v.Workers, value.text)
	case "name":
		v.describe(descName, value.text)
	case "group":
		id, name, _ := value.cut(':')
		v.Meta.Group = &Group{ID: id.text, Name: name.text}
	case "caps":
		return v.parseCaps(value)
	case "timeout":
		return v.Meta.parseTimeout(value.text)
	default:
		if v.Meta.Resources != nil {
			return v.Meta.Resources.parse(name.text, value.text)
		}
		return fmt.Errorf("property %q is unknown", name.text)
	}
	return nil
}

func (v *Vertex) parseFlag(name string) error {
	switch name {
	case "nocache":
		v.Meta.IgnoreCache = true
	case "noexport":
		v.Meta.NoExport = true
	case "export":
		v.Meta.ForceExport = true
	case "limits":
		v.Meta.Resources = &LinuxResources{}
	case "weakgroup":
		if v.Meta.Group == nil {
			return errors.New("weakgroup must follow group")
		}
		v.Meta.Group.Weak = true
	default:
		return fmt.Errorf("unexpected %q", name)
	}
	return nil
}

func (v *Vertex) describe(name, value string) {
	if v.Meta.Description == nil {
		v.Meta.Description = map[string]string{}
	}
	v.Meta.Description[name] = value
}

func (v *Vertex) parsePlatform(s string) error {
	parts := strings.Split(s, "/")
	if len(parts) < 2 || len(parts) > 3 {
		return fmt.Errorf("platform %q is not of the form os/arch or os/arch/variant", s)
	}
	v.Platform = &ocispecs.Platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		v.Platform.Variant = parts[2]
	}
	return nil
}

func (v *Vertex) ofPlatform(set func(*ocispecs.Platform)) error {
	if v.Platform == nil {
		return errors.New("a platform must come first")
	}
	set(v.Platform)
	return nil
}

func (v *Vertex) parseCaps(list token) error {
	v.Meta.Caps = map[string]bool{}
	for more := list.text != ""; more; {
		var one token
		one, list, more = list.cut(',')
		if one.starts('!') {
			v.Meta.Caps[one.text[1:]] = false
		} else {
			v.Meta.Caps[one.text] = true
		}
	}
	return nil
}

func (r *LinuxResources) parse(name, value string) (err error) {
	switch name {
	case "memory":
		r.Memory, err = strconv.ParseInt(value, 10, 64)
	case "memory-swap":
		r.MemorySwap, err = strconv.ParseInt(value, 10, 64)
	case "cpu-shares":
		r.CPUShares, err = strconv.ParseUint(value, 10, 64)
	case "cpu-period":
		r.CPUPeriod, err = strconv.ParseUint(value, 10, 64)
	case "cpu-quota":
		r.CPUQuota, err = strconv.ParseInt(value, 10, 64)
	case "cpuset-cpus":
		r.CpusetCpus = value
	case "cpuset-mems":
		r.CpusetMems = value
	default:
		return fmt.Errorf("property %q is unknown", name)
	}
	if err != nil {
		return fmt.Errorf("%s %q is not a number", name, value)
	}
	return nil
}

func (p *parser) sourceFile(words []token) error {
	if len(words) == 0 {
		return errors.New("source-file has no name")
	}
	f := SourceFile{Name: words[0].text}
	for _, t := range words[1:] {
		switch name, value, _ := t.cut('='); name.text {
		case "language":
			f.Language = value.text
		case "data":
			f.Data = []byte(value.text)
		case "from":
			from, err := ParseText(value.text)
			if err != nil {
				return fmt.Errorf("source-file %s: from: %w", f.Name, err)
			}
			f.From = from
		default:
			return fmt.Errorf("source-file %s: property %q is unknown", f.Name, name.text)
		}
	}
	p.graph.Sources.Files = append(p.graph.Sources.Files, f)
	return nil
}

func (p *parser) location(words []token) error {
	if len(words) < 2 {
		return errors.New("at needs a vertex and a file")
	}
	d := digest.Digest(words[0].text)
	if v := p.vertices[words[0].text]; v != nil {
		d = v.Digest()
	}
	name, file, _ := words[1].cut('=')
	n, err := strconv.Atoi(file.text)
	if err != nil || !name.bare("file") {
		return fmt.Errorf("at %s: expected file=N, found %q", words[0].text, words[1].text)
	}
	l := Location{File: n}
	for _, t := range words[2:] {
		var r Range
		if n, err := fmt.Sscanf(t.text, "%d:%d-%d:%d", &r.Start.Line, &r.Start.Character, &r.End.Line, &r.End.Character); n != 4 {
			return fmt.Errorf("at %s: range %q: %w", words[0].text, t.text, err)
		}
		l.Ranges = append(l.Ranges, r)
	}
	if p.graph.Sources.Locations == nil {
		p.graph.Sources.Locations = map[digest.Digest][]Location{}
	}
	p.graph.Sources.Locations[d] = append(p.graph.Sources.Locations[d], l)
	return nil
}
