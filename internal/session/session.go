// Package session is the back-channel between the daemon and a client: a
// connection that the client opens and then serves, so that the daemon can ask
// for files, secrets and credentials and hand results over (WIRE.md section 7).
//
// The subfolders hold one service each, both sides of it.
package session

import (
	"context"
	"errors"
	"net"

	"google.golang.org/grpc"
)

// ErrNoSession says that no session could serve a request.
var ErrNoSession = errors.New("no client session")

// Manager knows the daemon's open sessions.
type Manager struct{}

// NewManager returns a manager without sessions.
func NewManager() *Manager { return &Manager{} }

// Meta is what a client says of its session (WIRE.md section 7.1).
type Meta struct {
	ID, SharedKey string
	Methods       []string // such as "/moby.filesync.v1.FileSync/DiffCopy"
}

// Serve registers the session that a client serves on conn, until it ends.
func (m *Manager) Serve(ctx context.Context, meta Meta, conn net.Conn) error {
	return errors.New("to be written")
}

// Get returns the session with an id, waiting for it to arrive until ctx ends.
func (m *Manager) Get(ctx context.Context, id string) (*Caller, error) {
	return nil, errors.New("to be written")
}

// Caller calls the services of one client.
type Caller struct{}

// ID is the session's id.
func (c *Caller) ID() string { return "" }

// SharedKey names what the client's sessions have in common, such as a directory.
func (c *Caller) SharedKey() string { return "" }

// Supports tells whether the client serves a method, such as
// "/moby.filesync.v1.FileSync/DiffCopy", in any case of letters.
func (c *Caller) Supports(method string) bool { return false }

// Conn is the connection to call services on.
func (c *Caller) Conn() grpc.ClientConnInterface { return nil }

// Context ends with the session.
func (c *Caller) Context() context.Context { return context.Background() }

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
	}
	return err
}
