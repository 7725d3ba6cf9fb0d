package syntax

import "time"

// File is a parsed Dockerfile.
type File struct {
	Source     *Source
	Directives []Directive
	Escape     rune // the escape and continuation character
	Extensions Extensions
	Global     []*Arg // ARGs above the first FROM
	Stages     []*Stage
}

// Stage is a FROM and the instructions below it.
type Stage struct {
	From         *From
	Instructions []Instruction
}

// Text is a token: a word of the file and its place. Value is as written,
// quotes and variables included, unless said otherwise.
type Text struct {
	Value string
	Span  Span
}

// Head is what all instructions have.
type Head struct {
	Verb     Verb
	Word     Text   // the instruction's name as written
	Span     Span   // the whole instruction, heredocs included
	Line     Span   // the instruction without heredocs
	Code     string // the logical line: continuations joined, trimmed
	Comments []Comment
	Blanks   []Span // empty lines inside the instruction
	Flags    []Flag
}

func (h *Head) head() *Head { return h }

// Flag is a word "--name=value" between an instruction's name and its arguments.
type Flag struct {
	Name     string
	Value    Text // without quotes
	HasValue bool
	Span     Span
}

// Instruction is one of *[From], *[Run], *[Copy], *[Env], *[Label], *[Arg],
// *[Cmd], *[Entrypoint], *[Shell], *[Expose], *[Volume], *[User], *[Workdir],
// *[StopSignal], *[Maintainer], *[Healthcheck], *[Onbuild].
type Instruction interface{ head() *Head }

// HeadOf returns what all instructions have.
func HeadOf(i Instruction) *Head { return i.head() }

// From begins a stage.
type From struct {
	Head
	Platform *Text
	Image    Text
	As       Text // the word "AS" as written
	Name     Text // empty if the stage has no name
}

// Command is a command line in shell form or exec form.
type Command struct {
	Args []Text // exec form: the words; shell form: one, the whole line
	JSON bool   // exec form
	Span Span
}

// Strings returns the words.
func (c Command) Strings() []string { return values(c.Args) }

// Heredoc is a document inside the file.
type Heredoc struct {
	Name    Text
	Word    Span // "<<EOF" and all
	Expand  bool // variables in it are replaced: the name was not quoted
	Chomp   bool // "<<-": leading tabs are taken off
	Content string
	Body    Span
}

// Run is RUN.
type Run struct {
	Head
	Command  Command
	Mounts   []Text
	Devices  []Text
	Network  *Text
	Security *Text
	Timeout  *Text // this and the next two are of [Extensions.RunLimits]
	Memory   *Text
	CPUs     *Text
	Heredocs []Heredoc
}

// Copy is COPY or ADD; Head.Verb tells which.
type Copy struct {
	Head
	From       *Text
	Chown      *Text
	Chmod      *Text
	Checksum   *Text
	Link       bool
	Parents    bool
	KeepGitDir *bool
	Unpack     *bool
	Exclude    []Text
	Sources    []Text    // without heredocs
	Heredocs   []Heredoc // those that are sources, in order
	Dest       Text
}

// Pair is "key=value", or "key value" if Legacy.
type Pair struct {
	Key, Value Text
	Legacy     bool
}

// Env is ENV.
type Env struct {
	Head
	Pairs []Pair
}

// Label is LABEL.
type Label struct {
	Head
	Pairs []Pair
}

// ArgDecl declares a build argument.
type ArgDecl struct {
	Key     Text
	Default *Text
}

// Arg is ARG.
type Arg struct {
	Head
	Args []ArgDecl
}

// Cmd is CMD.
type Cmd struct {
	Head
	Command Command
}

// Entrypoint is ENTRYPOINT.
type Entrypoint struct {
	Head
	Command Command
}

// Shell is SHELL.
type Shell struct {
	Head
	Args []Text
}

// Expose is EXPOSE.
type Expose struct {
	Head
	Ports []Text
}

// Volume is VOLUME.
type Volume struct {
	Head
	Paths []Text
}

// User is USER.
type User struct {
	Head
	User Text
}

// Workdir is WORKDIR.
type Workdir struct {
	Head
	Path Text
}

// StopSignal is STOPSIGNAL.
type StopSignal struct {
	Head
	Signal Text
}

// Maintainer is MAINTAINER.
type Maintainer struct {
	Head
	Name Text
}

// Healthcheck is HEALTHCHECK.
type Healthcheck struct {
	Head
	None                                          bool
	Command                                       Command
	Interval, Timeout, StartPeriod, StartInterval time.Duration
	Retries                                       int
}

// Onbuild is ONBUILD.
type Onbuild struct {
	Head
	// Trigger is the text of the instruction to run later, heredocs included.
	Trigger string
	// Inner is the trigger parsed, nil if it is Broken.
	Inner Instruction
	// Broken are the trigger's errors. They count where it is carried out.
	Broken Errors
}

func values(texts []Text) []string {
	out := make([]string, len(texts))
	for i, t := range texts {
		out[i] = t.Value
	}
	return out
}

// Values returns the words of tokens.
func Values(texts []Text) []string { return values(texts) }
