// Package sessiontest connects a daemon's and a client's side of a session in
// one process, for tests of what goes over it.
package sessiontest

import (
	"context"
	"net"
	"testing"

	"google.golang.org/grpc"

	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/session"
)

// daemon is a control service that has sessions and nothing else.
type daemon struct {
	control.UnimplementedControlServer
	sessions *session.Manager
}

func (d daemon) Session(stream grpc.BidiStreamingServer[control.BytesMessage, control.BytesMessage]) error {
	return d.sessions.ServeStream(stream)
}

// Connect opens a session over a real socket and returns the daemon's view of
// the client that serves attached. All ends with the test.
func Connect(t testing.TB, attached ...session.Attachable) *session.Caller {
	t.Helper()
	return ConnectThrough(t, func(address string) string { return address }, attached...)
}

// ConnectThrough is Connect by another address that leads to the daemon's, such as
// "unix:///path", which via is told.
func ConnectThrough(t testing.TB, via func(address string) string, attached ...session.Attachable) *session.Caller {
	t.Helper()
	manager := session.NewManager()
	l, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(append(session.ServerOptions(), grpc.Creds(session.Handover()))...)
	control.RegisterControlServer(server, daemon{sessions: manager})
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	conn, err := grpc.NewClient(via("unix://"+l.Addr().String()),
		append(session.DialOptions(), grpc.WithTransportCredentials(session.Handover()))...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := session.NewServer("test-session", "test-key", attached...)
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx, session.OpenStream(control.NewControlClient(conn))) }()
	var caller *session.Caller
	t.Cleanup(func() {
		// A test may have closed the daemon's end, which is an error of the session.
		closed := caller != nil && caller.Context().Err() != nil
		cancel()
		if err := <-ran; err != nil && !closed {
			t.Errorf("session: %v", err)
		}
		if err := conn.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	if caller, err = manager.Get(ctx, "test-session"); err != nil {
		t.Fatal(err)
	}
	return caller
}

// Context is a context whose work callers serve.
func Context(ctx context.Context, callers ...*session.Caller) context.Context {
	return session.WithGroup(ctx, group(callers))
}

type group []*session.Caller

func (g group) Sessions() []*session.Caller { return g }
