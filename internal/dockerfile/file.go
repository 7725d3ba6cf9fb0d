package dockerfile

import (
	"strconv"
	"strings"

	"github.com/kiln-build/kiln/llb"
)

// parseOwner reads "user[:[group]]", numbers or names; nil says nothing of the
// owner. Without a group it is the user's own.
func parseOwner(v string) *llb.Ownership {
	if v == "" {
		return nil
	}
	user, group, _ := strings.Cut(v, ":")
	o := &llb.Ownership{User: parseAccount(user)}
	if group != "" {
		o.Group = parseAccount(group)
	}
	return o
}

// parseAccount reads a number or name. What is no id of 32 bits counts as a
// name, so that a number too large cannot become another id.
func parseAccount(v string) *llb.Owner {
	if v == "root" {
		return &llb.Owner{}
	}
	if id, err := strconv.ParseUint(v, 10, 32); err == nil {
		return &llb.Owner{ID: uint32(id)}
	}
	return &llb.Owner{Name: v}
}

// describe names a vertex that no instruction asks for by itself.
func describe(v *llb.Vertex, title string) llb.Edge {
	v.Meta.Description = map[string]string{"llb.customname": title}
	return llb.Edge{Vertex: v}
}
