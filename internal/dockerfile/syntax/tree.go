package syntax

import (
	"slices"
	"unicode"
	"unicode/utf8"
)

// Tree is a build file as it is written. Its nodes, and their tokens, stand one
// behind the other and leave nothing out: the text of all of them is the file,
// byte for byte. So a formatter can change some and keep the others.
type Tree struct {
	File  *File
	Nodes []Node
}

// NodeKind says what a node is.
type NodeKind string

// The kinds of nodes.
const (
	NodeMark        NodeKind = "mark" // the byte order mark
	NodeDirective   NodeKind = "directive"
	NodeComment     NodeKind = "comment"
	NodeBlank       NodeKind = "blank"
	NodeInstruction NodeKind = "instruction"
	NodeUnread      NodeKind = "unread" // behind errors that end the reading
)

// Node is a line of the file, or the lines of an instruction.
type Node struct {
	Kind   NodeKind
	Span   Span
	Tokens []Token
	// Instruction is what an instruction means, nil if it has errors.
	Instruction Instruction
	Directive   *Directive // of a directive
}

// TokenKind says what a token is.
type TokenKind string

// The kinds of tokens.
const (
	TokenMark         TokenKind = "mark"
	TokenDirective    TokenKind = "directive"
	TokenComment      TokenKind = "comment"
	TokenSpace        TokenKind = "space"
	TokenNewline      TokenKind = "newline"
	TokenWord         TokenKind = "word" // an instruction's name
	TokenFlag         TokenKind = "flag"
	TokenText         TokenKind = "text"         // arguments
	TokenContinuation TokenKind = "continuation" // the escape character at a line's end, and the line's end
	TokenHeredoc      TokenKind = "heredoc"      // a line of a heredoc
	TokenHeredocEnd   TokenKind = "heredoc-end"  // the line that ends it
	TokenUnread       TokenKind = "unread"
)

// Token is a part of a node.
type Token struct {
	Kind TokenKind
	Span Span
}

// says tells whether a token says anything to the builder, or in a comment.
func (t Token) says() bool {
	return t.Kind != TokenSpace && t.Kind != TokenNewline && t.Kind != TokenContinuation
}

// lineKind says what a line of the file was read as.
type lineKind int

const (
	lineBlank lineKind = iota
	lineComment
	lineDirective
	lineCode // the first line of an instruction
	lineInnerCode
	lineInnerBlank
	lineInnerComment
	lineHeredoc
	lineHeredocEnd
)

// line is a line of the file: what was read of it ends at body, and the rest up
// to the end is a continuation mark, blanks and the newline.
type line struct {
	kind             lineKind
	start, body, end int
	inst             Instruction // of the first line of an instruction
}

// note notes the line that was read last.
func (s *scanner) note(kind lineKind, start, body int) {
	if s.lines != nil {
		*s.lines = append(*s.lines, line{kind: kind, start: start, body: body, end: s.pos})
	}
}

// noteCode notes where the code of the line that was noted last ends.
func (s *scanner) noteCode(end int) {
	if s.lines != nil {
		(*s.lines)[len(*s.lines)-1].body = end
	}
}

// noteInstruction notes what the lines since the last first one mean.
func (s *scanner) noteInstruction(inst Instruction) {
	if s.lines == nil {
		return
	}
	for i := range slices.Backward(*s.lines) {
		if l := &(*s.lines)[i]; l.kind == lineCode {
			l.inst = inst
			return
		}
	}
}

// ParseTree is [Parse] that keeps all that is written. There is a tree also if
// there are errors.
func ParseTree(src *Source, words Words) (*Tree, error) {
	var lines []line
	file, err := parse(src, words, &lines)
	t := &Tree{File: file}
	if len(lines) > 0 && lines[0].start > 0 {
		mark := Span{0, lines[0].start}
		t.Nodes = append(t.Nodes, Node{Kind: NodeMark, Span: mark, Tokens: []Token{{TokenMark, mark}}})
	}
	directives := file.Directives
	for len(lines) > 0 {
		n := 1
		for n < len(lines) && lines[n].kind >= lineInnerCode {
			n++
		}
		node := Node{Span: Span{lines[0].start, lines[n-1].end}, Instruction: lines[0].inst}
		switch lines[0].kind {
		case lineBlank:
			node.Kind = NodeBlank
		case lineComment:
			node.Kind = NodeComment
		case lineDirective:
			node.Kind, node.Directive = NodeDirective, &directives[0]
			directives = directives[1:]
		default:
			node.Kind = NodeInstruction
		}
		marks := marksOf(node.Instruction)
		for _, l := range lines[:n] {
			marks = node.addLine(src, l, marks)
		}
		if !slices.ContainsFunc(node.Tokens, Token.says) {
			node.Kind = NodeBlank // continuation marks and nothing else
		}
		t.Nodes = append(t.Nodes, node)
		lines = lines[n:]
	}
	end := 0
	if len(t.Nodes) > 0 {
		end = t.Nodes[len(t.Nodes)-1].Span.End
	}
	if rest := (Span{end, len(src.Data)}); rest.Start < rest.End {
		t.Nodes = append(t.Nodes, Node{Kind: NodeUnread, Span: rest, Tokens: []Token{{TokenUnread, rest}}})
	}
	return t, err
}

