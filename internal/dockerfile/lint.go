package dockerfile

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/dockerfile/syntax"
	"github.com/kiln-build/kiln/llb"
)

// rule is a lint rule. The names are those of docker/dockerfile, so that checks
// can be switched off the same way, but for the two at the end, which are ours.
type rule string

const (
	ruleStageNameCasing     rule = "StageNameCasing"
	ruleFromAsCasing        rule = "FromAsCasing"
	ruleInstructionCasing   rule = "ConsistentInstructionCasing"
	ruleJSONArgs            rule = "JSONArgsRecommended"
	ruleMaintainer          rule = "MaintainerDeprecated"
	ruleUndefinedVar        rule = "UndefinedVar"
	ruleUndefinedArgInFrom  rule = "UndefinedArgInFrom"
	ruleWorkdirRelative     rule = "WorkdirRelativePath"
	ruleLegacyKeyValue      rule = "LegacyKeyValueFormat"
	ruleDuplicateStage      rule = "DuplicateStageName"
	ruleReservedStage       rule = "ReservedStageName"
	ruleMultipleUse         rule = "MultipleInstructionsDisallowed"
	ruleSecrets             rule = "SecretsUsedInArgOrEnv"
	ruleEmptyContinuation   rule = "NoEmptyContinuation"
	ruleRedundantPlatform   rule = "RedundantTargetPlatform"
	ruleConstPlatform       rule = "FromPlatformFlagConstDisallowed"
	ruleBasePlatform        rule = "InvalidBaseImagePlatform"
	ruleExposeCasing        rule = "ExposeProtoCasing"
	ruleExposeFormat        rule = "ExposeInvalidFormat"
	ruleCopyIgnored         rule = "CopyIgnoredFile"
	ruleBrokenList          rule = "InvalidJSONForm"
	ruleUnknownBuildArg     rule = "UnknownBuildArg"
	ruleDocs                     = "https://docs.docker.com/go/dockerfile/rule/"
	reservedStages               = "context scratch"
	suspiciousVariableWords      = "apikey|auth|credential|credentials|key|password|pword|passwd|secret|token"
	harmlessVariableWords        = "public|file|version"
)

// explain is what a rule is good for.
func (r rule) explain(words syntax.Words) string {
	switch r {
	case ruleStageNameCasing:
		return "Stage names are compared in lower case; write them so"
	case ruleFromAsCasing:
		return "Write " + words.Name(syntax.VerbFrom) + " and AS in the same case"
	case ruleInstructionCasing:
		return "Write all instructions in one case, upper or lower"
	case ruleJSONArgs:
		return "In shell form a shell runs the command, and signals do not reach it; use the JSON form"
	case ruleMaintainer:
		return "MAINTAINER is deprecated; use the label org.opencontainers.image.authors"
	case ruleUndefinedVar:
		return "A variable that is not set becomes an empty text"
	case ruleUndefinedArgInFrom:
		from := words.Name(syntax.VerbFrom)
		return from + " sees only the arguments that are declared above the first " + from
	case ruleWorkdirRelative:
		return "A relative path depends on the base image's working directory"
	case ruleLegacyKeyValue:
		return "The form with a blank is old and takes only one pair; use key=value"
	case ruleDuplicateStage:
		return "Of stages with one name only the last can be reached"
	case ruleReservedStage:
		return "The names scratch and context have a meaning of their own"
	case ruleMultipleUse:
		return "Only the last of these instructions counts in a stage"
	case ruleSecrets:
		return "Values of ARG and ENV stay in the image and its history; use " + words.Name(syntax.VerbRun) + " --mount=type=secret"
	case ruleEmptyContinuation:
		return "An empty line inside an instruction is easily taken for its end"
	case ruleRedundantPlatform:
		return "The target platform is the default"
	case ruleConstPlatform:
		return "A constant platform keeps the stage from being built for others"
	case ruleBasePlatform:
		return "The base image is for another platform than the build"
	case ruleExposeCasing:
		return "Write protocols in lower case"
	case ruleExposeFormat:
		return "EXPOSE takes ports of the container; addresses and host ports belong to docker run"
	case ruleCopyIgnored:
		return "The file is excluded by .dockerignore, so it is not in the context"
	case ruleBrokenList:
		return "The arguments look like a JSON list but are none, so they are taken as plain text"
	case ruleUnknownBuildArg:
		return "The build argument has no effect, for no ARG declares it"
	}
	return ""
}

