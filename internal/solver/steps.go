package solver

import (
	"cmp"
	"slices"
	"strings"
	"time"

	digest "github.com/opencontainers/go-digest"
)

// Step is what became of a vertex, for those who explain it to people.
type Step struct {
	Vertex digest.Digest
	Name   string
	Key    Key
	Recipe Recipe // what Key was made of
	Parts  []Part // what Recipe.Digest was made of, as far as the operation tells
	Ran    bool   // it was executed, not remembered
	Cached bool   // it counts as remembered, perhaps because what it is for was
	Made   bool   // there was a result of it: it ran well, or one was found
	Fresh  bool   // nothing remembered was wanted
	Took   time.Duration
}

// Part is a part of what an operation's digest is made of.
type Part struct {
	Kind  string // such as "env"
	Name  string // such as that of a variable; "" where there is one of the kind only
	Value string // for people; equal if and only if the part is
}

// Explained is an operation that can tell what its digest is made of. It is
// asked after its CacheMap only.
type Explained interface{ Parts() []Part }

// Steps returns what the job has identified, each after its inputs. From now on
// nobody is told of steps that are to run.
func (j *Job) Steps() (steps []Step) {
	j.settle()
	seen := map[*node]bool{}
	add := func(n *node) {
		if s, ok := n.step(); ok {
			steps = append(steps, s)
		}
	}
	all := j.nodes.all()
	slices.SortFunc(all, func(a, b *node) int {
		return cmp.Or(strings.Compare(a.report.vertex.Name, b.report.vertex.Name), strings.Compare(string(a.report.vertex.Digest), string(b.report.vertex.Digest)))
	})
	for _, n := range all {
		n.visit(seen, add)
	}
	return steps
}

// visit calls f with the node and with all that it is made of, inputs first, but for
// those that were seen.
func (n *node) visit(seen map[*node]bool, f func(*node)) {
	if seen[n] {
		return
	}
	seen[n] = true
	for _, in := range n.inputs {
		in.node.visit(seen, f)
	}
	f(n)
}

// step describes the node, if it is identified.
func (n *node) step() (Step, bool) {
	n.mu.Lock()
	id, found := n.known, n.found
	n.mu.Unlock()
	if id == nil {
		return Step{}, false
	}
	recipe, _ := n.job.Recipe(id.key)
	s := Step{Key: id.key, Recipe: recipe, Fresh: id.fresh}
	if e, ok := n.op.(Explained); ok {
		s.Parts = e.Parts()
	}
	n.report.mu.Lock()
	defer n.report.mu.Unlock()
	v := &n.report.vertex
	s.Vertex, s.Name, s.Ran, s.Cached = v.Digest, v.Name, n.report.running || n.report.paused, v.Cached
	s.Made = found || s.Ran && v.Completed != nil && v.Error == ""
	if s.Ran && v.Started != nil && v.Completed != nil {
		s.Took = v.Completed.Sub(*v.Started)
	}
	return s, true
}

// missed tells whoever wants to know that the node is about to run.
func (n *node) missed() {
	j := n.job
	if j.onMiss == nil {
		return
	}
	s, ok := n.step()
	if !ok {
		return
	}
	j.missMu.Lock()
	defer j.missMu.Unlock()
	if !j.settled && !n.told {
		n.told = true
		j.explaining.Go(func() { j.onMiss(s, n.report.ahead(), j.stepOf) })
	}
}

// settle waits until those who were told of steps that are to run are done.
func (j *Job) settle() {
	j.missMu.Lock()
	j.settled = true
	j.missMu.Unlock()
	j.explaining.Wait()
}

// stepOf finds a step by its key.
func (j *Job) stepOf(k Key) (Step, bool) {
	for _, n := range j.nodes.all() {
		n.mu.Lock()
		found := n.known != nil && n.known.key == k
		n.mu.Unlock()
		if found {
			return n.step()
		}
	}
	return Step{}, false
}
