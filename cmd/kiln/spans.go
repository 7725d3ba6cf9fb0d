package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/kiln-build/kiln/client"
	"github.com/kiln-build/kiln/internal/daemon"
)

// spanPatience is how long the end of a command waits for its span to be taken.
const spanPatience = time.Second

// commandSpan is the OpenTelemetry span of a command: the daemon's spans of it
// are below. It is given to the daemon, which keeps it with the build's record,
// and to the collector that the environment names. Arguments are not in it:
// there are passwords among them (CVE-2025-0495).
type commandSpan struct {
	own, parent   trace.SpanContext
	service, name string
	began         time.Time
}

type commandSpanKey struct{}

// startSpan begins the span of a command, below the one that the environment
// names in TRACEPARENT, if it does.
func startSpan(ctx context.Context, program string, getenv func(string) string) (context.Context, *commandSpan) {
	outer := propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{
		"traceparent": getenv("TRACEPARENT"), "tracestate": getenv("TRACESTATE"),
	})
	s := &commandSpan{
		parent: trace.SpanContextFromContext(outer), service: cmp.Or(getenv("OTEL_SERVICE_NAME"), program), name: program, began: time.Now(),
	}
	config := trace.SpanContextConfig{TraceID: s.parent.TraceID(), TraceFlags: trace.FlagsSampled, TraceState: s.parent.TraceState()}
	if !s.parent.IsValid() {
		_, _ = rand.Read(config.TraceID[:]) // never fails
	}
	_, _ = rand.Read(config.SpanID[:])
	s.own = trace.NewSpanContext(config)
	return context.WithValue(trace.ContextWithSpanContext(ctx, s.own), commandSpanKey{}, s), s
}

// nameSpan says which command a span is of, and returns what gives it to the
// daemon at the end.
func nameSpan(ctx context.Context, command string) func(*client.Client) {
	s, ok := ctx.Value(commandSpanKey{}).(*commandSpan)
	if !ok {
		return nil
	}
	s.name = command
	return s.give
}

// give gives the span to the daemon. One that takes none, or is gone, is no
// reason for a command to fail.
func (s *commandSpan) give(c *client.Client) {
	ctx, cancel := context.WithTimeout(context.Background(), spanPatience)
	defer cancel()
	traceID, spanID, parentID := s.own.TraceID(), s.own.SpanID(), s.parent.SpanID()
	span := &tracepb.Span{
		Name: s.name, Kind: tracepb.Span_SPAN_KIND_INTERNAL, TraceId: traceID[:], SpanId: spanID[:], TraceState: s.own.TraceState().String(),
		StartTimeUnixNano: uint64(s.began.UnixNano()), EndTimeUnixNano: uint64(time.Now().UnixNano()),
	}
	if s.parent.IsValid() {
		span.ParentSpanId = parentID[:]
	}
	text := func(key, value string) *commonpb.KeyValue {
		return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: value}}}
	}
	_ = c.ExportSpans(ctx, []*tracepb.ResourceSpans{{
		Resource:   &resourcepb.Resource{Attributes: []*commonpb.KeyValue{text("service.name", s.service), text("service.version", version)}},
		ScopeSpans: []*tracepb.ScopeSpans{{Spans: []*tracepb.Span{span}}},
	}})
}

// end gives the span to the environment's collector, if there is one.
func (s *commandSpan) end(err error) {
	ctx, cancel := context.WithTimeout(context.Background(), spanPatience)
	defer cancel()
	collector, cerr := daemon.NewSpanCollector(ctx)
	if cerr != nil || collector == nil {
		return
	}
	stub := tracetest.SpanStub{
		Name: s.name, SpanContext: s.own, Parent: s.parent, SpanKind: trace.SpanKindInternal, StartTime: s.began, EndTime: time.Now(),
		Resource: resource.NewSchemaless(attribute.String("service.name", s.service), attribute.String("service.version", version)),
	}
	if err != nil {
		stub.Status = sdktrace.Status{Code: codes.Error, Description: "the command failed"} // why may name a password
	}
	collector.OnEnd(stub.Snapshot())
	_ = collector.Shutdown(ctx) // a collector that is not there is not the command's affair
}
