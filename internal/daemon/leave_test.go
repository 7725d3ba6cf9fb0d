package daemon

import (
	"net"
	"testing"
	"time"

	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/api/kiln"
)

// TestLeave asks a daemon to make room for another one: it does if it is the one that
// is meant, was started to leave, and nobody needs it. Who merely watches does not.
func TestLeave(t *testing.T) {
	g := serveGateway(t)
	ask := func(r *kiln.LeaveRequest) bool {
		t.Helper()
		resp, err := kiln.NewKilnClient(g.conn).Leave(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		return resp.GetLeaving()
	}
	if ask(&kiln.LeaveRequest{Version: "v1", Revision: "other"}) {
		t.Error("it leaves, but another one is meant")
	}
	b := begin(t, g.conn, "build")
	if ask(&kiln.LeaveRequest{Version: "v1"}) {
		t.Error("it leaves while it builds")
	}
	b.end(t)
	watch, err := control.NewControlClient(g.conn).ListenBuildHistory(t.Context(), &control.BuildHistoryRequest{ActiveOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if !ask(&kiln.LeaveRequest{Version: "v1"}) {
		t.Error("it stays, but nobody needs it")
	}
	for err == nil {
		_, err = watch.Recv()
	}
	<-g.served
}

// A build that came while the daemon was asked to leave is not cut off.
func TestLeavingWaitsForBuilds(t *testing.T) {
	g := serveGateway(t)
	b := begin(t, g.conn, "late")
	g.server.leaving <- struct{}{}
	eventually(t, "it takes clients", func() string {
		conn, err := net.Dial("unix", g.socket)
		if err != nil {
			return ""
		}
		conn.Close()
		return "it can be connected to"
	})
	select {
	case err := <-b.done:
		t.Fatalf("the build was cut off: %v", err)
	case <-time.After(leaveWait + time.Second):
	}
	b.end(t)
	<-g.served
}
