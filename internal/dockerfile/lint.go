package dockerfile

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/dockerfile/syntax"
)

// lintConfig is a "check" directive: which rules to skip, which experimental
// ones to heed, and whether remarks are errors.
type lintConfig struct {
	skip, experimental       []string
	skipAll, experimentalAll bool
	error                    bool
}

// parseCheck reads "skip=A,B;error=true;experimental=C".
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
			c.skip, c.skipAll = ruleList(value)
		case "error":
			b, err := strconv.ParseBool(strings.TrimSpace(value))
			if err != nil {
				return nil, fmt.Errorf("check error=%q: expected true or false", value)
			}
			c.error = b
		case "experimental":
			c.experimental, c.experimentalAll = ruleList(value)
		default:
			return nil, fmt.Errorf("check %q: expected skip, error or experimental%s", key, didYouMean(syntax.Suggest(key, []string{"skip", "error", "experimental"})))
		}
	}
	return c, nil
}

// ruleList reads names of rules, or "all".
func ruleList(value string) (names []string, all bool) {
	for name := range strings.SplitSeq(value, ",") {
		name = strings.TrimSpace(name)
		all = all || strings.EqualFold(name, "all")
		names = append(names, name)
	}
	return names, all
}

// skips reports whether a rule does not count.
func (c *lintConfig) skips(r rule) bool {
	named := func(list []string) bool {
		return slices.ContainsFunc(list, func(n string) bool { return strings.EqualFold(n, string(r)) })
	}
	if r.experimental() {
		return c == nil || !c.experimentalAll && !named(c.experimental)
	}
	return c != nil && (c.skipAll || named(c.skip))
}

// with is c with what a comment above an instruction adds to it.
func (c *lintConfig) with(own *lintConfig) *lintConfig {
	if c == nil {
		return own
	}
	return &lintConfig{
		skip: slices.Concat(c.skip, own.skip), skipAll: c.skipAll || own.skipAll, error: c.error,
		experimental: slices.Concat(c.experimental, own.experimental), experimentalAll: c.experimentalAll || own.experimentalAll,
	}
}

// remark is a warning by a rule, and maybe what mends it.
type remark struct {
	frontend.Warning
	rule  rule
	short string
	fix   *fix
}

// fix is a text to put in the place of another.
type fix struct {
	at   syntax.Span
	text string
}

// maxRemarks is how many remarks are made on a file. Each is sent with the file.
const maxRemarks = 1000

// linter collects remarks on a file.
type linter struct {
	words   syntax.Words
	source  *syntax.Source
	config  *lintConfig
	remarks []remark
	seen    map[string]bool
}

// remark adds a remark on an instruction. Comments "# check=skip=RULE" right
// above the instruction switch rules off for it.
func (l *linter) remark(r rule, head *syntax.Head, at syntax.Span, format string, args ...any) {
	l.remarkFix(r, head, at, nil, format, args...)
}

// remarkFix is remark with what mends the instruction.
func (l *linter) remarkFix(r rule, head *syntax.Head, at syntax.Span, mend *fix, format string, args ...any) {
	config := l.config
	for _, c := range head.Comments {
		if v, ok := strings.CutPrefix(c.Text, "check="); ok {
			v, _, _ = strings.Cut(v, " ") // an explanation may follow
			if own, err := parseCheck(v); err == nil {
				config = config.with(own)
			}
		}
	}
	if config.skips(r) {
		return
	}
	short := fmt.Sprintf(format, args...)
	key := fmt.Sprintf("%s %d %s", r, at.Start, short)
	if l.seen[key] || len(l.remarks) >= maxRemarks {
		return
	}
	if l.seen == nil {
		l.seen = map[string]bool{}
	}
	l.seen[key] = true
	file := l.source.LLB()
	one := remark{rule: r, short: short, fix: mend, Warning: frontend.Warning{
		Level: 1, Short: fmt.Sprintf("%s: %s (line %d)", r, short, l.source.Position(at.Start).Line), Detail: []string{r.explain(l.words)}, URL: r.url(),
		File: &file, Ranges: l.source.LineRanges(at),
	}}
	if mend != nil {
		one.Detail = append(one.Detail, l.describe(*mend))
	}
	l.remarks = append(l.remarks, one)
}

// describe tells what a fix does.
func (l *linter) describe(f fix) string {
	old := strings.TrimSpace(string(l.source.Data[f.at.Start:f.at.End]))
	switch {
	case old == "":
		return "To mend it, delete the line"
	case f.text == "":
		return fmt.Sprintf("To mend it, delete %s", old)
	}
	return fmt.Sprintf("To mend it, write %s in place of %s", f.text, old)
}

// counting are the remarks that count where there are to be none.
func (l *linter) counting() []remark {
	return slices.DeleteFunc(slices.Clone(l.remarks), func(r remark) bool { return r.rule.own() })
}

// err is the error that remarks are if the file or the user says so.
func (l *linter) err() error {
	if l.config == nil || !l.config.error {
		return nil
	}
	var out frontend.SourceErrors
	for _, r := range l.counting() {
		out = append(out, &frontend.SourceError{File: *r.File, Ranges: r.Ranges, Err: fmt.Errorf("lint: %s", r.Short)})
	}
	if len(out) == 0 {
		return nil
	}
	return out
}
