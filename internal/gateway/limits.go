package gateway

import (
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// What one frontend may have of the daemon's memory and disk. Each is far more
// than an honest one has use for.
const (
	mostSolves       = 10_000  // results
	mostSolved       = 1 << 29 // bytes of the graphs that they are of
	mostContainers   = 128     // at a time
	mostWarnings     = 2_000
	mostWarningBytes = 1 << 26
	mostRefused      = 100 // calls beyond that, before the connection ends
)

// quota is what a frontend has had of what is bounded.
type quota struct {
	solves, solved         int
	warnings, warningBytes int
}

// admitSolve counts a graph of some bytes.
func (r *Phase) admitSolve(bytes int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.quota.solves++
	r.quota.solved += bytes
	if q := r.quota; q.solves > mostSolves || q.solved > mostSolved {
		return r.refuse(q.solves-mostSolves, status.Errorf(codes.ResourceExhausted,
			"a frontend may solve %d graphs of %d MiB together in one build: solve graphs that are larger, or the same reference again", mostSolves, mostSolved>>20))
	}
	return nil
}

// admitWarning counts a warning of some bytes.
func (r *Phase) admitWarning(bytes int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.quota.warnings++
	r.quota.warningBytes += bytes
	if q := r.quota; q.warnings > mostWarnings || q.warningBytes > mostWarningBytes {
		return r.refuse(q.warnings-mostWarnings, status.Errorf(codes.ResourceExhausted, "a frontend may give %d warnings of %d MiB together in one build", mostWarnings, mostWarningBytes>>20))
	}
	return nil
}

// refuse is the error of a call beyond what is admitted. Who does not stop then is
// stopped.
func (r *Phase) refuse(beyond int, err error) error {
	if beyond > mostRefused && r.hangUp != nil {
		_ = r.give(answer{err: err}) // unless it has returned something
		r.hangUp()
	}
	return err
}
