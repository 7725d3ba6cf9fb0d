package daemon

import (
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// What one frontend may have of the daemon's memory and disk. Each is far more
// than an honest one has use for.
const (
	mostSolves       = 20_000  // results
	mostSolved       = 1 << 29 // bytes of the graphs that they are of
	mostContainers   = 128     // at a time
	mostWarnings     = 10_000
	mostWarningBytes = 1 << 26
)

// quota is what a frontend has had of what is bounded.
type quota struct {
	solves, solved         int
	warnings, warningBytes int
}

// admitSolve counts a graph of some bytes.
func (r *running) admitSolve(bytes int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.phase.quota.solves++
	r.phase.quota.solved += bytes
	if q := r.phase.quota; q.solves > mostSolves || q.solved > mostSolved {
		return status.Errorf(codes.ResourceExhausted,
			"a frontend may solve %d graphs of %d MiB together in one build: solve graphs that are larger, or the same reference again", mostSolves, mostSolved>>20)
	}
	return nil
}

// admitWarning counts a warning of some bytes.
func (r *running) admitWarning(bytes int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.phase.quota.warnings++
	r.phase.quota.warningBytes += bytes
	if q := r.phase.quota; q.warnings > mostWarnings || q.warningBytes > mostWarningBytes {
		return status.Errorf(codes.ResourceExhausted, "a frontend may give %d warnings of %d MiB together in one build", mostWarnings, mostWarningBytes>>20)
	}
	return nil
}
