package daemon

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	contentpb "github.com/containerd/containerd/api/services/content/v1"
	digest "github.com/opencontainers/go-digest"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/control"
	gatewaypb "github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/internal/content"
	"github.com/kiln-build/kiln/internal/gateway"
	"github.com/kiln-build/kiln/internal/history"
	"github.com/kiln-build/kiln/internal/progress"
)

// recordOf returns what the history says of a build that has ended.
func recordOf(t *testing.T, conn *grpc.ClientConn, ref string) *control.BuildHistoryRecord {
	t.Helper()
	stream, err := control.NewControlClient(conn).ListenBuildHistory(t.Context(), &control.BuildHistoryRequest{Ref: ref, EarlyExit: true})
	if err != nil {
		t.Fatal(err)
	}
	e, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) || e.Type != control.BuildHistoryEventType_COMPLETE {
		t.Fatalf("of build %s is told %v, and then %v", ref, e, err)
	}
	return e.Record
}

// readBlob reads a part of a blob; size 0 is all that follows.
func readBlob(t *testing.T, conn *grpc.ClientConn, d string, offset, size int64) ([]byte, error) {
	t.Helper()
	stream, err := contentpb.NewContentClient(conn).Read(t.Context(), &contentpb.ReadContentRequest{Digest: d, Offset: offset, Size: size})
	if err != nil {
		t.Fatal(err)
	}
	var data []byte
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return data, nil
		}
		if err != nil {
			return nil, err
		}
		if at := max(offset, 0) + int64(len(data)); m.Offset != at {
			t.Errorf("bytes at %d come at %d", at, m.Offset)
		}
		data = append(data, m.Data...)
	}
}

// The history's blobs can be read, in whole or in part.
func TestContent(t *testing.T) {
	g := serveGateway(t)
	b := begin(t, g.conn, "build")
	b.solve(t)
	b.end(t)
	logs := recordOf(t, g.conn, "build").Logs
	reasons, err := readBlob(t, g.conn, logs.Annotations["kiln.cache-reasons"], 0, 0)
	if err != nil || !bytes.Contains(reasons, []byte("no earlier build had a step like it")) {
		t.Errorf("why a step ran: %s (%v)", reasons, err)
	}
	all, err := readBlob(t, g.conn, logs.Digest, 0, 0)
	if err != nil || int64(len(all)) != logs.Size || digest.FromBytes(all) != digest.Digest(logs.Digest) {
		t.Fatalf("read %d bytes of %d (%v)", len(all), logs.Size, err)
	}
	part, err := readBlob(t, g.conn, logs.Digest, 3, 4)
	if err != nil || !bytes.Equal(part, all[3:7]) {
		t.Errorf("a part is %q (%v)", part, err)
	}
	for name, tc := range map[string]struct {
		digest       string
		offset, size int64
		code         codes.Code
	}{
		"unknown":         {string(digest.FromString("x")), 0, 0, codes.NotFound},
		"no digest":       {"../../kiln.db", 0, 0, codes.InvalidArgument},
		"other algorithm": {string(digest.SHA512.FromString("x")), 0, 0, codes.NotFound},
		"past the end":    {logs.Digest, logs.Size + 1, 0, codes.OutOfRange},
	} {
		if _, err := readBlob(t, g.conn, tc.digest, tc.offset, tc.size); status.Code(err) != tc.code {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, tc := range map[string]struct {
		offset, size int64
		want         []byte
	}{
		"too much":      {1, logs.Size, all[1:]},
		"overflow":      {1, 1<<63 - 1, all[1:]},
		"negative":      {-1 << 63, 3, all[:3]},
		"negative size": {2, -1 << 63, all[2:]},
		"the end":       {logs.Size, 5, nil},
	} {
		if got, err := readBlob(t, g.conn, logs.Digest, tc.offset, tc.size); err != nil || !bytes.Equal(got, tc.want) {
			t.Errorf("%s: %d bytes, want %d (%v)", name, len(got), len(tc.want), err)
		}
	}
	c := contentpb.NewContentClient(g.conn)
	info, err := c.Info(t.Context(), &contentpb.InfoRequest{Digest: logs.Digest})
	if err != nil || info.Info.Size != logs.Size || time.Since(info.Info.CreatedAt.AsTime()) > time.Minute {
		t.Errorf("info is %v (%v)", info, err)
	}
	if _, err := c.Info(t.Context(), &contentpb.InfoRequest{Digest: string(digest.FromString("x"))}); status.Code(err) != codes.NotFound {
		t.Errorf("info of nothing: %v", err)
	}
	if _, err := c.Delete(t.Context(), &contentpb.DeleteContentRequest{Digest: logs.Digest}); status.Code(err) != codes.Unimplemented {
		t.Errorf("delete: %v", err)
	}
}

// What images and results are made of can be read, too, and is listed once.
func TestContentOfImages(t *testing.T) {
	g := serveGateway(t)
	b := begin(t, g.conn, "build")
	b.solve(t)
	b.end(t)
	logs := recordOf(t, g.conn, "build").Logs
	desc, err := content.Write(t.Context(), g.blobs, "text/plain", []byte("a manifest"))
	if err != nil {
		t.Fatal(err)
	}
	if data, err := readBlob(t, g.conn, string(desc.Digest), 2, 1024); err != nil || string(data) != "manifest" {
		t.Errorf("read %q (%v)", data, err)
	}
	c := contentpb.NewContentClient(g.conn)
	info, err := c.Info(t.Context(), &contentpb.InfoRequest{Digest: string(desc.Digest)})
	if err != nil || info.Info.Size != desc.Size {
		t.Errorf("info is %v (%v)", info, err)
	}
	list := func(filters ...string) (digests []string) {
		stream, err := c.List(t.Context(), &contentpb.ListContentRequest{Filters: filters})
		if err != nil {
			t.Fatal(err)
		}
		for {
			m, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return digests
			}
			if err != nil {
				t.Errorf("list by %v: %v", filters, err)
				return digests
			}
			for _, i := range m.Info {
				digests = append(digests, i.Digest)
			}
		}
	}
	if all := list(); !slices.Contains(all, logs.Digest) || slices.Contains(all, string(desc.Digest)) {
		t.Errorf("without a filter is listed %v", all)
	}
	if one := list("digest==" + string(desc.Digest)); len(one) != 1 || one[0] != string(desc.Digest) {
		t.Errorf("by its digest is listed %v", one)
	}
	stream, err := c.List(t.Context(), &contentpb.ListContentRequest{Filters: []string{"=="}})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("a bad filter: %v", err)
	}
}

