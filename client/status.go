package client

import (
	"time"

	digest "github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/llb/pb"
)

// What a build tells while it runs.
type (
	// Event is one piece of news: one of its fields is set.
	Event = progress.Event
	// Sink takes events; a nil Sink forgets them.
	Sink = progress.Sink
	// Vertex tells of a step's state.
	Vertex = progress.Vertex
	// VertexStatus tells of a part of a step, such as one layer of a pull.
	VertexStatus = progress.Status
	// VertexLog is output of a step.
	VertexLog = progress.Log
	// VertexWarning is a remark on a step.
	VertexWarning = progress.Warning
)

// emit hands a message of the status stream over. What
// the message tells of a step comes before the step's end, although the message
// may list the end first.
func emit(sink Sink, r *control.StatusResponse) {
	if sink == nil {
		return
	}
	last := map[string]int{}
	for i, v := range r.GetVertexes() {
		last[v.GetDigest()] = i
	}
	var ends []*control.Vertex
	for i, v := range r.GetVertexes() {
		if v.GetCompleted() != nil && last[v.GetDigest()] == i {
			ends = append(ends, v)
			continue
		}
		sink.Emit(Event{Vertex: vertex(v)})
	}
	emitParts(sink, r)
	for _, v := range ends {
		sink.Emit(Event{Vertex: vertex(v)})
	}
}

// emitParts hands over all but the steps.
func emitParts(sink Sink, r *control.StatusResponse) {
	for _, s := range r.GetStatuses() {
		sink.Emit(Event{Status: &progress.Status{
			ID: s.GetID(), Vertex: digest.Digest(s.GetVertex()), Name: s.GetName(),
			Current: s.GetCurrent(), Total: s.GetTotal(), Timestamp: s.GetTimestamp().AsTime(),
			Started: moment(s.GetStarted()), Completed: moment(s.GetCompleted()),
		}})
	}
	for _, l := range r.GetLogs() {
		sink.Emit(Event{Log: &progress.Log{
			Vertex: digest.Digest(l.GetVertex()), Stream: int(l.GetStream()),
			Data: l.GetMsg(), Timestamp: l.GetTimestamp().AsTime(),
		}})
	}
	for _, w := range r.GetWarnings() {
		sink.Emit(Event{Warning: &progress.Warning{
			Vertex: digest.Digest(w.GetVertex()), Level: int(w.GetLevel()),
			Short: w.GetShort(), Detail: w.GetDetail(), URL: w.GetUrl(),
			Source: source(w.GetInfo(), w.GetRanges()),
		}})
	}
}

func vertex(v *control.Vertex) *progress.Vertex {
	out := &progress.Vertex{
		Digest: digest.Digest(v.GetDigest()), Name: v.GetName(), Cached: v.GetCached(), Error: v.GetError(),
		Started: moment(v.GetStarted()), Completed: moment(v.GetCompleted()),
	}
	for _, in := range v.GetInputs() {
		out.Inputs = append(out.Inputs, digest.Digest(in))
	}
	if g := v.GetProgressGroup(); g != nil {
		out.Group = &progress.Group{ID: g.GetId(), Name: g.GetName(), Weak: g.GetWeak()}
	}
	return out
}

func moment(t *timestamppb.Timestamp) *time.Time {
	if t == nil {
		return nil
	}
	m := t.AsTime()
	return &m
}

func source(info *pb.SourceInfo, ranges []*pb.Range) *progress.Source {
	if info == nil {
		return nil
	}
	s := &progress.Source{Filename: info.GetFilename(), Language: info.GetLanguage(), Data: info.GetData()}
	for _, r := range ranges {
		s.Ranges = append(s.Ranges, progress.Range{
			StartLine: int(r.GetStart().GetLine()), StartChar: int(r.GetStart().GetCharacter()),
			EndLine: int(r.GetEnd().GetLine()), EndChar: int(r.GetEnd().GetCharacter()),
		})
	}
	return s
}
