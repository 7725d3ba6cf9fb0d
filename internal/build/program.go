package build

import (
	"context"
	"sync"
	"time"

	"github.com/kiln-build/kiln/internal/executor"
	"github.com/kiln-build/kiln/internal/op"
)

// Program is a process in a container that one build after the other may want in
// the same way, but for a part of its environment: a frontend of an image. Starting
// its container takes longer than it does itself, so one may be started ahead.
type Program struct {
	br   *Bridge
	key  string
	spec op.ContainerSpec
	p    Process
}

// NewProgram describes a program. Two of the same key are the same; "" is like none.
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
	if s := ready.take(ctx, p.key); s != nil {
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

// Expect has a container wait for the next build that starts the same program, if
// it is likely that there is one soon and the machine has time for it now.
func (p *Program) Expect() {
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
	running int           // programs
	last    string        // the key of the program that was started last
	again   bool          // it was started before
	making  chan struct{} // closed when the one that is being made is; nil if none is
	makes   string        // its key
	closed  bool

	key   string
	found *op.Standby
	limit *time.Timer
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

// take takes the container that waits for a key; nil if there is none. One that is
// being made is waited for: it has a lead on any other.
func (r *ready) take(ctx context.Context, key string) *op.Standby {
	r.mu.Lock()
	defer r.mu.Unlock()
	if key == "" {
		return nil
	}
	if r.making != nil && r.makes == key {
		made := r.making
		r.mu.Unlock()
		select {
		case <-made:
		case <-ctx.Done():
		}
		r.mu.Lock()
	}
	if r.key != key {
		return nil
	}
	return r.removeLocked()
}

func (r *ready) removeLocked() *op.Standby {
	s := r.found
	if s != nil {
		r.limit.Stop()
	}
	r.key, r.found = "", nil
	return s
}

// expect has a container wait for a key. That is worth its while only for a program
// that was used twice in a row, and while nothing else of the kind runs.
func (r *ready) expect(key string, start func() (*op.Standby, error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.making != nil || !r.again || r.last != key || r.running > 1 || r.key == key {
		return
	}
	r.making, r.makes = make(chan struct{}), key
	old := r.removeLocked()
	go func() {
		if old != nil {
			_ = old.Close() // nobody used it
		}
		s, err := start()
		r.made(key, s, err)
	}()
}

// made keeps what was started, or an error for nobody: the next build starts a
// container of its own, and tells why it cannot.
func (r *ready) made(key string, s *op.Standby, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		r.key, r.found = key, s
		r.limit = time.AfterFunc(waitLimit, func() { r.giveUp(s) })
	}
	close(r.making)
	r.making = nil
}

// giveUp ends a container if it still waits; nil is any. When it returns, nothing of
// it is left.
func (r *ready) giveUp(s *op.Standby) {
	r.mu.Lock()
	for r.making != nil {
		made := r.making
		r.mu.Unlock()
		<-made
		r.mu.Lock()
	}
	if r.found == nil || s != nil && r.found != s {
		r.mu.Unlock()
		return
	}
	s = r.removeLocked()
	r.mu.Unlock()
	_ = s.Close() // nobody used it
}

// refuse lets nothing wait any more.
func (r *ready) refuse() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
}

// close ends what waits, and lets nothing wait any more.
func (r *ready) close() {
	r.refuse()
	r.giveUp(nil)
}
