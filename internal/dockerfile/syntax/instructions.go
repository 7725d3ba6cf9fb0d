package syntax

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// parse reads the arguments by the instruction's own grammar.
func (s *statement) parse() Instruction {
	bare := []Verb{VerbRun, VerbCmd, VerbEntrypoint} // the shell gets nothing, and does it
	if s.args == "" && !slices.Contains(bare, s.Verb) {
		s.fail(s.Line, fmt.Sprintf("%s has no arguments", s.name()), usage(s.Verb), "")
		return nil
	}
	switch s.Verb {
	case VerbFrom:
		return s.parseFrom()
	case VerbRun:
		return s.parseRun()
	case VerbCopy, VerbAdd:
		return s.parseCopy()
	case VerbEnv:
		return &Env{Head: s.Head, Pairs: s.pairs()}
	case VerbLabel:
		return &Label{Head: s.Head, Pairs: s.pairs()}
	case VerbArg:
		return s.parseArg()
	case VerbCmd:
		return &Cmd{Head: s.Head, Command: s.commandLine()}
	case VerbEntrypoint:
		return &Entrypoint{Head: s.Head, Command: s.commandLine()}
	case VerbShell:
		return s.parseShell()
	case VerbHealthcheck:
		return s.parseHealthcheck()
	case VerbOnbuild:
		return s.parseOnbuild()
	case VerbExpose:
		return &Expose{Head: s.Head, Ports: s.words()}
	case VerbVolume:
		return s.parseVolume()
	case VerbUser:
		return &User{Head: s.Head, User: s.all()}
	case VerbWorkdir:
		return &Workdir{Head: s.Head, Path: s.all()}
	case VerbStopSignal:
		return &StopSignal{Head: s.Head, Signal: s.all()}
	case VerbMaintainer:
		return &Maintainer{Head: s.Head, Name: s.all()}
	}
	s.fail(s.Word.Span, fmt.Sprintf("instruction %s has no grammar", s.name()), "", "")
	return nil
}

func (s *statement) name() string { return strings.ToUpper(s.Word.Value) }

// usage is the form of an instruction, for messages.
func usage(v Verb) string {
	switch v {
	case VerbFrom:
		return "an image, and maybe AS and a name"
	case VerbCopy, VerbAdd:
		return "one or more sources and a destination"
	case VerbEnv, VerbLabel:
		return "key=value"
	case VerbArg:
		return "a name, and maybe = and a default"
	case VerbShell:
		return `a JSON list such as ["/bin/sh", "-c"]`
	case VerbHealthcheck:
		return "NONE, or CMD and a command"
	case VerbOnbuild:
		return "an instruction"
	case VerbRun, VerbCmd, VerbEntrypoint:
		return "a command"
	case VerbExpose:
		return "a port"
	case VerbVolume:
		return "a path"
	}
	return "one argument"
}

var stageName = regexp.MustCompile(`^[a-z][a-z0-9._-]*$`)

func (s *statement) parseFrom() Instruction {
	words := s.words()
	f := &From{Head: s.Head, Platform: s.flag("platform"), Image: words[0]}
	switch {
	case len(words) == 1:
		return f
	case len(words) == 3 && strings.EqualFold(words[1].Value, "as"):
	case len(words) == 2 && strings.EqualFold(words[1].Value, "as"):
		s.fail(words[1].Span, "no name stands behind AS", "the name of the stage", "")
		return nil
	default:
		s.fail(words[1].Span, fmt.Sprintf("%s stands behind the image", quote(words[1].Value)), "AS and a name, or nothing", "")
		return nil
	}
	f.As, f.Name = words[1], words[2]
	if !stageName.MatchString(strings.ToLower(f.Name.Value)) {
		s.fail(f.Name.Span, fmt.Sprintf("stage name %s", quote(f.Name.Value)),
			"a letter and then letters, digits, '-', '_' and '.'", "")
		return nil
	}
	return f
}

