package build

import (
	"context"
	"sync"
	"time"

	"github.com/kiln-build/kiln/internal/executor"
	"github.com/kiln-build/kiln/internal/op"
	"github.com/kiln-build/kiln/internal/solver"
)

// Program is a process that many builds start alike, but for a part of its
// environment: the frontend of an image. Its container takes longer to start than
// it takes to run, so one may be started ahead.
type Program struct {
	br   *Bridge
	key  string
	spec op.ContainerSpec
	p    Process
}

// NewProgram describes a program. Programs of one key are the same; one with the key
// "" is like no other.
func (br *Bridge) NewProgram(ctx context.Context, key string, spec ContainerSpec, p Process) (*Program, error) {
	inner, err := containerSpec(ctx, spec)
	if err != nil {
		return nil, err
	}
	return &Program{br, key, inner, p}, nil
}

// Start starts the program with further environment, in a container that waits for
// it or in a new one. Ending ctx kills it.
func (p *Program) Start(ctx context.Context, env []string, io executor.IO) (*Container, executor.Task, error) {
	done, err := p.br.containers.enter()
	if err != nil {
		return nil, nil, err
	}
	defer done()
	ready := &p.br.builder.ready
	ready.enter(p.key)
	next := ready.take(p.key)
	p.expect() // while one is still being made for this build, so that the next build has a lead, too
	if s := ready.await(ctx, next); s != nil {
		if task, ok := s.Use(ctx, p.br.values, env, io); ok {
			return p.br.own(s.Container, ready.leave), task, nil
		}
		if s.Useless() {
			ready.refuse()
		}
		_ = s.Close() // nobody used it
	}
	inner, err := p.br.newContainer(p.spec)
	if err != nil {
		ready.leave()
		return nil, nil, err
	}
	c := p.br.own(inner, ready.leave)
	process := p.p
	process.Env = append(process.Env[:len(process.Env):len(process.Env)], env...)
	task, err := c.Start(ctx, process, io)
	return c, task, err
}

// expect has a container wait for the next build that starts the same program, if
// it is likely that there is one soon and the machine has time for it now.
func (p *Program) expect() {
	b := p.br.builder
	trace := ""
	if p.br.values.Trace != nil {
		trace = p.br.values.Trace("")
	}
	b.ready.expect(p.key, func() (*op.Standby, error) { return b.Worker.NewStandby(p.spec, p.p, trace) })
}

// waitLimit is how long a container waits for a build.
const waitLimit = 5 * time.Minute

// ready is the one container at most that waits for a build.
type ready struct {
	mu      sync.Mutex
	running int    // programs
	last    string // the key of the program that was started last
	again   bool   // it was started before
	closed  bool
	next    *awaited    // nil if nothing waits
	work    solver.Crew // makes containers, and ends those that nobody wants
}

// awaited is a container that waits for a build, or will.
type awaited struct {
	key   string
	limit *time.Timer // set before made is closed, as is found
	made  chan struct{}
	found *op.Standby // nil if there is none to be had
}

// enter counts a program that is started.
func (r *ready) enter(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running++
	r.again = key != "" && r.last == key
	r.last = key
}

// leave is called when a program has ended.
func (r *ready) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running--
}

// take takes what waits for a key, to be awaited; nil if nothing does.
func (r *ready) take(key string) *awaited {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.next
	if key == "" || a == nil || a.key != key {
		return nil
	}
	r.next = nil
	return a
}

// await returns the container that was taken; nil if there is none. One that is being
// made is waited for: it has a lead on any other.
func (r *ready) await(ctx context.Context, a *awaited) *op.Standby {
	if a == nil {
		return nil
	}
	select {
	case <-a.made:
		a.stop()
		return a.found
	case <-ctx.Done():
		r.work.Go(a.end)
		return nil
	}
}

func (a *awaited) stop() {
	if a.limit != nil {
		a.limit.Stop()
	}
}

// end ends a container that nobody wants, when it is made.
func (a *awaited) end() {
	<-a.made
	a.stop()
	if a.found != nil {
		_ = a.found.Close() // nobody used it
	}
}

// expect has a container wait for a key. That is worth its while only for a program
// that was used twice in a row, and while nothing else of the kind runs.
func (r *ready) expect(key string, start func() (*op.Standby, error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.next
	if r.closed || !r.again || r.last != key || r.running > 1 || old != nil && old.key == key {
		return
	}
	a := &awaited{key: key, made: make(chan struct{})}
	r.next = a
	r.work.Go(func() {
		if old != nil {
			old.end()
		}
		defer close(a.made)
		s, err := start()
		if err != nil { // the next build starts a container of its own, and tells why it cannot
			r.forget(a)
			return
		}
		a.found = s
		a.limit = time.AfterFunc(waitLimit, func() { r.giveUp(a) })
	})
}

// forget says that nothing waits if that is all there was.
func (r *ready) forget(a *awaited) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.next == a
	if was {
		r.next = nil
	}
	return was
}

// giveUp ends a container if it still waits.
func (r *ready) giveUp(a *awaited) {
	if r.forget(a) {
		r.work.Go(a.end)
	}
}

// settle ends what waits. When it returns without an error, nothing of it is left.
func (r *ready) settle(ctx context.Context) error {
	r.mu.Lock()
	a := r.next
	r.next = nil
	r.mu.Unlock()
	if a != nil {
		r.work.Go(a.end)
	}
	return r.work.Wait(ctx)
}

// refuse lets nothing wait any more.
func (r *ready) refuse() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
}

// close ends what waits, and lets nothing wait any more.
func (r *ready) close() error {
	r.refuse()
	return r.settle(context.Background())
}
