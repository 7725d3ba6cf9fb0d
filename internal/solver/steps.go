package solver

import digest "github.com/opencontainers/go-digest"

// Step is what became of a vertex, for those who explain it to people.
type Step struct {
	Vertex digest.Digest
	Name   string
	Key    Key
	Recipe Recipe // what Key was made of
	Ran    bool   // it was executed, not remembered
	Fresh  bool   // nothing remembered was wanted
}

// Steps returns what the job has identified so far, in no order.
func (j *Job) Steps() (steps []Step) {
	for _, n := range j.nodes.all() {
		n.mu.Lock()
		id := n.known
		n.mu.Unlock()
		if id == nil {
			continue
		}
		recipe, _ := j.Recipe(id.key)
		n.report.mu.Lock()
		steps = append(steps, Step{
			Vertex: n.report.vertex.Digest, Name: n.report.vertex.Name, Key: id.key, Recipe: recipe,
			Ran: n.report.running, Fresh: id.fresh,
		})
		n.report.mu.Unlock()
	}
	return steps
}
