package main

import (
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"text/template/parse"
)

// format is a template of --format: the language is that of text/template, of
// which it uses the parser. It does not use the rest, which calls methods by
// names that only users know. A linker that sees such a call must keep every
// method of every type: a quarter of the program, which each command would have
// in memory. What templates may call here is listed in methodsOf.
type format struct {
	trees     map[string]*parse.Tree
	functions map[string]formatFunc
}

// formatFunc is a function that templates call with at least so many evaluated
// arguments, or, unless it takes any number, exactly as many.
type formatFunc struct {
	least    int
	variadic bool
	call     func(args []reflect.Value) (reflect.Value, error)
}

// maxFormatDepth bounds templates that execute themselves.
const maxFormatDepth = 100_000

// errBreak and errContinue end a loop, or one turn of it.
var (
	errBreak    = errors.New("break outside of a loop")
	errContinue = errors.New("continue outside of a loop")
)

// parseFormat reads a template.
func parseFormat(text string) (*format, error) {
	f := &format{functions: formatFunctions()}
	names := map[string]any{}
	for name := range f.functions {
		names[name] = true
	}
	trees, err := parse.Parse("", text, "", "", names)
	f.trees = trees
	return f, err
}

// execute writes a value by the template.
func (f *format) execute(out io.Writer, value any) error {
	tree := f.trees[""]
	if tree == nil { // nothing but definitions
		return nil
	}
	dot := reflect.ValueOf(value)
	s := &formatState{format: f, out: out, tree: tree, node: tree.Root, vars: []formatVar{{"$", dot}}}
	return s.walk(dot, tree.Root)
}

// formatVar is a variable of a template.
type formatVar struct {
	name  string
	value reflect.Value
}

// formatState is an execution of a template.
type formatState struct {
	*format
	out   io.Writer
	tree  *parse.Tree
	node  parse.Node  // of which an error tells
	vars  []formatVar // those declared last come last
	depth int
}

// errorf makes an error that has its place in the template.
func (s *formatState) errorf(text string, args ...any) error {
	location, node := s.tree.ErrorContext(s.node)
	return fmt.Errorf("template: %s: executing %q at <%s>: %w", location, s.tree.Name, node, fmt.Errorf(text, args...))
}

func (s *formatState) walk(dot reflect.Value, node parse.Node) error {
	s.node = node
	switch n := node.(type) {
	case *parse.ActionNode:
		v, err := s.pipeline(dot, n.Pipe)
		if err != nil || len(n.Pipe.Decl) > 0 {
			return err
		}
		return s.print(n, v)
	case *parse.IfNode:
		return s.branch(dot, &n.BranchNode, false)
	case *parse.WithNode:
		return s.branch(dot, &n.BranchNode, true)
	case *parse.RangeNode:
		return s.loop(dot, n)
	case *parse.ListNode:
		return s.list(dot, n)
	case *parse.TemplateNode:
		return s.template(dot, n)
	case *parse.TextNode:
		_, err := s.out.Write(n.Text)
		return err
	case *parse.BreakNode:
		return errBreak
	case *parse.ContinueNode:
		return errContinue
	case *parse.CommentNode:
		return nil
	}
	return s.errorf("unknown node: %s", node)
}

func (s *formatState) list(dot reflect.Value, n *parse.ListNode) error {
	if n == nil {
		return nil
	}
	for _, node := range n.Nodes {
		if err := s.walk(dot, node); err != nil {
			return err
		}
	}
	return nil
}

// branch executes an "if", or a "with", whose dot is the condition's value.
func (s *formatState) branch(dot reflect.Value, n *parse.BranchNode, with bool) error {
	declared := len(s.vars)
	defer func() { s.vars = s.vars[:declared] }()
	v, err := s.pipeline(dot, n.Pipe)
	if err != nil {
		return err
	}
	switch {
	case !truth(inside(v)):
		return s.list(dot, n.ElseList)
	case with:
		return s.list(v, n.List)
	}
	return s.list(dot, n.List)
}

// template executes another template that the text defines.
func (s *formatState) template(dot reflect.Value, n *parse.TemplateNode) error {
	tree := s.trees[n.Name]
	if tree == nil {
		return s.errorf("template %q not defined", n.Name)
	}
	if s.depth == maxFormatDepth {
		return s.errorf("exceeded maximum template depth (%v)", maxFormatDepth)
	}
	var v reflect.Value
	if n.Pipe != nil {
		var err error
		if v, err = s.pipeline(dot, n.Pipe); err != nil {
			return err
		}
	}
	inner := &formatState{format: s.format, out: s.out, tree: tree, node: tree.Root, vars: []formatVar{{"$", v}}, depth: s.depth + 1}
	return inner.walk(v, tree.Root)
}

