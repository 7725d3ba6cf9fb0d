package llb

import "context"

// envOf returns the environment of s.
func envOf(ctx context.Context, s State, c *Constraints) (*EnvList, error) {
	env, err := valueOf[*EnvList](ctx, s, keyEnv, c)
	if env == nil {
		env = &EnvList{}
	}
	return env, err
}

// EnvList is an environment: variables in the order in which they were last
// set. It is a value, changed by making new ones.
type EnvList struct {
	vars []envVar
}

type envVar struct{ key, value string }

// AddOrReplace returns a list in which k is set last, to v.
func (e *EnvList) AddOrReplace(k, v string) *EnvList {
	vars := e.without(k)
	return &EnvList{vars: append(vars, envVar{k, v})}
}

// SetDefault sets k if it is not set.
func (e *EnvList) SetDefault(k, v string) *EnvList {
	if _, ok := e.Get(k); ok {
		return e
	}
	return e.AddOrReplace(k, v)
}

// Delete returns a list without k.
func (e *EnvList) Delete(k string) EnvList { return EnvList{vars: e.without(k)} }

func (e *EnvList) without(k string) []envVar {
	vars := make([]envVar, 0, len(e.vars)+1)
	for _, v := range e.vars {
		if v.key != k {
			vars = append(vars, v)
		}
	}
	return vars
}

// Get returns the value of k and whether it is set.
func (e *EnvList) Get(k string) (string, bool) {
	for _, v := range e.vars {
		if v.key == k {
			return v.value, true
		}
	}
	return "", false
}

// Keys lists the names.
func (e *EnvList) Keys() []string {
	keys := make([]string, len(e.vars))
	for i, v := range e.vars {
		keys[i] = v.key
	}
	return keys
}

// ToArray lists the variables as name=value.
func (e *EnvList) ToArray() []string {
	list := make([]string, len(e.vars))
	for i, v := range e.vars {
		list[i] = v.key + "=" + v.value
	}
	return list
}
