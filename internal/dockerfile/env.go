package dockerfile

import "slices"

// environment is an ordered set of variables. The order is that in which they
// were last set: it becomes the order in an exec's environment, which is part
// of its key, so it has to be the one of BuildKit's client library.
type environment struct {
	keys   []string
	values map[string]string
}

func (e *environment) clone() environment {
	values := make(map[string]string, len(e.values))
	for k, v := range e.values {
		values[k] = v
	}
	return environment{keys: slices.Clone(e.keys), values: values}
}

// Get returns a variable's value. It makes environments the variables of an
// expansion.
func (e *environment) Get(name string) (string, bool) {
	v, ok := e.values[name]
	return v, ok
}

func (e *environment) set(key, value string) {
	e.remove(key)
	if e.values == nil {
		e.values = map[string]string{}
	}
	e.keys = append(e.keys, key)
	e.values[key] = value
}

func (e *environment) remove(key string) {
	if _, ok := e.values[key]; !ok {
		return
	}
	delete(e.values, key)
	i := slices.Index(e.keys, key)
	e.keys = slices.Delete(e.keys, i, i+1)
}

// list is the environment as "key=value".
func (e *environment) list() []string {
	out := make([]string, len(e.keys))
	for i, k := range e.keys {
		out[i] = k + "=" + e.values[k]
	}
	return out
}