func (s *statement) parseRun() Instruction {
	r := &Run{
		Head: s.Head, Heredocs: s.docs,
		Mounts: s.flagList("mount"), Devices: s.flagList("device"),
		Network: s.flag("network"), Security: s.flag("security"),
		Timeout: s.flag("timeout"), Memory: s.flag("memory"), CPUs: s.flag("cpus"),
	}
	r.Command = s.commandLine()
	if r.Command.JSON && len(r.Command.Args) == 0 && !s.bad {
		s.fail(r.Command.Span, s.name()+" has an empty command", usage(VerbRun), "")
	}
	return r
}

// commandLine reads all arguments as a command line, which may be blank.
func (s *statement) commandLine() Command {
	c := s.command(0)
	if s.args == "" {
		c.Args = []Text{{Span: c.Span}}
	}
	return c
}

// command reads a command line that starts at a place of the arguments.
func (s *statement) command(from int) Command {
	c := Command{Span: s.line.at(s.from+from, s.from+len(s.args))}
	if list, ok := s.jsonList(from); ok {
		c.Args, c.JSON = list, true
		return c
	}
	if from < len(s.args) {
		c.Args = []Text{s.text(from, len(s.args))}
	}
	return c
}

// words splits the arguments at blanks, or reads them as a JSON list.
func (s *statement) words() []Text {
	var out []Text
	start := -1
	for i := 0; i <= len(s.args); i++ {
		blank := i == len(s.args) || strings.IndexByte(blanks, s.args[i]) >= 0
		switch {
		case blank && start >= 0:
			out = append(out, s.text(start, i))
			start = -1
		case !blank && start < 0:
			start = i
		}
	}
	return out
}

// listOrWords reads a JSON list or words between blanks.
func (s *statement) listOrWords() []Text {
	if list, ok := s.jsonList(0); ok {
		return list
	}
	return s.words()
}

func (s *statement) parseVolume() Instruction {
	v := &Volume{Head: s.Head, Paths: s.listOrWords()}
	for i, t := range v.Paths {
		v.Paths[i].Value = strings.TrimSpace(t.Value)
		if v.Paths[i].Value == "" {
			s.fail(t.Span, "volume path is empty", "a path", "")
		}
	}
	if len(v.Paths) == 0 {
		s.fail(s.Line, s.name()+" has no arguments", usage(VerbVolume), "")
	}
	return v
}

func (s *statement) parseCopy() Instruction {
	list, isList := s.jsonList(0)
	if !isList {
		list = s.copyWords()
	}
	if len(list) < 2 {
		s.fail(s.Line, s.name()+" has no destination", usage(s.Verb), "")
		return nil
	}
	c := &Copy{
		Head: s.Head, From: s.flag("from"), Chown: s.flag("chown"), Chmod: s.flag("chmod"),
		Checksum: s.flag("checksum"), Exclude: s.flagList("exclude"),
		KeepGitDir: s.flagBool("keep-git-dir"), Unpack: s.flagBool("unpack"),
		Dest: list[len(list)-1],
	}
	if link := s.flagBool("link"); link != nil {
		c.Link = *link
	}
	if parents := s.flagBool("parents"); parents != nil {
		c.Parents = *parents
	}
	if !isList && IsHeredoc(c.Dest.Value) {
		s.fail(c.Dest.Span, "destination is a heredoc", "a path", "")
		return nil
	}
	docs := s.docs
	for _, src := range list[:len(list)-1] {
		if !isList && len(docs) > 0 && docs[0].Word == src.Span {
			c.Heredocs = append(c.Heredocs, docs[0])
			docs = docs[1:]
			continue
		}
		c.Sources = append(c.Sources, src)
	}
	return c
}

// copyWords splits at blanks, but keeps "<< EOF" together.
func (s *statement) copyWords() []Text {
	var out []Text
	docs := s.docs
	for _, w := range s.words() {
		switch {
		case len(docs) > 0 && w.Span.Start == docs[0].Word.Start:
			w.Span = docs[0].Word
		case len(docs) > 0 && w.Span.Start > docs[0].Word.Start && w.Span.End <= docs[0].Word.End:
			continue // the rest of that word
		}
		for len(docs) > 0 && w.Span.Start > docs[0].Word.Start {
			docs = docs[1:]
		}
		out = append(out, w)
	}
	return out
}

