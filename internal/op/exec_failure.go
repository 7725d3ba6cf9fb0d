package op

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/solver"
)

// Failure is why a step failed, with the file systems that it had and left, for a
// debugger to look into (BuildKit's frontend/gateway/pb/gateway.proto). Its jobs
// keep them until [Job.Close].
type Failure struct {
	Err error
	// Inputs are, of an exec, the file systems that its mounts began with; of a
	// file operation its inputs; where an input's content could not be read,
	// that one. Nil is an empty file system.
	Inputs []*State
	// Mounts are, of an exec, what its mounts hold now; of a file operation by
	// action: what the failed one writes to and, if an action made it, reads.
	Mounts []*State
	Action int // the failed action of a file operation; llb.None if it is none
	Input  int // the input whose content could not be read; llb.None if it is none
}

// Error is what went wrong.
func (f *Failure) Error() string { return f.Err.Error() }

// Unwrap returns what went wrong.
func (f *Failure) Unwrap() error { return f.Err }

// State is a file system at the time of a failure.
type State struct {
	worker *Worker

	mu      sync.Mutex
	users   int            // jobs that keep it
	mutable *layer.Mutable // what the step was writing to, until somebody looks at it
	ref     *layer.Ref
	made    bool // ref was made of mutable, for debugging alone
}

// known is the state of a layer that is kept anyway; nil is an empty one.
func known(ref *layer.Ref) *State {
	if ref == nil {
		return nil
	}
	return &State{ref: ref}
}

// Layer freezes the file system, if it is not yet, and returns it.
func (s *State) Layer(ctx context.Context) (*layer.Ref, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ref != nil {
		return s.ref, nil
	}
	if s.mutable == nil {
		return nil, errors.New("what the failed step left is no longer kept")
	}
	ref, err := s.mutable.Commit(ctx)
	if err != nil {
		return nil, fmt.Errorf("keep what the failed step left: %w", err)
	}
	s.ref, s.mutable, s.made = ref, nil, true
	return ref, nil
}

// release says that one job needs the state no more.
func (s *State) release(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users--; s.users > 0 {
		return nil
	}
	if m := s.mutable; m != nil {
		s.mutable = nil
		return m.Discard()
	}
	if !s.made {
		return nil
	}
	ref := s.ref
	s.ref, s.made = nil, false
	// Should another build have begun earlier, the store keeps it for now, and
	// it goes as all that is unused goes.
	return s.worker.Layers.Prune(ctx, layer.PruneOptions{
		All: true, Filter: func(r layer.Record) bool { return r.ID == ref.ID() },
	}, nil)
}

// keep makes a state of what a failed step wrote to, for those of ctx's jobs
// that may ask for it. It is discarded if there is none.
func (w *Worker) keep(ctx context.Context, m *layer.Mutable) (*State, error) {
	s := &State{worker: w, mutable: m}
	s.mu.Lock() // a job that is closed meanwhile waits for the count
	defer s.mu.Unlock()
	for _, v := range solver.Values(ctx) {
		if j, ok := v.(*Job); ok && j.keep(s) {
			s.users++
		}
	}
	if s.users == 0 {
		return nil, m.Discard()
	}
	return s, nil
}

// keep has the job keep a state of a failed step.
func (j *Job) keep(s *State) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.KeepFailed || j.closed {
		return false
	}
	j.failed = append(j.failed, s)
	return true
}

// Close gives up what failed steps left. The job's work must have ended, or
// have been abandoned.
func (j *Job) Close() error {
	j.mu.Lock()
	failed := j.failed
	j.failed, j.closed = nil, true
	j.mu.Unlock()
	var errs []error
	for _, s := range failed {
		errs = append(errs, s.release(context.Background()))
	}
	return errors.Join(errs...)
}
