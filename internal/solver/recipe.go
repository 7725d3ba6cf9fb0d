package solver

import (
	"context"
	"errors"
)

// Recipe is what a key was made of. Caches for others are written in terms of it,
// since a key says nothing to programs that make theirs in another way.
type Recipe struct {
	Digest  string // the operation's, CacheMap.Digest
	Inputs  []Ingredient
	Outputs int  // how many results there are; 0 if the operation does not tell
	Local   bool // holds for one job only
	Private bool // the user does not want it in caches of others
}

// Ingredient is an input's part of a key.
type Ingredient struct {
	Key      Key // of the input
	Index    int // which of its results
	Selector string
	Link     string // the selector as caches for others have it; "" is Selector
	Content  string // digest of its content, where that is what counts; else ""
	Of       string // the result whose content it is, see [Content]
}

// LinkSelector is the selector as caches for others have it.
func (i Ingredient) LinkSelector() string {
	if i.Link != "" {
		return i.Link
	}
	return i.Selector
}

// Imports are results that others made, in places where a job may look. What
// is found there is kept in the job's own cache. Any error is a miss.
type Imports interface {
	// Load returns the results of k, with [Absent] for those that are not there
	// and that needed does not tell of. Recipes of k and of all below are to be
	// had of j.
	Load(ctx context.Context, j *Job, k Key, needed func(output int) bool) ([]Result, error)
	// Digest returns the digest of what selector chooses of a result's content.
	Digest(ctx context.Context, j *Job, of Ingredient) (Content, error)
}

// Absent stands for an output that nobody wanted when it was looked for in caches
// of others. A cache keeps it as such: it is no result.
type Absent struct{}

// need notes that an output is wanted.
func (n *node) need(output int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.needed == nil {
		n.needed = map[int]bool{}
	}
	n.needed[output] = true
}

func (n *node) needs(output int) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.needed[output]
}

// lacks tells whether an output that is wanted is absent.
func (n *node) lacks(out []Result) bool {
	for i, r := range out {
		if r == (Absent{}) && n.needs(i) {
			return true
		}
	}
	return false
}

// Described is an operation that tells more about its results.
type Described interface {
	// Outputs is how many results there are.
	Outputs() int
	// Private tells whether results stay out of caches of others.
	Private() bool
}

func (n *node) recipe(cm CacheMap) Recipe {
	r := Recipe{Digest: cm.Digest}
	if d, ok := n.op.(Described); ok {
		r.Outputs, r.Private = d.Outputs(), d.Private()
	}
	return r
}

// Recipe returns what a key of this job was made of.
func (j *Job) Recipe(k Key) (Recipe, bool) { return j.recipes.load(string(k)) }

// Key identifies an edge of the graph, doing as little as will tell. What was made
// since it was identified has the key of what it was made of.
func (j *Job) Key(ctx context.Context, e Edge) (Key, error) {
	n := j.node(e.Vertex)
	id, err := n.identity.get(ctx, n.job, n.identify)
	if err != nil {
		return "", err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.known != nil {
		id = *n.known
	}
	return id.key, nil
}

// importResult looks for a result of others, and keeps it.
func (n *node) importResult(ctx context.Context, id identity) ([]Result, error) {
	imports := n.job.imports
	if imports == nil || id.fresh || id.keep != KeepAlways {
		return nil, ErrNotFound
	}
	out, err := imports.Load(n.context(ctx), n.job, id.key, n.needs)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, errors.Join(ErrNotFound, err)
	}
	return out, n.job.solver.cache.Save(ctx, id.key, out)
}

func (n *node) importedDigest(ctx context.Context, of Ingredient) (Content, bool) {
	if n.job.imports == nil {
		return Content{}, false
	}
	c, err := n.job.imports.Digest(n.context(ctx), n.job, of)
	return c, err == nil && c.Digest != ""
}
