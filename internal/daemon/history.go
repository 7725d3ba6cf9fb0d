package daemon

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/history"
)

// currentTime is the header by which clients correct for their clock.
const currentTime = "buildkit-current-timestamp"

func timeHeader() metadata.MD {
	return metadata.Pairs(currentTime, time.Now().Format(time.RFC3339Nano))
}

// begin registers the build that a request asks for, and its record.
func (s *Server) begin(ctx context.Context, r *control.SolveRequest) (*running, error) {
	room := mostRecorded
	rec := history.Record{Ref: r.Ref, FrontendAttrs: withoutPasswords(thatFit(r.FrontendAttrs, &room))}
	if len(r.Frontend) <= room {
		rec.Frontend = r.Frontend
	}
	for _, e := range exporters(r) {
		if room -= len(e.Type); room < 0 {
			break
		}
		rec.Exporters = append(rec.Exporters, history.Exporter{Type: e.Type, Attrs: thatFit(e.Attrs, &room)})
	}
	run, err := s.builds.begin(r.Ref, func() (*history.Build, error) { return s.config.History.Begin(rec, r.Internal) })
	if err != nil {
		return nil, err
	}
	run.events.trace = s.traces.begin(ctx, run)
	return run, nil
}

// finish completes the record of a build, and forgets the build.
func (s *Server) finish(run *running, response map[string]string, err error) {
	run.events.close()
	o := history.Outcome{ExporterResponse: recordedResponse(run.meta, response), Steps: run.events.steps()}
	if err != nil {
		o.Failure, o.Error = failure(err)
	}
	if err := run.record.End(o); err != nil {
		slog.Error("record build", "ref", run.ref, "error", err)
	}
	s.traces.end(run, err)
	s.metrics.built(o.Steps, time.Since(run.began), err)
	s.builds.end(run)
}

// mostRecorded bounds what a record has of a request, and of a result, bytes: all
// listings send it, and clients refuse a record that is too large, with all that follow.
const mostRecorded = 1 << 20

// recordedResponse is what a record says of the result: what the frontend said of
// it, as BuildKit has it there, and what the client was answered.
func recordedResponse(meta map[string][]byte, response map[string]string) map[string]string {
	room := mostRecorded
	answered := thatFit(response, &room)
	out := thatFit(meta, &room)
	maps.Copy(out, answered)
	return out
}

// thatFit returns the texts for which there is room, without those that are too large.
func thatFit[T ~string | ~[]byte](texts map[string]T, room *int) map[string]string {
	out := map[string]string{}
	for _, k := range slices.Sorted(maps.Keys(texts)) {
		if size := len(k) + len(texts[k]); size <= *room {
			out[k] = string(texts[k])
			*room -= size
		}
	}
	return out
}

// failure is what a record says of an error: shortly, and with all details.
func failure(err error) (*history.Failure, []byte) {
	st := status.Convert(wireError(err)).Proto()
	if errors.Is(err, context.Canceled) && !strings.Contains(st.Message, context.Canceled.Error()) {
		st = proto.CloneOf(st) // by these words a listener's filter knows a canceled build
		st.Message += ": " + context.Canceled.Error()
	}
	data, errMarshal := proto.Marshal(st)
	if errMarshal != nil { // a message that is no UTF-8
		data = nil
	}
	return &history.Failure{Code: int(st.Code), Message: strings.ToValidUTF8(st.Message, "\uFFFD")}, data
}

// noteImage has the record name what an exporter made, by what the exporter
// answers the client.
func (s *Server) noteImage(run *running, exporter int, response map[string]string) {
	data, err := base64.StdEncoding.DecodeString(response["containerimage.descriptor"])
	if err != nil || len(data) == 0 || !run.record.Recorded() {
		return // an exporter that makes no image
	}
	var d ocispecs.Descriptor
	if err = json.Unmarshal(data, &d); err == nil {
		err = d.Digest.Validate()
	}
	if err == nil {
		err = s.config.History.SetImage(run.ref, "", exporter, d)
	}
	if err != nil {
		slog.Error("record image", "ref", run.ref, "error", err)
	}
}

