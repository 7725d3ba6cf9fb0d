package dockerfile

// environment is an ordered set of variables. The order is that in which they
// were last set: it becomes the order in an exec's environment, which is part
// of its key, so it has to be the one of BuildKit's client library.
type environment struct {
	entries []variable
	index   map[string]int // where a variable's entry is
	size    int            // in bytes, as a list
}

// variable is an entry of an environment. One that was set again leaves an
// entry behind that is dead.
type variable struct {
	key, text string // text is "key=value"
	dead      bool
}

func (e *environment) clone() environment {
	var out environment
	for _, v := range e.entries {
		if !v.dead {
			out.add(v)
		}
	}
	return out
}

func (e *environment) add(v variable) {
	if e.index == nil {
		e.index = map[string]int{}
	}
	e.index[v.key] = len(e.entries)
	e.entries = append(e.entries, v)
	e.size += len(v.text)
}

// Get returns a variable's value. It makes environments the variables of an
// expansion.
func (e *environment) Get(name string) (string, bool) {
	i, ok := e.index[name]
	if !ok {
		return "", false
	}
	return e.entries[i].text[len(name)+1:], true
}

func (e *environment) set(key, value string) {
	e.remove(key)
	e.add(variable{key: key, text: key + "=" + value})
}

func (e *environment) remove(key string) {
	i, ok := e.index[key]
	if !ok {
		return
	}
	e.size -= len(e.entries[i].text)
	e.entries[i].dead = true
	delete(e.index, key)
	if len(e.entries) > 2*len(e.index)+16 {
		*e = e.clone()
	}
}

// keys are the names of the variables.
func (e *environment) keys() []string {
	out := make([]string, 0, len(e.index))
	for _, v := range e.entries {
		if !v.dead {
			out = append(out, v.key)
		}
	}
	return out
}

// list is the environment as "key=value".
func (e *environment) list() []string {
	out := make([]string, 0, len(e.index))
	for _, v := range e.entries {
		if !v.dead {
			out = append(out, v.text)
		}
	}
	return out
}