func (s *formatState) loop(dot reflect.Value, n *parse.RangeNode) error {
	declared := len(s.vars)
	defer func() { s.vars = s.vars[:declared] }()
	v, err := s.pipeline(dot, n.Pipe)
	if err != nil {
		return err
	}
	v, _ = indirect(v)
	inLoop, turns := len(s.vars), 0
	turn := func(key, element reflect.Value) error {
		turns++
		if d := n.Pipe.Decl; len(d) > 0 {
			values := []reflect.Value{key, element}[2-len(d):]
			for i, name := range d {
				if err := s.set(n.Pipe.IsAssign, inLoop-len(d)+i, name.Ident[0], values[i]); err != nil {
					return err
				}
			}
		}
		defer func() { s.vars = s.vars[:inLoop] }()
		if err := s.list(element, n.List); !errors.Is(err, errContinue) {
			return err
		}
		return nil
	}
	if err := s.each(v, turn); err != nil && !errors.Is(err, errBreak) {
		return err
	}
	if turns == 0 {
		return s.list(dot, n.ElseList)
	}
	return nil
}

// set gives a variable of a loop its value: one declared there, at index, or one
// of before.
func (s *formatState) set(assign bool, index int, name string, v reflect.Value) error {
	if assign {
		return s.assign(name, v)
	}
	s.vars[index].value = v
	return nil
}

// each calls turn for each element of a value.
func (s *formatState) each(v reflect.Value, turn func(key, element reflect.Value) error) error {
	switch v.Kind() {
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			if err := turn(reflect.ValueOf(i), v.Index(i)); err != nil {
				return err
			}
		}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		for i := range v.Int() {
			if err := turn(reflect.ValueOf(i), reflect.ValueOf(i).Convert(v.Type())); err != nil {
				return err
			}
		}
	case reflect.Map:
		keys := v.MapKeys()
		slices.SortFunc(keys, compareKeys)
		for _, key := range keys {
			if err := turn(key, v.MapIndex(key)); err != nil {
				return err
			}
		}
	case reflect.Invalid:
	default:
		return s.errorf("range can't iterate over %v", v)
	}
	return nil
}

// compareKeys orders the keys of a map, which are of one kind.
func compareKeys(a, b reflect.Value) int {
	switch {
	case a.CanInt():
		return cmpOf(a.Int(), b.Int())
	case a.CanUint():
		return cmpOf(a.Uint(), b.Uint())
	}
	return strings.Compare(fmt.Sprint(a), fmt.Sprint(b))
}

func (s *formatState) assign(name string, v reflect.Value) error {
	for i := len(s.vars) - 1; i >= 0; i-- {
		if s.vars[i].name == name {
			s.vars[i].value = v
			return nil
		}
	}
	return s.errorf("undefined variable: %s", name)
}

// print writes a value as fmt.Print does, but what pointers point to.
func (s *formatState) print(n parse.Node, v reflect.Value) error {
	s.node = n
	text, err := s.printable(n, v)
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(s.out, text)
	return err
}

func (s *formatState) printable(n parse.Node, v reflect.Value) (any, error) {
	if v.Kind() == reflect.Pointer {
		v, _ = indirect(v)
	}
	if !v.IsValid() {
		return "<no value>", nil
	}
	if v.CanAddr() && !prints(v.Type()) && prints(reflect.PointerTo(v.Type())) {
		v = v.Addr()
	}
	if k := v.Kind(); !prints(v.Type()) && (k == reflect.Chan || k == reflect.Func) {
		return nil, s.errorf("can't print %s of type %s", n, v.Type())
	}
	return v.Interface(), nil
}

// prints tells whether values of a type say themselves how they are printed.
func prints(t reflect.Type) bool {
	return t.Implements(reflect.TypeFor[error]()) || t.Implements(reflect.TypeFor[fmt.Stringer]())
}

// indirect follows pointers and interfaces to what they hold, or to the first
// that holds nothing.
func indirect(v reflect.Value) (_ reflect.Value, isNil bool) {
	for ; v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface; v = v.Elem() {
		if v.IsNil() {
			return v, true
		}
	}
	return v, false
}

// inside is what an interface holds, and any other value itself.
func inside(v reflect.Value) reflect.Value {
	if v.Kind() == reflect.Interface {
		return v.Elem()
	}
	return v
}

// truth tells what "if" makes of a value: what is empty or zero is false.
func truth(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Invalid:
		return false
	case reflect.Array, reflect.Map, reflect.Slice, reflect.String:
		return v.Len() > 0
	case reflect.Struct:
		return true
	}
	return !v.IsZero()
}