// url is the page about a rule, "" for our own rules.
func (r rule) url() string {
	if r == ruleBrokenList || r == ruleUnknownBuildArg {
		return ""
	}
	var b strings.Builder
	word := []rune(r)
	for i, c := range word {
		upper := c >= 'A' && c <= 'Z'
		startsWord := upper && i > 0 && (word[i-1] < 'A' || word[i-1] > 'Z' ||
			(i+1 < len(word) && word[i+1] >= 'a'))
		if startsWord {
			b.WriteByte('-')
		}
		b.WriteRune(c)
	}
	return ruleDocs + strings.ToLower(b.String()) + "/"
}

// lintConfig is a "check" directive: which rules to skip, and whether remarks
// are errors.
type lintConfig struct {
	skip    []string
	skipAll bool
	error   bool
}

// parseCheck reads "skip=A,B;error=true".
func parseCheck(v string) (*lintConfig, error) {
	c := &lintConfig{}
	for part := range strings.SplitSeq(v, ";") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		key, value, ok := strings.Cut(part, "=")
		key = strings.ToLower(strings.TrimSpace(key))
		if !ok {
			return nil, fmt.Errorf("check %q has no value: expected skip=RULE,... or error=true", part)
		}
		switch key {
		case "skip":
			for name := range strings.SplitSeq(value, ",") {
				name = strings.TrimSpace(name)
				c.skipAll = c.skipAll || strings.EqualFold(name, "all")
				c.skip = append(c.skip, name)
			}
		case "error":
			b, err := strconv.ParseBool(strings.TrimSpace(value))
			if err != nil {
				return nil, fmt.Errorf("check error=%q: expected true or false", value)
			}
			c.error = b
		case "experimental": // no rule is experimental
		default:
			return nil, fmt.Errorf("check %q: expected skip, error or experimental", key)
		}
	}
	return c, nil
}

func (c *lintConfig) skips(r rule) bool {
	return c != nil && (c.skipAll || slices.ContainsFunc(c.skip, func(n string) bool { return strings.EqualFold(n, string(r)) }))
}

// linter collects remarks on a file.
type linter struct {
	words    syntax.Words
	source   *syntax.Source
	config   *lintConfig
	warnings []frontend.Warning
	seen     map[string]bool
}

// remark adds a remark on an instruction. Comments "# check=skip=RULE" right
// above the instruction switch rules off for it.
func (l *linter) remark(r rule, head *syntax.Head, at syntax.Span, format string, args ...any) {
	if l.config.skips(r) {
		return
	}
	for _, c := range head.Comments {
		if v, ok := strings.CutPrefix(c.Text, "check="); ok {
			if own, err := parseCheck(v); err == nil && own.skips(r) {
				return
			}
		}
	}
	short := fmt.Sprintf(format, args...)
	key := fmt.Sprintf("%s %d %s", r, at.Start, short)
	if l.seen[key] {
		return
	}
	if l.seen == nil {
		l.seen = map[string]bool{}
	}
	l.seen[key] = true
	file := l.source.LLB()
	l.warnings = append(l.warnings, frontend.Warning{
		Level: 1, Short: string(r) + ": " + short, Detail: []string{r.explain(l.words)}, URL: r.url(),
		File: &file, Ranges: []llb.Range{l.source.LineRange(at)},
	})
}

// err is the error that remarks are if the file or the user says so.
func (l *linter) err() error {
	if l.config == nil || !l.config.error || len(l.warnings) == 0 {
		return nil
	}
	var out frontend.SourceErrors
	for _, w := range l.warnings {
		out = append(out, &frontend.SourceError{File: *w.File, Ranges: w.Ranges, Err: fmt.Errorf("lint: %s", w.Short)})
	}
	return out
}

