package main

import (
	"cmp"
	"errors"
	"fmt"
	"html"
	"net/url"
	"reflect"
)

// cmpOf compares two values of one ordered type.
func cmpOf[T cmp.Ordered](a, b T) int { return cmp.Compare(a, b) }

// formatFunctions are the functions of templates: those of text/template, but for
// "call" and "js", and json.
func formatFunctions() map[string]formatFunc {
	functions := map[string]formatFunc{
		"and": {1, true, nil}, "or": {1, true, nil}, // which do not always evaluate what they are given
		"not":   one(func(v reflect.Value) (any, error) { return !truth(v), nil }),
		"json":  one(func(v reflect.Value) (any, error) { return jsonText(plain(v)) }),
		"len":   one(lengthOf),
		"index": {1, true, indexOf},
		"slice": {1, true, sliceOf},
		"eq":    {1, true, equalToAny},
	}
	for name, f := range map[string]func(...any) string{
		"print": fmt.Sprint, "println": fmt.Sprintln,
		"html":     func(args ...any) string { return html.EscapeString(textOf(args)) },
		"urlquery": func(args ...any) string { return url.QueryEscape(textOf(args)) },
	} {
		functions[name] = formatFunc{0, true, func(args []reflect.Value) (reflect.Value, error) {
			return reflect.ValueOf(f(plainAll(args)...)), nil
		}}
	}
	functions["printf"] = formatFunc{1, true, printf}
	for name, holds := range map[string]func(order int) bool{
		"ne": func(o int) bool { return o != 0 },
		"lt": func(o int) bool { return o < 0 }, "le": func(o int) bool { return o <= 0 },
		"gt": func(o int) bool { return o > 0 }, "ge": func(o int) bool { return o >= 0 },
	} {
		functions[name] = formatFunc{2, false, func(args []reflect.Value) (reflect.Value, error) {
			order, err := compare(args[0], args[1], name == "ne")
			return reflect.ValueOf(holds(order)), err
		}}
	}
	return functions
}

// one makes a function of exactly one argument.
func one(f func(reflect.Value) (any, error)) formatFunc {
	return formatFunc{1, false, func(args []reflect.Value) (reflect.Value, error) {
		v, err := f(args[0])
		return reflect.ValueOf(v), err
	}}
}

// plain is the value outside of reflection.
func plain(v reflect.Value) any {
	if !v.IsValid() {
		return nil
	}
	return v.Interface()
}

func plainAll(args []reflect.Value) []any {
	values := make([]any, len(args))
	for i, v := range args {
		values[i] = plain(v)
	}
	return values
}

// textOf is the text of values that are to be escaped.
func textOf(args []any) string {
	for i, arg := range args {
		if v, isNil := indirect(reflect.ValueOf(arg)); v.IsValid() && !isNil && !prints(reflect.TypeOf(arg)) {
			args[i] = v.Interface()
		}
	}
	return fmt.Sprint(args...)
}

func printf(args []reflect.Value) (reflect.Value, error) {
	if args[0].Kind() != reflect.String {
		return reflect.Value{}, errors.New("the first argument must be a format")
	}
	return reflect.ValueOf(fmt.Sprintf(args[0].String(), plainAll(args[1:])...)), nil
}

func lengthOf(v reflect.Value) (any, error) {
	v, isNil := indirect(v)
	if isNil || !v.IsValid() {
		return 0, errors.New("len of nil pointer")
	}
	switch v.Kind() {
	case reflect.String, reflect.Array, reflect.Chan, reflect.Map, reflect.Slice:
		return v.Len(), nil
	}
	return 0, fmt.Errorf("len of type %s", v.Type())
}

