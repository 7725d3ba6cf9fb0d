package gateway

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// What one frontend may have of the daemon's memory and disk, together with those
// that it calls. Each is far more than an honest one has use for.
const (
	mostCalls         = 128     // at a time, on the connection of a frontend in a container
	mostSolves        = 10_000  // results
	mostSolved        = 1 << 29 // bytes of the graphs that they are of
	mostContainers    = 128     // at a time
	mostMounts        = 200     // of a container
	mostProcesses     = 10_000  // started
	mostRunning       = 256     // of them at a time
	mostWarnings      = 2_000
	mostWarningBytes  = 1 << 26
	mostQuestions     = 10_000 // about sources; progress shows each
	mostQuestionBytes = 1 << 26
	mostRefused       = 100       // calls beyond that, before the connection ends
	mostRequests      = 256 << 20 // bytes received of calls that are under way
	mostAnswers       = 64 << 20  // bytes of large answers that are under way
	smallAnswer       = 64 << 10  // bytes of an answer that does not count there
)

// quota is what a frontend, and those that it has called, have had of what is bounded.
type quota struct {
	mu                       sync.Mutex
	solves, solved           int
	warnings, warningBytes   int
	questions, questionBytes int
	processes, running       int
	requests                 int                 // bytes
	room                     *semaphore.Weighted // for answers under way, bytes
	collected                time.Time           // when somebody who waited for room had garbage collected
}

func newQuota() *quota { return &quota{room: semaphore.NewWeighted(mostAnswers)} }

type quotaKey struct{}

// withQuota is a context in which frontends that are called share a quota.
func withQuota(ctx context.Context, q *quota) context.Context {
	return context.WithValue(ctx, quotaKey{}, q)
}

// quotaOf is the quota of a frontend that is called in ctx.
func quotaOf(ctx context.Context) *quota {
	if q, ok := ctx.Value(quotaKey{}).(*quota); ok {
		return q
	}
	return newQuota()
}

// admit counts a call of some bytes, and refuses it beyond a limit.
func (r *Phase) admit(count, sum *int, bytes, most, mostBytes int, format string) error {
	r.quota.mu.Lock()
	defer r.quota.mu.Unlock()
	*count++
	*sum += bytes
	if *count > most || *sum > mostBytes {
		return r.refuse(*count-most, status.Errorf(codes.ResourceExhausted, format, most, mostBytes>>20))
	}
	return nil
}

// admitSolve counts a graph of some bytes.
func (r *Phase) admitSolve(bytes int) error {
	return r.admit(&r.quota.solves, &r.quota.solved, bytes, mostSolves, mostSolved,
		"a frontend may solve %d graphs of %d MiB together in one build: solve graphs that are larger, or the same reference again")
}

// admitWarning counts a warning of some bytes.
func (r *Phase) admitWarning(bytes int) error {
	return r.admit(&r.quota.warnings, &r.quota.warningBytes, bytes, mostWarnings, mostWarningBytes,
		"a frontend may give %d warnings of %d MiB together in one build")
}

// admitQuestion counts a question about a source, of some bytes.
func (r *Phase) admitQuestion(bytes int) error {
	return r.admit(&r.quota.questions, &r.quota.questionBytes, bytes, mostQuestions, mostQuestionBytes,
		"a frontend may ask about %d sources, in %d MiB together, in one build: ask about each once")
}

// admitProcess counts a process until it has ended.
func (r *Phase) admitProcess() (ended func(), err error) {
	q := r.quota
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.running >= mostRunning {
		return nil, status.Errorf(codes.ResourceExhausted, "a frontend may run %d processes at a time in its containers", mostRunning)
	}
	if q.processes++; q.processes > mostProcesses {
		return nil, r.refuse(q.processes-mostProcesses, status.Errorf(codes.ResourceExhausted, "a frontend may start %d processes in one build", mostProcesses))
	}
	q.running++
	return func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.running--
	}, nil
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