// keepDocument has the record keep a part of an image.
func (s *Server) keepDocument(run *running, d ocispecs.Descriptor, document []byte) {
	if !run.record.Recorded() {
		return
	}
	err := s.config.History.AttachDocument(run.ref, history.Blob{MediaType: d.MediaType, Data: document})
	if err != nil {
		slog.Error("record image", "ref", run.ref, "blob", d.Digest, "error", err)
	}
}

// Status tells of a build from its start, until it ends.
func (s *controlService) Status(r *control.StatusRequest, stream grpc.ServerStreamingServer[control.StatusResponse]) error {
	if err := stream.SendHeader(timeHeader()); err != nil {
		return err
	}
	send := func(frames [][]byte) error { return sendFrames(frames, stream.Send) }
	run := s.builds.now(r.Ref)
	if run == nil {
		err := s.config.History.Replay(stream.Context(), r.Ref, send)
		if !errors.Is(err, history.ErrNotFound) {
			return err
		}
		if run, err = s.builds.get(stream.Context(), r.Ref, waitStatus); err != nil {
			return err
		}
	}
	log, err := run.log(stream.Context())
	if err != nil {
		return err
	}
	err = log.Follow(stream.Context(), send)
	if errors.Is(err, os.ErrClosed) { // it has ended meanwhile
		return s.config.History.Replay(stream.Context(), r.Ref, send)
	}
	return err
}

// ListenBuildHistory tells of builds that were, are and begin.
func (s *controlService) ListenBuildHistory(r *control.BuildHistoryRequest, stream grpc.ServerStreamingServer[control.BuildHistoryEvent]) error {
	header := stream.SendHeader
	if r.EarlyExit {
		header = stream.SetHeader // it goes with the first answer, which comes at once
	}
	if err := header(timeHeader()); err != nil {
		return err
	}
	o := history.ListenOptions{Ref: r.Ref, ActiveOnly: r.ActiveOnly, EarlyExit: r.EarlyExit, Filters: r.Filter, Limit: int(r.Limit)}
	if _, err := history.ParseFilters(r.Filter); err != nil || r.Limit < 0 {
		if err == nil {
			err = status.Errorf(codes.InvalidArgument, "invalid limit %d", r.Limit)
		}
		return status.Error(codes.InvalidArgument, status.Convert(err).Message())
	}
	return s.config.History.Listen(stream.Context(), o, func(e history.Event) error {
		return stream.Send(historyEvent(e))
	})
}

// eventRecord is the number of the record in an event.
const eventRecord = 2

// historyEvent is an event as clients are sent it. The record, which is a message
// already, is put where fields are that this program does not know: those are
// sent as they are.
func historyEvent(e history.Event) *control.BuildHistoryEvent {
	m := &control.BuildHistoryEvent{Type: control.BuildHistoryEventType(e.Kind)}
	raw := make([]byte, 0, protowire.SizeTag(eventRecord)+protowire.SizeBytes(len(e.Message)))
	raw = protowire.AppendTag(raw, eventRecord, protowire.BytesType)
	m.ProtoReflect().SetUnknown(protowire.AppendBytes(raw, e.Message))
	return m
}

// UpdateBuildHistory pins, deletes or completes a record.
func (s *controlService) UpdateBuildHistory(ctx context.Context, r *control.UpdateBuildHistoryRequest) (*control.UpdateBuildHistoryResponse, error) {
	h := s.config.History
	var err error
	switch {
	case r.Delete:
		if err = s.traces.finalize(ctx, r.Ref); err == nil {
			err = h.Delete(r.Ref)
		}
	case r.Finalize:
		err = s.traces.finalize(ctx, r.Ref)
	default:
		err = h.Pin(r.Ref, r.Pinned)
	}
	if err != nil {
		return nil, err
	}
	return &control.UpdateBuildHistoryResponse{}, nil
}
