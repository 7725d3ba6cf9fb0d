package op

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/executor"
	"github.com/kiln-build/kiln/llb"
)

// Standby is a container that was started before anybody knew what for: its process
// waits for the last of its environment, and only then becomes the program. It is
// confined like any other container, from its first moment on, and serves once.
type Standby struct {
	*Container
	io     *lateIO
	task   executor.Task
	traced bool
	ended  chan struct{}
}

// NewStandby starts a container that waits for Use. It may have nothing that a build
// must allow or give: no network, no secrets, no right of its own. trace is the span
// of a build such as it waits for; "" for builds that have none.
func (w *Worker) NewStandby(spec ContainerSpec, p ContainerProcess, trace string) (*Standby, error) {
	if w.Late == "" {
		return nil, errors.New("there is no program that could wait in a container")
	}
	if spec.Network != llb.NetNone || p.Security != llb.SecuritySandbox || p.Tty || len(p.SecretEnv) > 0 ||
		slices.ContainsFunc(spec.Mounts, func(m llb.Mount) bool { return m.Kind != llb.MountBind }) {
		return nil, errors.New("a container that is to wait can have no network, rights, terminal, secrets or caches")
	}
	job := &Job{Trace: func(digest.Digest) string { return trace }}
	c, err := w.NewContainer(context.Background(), job, spec)
	if err != nil {
		return nil, err
	}
	c.mounts.binds = append(c.mounts.binds, executor.Mount{
		Type: "bind", Source: w.Late, Dest: executor.LateProgram, ReadOnly: true, Options: []string{"bind", "nosuid", "nodev"},
	})
	p.Args = append([]string{executor.LateProgram}, p.Args...)
	s := &Standby{Container: c, io: newLateIO(), traced: trace != "", ended: make(chan struct{})}
	s.task, err = c.Start(context.Background(), p, executor.IO{
		Stdin:  s.io,
		Stdout: lateWriter{s.io, s.io.noteReady, func(io executor.IO) io.Writer { return io.Stdout }},
		Stderr: lateWriter{s.io, func([]byte) {}, func(io executor.IO) io.Writer { return io.Stderr }},
	})
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	go func() {
		defer close(s.ended)
		_ = s.task.Wait(context.Background()) // Use and its caller look at how it ended
	}()
	return s, nil
}

// Use has the process become its program, with env beside what it had, for a job
// and until ctx ends. It tells false, and has done nothing, if the process waits no
// more or waits for another kind of job.
func (s *Standby) Use(ctx context.Context, job *Job, env []string, io executor.IO) (executor.Task, bool) {
	trace := job.trace("")
	if s.traced != (trace != "") {
		return nil, false
	}
	if s.traced {
		env = append(slices.Clone(env), "TRACEPARENT="+trace)
	}
	first, err := executor.LateEnv(env)
	if err != nil {
		return nil, false
	}
	select { // it may be starting still, which it has less left of than another one
	case <-s.io.ready:
	case <-s.ended:
		return nil, false
	case <-ctx.Done():
		return nil, false
	case <-time.After(readyLimit):
		return nil, false
	}
	context.AfterFunc(ctx, func() { s.cancel(context.Cause(ctx)) })
	s.io.settle(io, first)
	return s.task, true
}

// readyLimit is how long a build waits for a process to wait for it. A container of its
// own would take as long.
const readyLimit = 10 * time.Second

// Useless tells of a process that has ended without ever having waited: others like it
// would do the same.
func (s *Standby) Useless() bool {
	select {
	case <-s.io.ready:
		return false
	default:
	}
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// Close ends the container, also while its process waits.
func (s *Standby) Close() error {
	s.io.settle(executor.IO{}, nil)
	return s.Container.Close()
}

// lateIO is a process's input, and leads to its outputs, once they are known.
type lateIO struct {
	ready   chan struct{} // closed when the process waits
	settled chan struct{}
	once    sync.Once
	io      executor.IO // read after settled
	first   *bytes.Reader
	said    []byte // before ready; of the one goroutine that copies the output
}

func newLateIO() *lateIO { return &lateIO{ready: make(chan struct{}), settled: make(chan struct{})} }

// settle says what the process has, and what it reads before its input. The first
// call counts.
func (l *lateIO) settle(to executor.IO, first []byte) {
	l.once.Do(func() {
		l.io, l.first = to, bytes.NewReader(first)
		close(l.settled)
	})
}

// noteReady looks for the mark of a process that waits.
func (l *lateIO) noteReady(p []byte) {
	if len(l.said)+len(p) > len(executor.LateReady) {
		return // it is something else that says more
	}
	if l.said = append(l.said, p...); string(l.said) == executor.LateReady {
		close(l.ready)
	}
}

// Read waits to be settled. What was said first comes first.
func (l *lateIO) Read(p []byte) (int, error) {
	<-l.settled
	switch {
	case l.first.Len() > 0:
		return l.first.Read(p)
	case l.io.Stdin == nil:
		return 0, io.EOF
	}
	return l.io.Stdin.Read(p)
}

// Close is the executor's, when the process has ended.
func (l *lateIO) Close() error {
	l.settle(executor.IO{}, nil)
	if l.io.Stdin == nil {
		return nil
	}
	return l.io.Stdin.Close()
}

// lateWriter is an output.
type lateWriter struct {
	l     *lateIO
	early func(p []byte) // what was written before anybody was there
	to    func(executor.IO) io.Writer
}

func (w lateWriter) Write(p []byte) (int, error) {
	select {
	case <-w.l.settled:
	default:
		w.early(p)
		return len(p), nil
	}
	if to := w.to(w.l.io); to != nil {
		return to.Write(p)
	}
	return len(p), nil
}
