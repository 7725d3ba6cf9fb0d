package dockerfile

import (
	"encoding/json"
	"fmt"
	"unicode/utf8"

	"github.com/kiln-build/kiln/internal/dockerfile/syntax"
)

// The JSON of "kiln dockerfile ast". Texts of all tokens, one behind the other,
// are the file. Lines count from 1, columns and offsets in bytes from 0.
type (
	astFile struct {
		File       string     `json:"file"`
		Escape     string     `json:"escape"`
		Extensions []string   `json:"extensions,omitempty"`
		Nodes      []astNode  `json:"nodes"`
		Errors     []astError `json:"errors,omitempty"`
	}
	astPosition struct {
		Offset int `json:"offset"`
		Line   int `json:"line"`
		Column int `json:"column"`
	}
	astSpan struct {
		Start astPosition `json:"start"`
		End   astPosition `json:"end"`
	}
	astNode struct {
		Kind        syntax.NodeKind `json:"kind"`
		Span        astSpan         `json:"span"`
		Directive   *astDirective   `json:"directive,omitempty"`
		Instruction *astInstruction `json:"instruction,omitempty"`
		Tokens      []astToken      `json:"tokens"`
	}
	astDirective struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	}
	// astToken has its text in bytes, as base64, where it is no UTF-8.
	astToken struct {
		Kind  syntax.TokenKind `json:"kind"`
		Start astPosition      `json:"start"`
		Text  string           `json:"text"`
		Bytes []byte           `json:"bytes,omitempty"`
	}
	astText struct {
		Value string  `json:"value"`
		Span  astSpan `json:"span"`
	}
	astFlag struct {
		Name  string   `json:"name"`
		Value *astText `json:"value,omitempty"`
		Span  astSpan  `json:"span"`
	}
	astPair struct {
		Key    astText  `json:"key"`
		Value  *astText `json:"value,omitempty"`
		Legacy bool     `json:"legacy,omitempty"` // "key value", without =
	}
	astHeredoc struct {
		Name    string  `json:"name"`
		Word    astSpan `json:"word"`
		Body    astSpan `json:"body"`
		Content string  `json:"content"`
		Expand  bool    `json:"expand"`
		Chomp   bool    `json:"chomp"`
	}
	astInstruction struct {
		Verb      string          `json:"verb"`
		Word      astText         `json:"word"`
		Code      string          `json:"code"`
		Comments  []astText       `json:"comments,omitempty"` // right above it
		Flags     []astFlag       `json:"flags,omitempty"`
		Form      string          `json:"form,omitempty"` // of commands: "exec" or "shell"
		Arguments []astText       `json:"arguments,omitempty"`
		Pairs     []astPair       `json:"pairs,omitempty"`
		Heredocs  []astHeredoc    `json:"heredocs,omitempty"`
		Trigger   *astInstruction `json:"trigger,omitempty"`
	}
	astError struct {
		Message    string  `json:"message"`
		Expected   string  `json:"expected,omitempty"`
		Suggestion string  `json:"suggestion,omitempty"`
		Span       astSpan `json:"span"`
	}
)

// AST returns a Dockerfile's syntax tree as JSON. A file with errors has a tree
// as well; the errors are in it, and are returned as those of a build are.
func AST(name string, data []byte) ([]byte, error) {
	src := syntax.NewSource(name, data)
	tree, problem := syntax.ParseTree(src, syntax.DockerfileWords())
	w := astWriter{src}
	out := astFile{File: name, Escape: string(tree.File.Escape), Nodes: []astNode{}}
	if tree.File.Extensions.RunLimits {
		out.Extensions = append(out.Extensions, "run-limits")
	}
	for _, n := range tree.Nodes {
		node := astNode{Kind: n.Kind, Span: w.span(n.Span), Instruction: w.instruction(n.Instruction)}
		if d := n.Directive; d != nil {
			node.Directive = &astDirective{d.Name, d.Value}
		}
		for _, t := range n.Tokens {
			node.Tokens = append(node.Tokens, w.token(t))
		}
		out.Nodes = append(out.Nodes, node)
	}
	if list, ok := problem.(syntax.Errors); ok { //nolint:errorlint // ParseTree promises this type
		for _, e := range list {
			out.Errors = append(out.Errors, astError{e.Message, e.Expected, e.Suggest, w.span(e.Span)})
		}
	}
	text, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write syntax tree of %s: %w", name, err)
	}
	return text, sourceErrors(problem)
}