func (s *statement) parseArg() Instruction {
	a := &Arg{Head: s.Head}
	for _, w := range s.quotedWords() {
		word := s.args[w.Start:w.End]
		key, _, hasDefault := strings.Cut(word, "=")
		if key == "" {
			s.fail(s.line.at(s.from+w.Start, s.from+w.End), "build argument has no name", usage(VerbArg), "")
			continue
		}
		d := ArgDecl{Key: s.text(w.Start, w.Start+len(key))}
		if hasDefault {
			t := s.text(w.Start+len(key)+1, w.End)
			d.Default = &t
		}
		a.Args = append(a.Args, d)
	}
	return a
}

// pairs reads "key=value ..." or the old form "key value".
func (s *statement) pairs() []Pair {
	words := s.quotedWords()
	if len(words) == 0 {
		return nil
	}
	first := s.args[words[0].Start:words[0].End]
	if !strings.Contains(first, "=") {
		return s.legacyPair()
	}
	var out []Pair
	for _, w := range words {
		word := s.args[w.Start:w.End]
		key, _, ok := strings.Cut(word, "=")
		if !ok {
			s.unreadable = true
			s.fail(s.line.at(s.from+w.Start, s.from+w.End), fmt.Sprintf("%s has no =", quote(word)),
				"key=value, with quotes around values that have blanks", "")
			continue
		}
		if key == "" {
			s.fail(s.line.at(s.from+w.Start, s.from+w.End), fmt.Sprintf("%s has no key", quote(word)), "key=value", "")
			continue
		}
		out = append(out, Pair{Key: s.text(w.Start, w.Start+len(key)), Value: s.text(w.Start+len(key)+1, w.End)})
	}
	return out
}

func (s *statement) legacyPair() []Pair {
	i := strings.IndexAny(s.args, blanks)
	if i < 0 {
		s.unreadable = true
		s.fail(s.all().Span, fmt.Sprintf("%s has no value", quote(s.args)), "key=value", "")
		return nil
	}
	rest := i
	for rest < len(s.args) && strings.IndexByte(blanks, s.args[rest]) >= 0 {
		rest++
	}
	return []Pair{{Key: s.text(0, i), Value: s.text(rest, len(s.args)), Legacy: true}}
}

// quotedWords splits the arguments at blanks outside of quotes. Quotes and
// escapes stay in the words.
func (s *statement) quotedWords() []Span {
	var out []Span
	start := -1
	var quoted byte
	for i := 0; i < len(s.args); i++ {
		c := s.args[i]
		if quoted == 0 && isSpace(c) {
			if start >= 0 {
				out = append(out, Span{start, i})
				start = -1
			}
			continue
		}
		if start < 0 {
			start = i
		}
		switch {
		case c == s.scanner.escape && quoted != '\'':
			i++
		case c == quoted:
			quoted = 0
		case quoted == 0 && (c == '"' || c == '\''):
			quoted = c
		}
	}
	if start >= 0 {
		out = append(out, Span{start, len(s.args)})
	}
	return out
}

func (s *statement) parseShell() Instruction {
	list, ok := s.jsonList(0)
	if s.bad {
		return nil
	}
	if !ok || len(list) == 0 {
		s.fail(s.all().Span, fmt.Sprintf("%s has %s", s.name(), quote(s.args)), usage(VerbShell), "")
		return nil
	}
	return &Shell{Head: s.Head, Args: list}
}