// marksOf are the tokens of an instruction that are more than text, in order.
func marksOf(i Instruction) []Token {
	if i == nil {
		return nil
	}
	h := i.head()
	out := []Token{{TokenWord, h.Word.Span}}
	for _, f := range h.Flags {
		out = append(out, Token{TokenFlag, f.Span})
	}
	if o, ok := i.(*Onbuild); ok {
		out = append(out, marksOf(o.Inner)...)
	}
	return out
}

// addLine adds the tokens of a line, and returns the marks that are not on it.
func (n *Node) addLine(src *Source, l line, marks []Token) []Token {
	switch l.kind {
	case lineBlank, lineInnerBlank:
		n.add(TokenSpace, l.start, l.end-newlineOf(src, l.start, l.end))
	case lineComment, lineInnerComment:
		start := skipSpace(src, l.start, l.body)
		n.add(TokenSpace, l.start, start)
		n.add(TokenComment, start, l.body)
	case lineDirective:
		n.add(TokenDirective, l.start, l.body)
	case lineHeredoc:
		n.add(TokenHeredoc, l.start, l.end)
		return marks
	case lineHeredocEnd:
		n.add(TokenHeredocEnd, l.start, l.body)
	default:
		marks = n.addCode(src, l.start, l.body, marks)
		if l.body < l.end && src.Data[l.body] != '\n' && src.Data[l.body] != '\r' {
			n.add(TokenContinuation, l.body, l.end)
			return marks
		}
	}
	n.add(TokenNewline, n.end(l.start), l.end)
	return marks
}

// addCode adds the tokens of an instruction's code from start to end.
func (n *Node) addCode(src *Source, start, end int, marks []Token) []Token {
	for start < end {
		if next := skipSpace(src, start, end); next > start {
			n.add(TokenSpace, start, next)
			start = next
			continue
		}
		for len(marks) > 0 && marks[0].Span.End <= start {
			marks = marks[1:]
		}
		stop, kind := end, TokenText
		if len(marks) > 0 && marks[0].Span.Start < end {
			if stop = marks[0].Span.Start; stop <= start {
				stop, kind = min(marks[0].Span.End, end), marks[0].Kind
			}
		}
		text := stop - trailingSpace(src, start, stop)
		n.add(kind, start, text)
		start = text
	}
	return marks
}

// add adds a token, if there is anything of it.
func (n *Node) add(kind TokenKind, start, end int) {
	if start < end {
		n.Tokens = append(n.Tokens, Token{kind, Span{start, end}})
	}
}

// end is where the last token ends; otherwise, if there is none.
func (n *Node) end(otherwise int) int {
	if len(n.Tokens) == 0 {
		return otherwise
	}
	return max(otherwise, n.Tokens[len(n.Tokens)-1].Span.End)
}

// newlineOf is the length of the newline that ends a stretch, with the carriage
// returns before it.
func newlineOf(src *Source, start, end int) int {
	at := end
	if at > start && src.Data[at-1] == '\n' {
		at--
	}
	for at > start && src.Data[at-1] == '\r' {
		at--
	}
	return end - at
}

func skipSpace(src *Source, start, end int) int {
	for start < end {
		r, size := utf8.DecodeRune(src.Data[start:end])
		if !unicode.IsSpace(r) {
			break
		}
		start += size
	}
	return start
}

// trailingSpace is the length of the blanks at the end of a stretch that begins
// with something else.
func trailingSpace(src *Source, start, end int) int {
	at := end
	for at > start {
		r, size := utf8.DecodeLastRune(src.Data[start:at])
		if !unicode.IsSpace(r) {
			break
		}
		at -= size
	}
	return end - at
}
