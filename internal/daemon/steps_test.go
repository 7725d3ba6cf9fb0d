package daemon

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// serveSteps has a daemon take spans of steps, and returns its socket.
func serveSteps(t *testing.T) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "steps")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{config: Config{History: openHistory(t)}}
	s.traces = newTraces(s.config.History, nil, "v1")
	s.steps = newSteps(s)
	served := make(chan struct{})
	go func() { defer close(served); s.ServeSteps(l) }()
	t.Cleanup(func() { s.steps.Stop(); <-served })
	return socket
}

func dialSteps(t *testing.T, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func exportNothing(ctx context.Context, conn *grpc.ClientConn) error {
	_, err := collectorpb.NewTraceServiceClient(conn).Export(ctx, &collectorpb.ExportTraceServiceRequest{})
	return err
}

// A step that connects again and again is hung up on, and others are heard once it
// lets go.
func TestManyStepConnections(t *testing.T) {
	socket := serveSteps(t)
	var conns []net.Conn
	hungUp := 0
	for range mostStepConns + 20 {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
		// Who is heard is sent the settings of HTTP/2.
		if _, err := conn.Read(make([]byte, 1)); errors.Is(err, io.EOF) {
			hungUp++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if hungUp != 20 {
		t.Errorf("of %d connections, %d were hung up on, want 20", len(conns), hungUp)
	}
	for _, conn := range conns {
		conn.Close()
	}
	conn := dialSteps(t, socket)
	eventually(t, "nobody is heard after that", func() string {
		if err := exportNothing(t.Context(), conn); err != nil {
			conn.ResetConnectBackoff()
			return err.Error()
		}
		return ""
	})
}

// A step has few calls under way, however large.
func TestManyStepCalls(t *testing.T) {
	conn := dialSteps(t, serveSteps(t))
	if err := exportNothing(t.Context(), conn); err != nil { // which brings the daemon's settings
		t.Fatal(err)
	}
	begin := func(ctx context.Context) error {
		_, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true}, "/opentelemetry.proto.collector.trace.v1.TraceService/Export")
		return err
	}
	calls, end := context.WithCancel(t.Context())
	for range mostStepCalls {
		if err := begin(calls); err != nil {
			t.Fatal(err)
		}
	}
	one, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := begin(one); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a call beyond the %d: %v, want that it has to wait", mostStepCalls, err)
	}
	end()
	if err := exportNothing(t.Context(), conn); err != nil {
		t.Errorf("a call after those: %v", err)
	}
}
