package solver

import (
	"context"
	"errors"
)

// loss is what errors are that say that a result's files cannot be had any
// more, such as those that a cache of others has promised and lost since.
type loss interface {
	error
	Lost() bool
}

func isLoss(err error) bool {
	var l loss
	return errors.As(err, &l) && l.Lost()
}

// lose has a result made anew, from now on, if it may have been remembered, by
// this job or by whom it shared an execution with. It is false for what costs
// nothing to make, such as a pinned image: to do it again would help nobody.
func (n *node) lose() bool { return n.loseOnce(map[*node]bool{}) }

func (n *node) loseOnce(seen map[*node]bool) bool {
	n.mu.Lock()
	lost := n.lost || n.known != nil && n.known.keep == KeepAlways
	n.mu.Unlock()
	if !lost && !seen[n] {
		seen[n] = true
		for _, in := range n.inputs {
			lost = in.node.loseOnce(seen) || lost
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lost = lost
	return lost
}

func (n *node) isLost() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.lost
}

// remake runs the operation though a result is remembered.
func (n *node) remake(ctx context.Context) (evaluated, error) {
	id, err := n.identity.get(ctx, n.job, n.identify)
	if err != nil {
		return evaluated{}, err
	}
	return n.produce(ctx, id, true)
}

// attempts is how often an operation is run whose inputs have lost files: it may
// share the failure of a twin, in this job, that was late to learn of the loss.
const attempts = 3

// shareAgain runs the operation when what its inputs had lost is made again. No
// other job's execution will do: its inputs may be lost as well.
func (n *node) shareAgain(ctx context.Context, id identity, own bool, why error) (out []Result, as identity, err error) {
	some := !own // what another job's execution has lost need not be ours
	for _, in := range n.inputs {
		some = in.node.lose() || some
	}
	if !some {
		return nil, id, why
	}
	id, ins, err := n.confirmed(ctx, id)
	if err != nil {
		return nil, id, err
	}
	for range attempts {
		if out, _, err = n.share(ctx, id, ins, true); !isLoss(err) {
			break
		}
	}
	return out, id, err
}

// Remake makes an edge's result anew if err says that its files are lost;
// otherwise it returns err.
func (j *Job) Remake(ctx context.Context, e Edge, err error) (Result, error) {
	n := j.node(e.Vertex)
	if !isLoss(err) || !n.lose() {
		return nil, err
	}
	out, err := n.output(ctx, e.Index)
	return out.Result, err
}
