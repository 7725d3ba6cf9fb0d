package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/control"
)

// HistoryOpt says which builds to tell of.
type HistoryOpt struct {
	ActiveOnly bool   // only those under way
	Ref        string // only this one
	// EarlyExit ends after those that there are; else news follow until the context
	// ends.
	EarlyExit bool
	// Filters select builds; one must match (BuildKit's api/services/control).
	Filters []string
	Limit   int // the newest so many; 0 is all
}

// HistoryEventType is what happened to a build.
type HistoryEventType string

// The events.
const (
	HistoryStarted  HistoryEventType = "STARTED"
	HistoryComplete HistoryEventType = "COMPLETE"
	HistoryDeleted  HistoryEventType = "DELETED"
)

// HistoryEvent is news of a build.
type HistoryEvent struct {
	Type   HistoryEventType
	Record *BuildRecord
}

// BuildRecord is what a daemon remembers of a build.
type BuildRecord struct {
	Ref              string
	Frontend         string
	FrontendAttrs    map[string]string
	Exports          []Export // Type and Attrs
	Err              *Error   // nil if it succeeded, or is under way
	Created          time.Time
	Completed        time.Time // zero while it is under way
	ExporterResponse map[string]string
	Result           *ResultInfo            // of a build for one platform
	Results          map[string]*ResultInfo // of others, by platform
	Generation       int                    // counts its changes
	Pinned           bool                   // it is never removed by itself
	// These are blobs, for [Client.OpenBlob]; nil is none. Logs hold the status of
	// the build, Trace its spans, ExternalError the error with all details.
	Logs, Trace, ExternalError *ocispecs.Descriptor
	CachedSteps, CompletedSteps, TotalSteps,
	Warnings int
}

// ResultInfo is what a build made.
type ResultInfo struct {
	// Descriptors are of images, by the number of the exporter.
	Descriptors map[int64]ocispecs.Descriptor
	// Deprecated is what old daemons tell in place of Descriptors.
	Deprecated   *ocispecs.Descriptor
	Attestations []ocispecs.Descriptor
}

// ListenBuildHistory calls f for each build, and for the news that follow.
func (c *Client) ListenBuildHistory(ctx context.Context, opt HistoryOpt, f func(HistoryEvent) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.control.ListenBuildHistory(ctx, &control.BuildHistoryRequest{
		ActiveOnly: opt.ActiveOnly, Ref: opt.Ref, EarlyExit: opt.EarlyExit, Filter: opt.Filters, Limit: int32(opt.Limit),
	})
	if err != nil {
		return c.wrap(err)
	}
	for {
		e, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return c.wrap(err)
		}
		if err := f(HistoryEvent{Type: HistoryEventType(e.GetType().String()), Record: buildRecord(e.GetRecord())}); err != nil {
			return err
		}
	}
}

// HistoryUpdate changes a record.
type HistoryUpdate struct {
	Ref    string
	Pinned bool // unless one of the others is set
	Delete bool
	// Finalize waits until all that belongs to the record is stored.
	Finalize bool
}

// UpdateBuildHistory changes a record.
func (c *Client) UpdateBuildHistory(ctx context.Context, u HistoryUpdate) error {
	_, err := c.control.UpdateBuildHistory(ctx, &control.UpdateBuildHistoryRequest{
		Ref: u.Ref, Pinned: u.Pinned, Delete: u.Delete, Finalize: u.Finalize,
	})
	return c.wrap(err)
}

// OpenBlob opens a blob that a record of a build names. It must be closed.
func (c *Client) OpenBlob(ctx context.Context, desc ocispecs.Descriptor) (content.ReaderAt, error) {
	r, err := proxy.NewContentStore(c.conn).ReaderAt(ctx, desc)
	if err != nil {
		return nil, fmt.Errorf("open blob %s: %w", desc.Digest, err)
	}
	return r, nil
}

// Status sends a build's progress to sink, from start to end, whether it is under
// way or has ended.
func (c *Client) Status(ctx context.Context, ref string, sink Sink) error {
	return c.wrap(c.follow(ctx, ref, sink, make(chan struct{}, 1)))
}

func buildRecord(r *control.BuildHistoryRecord) *BuildRecord {
	if r == nil {
		return nil
	}
	out := &BuildRecord{
		Ref: r.GetRef(), Frontend: r.GetFrontend(), FrontendAttrs: r.GetFrontendAttrs(),
		ExporterResponse: r.GetExporterResponse(), Result: resultInfo(r.GetResult()), Generation: int(r.GetGeneration()),
		Pinned: r.GetPinned(), Logs: descriptor(r.GetLogs()), Trace: descriptor(r.GetTrace()), ExternalError: descriptor(r.GetExternalError()),
		CachedSteps: int(r.GetNumCachedSteps()), CompletedSteps: int(r.GetNumCompletedSteps()),
		TotalSteps: int(r.GetNumTotalSteps()), Warnings: int(r.GetNumWarnings()),
	}
	if t := r.GetCreatedAt(); t != nil {
		out.Created = t.AsTime()
	}
	if t := r.GetCompletedAt(); t != nil {
		out.Completed = t.AsTime()
	}
	if e := r.GetError(); e != nil && codes.Code(e.GetCode()) != codes.OK {
		if decoded := new(Error); errors.As(decodeError(status.FromProto(e)), &decoded) {
			out.Err = decoded
		}
	}
	for _, x := range r.GetExporters() {
		out.Exports = append(out.Exports, Export{Type: x.GetType(), Attrs: x.GetAttrs()})
	}
	for platform, info := range r.GetResults() {
		if out.Results == nil {
			out.Results = map[string]*ResultInfo{}
		}
		out.Results[platform] = resultInfo(info)
	}
	return out
}

func resultInfo(r *control.BuildResultInfo) *ResultInfo {
	if r == nil {
		return nil
	}
	out := &ResultInfo{Deprecated: descriptor(r.GetResultDeprecated())}
	for i, d := range r.GetResults() {
		if out.Descriptors == nil {
			out.Descriptors = map[int64]ocispecs.Descriptor{}
		}
		out.Descriptors[i] = *descriptor(d)
	}
	for _, a := range r.GetAttestations() {
		out.Attestations = append(out.Attestations, *descriptor(a))
	}
	return out
}

func descriptor(d *control.Descriptor) *ocispecs.Descriptor {
	if d == nil {
		return nil
	}
	return &ocispecs.Descriptor{
		MediaType: d.GetMediaType(), Digest: digest.Digest(d.GetDigest()), Size: d.GetSize(), Annotations: d.GetAnnotations(),
	}
}
