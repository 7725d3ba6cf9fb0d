package daemon

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	digest "github.com/opencontainers/go-digest"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/instrumentation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"

	"github.com/kiln-build/kiln/internal/history"
	"github.com/kiln-build/kiln/internal/progress"
)

const (
	// waitSpans is how long an ended build waits for the spans of its client,
	// which come at the end of the client's command.
	waitSpans = 3 * time.Second
	// maxWaiting is how many ended builds wait at most: where builds come this
	// fast, so do spans.
	maxWaiting = 32
	// mostSpans and mostSpanBytes bound the spans of one build: those of its client
	// and of its steps count, too.
	mostSpans     = 20_000
	mostSpanBytes = 64 << 20
	// tracer names what makes the daemon's spans.
	tracer = "github.com/kiln-build/kiln/internal/daemon"
)

// traces keeps the spans of builds until they go to the history, and passes
// all spans on to a collector, if there is one.
type traces struct {
	history   *history.History
	collector sdktrace.SpanProcessor // nil if there is none
	resource  *resource.Resource

	mu    sync.Mutex
	byID  map[trace.TraceID][]*buildTrace
	ended map[string]*buildTrace // by ref: those that wait for their clients
	queue []*buildTrace          // those that have waited, and still do unless they are done
}

func newTraces(h *history.History, collector sdktrace.SpanProcessor, version string) *traces {
	return &traces{
		history: h, collector: collector,
		resource: resource.NewSchemaless(
			attribute.String("service.name", "kiln"), attribute.String("service.version", version)),
		byID: map[trace.TraceID][]*buildTrace{}, ended: map[string]*buildTrace{},
	}
}

// buildTrace is the spans of one build. The nil *buildTrace is valid and keeps none.
type buildTrace struct {
	traces *traces
	ref    string
	record bool // there is a record to keep the spans with
	id     trace.TraceID
	timer  *time.Timer
	done   chan struct{} // closed once the spans are with the record

	mu      sync.Mutex
	root    tracetest.SpanStub
	spans   []tracetest.SpanStub
	size    int                                // of spans, about, bytes
	moments map[digest.Digest][]sdktrace.Event // of steps that have not ended
}

