package main

import (
	"fmt"
	"reflect"
	"strings"
	"text/template/parse"
	"time"
)

// pipeline gives the value of a pipeline, and the variables it declares theirs.
func (s *formatState) pipeline(dot reflect.Value, pipe *parse.PipeNode) (reflect.Value, error) {
	if pipe == nil {
		return reflect.Value{}, nil
	}
	s.node = pipe
	var piped []reflect.Value // what came out of the command before
	for _, c := range pipe.Cmds {
		v, err := s.command(dot, c, piped)
		if err != nil {
			return reflect.Value{}, err
		}
		if v.Kind() == reflect.Interface && v.NumMethod() == 0 {
			v = v.Elem()
		}
		piped = []reflect.Value{v}
	}
	for _, name := range pipe.Decl {
		if !pipe.IsAssign {
			s.vars = append(s.vars, formatVar{name.Ident[0], piped[0]})
		} else if err := s.assign(name.Ident[0], piped[0]); err != nil {
			return reflect.Value{}, err
		}
	}
	return piped[0], nil
}

// command evaluates one command of a pipeline: a value, or a call.
func (s *formatState) command(dot reflect.Value, c *parse.CommandNode, piped []reflect.Value) (reflect.Value, error) {
	args := c.Args[1:]
	switch n := c.Args[0].(type) {
	case *parse.FieldNode, *parse.ChainNode, *parse.VariableNode:
		return s.named(dot, n, args, piped)
	case *parse.IdentifierNode:
		return s.function(dot, n, c, args, piped)
	case *parse.NilNode:
		s.node = n
		return reflect.Value{}, s.errorf("nil is not a command")
	}
	s.node = c.Args[0]
	if len(args) > 0 || len(piped) > 0 {
		return reflect.Value{}, s.errorf("can't give argument to non-function %s", c.Args[0])
	}
	return s.argument(dot, c.Args[0])
}

// named evaluates what is called by the names of fields or variables.
func (s *formatState) named(dot reflect.Value, node parse.Node, args []parse.Node, piped []reflect.Value) (reflect.Value, error) {
	switch n := node.(type) {
	case *parse.ChainNode:
		return s.chain(dot, n, args, piped)
	case *parse.VariableNode:
		return s.variable(dot, n, args, piped)
	case *parse.FieldNode:
		s.node = n
		return s.fields(dot, dot, n.Ident, n, args, piped)
	}
	return reflect.Value{}, s.errorf("%s is no field and no variable", node)
}

// argument evaluates a single node.
func (s *formatState) argument(dot reflect.Value, node parse.Node) (reflect.Value, error) {
	s.node = node
	switch n := node.(type) {
	case *parse.DotNode:
		return dot, nil
	case *parse.NilNode:
		return reflect.Value{}, nil
	case *parse.FieldNode, *parse.ChainNode, *parse.VariableNode:
		return s.named(dot, n, nil, nil)
	case *parse.IdentifierNode:
		return s.function(dot, n, n, nil, nil)
	case *parse.PipeNode:
		return s.pipeline(dot, n)
	case *parse.BoolNode:
		return reflect.ValueOf(n.True), nil
	case *parse.StringNode:
		return reflect.ValueOf(n.Text), nil
	case *parse.NumberNode:
		return s.number(n)
	}
	return reflect.Value{}, s.errorf("can't handle %s", node)
}

// number is the value of a number that has no type of its own.
func (s *formatState) number(n *parse.NumberNode) (reflect.Value, error) {
	hex := len(n.Text) > 2 && n.Text[0] == '0' && (n.Text[1] == 'x' || n.Text[1] == 'X')
	isRune := len(n.Text) > 0 && n.Text[0] == '\''
	switch {
	case n.IsFloat && !hex && !isRune && strings.ContainsAny(n.Text, ".eEpP"):
		return reflect.ValueOf(n.Float64), nil
	case n.IsInt:
		return reflect.ValueOf(int(n.Int64)), nil
	case n.IsUint:
		return reflect.Value{}, s.errorf("%s overflows int", n.Text)
	case n.IsFloat:
		return reflect.ValueOf(n.Float64), nil
	}
	return reflect.Value{}, s.errorf("can't handle %s: complex numbers are not supported", n.Text)
}

