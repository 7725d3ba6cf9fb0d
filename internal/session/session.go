// Package session is the back-channel between the daemon and a client: a
// connection that the client opens and then serves, so that the daemon can ask for
// files, secrets and credentials and hand results over (BuildKit's session).
//
// The subfolders hold one service each, both sides of it. Whatever a client
// says over a session is foreign: each reader checks and caps it.
package session

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/kiln-build/kiln/internal/api/control"
)

// ErrNoSession says that no session could serve a request.
var ErrNoSession = errors.New("no client session")

// Meta is what a client says of its session (BuildKit's session/grpc.go).
type Meta struct {
	ID, SharedKey string
	Methods       []string // such as "/moby.filesync.v1.FileSync/DiffCopy"
	// HealthTimeout is how long the client may be silent, in ms; 0 for the default.
	HealthTimeout int
	// Chunk is the most content in bytes that the client would like in one message
	// of a transfer of files. 0, as from BuildKit's clients, stands for 32 KiB.
	Chunk int
}

// Manager knows the daemon's open sessions. It may be used concurrently.
type Manager struct {
	mu      sync.Mutex
	callers map[string]*Caller
	waiters map[string]*waiter
}

// waiter is told when a session arrives.
type waiter struct {
	arrived chan struct{}
	count   int
}

// NewManager returns a manager without sessions.
func NewManager() *Manager {
	return &Manager{callers: map[string]*Caller{}, waiters: map[string]*waiter{}}
}

// ServeStream is the daemon's part of the rpc Control/Session.
func (m *Manager) ServeStream(stream grpc.BidiStreamingServer[control.BytesMessage, control.BytesMessage]) error {
	md, _ := metadata.FromIncomingContext(stream.Context())
	meta, err := ParseMeta(md)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	// The stream ends when this returns, and with it what its calls wait for.
	return m.Serve(ctx, meta, NewConn(stream, cancel))
}

// Serve registers the session that a client serves on conn, until it ends.
func (m *Manager) Serve(ctx context.Context, meta Meta, conn net.Conn) error {
	c, err := NewCaller(ctx, meta, conn)
	if err != nil {
		return err
	}
	defer c.Close()
	m.mu.Lock()
	if _, taken := m.callers[meta.ID]; taken {
		m.mu.Unlock()
		return fmt.Errorf("session %q is open already", meta.ID)
	}
	m.callers[meta.ID] = c
	if w := m.waiters[meta.ID]; w != nil {
		delete(m.waiters, meta.ID)
		close(w.arrived)
	}
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		delete(m.callers, meta.ID)
		m.mu.Unlock()
	}()
	go c.watch(paceOf(meta))
	<-c.ctx.Done()
	return nil
}

// Get returns the session with an id, waiting for it to arrive until ctx ends.
func (m *Manager) Get(ctx context.Context, id string) (*Caller, error) {
	for {
		m.mu.Lock()
		if c := m.callers[id]; c != nil {
			m.mu.Unlock()
			return c, nil
		}
		w := m.waiters[id]
		if w == nil {
			w = &waiter{arrived: make(chan struct{})}
			m.waiters[id] = w
		}
		w.count++
		m.mu.Unlock()
		select {
		case <-w.arrived:
		case <-ctx.Done():
			m.mu.Lock()
			if w.count--; w.count == 0 && m.waiters[id] == w {
				delete(m.waiters, id)
			}
			m.mu.Unlock()
			return nil, fmt.Errorf("%w %q: %w", ErrNoSession, id, context.Cause(ctx))
		}
	}
}

// Group is the sessions that may serve a piece of work, the nearest first.
type Group interface{ Sessions() []*Caller }

type groupKey struct{}

// WithGroup returns a context for work that g's sessions serve.
func WithGroup(ctx context.Context, g Group) context.Context {
	return context.WithValue(ctx, groupKey{}, g)
}

// FromContext returns the sessions that serve ctx's work; it may be empty.
func FromContext(ctx context.Context) []*Caller {
	if g, ok := ctx.Value(groupKey{}).(Group); ok {
		return g.Sessions()
	}
	return nil
}

// Any calls f with one session after the other until f succeeds, and returns
// the last error, or ErrNoSession if no session serves method.
func Any(ctx context.Context, method string, f func(context.Context, *Caller) error) error {
	err := error(ErrNoSession)
	for _, c := range FromContext(ctx) {
		if c.Supports(method) {
			if err = f(ctx, c); err == nil {
				return nil
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return err
}
