package dockerfile

import (
	"bytes"
	"encoding/json"
	"regexp"
	"slices"
	"strings"

	"github.com/distribution/reference"

	"github.com/kiln-build/kiln/internal/dockerfile/syntax"
)

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
			l.remarkFix(ruleStageNameCasing, &from.Head, from.Line, &fix{from.Name.Span, lower}, "stage name %q is not in lower case", name)
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
			l.remarkFix(ruleFromAsCasing, &from.Head, from.Line, &fix{from.As.Span, sameCase(as, word)}, "%q does not have the case of %q", as, word)
		}
	}
	for _, i := range instructionsOf(f) {
		h := syntax.HeadOf(i)
		for _, blank := range h.Blanks {
			l.remarkFix(ruleEmptyContinuation, h, blank, &fix{syntax.Span{Start: blank.Start, End: min(blank.End+1, len(l.source.Data))}, ""}, "empty line inside %s", strings.ToUpper(h.Word.Value))
		}
		switch i := i.(type) {
		case *syntax.From:
			if i.Name.Value != "" {
				l.lintDescriptions(h, []string{i.Name.Value})
			}
		case *syntax.Arg:
			var names []string
			for _, a := range i.Args {
				names = append(names, a.Key.Value)
			}
			l.lintDescriptions(h, names)
		case *syntax.Maintainer:
			l.remarkFix(ruleMaintainer, h, h.Line, &fix{h.Line, "LABEL org.opencontainers.image.authors=" + quoteValue(i.Name.Value)}, "MAINTAINER is deprecated, use a label")
		case *syntax.Cmd:
			l.lintList(i.Command.Args, h)
		case *syntax.Entrypoint:
			l.lintList(i.Command.Args, h)
		case *syntax.Run:
			l.lintList(i.Command.Args, h)
		case *syntax.Copy:
			l.lintList(i.Sources, h)
		case *syntax.Volume:
			l.lintList(i.Paths, h)
		case *syntax.Onbuild:
			if len(i.Broken) > 0 {
				l.remark(ruleBrokenTrigger, h, h.Line, "trigger of ONBUILD cannot be carried out: %s", i.Broken[0].Text())
			}
		}
	}
}

// sameCase is word in upper or lower case, as another word is.
func sameCase(word, as string) string {
	if as == strings.ToUpper(as) {
		return strings.ToUpper(word)
	}
	return strings.ToLower(word)
}

// quoteValue is a value as ENV and LABEL take it, in double quotes if need be.
func quoteValue(v string) string {
	if v != "" && !strings.ContainsAny(v, " \t\"'\\$") {
		return v
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(v) + `"`
}

// execForm is a command line as a JSON list, "" where it needs a shell.
func execForm(line string) string {
	if strings.ContainsAny(line, "\"'\\$`|&;<>()*?[]{}~#!=%\n") {
		return ""
	}
	words, err := json.Marshal(strings.Fields(line))
	if err != nil {
		return ""
	}
	return strings.ReplaceAll(string(words), `","`, `", "`)
}

// lintDescriptions remarks on comments above names that do not describe them.
func (l *linter) lintDescriptions(h *syntax.Head, names []string) {
	if len(h.Comments) == 0 || len(names) == 0 {
		return
	}
	last := h.Comments[len(h.Comments)-1]
	if first, _, _ := strings.Cut(last.Text, " "); slices.Contains(names, first) {
		return
	}
	name := names[0]
	if len(names) > 1 {
		name = "NAME"
	}
	l.remarkFix(ruleDescription, h, h.Line, &fix{last.Span, "# " + name + " " + last.Text}, "comment above %s does not begin with the name it describes, as in \"# %s text\"", strings.ToUpper(h.Word.Value), name)
}

// lintList remarks on arguments that were meant to be a JSON list: those of a
// list do not begin with its bracket.
func (l *linter) lintList(args []syntax.Text, h *syntax.Head) {
	if len(args) == 0 {
		return
	}
	text := l.source.Data[args[0].Span.Start:]
	if bytes.HasPrefix(text, []byte(`["`)) || bytes.HasPrefix(text, []byte(`['`)) {
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
			l.remarkFix(ruleInstructionCasing, h, h.Line, &fix{h.Word.Span, to(h.Word.Value)}, "%q is not in %s case as most instructions are", h.Word.Value, want)
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

// lintDefaultArgs remarks on base images that are none with the defaults of
// their arguments alone.
func (l *lowering) lintDefaultArgs() {
	args := platformArgs(l.in.build, l.in.target, "", nil)
	for _, inst := range l.in.file.Global {
		for _, a := range inst.Args {
			if a.Default == nil {
				continue
			}
			x, err := l.expander().Expand(a.Default.Value, args)
			if err != nil {
				return // which the lowering reports
			}
			args.set(a.Key.Value, x.Text)
		}
	}
	for _, st := range l.in.file.Stages {
		x, err := l.expander().Expand(st.From.Image.Value, args)
		if err != nil {
			return
		}
		if _, err := reference.ParseNormalizedNamed(x.Text); err != nil {
			h := &st.From.Head
			l.lint.remark(ruleDefaultArgInFrom, h, h.Line, "base image %s is %q with the defaults of the arguments alone, which is no image", st.From.Image.Value, x.Text)
		}
	}
}
