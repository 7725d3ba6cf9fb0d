package main

import (
	"crypto/rand"
	"encoding/hex"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/control"
)

// TestSpansOfSteps: a step's process is told where its spans go and what they
// are part of; what it sends is in the trace of its build. It can not do
// anything else there.
func TestSpansOfSteps(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	b.start()
	out, err := b.attempt(t, "FROM base\nUSER 1000\nRUN env | grep -e OTEL -e TRACE; test -S /dev/otel-grpc.sock && test -w /dev/otel-grpc.sock && echo socket\n"+
		"RUN OTEL_TRACES_EXPORTER=none env | grep OTEL_TRACES_EXPORTER\nENV OTEL_TRACES_EXPORTER=none\nRUN env | grep OTEL_TRACES_EXPORTER | sed s/^/own:/\n")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{
		"OTEL_TRACES_EXPORTER=otlp\n", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=unix:///dev/otel-grpc.sock\n", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=grpc\n",
		"own:OTEL_TRACES_EXPORTER=none\n", " socket\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	parent := regexp.MustCompile(`TRACEPARENT=00-([0-9a-f]{32})-([0-9a-f]{16})-01\n`).FindStringSubmatch(out)
	if parent == nil {
		t.Fatalf("no TRACEPARENT in\n%s", out)
	}
	conn, err := grpc.NewClient("unix://"+filepath.Join(b.state.run, "root", "run", "otel-grpc.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ids := [3][]byte{{}, {}, make([]byte, 8)}
	for i, text := range parent[1:] {
		if ids[i], err = hex.DecodeString(text); err != nil {
			t.Fatal(err)
		}
	}
	_, _ = rand.Read(ids[2]) // never fails
	now := uint64(time.Now().UnixNano())
	span := &tracepb.Span{Name: "of a step", TraceId: ids[0], ParentSpanId: ids[1], SpanId: ids[2], StartTimeUnixNano: now, EndTimeUnixNano: now}
	if _, err := collectorpb.NewTraceServiceClient(conn).Export(t.Context(), &collectorpb.ExportTraceServiceRequest{
		ResourceSpans: []*tracepb.ResourceSpans{{ScopeSpans: []*tracepb.ScopeSpans{{Spans: []*tracepb.Span{span}}}}},
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := control.NewControlClient(conn).Info(t.Context(), &control.InfoRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("a step may speak with the daemon: %v", err)
	}
	text, err := b.trace()
	if err != nil || !strings.Contains(text, `"of a step"`) || strings.Count(text, parent[2]) < 2 {
		t.Errorf("%v, want the span of the step and its parent, %s, in\n%s", err, parent[2], text)
	}
}

// trace is the trace of the last build, once it is whole.
func (b *builder) trace() (text string, err error) {
	for range 600 { // it waits for spans that come late
		var out []byte
		out, err = b.command("history", "logs", "--trace").CombinedOutput()
		if text = string(out); err == nil {
			return text, nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return text, err
}

// TestSpanOfCommand: a command's span is part of what TRACEPARENT says, and the
// daemon's are part of it. It tells of no argument.
func TestSpanOfCommand(t *testing.T) {
	t.Parallel()
	const traceID, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	b := newBuilder(t, "TRACEPARENT=00-"+traceID+"-"+parent+"-01", "OTEL_SERVICE_NAME=somebody")
	b.start()
	if out, err := b.attempt(t, "FROM base\nRUN true\n", "--build-arg", "TOKEN=hush-hush"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text, err := b.trace()
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	for _, want := range []string{`"kiln build"`, `"somebody"`, `"moby.buildkit.v1.Control/Solve"`, parent} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in the trace:\n%s", want, text)
		}
	}
	if strings.Contains(text, "hush-hush") {
		t.Errorf("an argument is in the trace:\n%s", text)
	}
	for _, id := range regexp.MustCompile(`"TraceID": "([0-9a-f]+)"`).FindAllStringSubmatch(text, -1) {
		if id[1] != traceID && strings.Trim(id[1], "0") != "" {
			t.Errorf("a span is of another trace, %s", id[1])
		}
	}
}
