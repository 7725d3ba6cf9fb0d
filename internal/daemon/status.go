package daemon

import (
	"strings"
	"time"

	digest "github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/llb/pb"
)

// statusResponse makes a message of an event.
func statusResponse(e progress.Event) *control.StatusResponse {
	m := &control.StatusResponse{}
	switch {
	case e.Vertex != nil:
		m.Vertexes = []*control.Vertex{wireVertex(e.Vertex)}
	case e.Status != nil:
		m.Statuses = []*control.VertexStatus{wireStatus(e.Status)}
	case e.Log != nil:
		m.Logs = []*control.VertexLog{{
			Vertex: string(e.Log.Vertex), Timestamp: timestamppb.New(e.Log.Timestamp), Stream: int64(e.Log.Stream), Msg: e.Log.Data,
		}}
	case e.Warning != nil:
		m.Warnings = []*control.VertexWarning{wireWarning(e.Warning)}
	}
	return m
}

// shorten cuts what makes an event too large for a message.
func shorten(e progress.Event) progress.Event {
	cut := func(s string) string { return s[:min(len(s), mostText)] }
	switch {
	case e.Vertex != nil:
		v := *e.Vertex
		v.Name, v.Error = cut(v.Name), cut(v.Error)
		e.Vertex = &v
	case e.Status != nil:
		s := *e.Status
		s.ID, s.Name = cut(s.ID), cut(s.Name)
		e.Status = &s
	case e.Warning != nil:
		w := *e.Warning
		w.Short, w.Detail, w.Source = w.Short[:min(len(w.Short), mostText)], nil, nil
		e.Warning = &w
	}
	return e
}

// validText makes the texts of a message UTF-8, as the wire wants them.
func validText(m *control.StatusResponse) *control.StatusResponse {
	valid := func(texts ...*string) {
		for _, t := range texts {
			*t = strings.ToValidUTF8(*t, "\uFFFD")
		}
	}
	for _, v := range m.Vertexes {
		valid(&v.Name, &v.Error, &v.Digest)
		if g := v.ProgressGroup; g != nil {
			valid(&g.Id, &g.Name)
		}
	}
	for _, s := range m.Statuses {
		valid(&s.ID, &s.Name)
	}
	for _, w := range m.Warnings {
		valid(&w.Url)
		if w.Info != nil {
			valid(&w.Info.Filename, &w.Info.Language)
		}
	}
	return m
}

func wireVertex(v *progress.Vertex) *control.Vertex {
	w := &control.Vertex{
		Digest: string(v.Digest), Inputs: digestStrings(v.Inputs), Name: v.Name, Cached: v.Cached,
		Started: wireTime(v.Started), Completed: wireTime(v.Completed), Error: v.Error,
	}
	if v.Group != nil {
		w.ProgressGroup = &pb.ProgressGroup{Id: v.Group.ID, Name: v.Group.Name, Weak: v.Group.Weak}
	}
	return w
}

func wireStatus(s *progress.Status) *control.VertexStatus {
	name := s.Name
	if name == "" && strings.HasPrefix(s.ID, "transferring ") {
		name = "transferring" // by which clients find what was sent of a directory
	}
	return &control.VertexStatus{
		ID: s.ID, Vertex: string(s.Vertex), Name: name, Current: s.Current, Total: s.Total,
		Timestamp: timestamppb.New(s.Timestamp), Started: wireTime(s.Started), Completed: wireTime(s.Completed),
	}
}

func wireWarning(w *progress.Warning) *control.VertexWarning {
	out := &control.VertexWarning{Vertex: string(w.Vertex), Level: int64(w.Level), Short: w.Short, Detail: w.Detail, Url: w.URL}
	if s := w.Source; s != nil {
		out.Info = &pb.SourceInfo{Filename: s.Filename, Data: s.Data, Language: s.Language}
		for _, r := range s.Ranges {
			out.Ranges = append(out.Ranges, wireRange(r.StartLine, r.StartChar, r.EndLine, r.EndChar))
		}
	}
	return out
}

func wireRange(startLine, startChar, endLine, endChar int) *pb.Range {
	return &pb.Range{
		Start: &pb.Position{Line: int32(startLine), Character: int32(startChar)},
		End:   &pb.Position{Line: int32(endLine), Character: int32(endChar)},
	}
}

func wireTime(t *time.Time) *timestamppb.Timestamp {
	if t == nil {
		return nil
	}
	return timestamppb.New(*t)
}

func digestStrings(ds []digest.Digest) (ss []string) {
	for _, d := range ds {
		ss = append(ss, string(d))
	}
	return ss
}
