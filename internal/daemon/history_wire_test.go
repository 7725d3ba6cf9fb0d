package daemon

import (
	"errors"
	"slices"
	"testing"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/history"
	"github.com/kiln-build/kiln/internal/store"
)

// The history writes the messages that clients are sent of records by itself. They
// say what generated code says of the same records, and nothing else.
func TestHistoryMessages(t *testing.T) {
	root := t.TempDir()
	db, err := store.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	h, err := history.Open(root+"/history", db, history.DefaultRetention())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	heard := func() (all []*control.BuildHistoryEvent) {
		t.Helper()
		err := h.Listen(t.Context(), history.ListenOptions{EarlyExit: true}, func(e history.Event) error {
			data, err := proto.Marshal(historyEvent(e))
			m := &control.BuildHistoryEvent{}
			all = append(all, m)
			return errors.Join(err, proto.Unmarshal(data, m))
		})
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	fullBuild(t, h)
	bare, err := h.Begin(history.Record{Ref: "bare"}, false)
	if err != nil {
		t.Fatal(err)
	}
	started := heard()
	if len(started) != 2 || started[0].Type != control.BuildHistoryEventType_STARTED {
		t.Fatalf("told %v of a build that has begun and of one that has ended", started)
	}
	same := func(e *control.BuildHistoryEvent) {
		t.Helper()
		r, err := h.Get(e.GetRecord().GetRef())
		if err != nil {
			t.Fatal(err)
		}
		if want := (&control.BuildHistoryEvent{Type: control.BuildHistoryEventType_COMPLETE, Record: wireRecord(r)}); !proto.Equal(e, want) {
			t.Errorf("told %v\nwant %v", e, want)
		}
	}
	same(started[1]) // as it was written; later it has been read and written again
	begun := started[0].Record
	if want := (&control.BuildHistoryRecord{Ref: "bare", CreatedAt: begun.CreatedAt}); begun.CreatedAt.AsTime().Before(time.Now().Add(-time.Hour)) || !proto.Equal(begun, want) {
		t.Errorf("told %v of a build that has begun", begun)
	}
	if err := bare.End(history.Outcome{}); err != nil {
		t.Error(err)
	}
	bare.Release()
	if err := errors.Join(h.Pin("full", true), h.Pin("bare", true), h.Pin("bare", false)); err != nil {
		t.Error(err)
	}
	ended := heard()
	if len(ended) != 2 {
		t.Fatalf("told %v of two builds", ended)
	}
	for _, e := range ended {
		same(e)
	}
}

// fullBuild makes a record that has something in each field.
func fullBuild(t *testing.T, h *history.History) {
	t.Helper()
	b, err := h.Begin(history.Record{
		Ref: "full", Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{"filename": "Dockerfile", "": "x", "empty": ""},
		Exporters: []history.Exporter{{Type: "image", Attrs: map[string]string{"name": "a", "push": "true"}}, {}},
	}, false)
	if err != nil {
		t.Fatal(err)
	}
	b.Log().Append([]byte("\x0a\x00"))
	blob := func(text string) history.Blob {
		return history.Blob{MediaType: history.MediaTypeAttestation, Annotations: map[string]string{history.PredicateType: text}, Data: []byte(text)}
	}
	image := ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageIndex, Digest: ocispecs.DescriptorEmptyJSON.Digest, Size: 1 << 40}
	err = errors.Join(
		h.AttachAttestation("full", "", blob("provenance")), h.AttachAttestation("full", "linux/arm64", blob("sbom")),
		h.AttachAttestation("full", "linux/arm64", blob("provenance")), h.AttachDocument("full", blob("document")),
		h.AttachCacheReasons("full", blob("reasons")), h.AttachTrace("full", blob("trace")),
		h.SetImage("full", "", 2, image), h.SetImage("full", "", 1, ocispecs.DescriptorEmptyJSON), h.SetImage("full", "linux/arm64", 0, image),
		b.End(history.Outcome{
			Failure: &history.Failure{Code: 2, Message: "it broke"}, Error: []byte("details"),
			ExporterResponse: map[string]string{"containerimage.digest": string(image.Digest)},
			Steps:            history.Steps{Cached: 1, Completed: 2, Total: 300, Warnings: 4},
		}))
	if err != nil {
		t.Fatal(err)
	}
	b.Release()
}

// wireRecord is what clients are to be told of a record.
func wireRecord(r *history.Record) *control.BuildHistoryRecord {
	w := &control.BuildHistoryRecord{
		Ref: r.Ref, Frontend: r.Frontend, FrontendAttrs: r.FrontendAttrs,
		Logs: wireDescriptor(r.Logs), Trace: wireDescriptor(r.Trace), ExternalError: wireDescriptor(r.Error),
		ExporterResponse: r.ExporterResponse, Generation: int32(r.Generation), Pinned: r.Pinned,
		NumCachedSteps: int32(r.Steps.Cached), NumTotalSteps: int32(r.Steps.Total),
		NumCompletedSteps: int32(r.Steps.Completed), NumWarnings: int32(r.Steps.Warnings),
	}
	if !r.CreatedAt.IsZero() {
		w.CreatedAt = timestamppb.New(r.CreatedAt)
	}
	if !r.CompletedAt.IsZero() {
		w.CompletedAt = timestamppb.New(r.CompletedAt)
	}
	for _, e := range r.Exporters {
		w.Exporters = append(w.Exporters, &control.Exporter{Type: e.Type, Attrs: e.Attrs})
	}
	if f := r.Failure; f != nil {
		w.Error = &rpcstatus.Status{Code: int32(f.Code), Message: f.Message}
	}
	if r.Result != nil {
		w.Result = wireResult(*r.Result)
	}
	if r.CacheReasons != nil && w.Logs != nil { // BuildKit's record has no place of its own for it
		w.Logs.Annotations = map[string]string{"kiln.cache-reasons": string(r.CacheReasons.Digest)}
	}
	for platform, res := range r.Results {
		if w.Results == nil {
			w.Results = map[string]*control.BuildResultInfo{}
		}
		w.Results[platform] = wireResult(res)
	}
	return w
}

func wireResult(r history.Result) *control.BuildResultInfo {
	w := &control.BuildResultInfo{}
	for _, d := range r.Attestations {
		w.Attestations = append(w.Attestations, wireDescriptor(&d))
	}
	var exporters []int
	for i, d := range r.Images {
		if w.Results == nil {
			w.Results = map[int64]*control.Descriptor{}
		}
		w.Results[int64(i)] = wireDescriptor(&d)
		exporters = append(exporters, i)
	}
	if len(exporters) > 0 { // for old clients, which know one exporter
		first := r.Images[slices.Min(exporters)]
		w.ResultDeprecated = wireDescriptor(&first)
	}
	return w
}

func wireDescriptor(d *ocispecs.Descriptor) *control.Descriptor {
	if d == nil {
		return nil
	}
	return &control.Descriptor{MediaType: d.MediaType, Digest: string(d.Digest), Size: d.Size, Annotations: d.Annotations}
}