// The spans of a build, those of its client too, are with its record once it
// is finalized.
func TestTrace(t *testing.T) {
	g := serveGateway(t)
	const traceID, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "traceparent", "00-"+traceID+"-"+parent+"-01")
	b := &clientBuild{
		gatewaypb.NewLLBBridgeClient(g.conn), metadata.AppendToOutgoingContext(ctx, gateway.BuildIDKey, "traced"), make(chan error, 1),
	}
	go func() {
		_, err := control.NewControlClient(g.conn).Solve(ctx, &control.SolveRequest{Ref: "traced"})
		b.done <- err
	}()
	b.solve(t)
	b.end(t)
	id, err := hex.DecodeString(traceID)
	if err != nil {
		t.Fatal(err)
	}
	text := func(s string) *commonpb.AnyValue {
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: s}}
	}
	span := &tracepb.Span{
		TraceId: id, SpanId: []byte("12345678"), Name: "client's", StartTimeUnixNano: 1, EndTimeUnixNano: 2,
		Attributes: []*commonpb.KeyValue{
			{Key: "a", Value: text("b")},
			{Key: "list", Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_ArrayValue{ArrayValue: &commonpb.ArrayValue{Values: []*commonpb.AnyValue{text("x")}}}}},
		},
	}
	others := &tracepb.Span{TraceId: []byte("another trace id"), SpanId: []byte("12345678"), Name: "another's"}
	broken := &tracepb.Span{TraceId: []byte("short"), Name: "broken"}
	_, err = collectorpb.NewTraceServiceClient(g.conn).Export(ctx, &collectorpb.ExportTraceServiceRequest{
		ResourceSpans: []*tracepb.ResourceSpans{nil, {ScopeSpans: []*tracepb.ScopeSpans{nil, {Spans: []*tracepb.Span{nil, span, others, broken}}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := control.NewControlClient(g.conn).UpdateBuildHistory(ctx, &control.UpdateBuildHistoryRequest{Ref: "traced", Finalize: true}); err != nil {
		t.Fatal(err)
	}
	data, err := readBlob(t, g.conn, recordOf(t, g.conn, "traced").Trace.GetDigest(), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	parents := map[string]string{}
	for dec := json.NewDecoder(bytes.NewReader(data)); dec.More(); {
		var s struct {
			Name                string
			SpanContext, Parent struct{ TraceID, SpanID string }
		}
		if err := dec.Decode(&s); err != nil {
			t.Fatal(err)
		}
		if s.SpanContext.TraceID != traceID {
			t.Errorf("span %s is in trace %s", s.Name, s.SpanContext.TraceID)
		}
		parents[s.Name] = s.Parent.SpanID
	}
	names := slices.Sorted(maps.Keys(parents))
	if parents["moby.buildkit.v1.Control/Solve"] != parent || parents["client's"] != "0000000000000000" || len(names) != 3 {
		t.Errorf("spans are %q, the build's parent is %s", names, parents["moby.buildkit.v1.Control/Solve"])
	}
}

// What a build's client and its steps send in spans is kept as far as there is room.
func TestSpansAreBounded(t *testing.T) {
	g := serveGateway(t)
	id := []byte("trace of a flood")
	ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", "00-"+hex.EncodeToString(id)+"-b7ad6b7169203331-01")
	b := &clientBuild{
		gatewaypb.NewLLBBridgeClient(g.conn), metadata.AppendToOutgoingContext(ctx, gateway.BuildIDKey, "flooded"), make(chan error, 1),
	}
	go func() {
		_, err := control.NewControlClient(g.conn).Solve(ctx, &control.SolveRequest{Ref: "flooded"})
		b.done <- err
	}()
	b.solve(t)
	const each, many = 3 << 20, 40
	text := &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: strings.Repeat("x", each)}}
	for i := range many {
		all := &tracepb.ResourceSpans{ScopeSpans: []*tracepb.ScopeSpans{{Spans: []*tracepb.Span{{TraceId: id, SpanId: []byte("12345678"), Name: "flood"}}}}}
		attribute := []*commonpb.KeyValue{{Key: "k", Value: text}}
		if i%2 == 0 {
			all.ScopeSpans[0].Spans[0].Attributes = attribute
		} else {
			all.Resource = &resourcepb.Resource{Attributes: attribute}
		}
		if _, err := collectorpb.NewTraceServiceClient(g.conn).Export(ctx, &collectorpb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{all}}); err != nil {
			t.Fatal(err)
		}
	}
	b.end(t)
	if _, err := control.NewControlClient(g.conn).UpdateBuildHistory(ctx, &control.UpdateBuildHistoryRequest{Ref: "flooded", Finalize: true}); err != nil {
		t.Fatal(err)
	}
	if size := recordOf(t, g.conn, "flooded").Trace.GetSize(); size < 5*each || size > mostSpanBytes+1<<20 {
		t.Errorf("of %d bytes of spans, %d are kept, of at most %d", each*many, size, mostSpanBytes)
	}
}

// What others say of a build, be it ever so much, makes no record that listings
// cannot send.
func TestRecordsAreBounded(t *testing.T) {
	g := serveGateway(t)
	large := strings.Repeat("x", 2<<20)
	client := control.NewControlClient(g.conn)
	for ref, r := range map[string]*control.SolveRequest{
		"attributes": {FrontendAttrs: map[string]string{"a": large, "target": "t", "z" + large: ""}},
		"frontend":   {Frontend: large + large, FrontendAttrs: map[string]string{"target": "t"}},
		"exporters": {FrontendAttrs: map[string]string{"target": "t"}, Exporters: []*control.Exporter{
			{Type: "image", Attrs: map[string]string{"x": large, "name": "n"}}, {Type: large},
		}},
		"error": {FrontendAttrs: map[string]string{"target": "t"}},
	} {
		t.Run(ref, func(t *testing.T) {
			r.Ref = ref
			done := make(chan error, 1)
			go func() {
				_, err := client.Solve(t.Context(), r)
				done <- err
			}()
			if r.Frontend == "" && r.Exporters == nil { // else it fails by itself
				ctx := metadata.AppendToOutgoingContext(t.Context(), gateway.BuildIDKey, ref)
				b := gatewaypb.NewLLBBridgeClient(g.conn)
				if _, err := b.Ping(ctx, &gatewaypb.PingRequest{}); err != nil {
					t.Fatal(err)
				}
				answer := &gatewaypb.ReturnRequest{Result: &gatewaypb.Result{Metadata: map[string][]byte{"frontend.a": []byte(large), "frontend.b": []byte("b")}}}
				if ref == "error" {
					answer = &gatewaypb.ReturnRequest{Error: &rpcstatus.Status{Code: 2, Message: large + large}}
				}
				if _, err := b.Return(ctx, answer); err != nil {
					t.Fatal(err)
				}
			}
			if err := <-done; (err != nil) != (ref == "error" || r.Frontend != "" || r.Exporters != nil) {
				t.Errorf("the build ended with %.200v", err)
			}
			rec := recordOf(t, g.conn, ref)
			if rec.FrontendAttrs["target"] != "t" {
				t.Errorf("the record lost what is small: %.200v", rec)
			}
			if ref == "attributes" && rec.ExporterResponse["frontend.b"] != "b" {
				t.Errorf("the record lost what is small of the result: %.200v", rec.ExporterResponse)
			}
			if ref == "exporters" && (len(rec.Exporters) != 1 || rec.Exporters[0].Attrs["name"] != "n") {
				t.Errorf("the record lost what is small of the exporters: %.200v", rec.Exporters)
			}
		})
	}
}

// Metadata of a result that is no text is told as far as it is.
func TestMetadataOfOddBytes(t *testing.T) {
	g := serveGateway(t)
	ctx := metadata.AppendToOutgoingContext(t.Context(), gateway.BuildIDKey, "odd")
	type answer struct {
		resp *control.SolveResponse
		err  error
	}
	done := make(chan answer, 1)
	go func() {
		resp, err := control.NewControlClient(g.conn).Solve(t.Context(), &control.SolveRequest{Ref: "odd"})
		done <- answer{resp, err}
	}()
	result := &gatewaypb.Result{Metadata: map[string][]byte{"frontend.odd": []byte("a\xffb"), "odd": {0xff}}}
	if _, err := gatewaypb.NewLLBBridgeClient(g.conn).Return(ctx, &gatewaypb.ReturnRequest{Result: result}); err != nil {
		t.Fatal(err)
	}
	if got := <-done; got.err != nil || got.resp.GetExporterResponse()["frontend.odd"] != "a\uFFFDb" {
		t.Errorf("the client was answered %v, %v", got.resp, got.err)
	}
	if rec := recordOf(t, g.conn, "odd"); rec.ExporterResponse["odd"] != "\uFFFD" {
		t.Errorf("the record says %q", rec.ExporterResponse)
	}
}

// Spans go to the collector that the environment names.
func TestSpanCollector(t *testing.T) {
	for _, key := range []string{"OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"} {
		t.Setenv(key, "")
	}
	if c, err := NewSpanCollector(t.Context()); c != nil || err != nil {
		t.Errorf("without a collector: %v, %v", c, err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 10)
	server := grpc.NewServer()
	collectorpb.RegisterTraceServiceServer(server, &collector{told: got})
	go func() { _ = server.Serve(l) }() // it ends with Stop
	defer server.Stop()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+l.Addr().String())
	for key, value := range map[string]string{"OTEL_TRACES_EXPORTER": "jaeger", "OTEL_EXPORTER_OTLP_PROTOCOL": "smoke"} {
		t.Setenv(key, value)
		if _, err := NewSpanCollector(t.Context()); err == nil || !strings.Contains(err.Error(), value) {
			t.Errorf("%s=%s: %v", key, value, err)
		}
		t.Setenv(key, "")
	}
	spans, err := NewSpanCollector(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	past := openHistory(t)
	record, err := past.Begin(history.Record{Ref: "internal"}, true)
	if err != nil {
		t.Fatal(err)
	}
	tr := newTraces(past, spans, "test")
	run := &running{ref: "internal", record: record, events: newEventLog(record.Log())}
	run.events.trace = tr.begin(t.Context(), run)
	now := time.Now()
	run.events.Emit(progress.Event{Vertex: &progress.Vertex{Digest: "sha256:a", Name: "a step", Started: &now, Completed: &now}})
	tr.end(run, errors.New("it broke"))
	if err := errors.Join(tr.close(t.Context()), record.End(history.Outcome{})); err != nil {
		t.Fatal(err)
	}
	record.Release()
	if a, b := <-got, <-got; a != "a step" || b != "moby.buildkit.v1.Control/Solve: it broke" {
		t.Errorf("collected %q and %q", a, b)
	}
}

// collector tells the name of each span, and why it failed.
type collector struct {
	collectorpb.UnimplementedTraceServiceServer
	told chan string
}

func (c *collector) Export(_ context.Context, r *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	for _, rs := range r.ResourceSpans {
		for _, ss := range rs.ScopeSpans {
			for _, s := range ss.Spans {
				name := s.Name
				if m := s.GetStatus().GetMessage(); m != "" {
					name += ": " + m
				}
				c.told <- name
			}
		}
	}
	return &collectorpb.ExportTraceServiceResponse{}, nil
}