// astWriter converts places and what stands there.
type astWriter struct{ src *syntax.Source }

func (w astWriter) position(offset int) astPosition {
	p := w.src.Position(offset)
	return astPosition{offset, p.Line, p.Character}
}

func (w astWriter) span(s syntax.Span) astSpan {
	return astSpan{w.position(s.Start), w.position(s.End)}
}

func (w astWriter) token(t syntax.Token) astToken {
	data := w.src.Data[t.Span.Start:t.Span.End]
	out := astToken{Kind: t.Kind, Start: w.position(t.Span.Start), Text: string(data)}
	if !utf8.Valid(data) {
		out.Bytes = data
	}
	return out
}

func (w astWriter) text(t syntax.Text) astText { return astText{t.Value, w.span(t.Span)} }

func (w astWriter) optional(t *syntax.Text) *astText {
	if t == nil {
		return nil
	}
	out := w.text(*t)
	return &out
}

func (w astWriter) texts(list ...syntax.Text) []astText {
	var out []astText
	for _, t := range list {
		out = append(out, w.text(t))
	}
	return out
}

func (w astWriter) instruction(i syntax.Instruction) *astInstruction {
	if i == nil {
		return nil
	}
	h := syntax.HeadOf(i)
	out := &astInstruction{Verb: h.Verb.String(), Word: w.text(h.Word), Code: h.Code}
	for _, c := range h.Comments {
		out.Comments = append(out.Comments, astText{c.Text, w.span(c.Span)})
	}
	for _, f := range h.Flags {
		flag := astFlag{Name: f.Name, Span: w.span(f.Span)}
		if f.HasValue {
			flag.Value = w.optional(&f.Value)
		}
		out.Flags = append(out.Flags, flag)
	}
	w.arguments(out, i)
	return out
}

// arguments sets what stands behind the flags.
func (w astWriter) arguments(out *astInstruction, i syntax.Instruction) {
	switch i := i.(type) {
	case *syntax.From:
		out.Arguments = w.texts(i.Image)
		if i.Name.Value != "" {
			out.Arguments = w.texts(i.Image, i.As, i.Name)
		}
	case *syntax.Run:
		w.command(out, i.Command)
		out.Heredocs = w.heredocs(i.Heredocs)
	case *syntax.Cmd:
		w.command(out, i.Command)
	case *syntax.Entrypoint:
		w.command(out, i.Command)
	case *syntax.Healthcheck:
		if !i.None {
			w.command(out, i.Command)
		}
	case *syntax.Copy:
		out.Arguments = w.texts(append(i.Sources[:len(i.Sources):len(i.Sources)], i.Dest)...)
		out.Heredocs = w.heredocs(i.Heredocs)
	case *syntax.Env:
		out.Pairs = w.pairs(i.Pairs)
	case *syntax.Label:
		out.Pairs = w.pairs(i.Pairs)
	case *syntax.Arg:
		for _, a := range i.Args {
			out.Pairs = append(out.Pairs, astPair{Key: w.text(a.Key), Value: w.optional(a.Default)})
		}
	case *syntax.Shell:
		out.Arguments, out.Form = w.texts(i.Args...), "exec"
	case *syntax.Expose:
		out.Arguments = w.texts(i.Ports...)
	case *syntax.Volume:
		out.Arguments = w.texts(i.Paths...)
	case *syntax.User:
		out.Arguments = w.texts(i.User)
	case *syntax.Workdir:
		out.Arguments = w.texts(i.Path)
	case *syntax.StopSignal:
		out.Arguments = w.texts(i.Signal)
	case *syntax.Maintainer:
		out.Arguments = w.texts(i.Name)
	case *syntax.Onbuild:
		out.Trigger = w.instruction(i.Inner)
	}
}

func (w astWriter) command(out *astInstruction, c syntax.Command) {
	out.Arguments, out.Form = w.texts(c.Args...), "shell"
	if c.JSON {
		out.Form = "exec"
	}
}

func (w astWriter) pairs(pairs []syntax.Pair) []astPair {
	var out []astPair
	for _, p := range pairs {
		out = append(out, astPair{Key: w.text(p.Key), Value: w.optional(&p.Value), Legacy: p.Legacy})
	}
	return out
}

func (w astWriter) heredocs(docs []syntax.Heredoc) []astHeredoc {
	var out []astHeredoc
	for _, d := range docs {
		out = append(out, astHeredoc{d.Name.Value, w.span(d.Word), w.span(d.Body), d.Content, d.Expand, d.Chomp})
	}
	return out
}
