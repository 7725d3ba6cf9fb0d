package daemon

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/instrumentation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// NewSpanCollector returns what sends spans to the collector that the
// environment names in the OpenTelemetry standard's variables, or nil if none
// is named: OTEL_EXPORTER_OTLP_ENDPOINT and its kin, which the exporters read
// themselves, and OTEL_TRACES_EXPORTER.
func NewSpanCollector(ctx context.Context) (sdktrace.SpanProcessor, error) {
	switch v := os.Getenv("OTEL_TRACES_EXPORTER"); v {
	case "", "otlp":
	case "none":
		return nil, nil
	default:
		return nil, fmt.Errorf("OTEL_TRACES_EXPORTER is %q: expected otlp or none", v)
	}
	if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "" {
		return nil, nil
	}
	protocol := os.Getenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
	if protocol == "" {
		protocol = os.Getenv("OTEL_EXPORTER_OTLP_PROTOCOL")
	}
	var exporter *otlptrace.Exporter
	var err error
	switch protocol {
	case "", "grpc":
		exporter, err = otlptracegrpc.New(ctx)
	case "http/protobuf":
		exporter, err = otlptracehttp.New(ctx)
	default:
		return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL is %q: expected grpc or http/protobuf", protocol)
	}
	if err != nil {
		return nil, fmt.Errorf("send spans to a collector: %w", err)
	}
	return sdktrace.NewBatchSpanProcessor(exporter), nil
}

// traceService takes the spans of clients.
type traceService struct {
	collectorpb.UnimplementedTraceServiceServer
	*Server
}

// Export keeps spans with the builds that they belong to, and passes them on.
func (s *traceService) Export(_ context.Context, r *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	for _, rs := range r.GetResourceSpans() {
		shared := proto.Size(rs.GetResource())
		res := resource.NewWithAttributes(rs.GetSchemaUrl(), spanAttributes(rs.GetResource().GetAttributes())...)
		for _, ss := range rs.GetScopeSpans() {
			scope := instrumentation.Scope{
				Name: ss.GetScope().GetName(), Version: ss.GetScope().GetVersion(), SchemaURL: ss.GetSchemaUrl(),
			}
			for _, sp := range ss.GetSpans() {
				if stub := readSpan(sp, res, scope); stub.SpanContext.IsValid() {
					s.traces.take(stub, shared+proto.Size(sp))
				}
			}
		}
	}
	return &collectorpb.ExportTraceServiceResponse{}, nil
}

// take adds a span of a client or a step, of about so many bytes.
func (t *traces) take(s tracetest.SpanStub, size int) {
	t.collect(s)
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, b := range t.byID[s.SpanContext.TraceID()] {
		b.add(s, size)
	}
}

func readSpan(p *tracepb.Span, res *resource.Resource, scope instrumentation.Scope) tracetest.SpanStub {
	s := tracetest.SpanStub{
		Name:        p.GetName(),
		SpanContext: spanContext(p.GetTraceId(), p.GetSpanId(), p.GetTraceState()),
		SpanKind:    trace.SpanKind(p.GetKind()), // the numbers are the same
		StartTime:   time.Unix(0, int64(p.GetStartTimeUnixNano())),
		EndTime:     time.Unix(0, int64(p.GetEndTimeUnixNano())),
		Attributes:  spanAttributes(p.GetAttributes()),
		Status:      spanStatus(p.GetStatus()),
		Resource:    res, InstrumentationScope: scope,
		DroppedAttributes: int(p.GetDroppedAttributesCount()),
		DroppedEvents:     int(p.GetDroppedEventsCount()),
		DroppedLinks:      int(p.GetDroppedLinksCount()),
	}
	if len(p.GetParentSpanId()) > 0 {
		s.Parent = spanContext(p.GetTraceId(), p.GetParentSpanId(), "")
	}
	for _, e := range p.GetEvents() {
		s.Events = append(s.Events, sdktrace.Event{
			Name: e.GetName(), Time: time.Unix(0, int64(e.GetTimeUnixNano())), Attributes: spanAttributes(e.GetAttributes()),
			DroppedAttributeCount: int(e.GetDroppedAttributesCount()),
		})
	}
	for _, l := range p.GetLinks() {
		s.Links = append(s.Links, sdktrace.Link{
			SpanContext: spanContext(l.GetTraceId(), l.GetSpanId(), l.GetTraceState()), Attributes: spanAttributes(l.GetAttributes()),
			DroppedAttributeCount: int(l.GetDroppedAttributesCount()),
		})
	}
	return s
}