// begin starts the spans of a build, as a part of the client's trace if the
// call tells of one.
func (t *traces) begin(ctx context.Context, run *running) *buildTrace {
	if !run.record.Recorded() && t.collector == nil {
		return nil
	}
	parent := trace.SpanContextFromContext(incomingTrace(ctx))
	b := &buildTrace{
		traces: t, ref: run.ref, record: run.record.Recorded(), id: parent.TraceID(), done: make(chan struct{}),
		moments: map[digest.Digest][]sdktrace.Event{},
	}
	if !parent.IsValid() {
		_, _ = rand.Read(b.id[:]) // never fails
	}
	b.root = tracetest.SpanStub{
		Name: "moby.buildkit.v1.Control/Solve", SpanKind: trace.SpanKindServer, Parent: parent, StartTime: time.Now(),
		SpanContext: b.newSpan(), Resource: t.resource, InstrumentationScope: instrumentation.Scope{Name: tracer},
		Attributes: []attribute.KeyValue{attribute.String("build.ref", run.ref)},
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.byID[b.id] = append(t.byID[b.id], b)
	return b
}

// incomingTrace returns a context with the span that a call belongs to, as
// W3C's header traceparent says.
func incomingTrace(ctx context.Context) context.Context {
	md, _ := metadata.FromIncomingContext(ctx)
	carrier := propagation.MapCarrier{}
	for _, key := range []string{"traceparent", "tracestate"} {
		if v := md.Get(key); len(v) > 0 {
			carrier[key] = v[0]
		}
	}
	return propagation.TraceContext{}.Extract(ctx, carrier)
}

// step is the span of a step. Its id follows from the step, so that the step's
// process can be told of it before it has begun.
func (b *buildTrace) step(vertex digest.Digest) trace.SpanContext {
	sum := sha256.Sum256([]byte(b.id.String() + b.root.SpanContext.SpanID().String() + string(vertex)))
	return b.span(trace.SpanID(sum[:8]))
}

// parent is the span that the spans of a step's process are part of, as
// traceparent; a process of no step is part of the build itself.
func (b *buildTrace) parent(vertex digest.Digest) string {
	if b == nil {
		return ""
	}
	of := b.root.SpanContext
	if vertex != "" {
		of = b.step(vertex)
	}
	return fmt.Sprintf("00-%s-%s-%s", of.TraceID(), of.SpanID(), of.TraceFlags())
}

func (b *buildTrace) newSpan() trace.SpanContext {
	var id trace.SpanID
	_, _ = rand.Read(id[:]) // never fails
	return b.span(id)
}

func (b *buildTrace) span(id trace.SpanID) trace.SpanContext {
	return trace.NewSpanContext(trace.SpanContextConfig{TraceID: b.id, SpanID: id, TraceFlags: trace.FlagsSampled})
}

// vertex adds the span of a step that has ended.
func (b *buildTrace) vertex(v *progress.Vertex) {
	if b == nil {
		return
	}
	s := tracetest.SpanStub{
		Name: v.Name, SpanKind: trace.SpanKindInternal, SpanContext: b.step(v.Digest), Parent: b.root.SpanContext,
		StartTime: *v.Completed, EndTime: *v.Completed, Resource: b.root.Resource, InstrumentationScope: b.root.InstrumentationScope,
		Attributes: []attribute.KeyValue{attribute.String("vertex", string(v.Digest)), attribute.Bool("cached", v.Cached)},
	}
	if v.Started != nil {
		s.StartTime = *v.Started
	}
	if v.Error != "" {
		s.Status = sdktrace.Status{Code: codes.Error, Description: v.Error}
	}
	b.mu.Lock()
	s.Events = b.moments[v.Digest]
	delete(b.moments, v.Digest)
	b.mu.Unlock()
	b.add(s, len(s.Name)+len(v.Error))
	b.traces.collect(s)
}

// moment keeps an event for the span of its step.
func (b *buildTrace) moment(m *progress.Moment) {
	if b == nil {
		return
	}
	e := sdktrace.Event{Name: m.Name, Time: m.Time}
	if m.ExitCode != nil {
		e.Attributes = []attribute.KeyValue{attribute.Int("exit.code", *m.ExitCode)}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.moments[m.Vertex] = append(b.moments[m.Vertex], e)
}

// add keeps a span of about so many bytes, if there is room.
func (b *buildTrace) add(s tracetest.SpanStub, size int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.record && len(b.spans) < mostSpans && b.size+size <= mostSpanBytes {
		b.spans = append(b.spans, s)
		b.size += size
	}
}

func (t *traces) collect(s tracetest.SpanStub) {
	if t.collector != nil {
		t.collector.OnEnd(s.Snapshot())
	}
}

// end notes that a build has ended. Its spans go to its record when the client
// has had time to send its own.
func (t *traces) end(run *running, err error) {
	b := run.events.trace
	if b == nil {
		return
	}
	b.root.EndTime = time.Now()
	if err != nil {
		b.root.Status = sdktrace.Status{Code: codes.Error, Description: err.Error()}
	}
	b.add(b.root, 0)
	t.collect(b.root)
	t.mu.Lock()
	defer t.mu.Unlock()
	if !b.record {
		t.forget(b)
		return
	}
	t.ended[b.ref] = b
	b.timer = time.AfterFunc(waitSpans, func() { t.store(b) })
	if t.queue = append(t.queue, b); len(t.queue) > maxWaiting {
		first := t.queue[0]
		t.queue = slices.Delete(t.queue, 0, 1)
		if first.timer.Stop() {
			go t.store(first)
		}
	}
}

// forget drops what is known of a build. The caller holds t.mu.
func (t *traces) forget(b *buildTrace) {
	var rest []*buildTrace
	for _, other := range t.byID[b.id] {
		if other != b {
			rest = append(rest, other)
		}
	}
	if t.byID[b.id] = rest; len(rest) == 0 {
		delete(t.byID, b.id)
	}
	if t.ended[b.ref] == b {
		delete(t.ended, b.ref)
	}
}

// store moves the spans of an ended build to its record.
func (t *traces) store(b *buildTrace) {
	t.mu.Lock()
	t.forget(b)
	t.mu.Unlock()
	b.mu.Lock()
	spans := b.spans
	b.spans = nil
	b.mu.Unlock()
	defer close(b.done)
	var data bytes.Buffer
	enc := json.NewEncoder(&data)
	enc.SetIndent("", "  ")
	for _, s := range spans {
		if err := enc.Encode(s); err != nil {
			slog.Error("encode span", "ref", b.ref, "span", s.Name, "error", err)
		}
	}
	err := t.history.AttachTrace(b.ref, history.Blob{MediaType: history.MediaTypeTrace, Data: data.Bytes()})
	if err != nil && !errors.Is(err, history.ErrNotFound) { // it may have been deleted meanwhile
		slog.Error("keep trace", "ref", b.ref, "error", err)
	}
}

// finalize returns when the spans of an ended build are with its record.
func (t *traces) finalize(ctx context.Context, ref string) error {
	t.mu.Lock()
	b := t.ended[ref]
	t.mu.Unlock()
	if b == nil {
		return nil
	}
	if b.timer.Stop() {
		t.store(b)
	}
	select {
	case <-b.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// close moves all spans to where they go, at once.
func (t *traces) close(ctx context.Context) error {
	t.mu.Lock()
	var refs []string
	for ref := range t.ended {
		refs = append(refs, ref)
	}
	t.mu.Unlock()
	var errs []error
	for _, ref := range refs {
		errs = append(errs, t.finalize(ctx, ref))
	}
	if t.collector != nil {
		errs = append(errs, t.collector.Shutdown(ctx))
	}
	return errors.Join(errs...)
}
