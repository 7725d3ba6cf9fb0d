package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/client"
)

// historyEvent is news of a build, as templates and JSON have it: the fields are
// those of the message on the wire.
type historyEvent struct {
	Type   eventType      `json:"type,omitempty"`
	Record *historyRecord `json:"record,omitempty"`
}

// eventType is a number in JSON, and a word elsewhere.
type eventType int32

func (t eventType) String() string {
	return string([]client.HistoryEventType{client.HistoryStarted, client.HistoryComplete, client.HistoryDeleted}[t])
}

type historyRecord struct {
	Ref               string                 `json:"Ref,omitempty"`
	Frontend          string                 `json:"Frontend,omitempty"`
	FrontendAttrs     map[string]string      `json:"FrontendAttrs,omitempty"`
	Exporters         []exporterInfo         `json:"Exporters,omitempty"`
	Error             *statusInfo            `json:"error,omitempty"`
	CreatedAt         *timestamp             `json:"CreatedAt,omitempty"`
	CompletedAt       *timestamp             `json:"CompletedAt,omitempty"`
	Logs              *blobInfo              `json:"logs,omitempty"`
	ExporterResponse  map[string]string      `json:"ExporterResponse,omitempty"`
	Result            *resultInfo            `json:"Result,omitempty"`
	Results           map[string]*resultInfo `json:"Results,omitempty"`
	Generation        int32                  `json:"Generation,omitempty"`
	Trace             *blobInfo              `json:"trace,omitempty"`
	Pinned            bool                   `json:"pinned,omitempty"`
	NumCachedSteps    int32                  `json:"numCachedSteps,omitempty"`
	NumTotalSteps     int32                  `json:"numTotalSteps,omitempty"`
	NumCompletedSteps int32                  `json:"numCompletedSteps,omitempty"`
	ExternalError     *blobInfo              `json:"externalError,omitempty"`
	NumWarnings       int32                  `json:"numWarnings,omitempty"`
}

type exporterInfo struct {
	Type  string            `json:"Type,omitempty"`
	Attrs map[string]string `json:"Attrs,omitempty"`
}

type statusInfo struct {
	Code    int32  `json:"code,omitempty"`
	Message string `json:"message,omitempty"`
}

// timestamp is a moment since 1970.
type timestamp struct {
	Seconds int64 `json:"seconds,omitempty"`
	Nanos   int32 `json:"nanos,omitempty"`
}

// AsTime is for templates. A moment that there is not is 1970, as in messages.
func (t *timestamp) AsTime() time.Time {
	if t == nil {
		return time.Unix(0, 0).UTC()
	}
	return time.Unix(t.Seconds, int64(t.Nanos)).UTC()
}

type resultInfo struct {
	ResultDeprecated *blobInfo           `json:"ResultDeprecated,omitempty"`
	Attestations     []*blobInfo         `json:"Attestations,omitempty"`
	Results          map[int64]*blobInfo `json:"Results,omitempty"`
}

type blobInfo struct {
	MediaType   string            `json:"media_type,omitempty"`
	Digest      string            `json:"digest,omitempty"`
	Size        int64             `json:"size,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// String is the text form of a message.
func (b *blobInfo) String() string {
	fields := []string{fmt.Sprintf("media_type:%q", b.MediaType), fmt.Sprintf("digest:%q", b.Digest), fmt.Sprintf("size:%d", b.Size)}
	for _, k := range slices.Sorted(maps.Keys(b.Annotations)) {
		fields = append(fields, fmt.Sprintf("annotations:{key:%q  value:%q}", k, b.Annotations[k]))
	}
	return strings.Join(fields, "  ")
}

func historyEventOf(e client.HistoryEvent) *historyEvent {
	out := &historyEvent{}
	switch e.Type {
	case client.HistoryComplete:
		out.Type = 1
	case client.HistoryDeleted:
		out.Type = 2
	}
	r := e.Record
	if r == nil {
		return out
	}
	out.Record = &historyRecord{
		Ref: r.Ref, Frontend: r.Frontend, FrontendAttrs: r.FrontendAttrs, CreatedAt: timestampOf(r.Created),
		CompletedAt: timestampOf(r.Completed), Logs: blobOf(r.Logs), ExporterResponse: r.ExporterResponse, Result: resultOf(r.Result),
		Generation: int32(r.Generation), Trace: blobOf(r.Trace), Pinned: r.Pinned, NumCachedSteps: int32(r.CachedSteps),
		NumTotalSteps: int32(r.TotalSteps), NumCompletedSteps: int32(r.CompletedSteps), ExternalError: blobOf(r.ExternalError),
		NumWarnings: int32(r.Warnings),
	}
	if r.Err != nil {
		out.Record.Error = &statusInfo{int32(r.Err.Code), r.Err.Message}
	}
	for _, x := range r.Exports {
		out.Record.Exporters = append(out.Record.Exporters, exporterInfo{x.Type, x.Attrs})
	}
	for platform, result := range r.Results {
		if out.Record.Results == nil {
			out.Record.Results = map[string]*resultInfo{}
		}
		out.Record.Results[platform] = resultOf(result)
	}
	return out
}

func timestampOf(t time.Time) *timestamp {
	if t.IsZero() {
		return nil
	}
	return &timestamp{t.Unix(), int32(t.Nanosecond())}
}

func blobOf(d *ocispecs.Descriptor) *blobInfo {
	if d == nil {
		return nil
	}
	return &blobInfo{d.MediaType, string(d.Digest), d.Size, d.Annotations}
}

func resultOf(r *client.ResultInfo) *resultInfo {
	if r == nil {
		return nil
	}
	out := &resultInfo{ResultDeprecated: blobOf(r.Deprecated)}
	for i, d := range r.Descriptors {
		if out.Results == nil {
			out.Results = map[int64]*blobInfo{}
		}
		out.Results[i] = blobOf(&d)
	}
	for _, a := range r.Attestations {
		out.Attestations = append(out.Attestations, blobOf(&a))
	}
	return out
}