// spanContext reads ids; one of a wrong length is no valid span.
func spanContext(traceID, spanID []byte, state string) trace.SpanContext {
	c := trace.SpanContextConfig{TraceFlags: trace.FlagsSampled}
	if len(traceID) != len(c.TraceID) || len(spanID) != len(c.SpanID) {
		return trace.SpanContext{}
	}
	copy(c.TraceID[:], traceID)
	copy(c.SpanID[:], spanID)
	if ts, err := trace.ParseTraceState(state); err == nil {
		c.TraceState = ts
	}
	return trace.NewSpanContext(c)
}

func spanStatus(p *tracepb.Status) sdktrace.Status {
	switch p.GetCode() {
	case tracepb.Status_STATUS_CODE_OK:
		return sdktrace.Status{Code: codes.Ok}
	case tracepb.Status_STATUS_CODE_ERROR:
		return sdktrace.Status{Code: codes.Error, Description: strings.ToValidUTF8(p.GetMessage(), "\uFFFD")}
	}
	return sdktrace.Status{}
}

func spanAttributes(in []*commonpb.KeyValue) (out []attribute.KeyValue) {
	for _, kv := range in {
		if v, ok := spanValue(kv.GetValue()); ok {
			out = append(out, attribute.KeyValue{Key: attribute.Key(kv.GetKey()), Value: v})
		}
	}
	return out
}

// spanValue reads a value; lists of mixed kinds and maps have no counterpart.
func spanValue(v *commonpb.AnyValue) (attribute.Value, bool) {
	switch v := v.GetValue().(type) {
	case *commonpb.AnyValue_StringValue:
		return attribute.StringValue(withoutPassword(v.StringValue)), true
	case *commonpb.AnyValue_BoolValue:
		return attribute.BoolValue(v.BoolValue), true
	case *commonpb.AnyValue_IntValue:
		return attribute.Int64Value(v.IntValue), true
	case *commonpb.AnyValue_DoubleValue:
		return attribute.Float64Value(v.DoubleValue), true
	case *commonpb.AnyValue_ArrayValue:
		return spanList(v.ArrayValue.GetValues())
	}
	return attribute.Value{}, false
}

func spanList(all []*commonpb.AnyValue) (attribute.Value, bool) {
	if len(all) == 0 {
		return attribute.StringSliceValue(nil), true
	}
	switch all[0].GetValue().(type) {
	case *commonpb.AnyValue_StringValue:
		return attribute.StringSliceValue(listOf(all, func(v *commonpb.AnyValue) string { return withoutPassword(v.GetStringValue()) })), true
	case *commonpb.AnyValue_BoolValue:
		return attribute.BoolSliceValue(listOf(all, (*commonpb.AnyValue).GetBoolValue)), true
	case *commonpb.AnyValue_IntValue:
		return attribute.Int64SliceValue(listOf(all, (*commonpb.AnyValue).GetIntValue)), true
	case *commonpb.AnyValue_DoubleValue:
		return attribute.Float64SliceValue(listOf(all, (*commonpb.AnyValue).GetDoubleValue)), true
	}
	return attribute.Value{}, false
}

func listOf[T any](all []*commonpb.AnyValue, get func(*commonpb.AnyValue) T) (out []T) {
	for _, v := range all {
		out = append(out, get(v))
	}
	return out
}
