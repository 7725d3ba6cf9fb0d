package llb

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// clause is a part of a body: a keyword and what belongs to it.
type clause struct {
	word string
	args []token
}

// clauses splits the body at the given keywords.
func (s *statement) clauses(keywords ...string) ([]clause, error) {
	var list []clause
	for _, t := range s.body {
		switch {
		case !t.quoted() && slices.Contains(keywords, t.text):
			list = append(list, clause{word: t.text})
		case len(list) == 0:
			return nil, fmt.Errorf("%q is no keyword, expected one of %s", t.text, strings.Join(keywords, ", "))
		default:
			last := &list[len(list)-1]
			last.args = append(last.args, t)
		}
	}
	s.body = nil
	return list, nil
}

// take returns the first n arguments of the clause and the options after them.
func (c clause) take(n int) ([]token, options, error) {
	if len(c.args) < n {
		return nil, nil, fmt.Errorf("%s has %d arguments, expected %d", c.word, len(c.args), n)
	}
	opts := options{}
	for _, t := range c.args[n:] {
		name, value, _ := t.cut('=')
		opts[name.text] = append(opts[name.text], value)
	}
	return c.args[:n], opts, nil
}

// one returns the only argument of the clause.
func (c clause) one() (string, error) {
	if len(c.args) != 1 {
		return "", fmt.Errorf("%s has %d arguments, expected one", c.word, len(c.args))
	}
	return c.args[0].text, nil
}

func (c clause) strings() []string {
	list := make([]string, len(c.args))
	for i, t := range c.args {
		list[i] = t.text
	}
	return list
}

// options are words like key=value, or only key, by key. Each reader removes
// what it knows, so that what is left over can be refused.
type options map[string][]token

func (o options) flag(name string) bool {
	_, ok := o[name]
	delete(o, name)
	return ok
}

func (o options) get(name string) (token, bool) {
	v, ok := o[name]
	delete(o, name)
	if !ok {
		return token{}, false
	}
	return v[len(v)-1], true
}

func (o options) list(name string) (list []string) {
	for _, t := range o[name] {
		list = append(list, t.text)
	}
	delete(o, name)
	return list
}

// int reads a number, in base 0 as Go literals are written.
func (o options) int(name string, def int64) (int64, error) {
	t, ok := o.get(name)
	if !ok {
		return def, nil
	}
	n, err := strconv.ParseInt(t.text, 0, 64)
	if err != nil {
		return 0, fmt.Errorf("%s=%s is not a number", name, t.text)
	}
	return n, nil
}

func (o options) done() error {
	for _, name := range slices.Sorted(maps.Keys(o)) {
		return fmt.Errorf("option %q is unknown", name)
	}
	return nil
}