// lintFile makes the remarks that need no more than the tree.
func (l *linter) lintFile(f *syntax.File) {
	l.lintCasing(f)
	names := map[string]bool{}
	for _, st := range f.Stages {
		from := st.From
		name := from.Name.Value
		if name == "" {
			continue
		}
		lower := strings.ToLower(name)
		if lower != name {
			l.remark(ruleStageNameCasing, &from.Head, from.Line, "stage name %q is not in lower case", name)
		}
		if slices.Contains(strings.Fields(reservedStages), lower) {
			l.remark(ruleReservedStage, &from.Head, from.Line, "stage name %q is reserved", lower)
		}
		if names[lower] {
			l.remark(ruleDuplicateStage, &from.Head, from.Line, "stage name %q is taken by a stage above", lower)
		}
		names[lower] = true
		word, as := from.Word.Value, from.As.Value
		if consistent(word) && (word == strings.ToUpper(word)) != (as == strings.ToUpper(as)) {
			l.remark(ruleFromAsCasing, &from.Head, from.Line, "%q does not have the case of %q", as, word)
		}
	}
	for _, i := range instructionsOf(f) {
		h := syntax.HeadOf(i)
		for _, blank := range h.Blanks {
			l.remark(ruleEmptyContinuation, h, blank, "empty line inside %s", strings.ToUpper(h.Word.Value))
		}
		switch i := i.(type) {
		case *syntax.Maintainer:
			l.remark(ruleMaintainer, h, h.Line, "MAINTAINER is deprecated, use a label")
		case *syntax.Cmd:
			l.lintList(i.Command, h)
		case *syntax.Entrypoint:
			l.lintList(i.Command, h)
		}
	}
}

// lintList remarks on a command that was meant to be in exec form.
func (l *linter) lintList(c syntax.Command, h *syntax.Head) {
	if c.JSON || len(c.Args) == 0 {
		return
	}
	if text := c.Args[0].Value; strings.HasPrefix(text, `["`) || strings.HasPrefix(text, `['`) {
		l.remark(ruleBrokenList, h, h.Line, "arguments of %s are not the JSON list they look like", strings.ToUpper(h.Word.Value))
	}
}

// instructionsOf returns all instructions of a file, FROMs included.
func instructionsOf(f *syntax.File) []syntax.Instruction {
	var out []syntax.Instruction
	for _, a := range f.Global {
		out = append(out, a)
	}
	for _, st := range f.Stages {
		out = append(out, st.From)
		out = append(out, st.Instructions...)
	}
	return out
}

// consistent reports whether a word is all upper or all lower case.
func consistent(word string) bool {
	return word == strings.ToLower(word) || word == strings.ToUpper(word)
}

// lintCasing remarks on instructions in another case than most.
func (l *linter) lintCasing(f *syntax.File) {
	lower, upper := 0, 0
	all := instructionsOf(f)[len(f.Global):]
	for _, i := range all {
		word := syntax.HeadOf(i).Word.Value
		switch {
		case word == strings.ToLower(word):
			lower++
		case word == strings.ToUpper(word):
			upper++
		}
	}
	want, to := "upper", strings.ToUpper
	if lower > upper {
		want, to = "lower", strings.ToLower
	}
	for _, i := range all {
		if h := syntax.HeadOf(i); h.Word.Value != to(h.Word.Value) {
			l.remark(ruleInstructionCasing, h, h.Line, "%q is not in %s case as most instructions are", h.Word.Value, want)
		}
	}
}

// secretName finds names that look as if they held a secret.
type secretName struct{ suspicious, harmless *regexp.Regexp }

func newSecretName() secretName {
	word := func(words string) *regexp.Regexp { return regexp.MustCompile(`(?i)(_|^)(` + words + `)(_|$)`) }
	return secretName{suspicious: word(suspiciousVariableWords), harmless: word(harmlessVariableWords)}
}

func (s secretName) matches(name string) bool {
	return s.suspicious.MatchString(name) && !s.harmless.MatchString(name)
}