func (s *formatState) variable(dot reflect.Value, n *parse.VariableNode, args []parse.Node, piped []reflect.Value) (reflect.Value, error) {
	s.node = n
	for i := len(s.vars) - 1; i >= 0; i-- {
		if s.vars[i].name != n.Ident[0] {
			continue
		}
		if len(n.Ident) > 1 {
			return s.fields(dot, s.vars[i].value, n.Ident[1:], n, args, piped)
		}
		if len(args) > 0 || len(piped) > 0 {
			return reflect.Value{}, s.errorf("can't give argument to non-function %s", n)
		}
		return s.vars[i].value, nil
	}
	return reflect.Value{}, s.errorf("undefined variable: %s", n.Ident[0])
}

// chain evaluates fields of what stands in parentheses.
func (s *formatState) chain(dot reflect.Value, n *parse.ChainNode, args []parse.Node, piped []reflect.Value) (reflect.Value, error) {
	s.node = n
	if _, isNil := n.Node.(*parse.NilNode); isNil {
		return reflect.Value{}, s.errorf("indirection through explicit nil in %s", n)
	}
	v, err := s.argument(dot, n.Node)
	if err != nil {
		return reflect.Value{}, err
	}
	return s.fields(dot, v, n.Field, n, args, piped)
}

// fields follows names from a value. The last may be a method with arguments.
func (s *formatState) fields(dot, v reflect.Value, names []string, node parse.Node, args []parse.Node, piped []reflect.Value) (_ reflect.Value, err error) {
	last := len(names) - 1
	for _, name := range names[:last] {
		if v, err = s.field(dot, v, name, node, nil, nil); err != nil {
			return reflect.Value{}, err
		}
	}
	return s.field(dot, v, names[last], node, args, piped)
}

// field gives a field, the value of a key or the result of a method.
func (s *formatState) field(dot, v reflect.Value, name string, node parse.Node, args []parse.Node, piped []reflect.Value) (reflect.Value, error) {
	s.node = node
	if !v.IsValid() { // what a map does not have
		return v, nil
	}
	receiver := v.Type()
	if method, ok := methodsOf(v)[name]; ok {
		return s.call(dot, name, reflect.ValueOf(method), args, piped)
	}
	v, isNil := indirect(v)
	if isNil {
		return reflect.Value{}, s.errorf("nil pointer evaluating %s.%s", receiver, name)
	}
	hasArgs := len(args) > 0 || len(piped) > 0
	switch v.Kind() {
	case reflect.Struct:
		field, ok := v.Type().FieldByName(name)
		if !ok {
			break
		}
		if !field.IsExported() {
			return reflect.Value{}, s.errorf("%s is an unexported field of struct type %s", name, receiver)
		}
		if hasArgs {
			return reflect.Value{}, s.errorf("%s has arguments but cannot be invoked as function", name)
		}
		value, err := v.FieldByIndexErr(field.Index)
		if err != nil {
			return reflect.Value{}, s.errorf("%w", err)
		}
		return value, nil
	case reflect.Map:
		key := reflect.ValueOf(name)
		if !key.Type().AssignableTo(v.Type().Key()) {
			break
		}
		if hasArgs {
			return reflect.Value{}, s.errorf("%s is not a method but has arguments", name)
		}
		return v.MapIndex(key), nil
	}
	return reflect.Value{}, s.errorf("can't evaluate field %s in type %s", name, receiver)
}