func (s *statement) parseHealthcheck() Instruction {
	h := &Healthcheck{Head: s.Head}
	end := strings.IndexFunc(s.args, func(r rune) bool { return r < 0x80 && isSpace(byte(r)) })
	if end < 0 {
		end = len(s.args)
	}
	kind := s.text(0, end)
	from := end
	for from < len(s.args) && isSpace(s.args[from]) {
		from++
	}
	switch strings.ToUpper(kind.Value) {
	case "NONE":
		if from < len(s.args) {
			s.fail(s.text(from, len(s.args)).Span, "HEALTHCHECK NONE has arguments", "nothing behind NONE", "")
		}
		h.None = true
		return h
	case "CMD":
	default:
		s.fail(kind.Span, fmt.Sprintf("health check of kind %s", quote(kind.Value)), usage(VerbHealthcheck),
			Suggest(kind.Value, []string{"CMD", "NONE"}))
		return nil
	}
	h.Command = s.command(from)
	if len(h.Command.Args) == 0 {
		s.fail(s.Line, "health check has no command", usage(VerbHealthcheck), "")
	}
	h.Interval = s.duration("interval")
	h.Timeout = s.duration("timeout")
	h.StartPeriod = s.duration("start-period")
	h.StartInterval = s.duration("start-interval")
	if v := s.flag("retries"); v != nil && v.Value != "" {
		n, err := strconv.ParseInt(v.Value, 10, 32)
		if err != nil || n < 0 {
			s.fail(v.Span, fmt.Sprintf("flag --retries has the value %s", quote(v.Value)), "a number, 0 or more", "")
		}
		h.Retries = int(n)
	}
	return h
}

func (s *statement) duration(flag string) time.Duration {
	v := s.flag(flag)
	if v == nil || v.Value == "" {
		return 0
	}
	d, err := time.ParseDuration(v.Value)
	if err != nil || (d != 0 && d < time.Millisecond) {
		s.fail(v.Span, fmt.Sprintf("flag --%s has the value %s", flag, quote(v.Value)), "a time such as 30s, at least 1ms", "")
	}
	return d
}

func (s *statement) parseOnbuild() Instruction {
	word := s.args
	if i := strings.IndexAny(word, blanks); i >= 0 {
		word = word[:i]
	}
	if s.checkTrigger(s.text(0, len(word))); s.bad {
		return nil // before it is parsed, for triggers could be nested without end
	}
	errorsBefore := len(s.errors)
	trigger := &statement{parser: s.parser, line: s.line}
	inner := trigger.read(s.from, s.from+len(s.args))
	if inner == nil && (trigger.unreadable || len(s.errors) == errorsBefore) {
		s.bad = true
		return nil
	}
	o := &Onbuild{Head: s.Head, Trigger: dockerfileTrigger(s.args, &trigger.Head), Inner: inner}
	if inner == nil {
		// It may never be carried out, or by a frontend that knows it.
		o.Broken = slices.Clone(s.errors[errorsBefore:])
		s.errors = s.errors[:errorsBefore]
	}
	o.Span.End = max(o.Span.End, trigger.Span.End)
	for _, doc := range trigger.docs {
		o.Trigger += "\n" + doc.Content + doc.Name.Value
	}
	return o
}

// dockerfileTrigger is a trigger in the words of Dockerfiles, which are those
// that images have.
func dockerfileTrigger(text string, h *Head) string {
	if h.Verb == 0 || DockerfileWords()[strings.ToUpper(h.Word.Value)] == h.Verb {
		return text
	}
	return h.Verb.String() + strings.TrimPrefix(text, h.Word.Value)
}

// checkTrigger refuses instructions that cannot be triggers.
func (s *statement) checkTrigger(word Text) {
	switch s.parser.words[strings.ToUpper(word.Value)] {
	case VerbFrom, VerbMaintainer, VerbOnbuild:
		s.fail(word.Span, fmt.Sprintf("%s is the trigger of ONBUILD", strings.ToUpper(word.Value)),
			fmt.Sprintf("any instruction but %s, %s and %s", s.parser.words.Name(VerbFrom), s.parser.words.Name(VerbMaintainer), s.parser.words.Name(VerbOnbuild)), "")
	}
}
