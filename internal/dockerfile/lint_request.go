package dockerfile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/dockerfile/syntax"
	"github.com/kiln-build/kiln/llb"
)

// The JSON of frontend.lint's answer (BuildKit's frontend/subrequests). Field fix
// is ours: a text to put in the place of what stands at the location.
type (
	lintWarning struct {
		Rule     string        `json:"ruleName"`
		Text     string        `json:"description,omitempty"`
		URL      string        `json:"url,omitempty"`
		Detail   string        `json:"detail,omitempty"`
		Location *wireLocation `json:"location,omitempty"`
		Fix      *lintFix      `json:"fix,omitempty"`
	}
	lintFix struct {
		Text     string        `json:"text"`
		Location *wireLocation `json:"location"`
	}
	lintSource struct {
		Filename string `json:"filename,omitempty"`
		Data     []byte `json:"data,omitempty"`
		Language string `json:"language,omitempty"`
	}
	lintError struct {
		Message  string        `json:"message"`
		Location *wireLocation `json:"location"`
	}
	lintReport struct {
		Warnings []lintWarning `json:"warnings"`
		Sources  []lintSource  `json:"sources"`
		Error    *lintError    `json:"buildError,omitempty"`
	}
)

// lintResult answers frontend.lint; an error of the file is part of the answer.
func (d *driver) lintResult(lowered []*lowered, err error) (*frontend.Result, error) {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return nil, err
	}
	file := d.source.LLB()
	out := lintReport{Warnings: []lintWarning{}, Sources: []lintSource{{file.Name, file.Data, file.Language}}}
	var remarks []remark
	if len(lowered) > 0 && lowered[0] != nil {
		remarks = lowered[0].remarks
	}
	slices.SortStableFunc(remarks, func(a, b remark) int { return a.Ranges[0].Start.Line - b.Ranges[0].Start.Line })
	var text strings.Builder
	counts := false
	for _, r := range remarks {
		counts = counts || !r.rule.own()
		out.Warnings = append(out.Warnings, d.lintWarning(r))
		fmt.Fprintf(&text, "\nWARNING: %s", r.rule)
		if r.URL != "" {
			fmt.Fprintf(&text, " - %s", r.URL)
		}
		fmt.Fprintf(&text, "\n%s\n%s\n%s", r.short, strings.Join(r.Detail, "\n"), frontend.Snippet(file, r.Ranges))
	}
	if err == nil && len(lowered) > 0 && lowered[0].plan != nil {
		err = lowered[0].plan.lint.err()
	}
	if err != nil {
		out.Error = d.lintError(err, &text)
	}
	res, err := answer(out, text.String())
	if err != nil {
		return nil, err
	}
	res.Meta["result.statuscode"] = []byte("0")
	if counts || out.Error != nil {
		res.Meta["result.statuscode"] = []byte("1")
	}
	return res, nil
}

func (d *driver) lintWarning(r remark) lintWarning {
	w := lintWarning{string(r.rule), strings.Join(r.Detail, "\n"), r.URL, r.short, locate(r.Ranges...), nil}
	if r.fix != nil {
		w.Fix = &lintFix{r.fix.text, locate(d.source.Range(r.fix.at))}
	}
	return w
}

// lintError is what keeps a file from being built, all of it in one.
func (d *driver) lintError(err error, text *strings.Builder) *lintError {
	err = sourceErrors(err)
	var ranges []llb.Range
	for _, one := range frontend.SourceErrorsIn(err) {
		ranges = append(ranges, one.Ranges...)
		fmt.Fprintf(text, "\nERROR: %s\n%s", one.Error(), one.Snippet())
	}
	if len(ranges) == 0 {
		fmt.Fprintf(text, "\nERROR: %v\n", err)
	}
	return &lintError{err.Error(), locate(ranges...)}
}

// lintSyntax is what there is to remark on a file that cannot be lowered.
func (d *driver) lintSyntax(file *syntax.File) []remark {
	l := &lowering{
		in:   &input{file: file, words: d.language.Words, opts: d.opts},
		lint: &linter{words: d.language.Words, source: file.Source, config: d.opts.check},
	}
	if err := l.readChecks(); err != nil {
		return nil // which is found again when the other errors are mended
	}
	return l.lint.remarks
}