// methodsOf are the methods that templates may call of a value.
func methodsOf(v reflect.Value) map[string]any {
	if t, ok := plain(v).(*timestamp); ok {
		return map[string]any{"AsTime": t.AsTime}
	}
	v, _ = indirect(v)
	switch x := plain(v).(type) {
	case time.Time:
		return map[string]any{
			"Format": x.Format, "String": x.String, "Unix": x.Unix, "UnixMilli": x.UnixMilli, "UnixNano": x.UnixNano,
			"UTC": x.UTC, "Local": x.Local, "IsZero": x.IsZero, "Year": x.Year, "Month": x.Month, "Day": x.Day, "YearDay": x.YearDay,
			"Weekday": x.Weekday, "Hour": x.Hour, "Minute": x.Minute, "Second": x.Second, "Nanosecond": x.Nanosecond,
			"Sub": x.Sub, "Before": x.Before, "After": x.After, "Equal": x.Equal, "Compare": x.Compare,
		}
	case time.Duration:
		return map[string]any{
			"String": x.String, "Hours": x.Hours, "Minutes": x.Minutes, "Seconds": x.Seconds, "Milliseconds": x.Milliseconds,
			"Microseconds": x.Microseconds, "Nanoseconds": x.Nanoseconds,
		}
	case blobInfo:
		return map[string]any{"String": x.String}
	case fmt.Stringer:
		return map[string]any{"String": x.String}
	}
	return nil
}

// call calls a method.
func (s *formatState) call(dot reflect.Value, name string, method reflect.Value, args []parse.Node, piped []reflect.Value) (reflect.Value, error) {
	t := method.Type()
	if n := len(args) + len(piped); n != t.NumIn() {
		return reflect.Value{}, s.errorf("wrong number of args for %s: want %d got %d", name, t.NumIn(), n)
	}
	node := s.node
	in, err := s.arguments(dot, args, piped)
	if err != nil {
		return reflect.Value{}, err
	}
	for i, v := range in {
		if v.IsValid() && v.Type().AssignableTo(t.In(i)) {
			continue
		}
		if i < len(args) {
			s.node = args[i]
			if k := args[i].Type(); k == parse.NodeNumber || k == parse.NodeString || k == parse.NodeBool {
				return reflect.Value{}, s.errorf("expected %s; found %s", t.In(i), args[i])
			}
		}
		return reflect.Value{}, s.errorf("wrong type for value; expected %s; got %s", t.In(i), kindOf(v))
	}
	s.node = node
	return method.Call(in)[0], nil
}

// function calls one of the functions of templates, at a node that names it.
func (s *formatState) function(dot reflect.Value, n *parse.IdentifierNode, at parse.Node, args []parse.Node, piped []reflect.Value) (reflect.Value, error) {
	s.node = n
	f, given := s.functions[n.Ident], len(args)+len(piped)
	switch {
	case f.variadic && given < f.least:
		return reflect.Value{}, s.errorf("wrong number of args for %s: want at least %d got %d", n.Ident, f.least, given)
	case !f.variadic && given != f.least:
		return reflect.Value{}, s.errorf("wrong number of args for %s: want %d got %d", n.Ident, f.least, given)
	}
	if n.Ident == "and" || n.Ident == "or" {
		return s.shortCircuit(dot, n, args, piped)
	}
	in, err := s.arguments(dot, args, piped)
	if err != nil {
		return reflect.Value{}, err
	}
	s.node = at
	v, err := f.call(in)
	if err != nil {
		return reflect.Value{}, s.errorf("error calling %s: %w", n.Ident, err)
	}
	return v, nil
}

// shortCircuit evaluates only as many arguments of "and" and "or" as it must.
func (s *formatState) shortCircuit(dot reflect.Value, n *parse.IdentifierNode, args []parse.Node, piped []reflect.Value) (v reflect.Value, err error) {
	for _, arg := range args {
		if v, err = s.argument(dot, arg); err != nil || truth(inside(v)) == (n.Ident == "or") {
			return inside(v), err
		}
	}
	if len(piped) > 0 {
		v = piped[0]
	}
	return inside(v), nil
}

func (s *formatState) arguments(dot reflect.Value, args []parse.Node, piped []reflect.Value) (in []reflect.Value, err error) {
	for _, arg := range args {
		v, err := s.argument(dot, arg)
		if err != nil {
			return nil, err
		}
		in = append(in, inside(v))
	}
	return append(in, piped...), nil
}

// kindOf names the type of a value, for errors.
func kindOf(v reflect.Value) string {
	if !v.IsValid() {
		return "nil"
	}
	return v.Type().String()
}
