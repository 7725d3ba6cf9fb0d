package op

import (
	"errors"
	"slices"
	"sync"

	digest "github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/llb"
)

// errInsideItself says that a build would have to wait for itself.
var errInsideItself = errors.New("the definition that it evaluates contains the build itself")

// nested says which builds that a job is at wait for which others: two whose
// definitions contain each other would otherwise wait for each other, if they were
// begun side by side. They are told apart as the job's steps are, by their digests. The
// zero value is ready for use.
type nested struct {
	mu   sync.Mutex
	runs map[*nestedRun]struct{}
}

// nestedRun is one evaluation of a build.
type nestedRun struct {
	build  digest.Digest
	inside []digest.Digest // the builds in its definition
}

// enter notes that a build is about to wait for those inside it, until leave. It
// fails if one of these waits for the build already.
func (n *nested) enter(build digest.Digest, g *llb.Graph) (leave func(), err error) {
	run := &nestedRun{build: build}
	for _, v := range g.Vertices() {
		if _, ok := v.Op.(*llb.BuildOp); ok {
			run.inside = append(run.inside, v.Digest())
		}
	}
	if len(run.inside) == 0 {
		return func() {}, nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.waits(run.inside, build) {
		return nil, errInsideItself
	}
	if n.runs == nil {
		n.runs = map[*nestedRun]struct{}{}
	}
	n.runs[run] = struct{}{}
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.runs, run)
	}, nil
}

// waits tells whether any of some builds is the one, or waits for it.
func (n *nested) waits(some []digest.Digest, one digest.Digest) bool {
	seen := map[digest.Digest]bool{}
	for todo := slices.Clone(some); len(todo) > 0; {
		build := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if build == one {
			return true
		}
		if seen[build] {
			continue
		}
		seen[build] = true
		for run := range n.runs {
			if run.build == build {
				todo = append(todo, run.inside...)
			}
		}
	}
	return false
}
