package dockerfile

import (
	"slices"
	"strconv"
	"strings"

	"github.com/kiln-build/kiln/llb"
)

// fileBuilder makes a FileOp of actions that follow each other on a base. The
// numbering is that of BuildKit's client library, for it is part of the digest.
type fileBuilder struct {
	inputs  []llb.Edge
	base    int
	actions []llb.FileStep
}

func newFileBuilder(base llb.Edge) *fileBuilder {
	b := &fileBuilder{base: llb.None}
	if base.Vertex != nil {
		b.base = b.input(base)
	}
	return b
}

// input returns the number of an input.
func (b *fileBuilder) input(e llb.Edge) int {
	if i := slices.Index(b.inputs, e); i >= 0 {
		return i
	}
	b.inputs = append(b.inputs, e)
	return len(b.inputs) - 1
}

// add appends an action; from is what a copy reads, nil for other actions.
func (b *fileBuilder) add(from *llb.Edge, do llb.FileDo) {
	step := llb.FileStep{Input: b.base, Secondary: llb.None, Output: llb.None, Do: do}
	if from != nil && from.Vertex != nil {
		step.Secondary = b.input(*from)
	}
	b.actions = append(b.actions, step)
}

// op is the whole operation. Each action works on the result of the one before,
// and the last one's result is the output.
func (b *fileBuilder) op() *llb.FileOp {
	for i := range b.actions {
		if i > 0 {
			b.actions[i].Input = len(b.inputs) + i - 1
		}
	}
	b.actions[len(b.actions)-1].Output = 0
	return &llb.FileOp{Actions: b.actions}
}

// owner reads "user[:group]". Names are looked up in the base.
func (b *fileBuilder) owner(v string) *llb.Ownership {
	if v == "" {
		return nil
	}
	user, group, hasGroup := strings.Cut(v, ":")
	o := &llb.Ownership{User: b.account(user)}
	if hasGroup {
		o.Group = b.account(group)
	}
	return o
}

func (b *fileBuilder) account(v string) *llb.Owner {
	if v == "root" {
		return &llb.Owner{Input: b.base}
	}
	if id, err := strconv.ParseUint(v, 10, 32); err == nil {
		return &llb.Owner{ID: uint32(id), Input: b.base}
	}
	return &llb.Owner{Name: v, Input: b.base}
}