// indexOf is args[0][args[1]][args[2]]...
func indexOf(args []reflect.Value) (reflect.Value, error) {
	if !args[0].IsValid() {
		return reflect.Value{}, errors.New("index of untyped nil")
	}
	v := args[0]
	for _, arg := range args[1:] {
		var isNil bool
		if v, isNil = indirect(v); isNil {
			return reflect.Value{}, errors.New("index of nil pointer")
		}
		switch v.Kind() {
		case reflect.Array, reflect.Slice, reflect.String:
			i, err := position(arg, v.Len()-1)
			if err != nil {
				return reflect.Value{}, err
			}
			v = v.Index(i)
		case reflect.Map:
			if !arg.IsValid() || !arg.CanConvert(v.Type().Key()) || arg.Kind() != v.Type().Key().Kind() && !arg.CanInt() {
				return reflect.Value{}, fmt.Errorf("value has type %s; should be %s", kindOf(arg), v.Type().Key())
			}
			value := v.MapIndex(arg.Convert(v.Type().Key()))
			if !value.IsValid() {
				value = reflect.Zero(v.Type().Elem())
			}
			v = value
		default:
			return reflect.Value{}, fmt.Errorf("can't index item of type %s", kindOf(v))
		}
		v = inside(v)
	}
	return v, nil
}

// position reads an index of at most last.
func position(v reflect.Value, last int) (int, error) {
	var i int64
	switch {
	case !v.IsValid():
		return 0, errors.New("cannot index slice/array with nil")
	case v.CanInt():
		i = v.Int()
	case v.CanUint():
		i = int64(v.Uint()) //nolint:gosec // what is too large becomes negative
	default:
		return 0, fmt.Errorf("cannot index slice/array with type %s", v.Type())
	}
	if i < 0 || i > int64(last) {
		return 0, fmt.Errorf("index out of range: %d", i)
	}
	return int(i), nil
}

// sliceOf is args[0][args[1]:args[2]]: all of it without them.
func sliceOf(args []reflect.Value) (reflect.Value, error) {
	if !args[0].IsValid() {
		return reflect.Value{}, errors.New("slice of untyped nil")
	}
	v, isNil := indirect(args[0])
	if k := v.Kind(); isNil || k != reflect.String && k != reflect.Slice {
		return reflect.Value{}, fmt.Errorf("can't slice item of type %s", v.Type())
	}
	if len(args) > 3 {
		return reflect.Value{}, fmt.Errorf("too many slice indexes: %d", len(args)-1)
	}
	bounds := [2]int{0, v.Len()}
	for i, arg := range args[1:] {
		at, err := position(arg, v.Len())
		if err != nil {
			return reflect.Value{}, err
		}
		bounds[i] = at
	}
	if bounds[0] > bounds[1] {
		return reflect.Value{}, fmt.Errorf("invalid slice index: %d > %d", bounds[0], bounds[1])
	}
	return v.Slice(bounds[0], bounds[1]), nil
}

// equalToAny tells whether the first argument equals one of the others.
func equalToAny(args []reflect.Value) (reflect.Value, error) {
	if len(args) < 2 {
		return reflect.Value{}, errors.New("missing argument for comparison")
	}
	for _, arg := range args[1:] {
		order, err := compare(args[0], arg, true)
		if err != nil || order == 0 {
			return reflect.ValueOf(err == nil), err
		}
	}
	return reflect.ValueOf(false), nil
}

// compare orders two values; if only equality counts, of any comparable type.
func compare(a, b reflect.Value, equality bool) (int, error) {
	a, b = inside(a), inside(b)
	switch {
	case a.Kind() == reflect.String && b.Kind() == reflect.String:
		return cmpOf(a.String(), b.String()), nil
	case a.CanInt() && b.CanInt():
		return cmpOf(a.Int(), b.Int()), nil
	case a.CanUint() && b.CanUint():
		return cmpOf(a.Uint(), b.Uint()), nil
	case a.CanFloat() && b.CanFloat():
		return cmpOf(a.Float(), b.Float()), nil
	case a.CanInt() && b.CanUint():
		if a.Int() < 0 {
			return -1, nil
		}
		return cmpOf(uint64(a.Int()), b.Uint()), nil //nolint:gosec // it is not negative
	case a.CanUint() && b.CanInt():
		order, err := compare(b, a, equality)
		return -order, err
	}
	if !a.IsValid() && !b.IsValid() && equality {
		return 0, nil
	}
	if !equality || a.IsValid() && b.IsValid() && (a.Type() != b.Type() || !a.Comparable()) {
		return 0, fmt.Errorf("incompatible types for comparison: %s and %s", kindOf(a), kindOf(b))
	}
	if a.IsValid() && b.IsValid() && a.Equal(b) {
		return 0, nil
	}
	return 1, nil
}
