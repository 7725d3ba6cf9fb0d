package solver

import "context"

// basis is what a node's key was made of.
type basis struct {
	cm    CacheMap
	parts []keyPart // by input
}

// identified gives the node the key of what it is made of.
func (n *node) identified(id identity, b *basis) identity {
	texts := make([]string, len(b.parts))
	recipe := n.recipe(b.cm)
	for i, p := range b.parts {
		texts[i] = p.text
		recipe.Inputs = append(recipe.Inputs, p.ingredient)
	}
	id.key, id.basis = newKey(b.cm.Digest, texts), b
	recipe.Local = id.keep == KeepJob
	n.job.recipes.loadOrStore(string(id.key), recipe)
	n.mu.Lock()
	n.known = &id
	n.mu.Unlock()
	return id
}

// by returns the part of a key for an input that counts by its content's digest.
func (p keyPart) by(c Content) keyPart {
	p.text, p.ingredient.Content, p.ingredient.Of = c.Digest, c.Digest, c.Of
	return p
}

// digested returns the part of the key for an input that turned out to be got.
func (n *node) digested(ctx context.Context, p keyPart, in input, dep Dep, got output) (keyPart, error) {
	d, err := safely(func() (string, error) { return dep.Digest(n.context(ctx), got.Result) })
	if err != nil {
		return p, err
	}
	c := contentOf(got.Result, d)
	p.ingredient.Key = got.key
	p = p.by(c)
	if !p.remember {
		return p, nil
	}
	return p, n.job.solver.cache.PutDigest(ctx, definitionPart(got.key, in.index, dep.Selector), c)
}

// confirmed evaluates the inputs, and returns the identity of what is made of them.
//
// That identity need not be the one that the node was given first. A step may make
// other files whenever it runs, and the remembered digest of its content may be of
// another run than its result: another writer told it, or it has outlived the result.
// What is made of one run must not be kept as made of the other, nor what is built on
// it.
func (n *node) confirmed(ctx context.Context, id identity) (identity, []Result, error) {
	got, err := gather(&n.job.work, n.inputs, func(_ int, in input) (output, error) { return in.get(ctx) })
	if err != nil {
		return id, nil, err
	}
	b := id.basis
	type confirmation struct {
		keyPart
		changed bool
	}
	parts, err := gather(&n.job.work, n.inputs, func(i int, in input) (confirmation, error) {
		p, err := n.confirm(ctx, b.parts[i], in, b.cm.Dep(i), got[i])
		return confirmation{p, p.text != b.parts[i].text}, err
	})
	if err != nil {
		return id, nil, err
	}
	ins, changed := make([]Result, len(got)), false
	now := &basis{cm: b.cm}
	for i, p := range parts {
		ins[i], changed = got[i].Result, changed || p.changed
		now.parts = append(now.parts, p.keyPart)
	}
	if changed {
		id = n.identified(id, now)
	}
	return id, ins, nil
}

// confirm returns the part of the key for an input, now that its result is here.
func (n *node) confirm(ctx context.Context, p keyPart, in input, dep Dep, got output) (keyPart, error) {
	was := Content{Digest: p.ingredient.Content, Of: p.ingredient.Of}
	switch {
	case dep.Digest == nil:
		p.text, p.ingredient.Key = definitionPart(got.key, in.index, dep.Selector), got.key
		return p, nil
	case was.isOf(got.Result):
		return p, nil
	}
	return n.digested(ctx, p, in, dep, got)
}

// keepsOther tells whether the input has a remembered result and the digest is of
// another one.
func (in input) keepsOther(ctx context.Context, id identity, c Content) bool {
	if c.Of == "" {
		return false
	}
	out, err := in.node.load(ctx, id)
	return err == nil && in.index < len(out) && out[in.index] != (Absent{}) && !c.isOf(out[in.index])
}
