package syntax

import (
	"fmt"
	"strings"
)

// Error is something wrong at a place of a source.
type Error struct {
	Source   *Source
	Span     Span
	Message  string // what is wrong
	Expected string // what would be right; may be empty
	Suggest  string // the nearest right word; may be empty
}

// Error says where, what, what was expected and what may have been meant.
func (e *Error) Error() string {
	at := e.Source.Position(e.Span.Start)
	return fmt.Sprintf("%s:%d: %s", e.Source.Name, at.Line, e.Text())
}

// Text is the error without its place.
func (e *Error) Text() string {
	var b strings.Builder
	b.WriteString(e.Message)
	if e.Expected != "" {
		b.WriteString(": expected ")
		b.WriteString(e.Expected)
	}
	if e.Suggest != "" {
		b.WriteString(" (did you mean ")
		b.WriteString(e.Suggest)
		b.WriteString("?)")
	}
	return b.String()
}

// Errors are all errors of a source, in its order.
type Errors []*Error

// Error has a line for each error.
func (l Errors) Error() string {
	texts := make([]string, len(l))
	for i, e := range l {
		texts[i] = e.Error()
	}
	return strings.Join(texts, "\n")
}

// Unwrap returns the single errors.
func (l Errors) Unwrap() []error {
	out := make([]error, len(l))
	for i, e := range l {
		out[i] = e
	}
	return out
}
