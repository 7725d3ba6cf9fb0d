package daemon

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kiln-build/kiln/internal/api/kiln"
	"github.com/kiln-build/kiln/internal/history"
)

// kilnService is kiln.v1.Kiln: what BuildKit's API has no place for.
type kilnService struct{ *Server }

// Why tells why steps of a build ran.
func (s *kilnService) Why(_ context.Context, r *kiln.WhyRequest) (*kiln.WhyResponse, error) {
	ref := r.GetRef()
	if ref == "" {
		if ref = s.config.History.Last(); ref == "" {
			return nil, status.Error(codes.NotFound, "no build is recorded yet")
		}
	}
	rec, err := s.config.History.Get(ref)
	if err != nil {
		return nil, err
	}
	steps, err := s.config.History.StepsOf(ref)
	if err != nil {
		return nil, err
	}
	resp := &kiln.WhyResponse{Ref: ref, Stats: &kiln.CacheStats{
		Steps: int64(rec.Cache.Steps), Hits: int64(rec.Cache.Hits), SavedBytes: rec.Cache.SavedBytes, SavedNanoseconds: int64(rec.Cache.SavedTime),
	}}
	for i, st := range steps {
		w := &kiln.Step{
			Number: int32(i + 1), Name: st.Name, Key: st.Key, Reason: st.Reason, Differences: wireDifferences(st.Differences),
			ComparedWith: st.Near, Nanoseconds: int64(st.Took), Outcome: kiln.Outcome_NOT_NEEDED,
		}
		switch {
		case uncached(st) && st.Ran:
			w.Outcome = kiln.Outcome_EVERY_BUILD
		case st.Ran && !st.Made:
			w.Outcome = kiln.Outcome_FAILED
		case st.Ran:
			w.Outcome = kiln.Outcome_RAN
		case st.Cached:
			w.Outcome = kiln.Outcome_CACHED
		}
		resp.Steps = append(resp.Steps, w)
	}
	return resp, nil
}

// Leave ends the daemon for one of another version to come, if nobody needs it. One
// that was started to stay does: whoever keeps it will start it anew.
func (s *kilnService) Leave(_ context.Context, r *kiln.LeaveRequest) (*kiln.LeaveResponse, error) {
	meant := r.GetVersion() == s.config.Version && r.GetRevision() == s.config.Revision
	if !meant || s.config.IdleTimeout == 0 || !s.unused(time.Nanosecond) {
		return &kiln.LeaveResponse{}, nil
	}
	select {
	case s.leaving <- struct{}{}:
	default: // it does already
	}
	return &kiln.LeaveResponse{Leaving: true}, nil
}

func wireDifferences(ds []history.Difference) (out []*kiln.Difference) {
	for _, d := range ds {
		out = append(out, &kiln.Difference{Kind: d.Kind, Name: d.Name, Was: d.Was, Now: d.Now, Step: d.Step, Sentence: d.Sentence()})
	}
	return out
}

// ListCache tells of all steps that the cache knows.
func (s *kilnService) ListCache(r *kiln.ListCacheRequest, stream grpc.ServerStreamingServer[kiln.CacheRecord]) error {
	all, err := s.config.Ledger.List(r.GetFilter())
	if err != nil {
		return err
	}
	for _, k := range all {
		w := s.wireKnown(k)
		w.Parts, w.Inputs = nil, nil // ShowCache tells them
		if err := stream.Send(w); err != nil {
			return err
		}
	}
	return nil
}

// ShowCache tells all that the cache knows of one step.
func (s *kilnService) ShowCache(_ context.Context, r *kiln.ShowCacheRequest) (*kiln.CacheRecord, error) {
	k, err := s.findStep(r.GetKey())
	if err != nil {
		return nil, err
	}
	return s.wireKnown(k), nil
}

// DiffCache compares the keys of two steps.
func (s *kilnService) DiffCache(_ context.Context, r *kiln.DiffCacheRequest) (*kiln.DiffCacheResponse, error) {
	a, err := s.findStep(r.GetA())
	if err != nil {
		return nil, err
	}
	b, err := s.findStep(r.GetB())
	if err != nil {
		return nil, err
	}
	return &kiln.DiffCacheResponse{
		A: s.wireKnown(a), B: s.wireKnown(b), Differences: wireDifferences(s.config.Ledger.Compare(a.Key, b.Key)),
	}, nil
}

func (s *kilnService) findStep(key string) (history.Known, error) {
	k, err := s.config.Ledger.Find(key)
	if errors.Is(err, history.ErrAmbiguous) {
		err = status.Error(codes.InvalidArgument, err.Error())
	}
	return k, err
}

func (s *kilnService) wireKnown(k history.Known) *kiln.CacheRecord {
	w := &kiln.CacheRecord{
		Key: k.Key, Name: k.Name, Operation: k.Operation, Kept: k.Kept, Size: k.Size, Nanoseconds: int64(k.Took),
		MadeAt: timestamppb.New(k.MadeAt), Build: k.Build, EvictedBy: k.EvictedBy,
	}
	if !k.Kept && !k.EvictedAt.IsZero() {
		w.EvictedAt = timestamppb.New(k.EvictedAt)
	}
	for _, p := range k.Parts {
		w.Parts = append(w.Parts, &kiln.Part{Kind: p.Kind, Name: p.Name, Value: p.Value})
	}
	for _, in := range k.Inputs {
		i := &kiln.Input{Key: in.Key, Selector: in.Selector, Content: in.Content}
		if st, ok := s.config.Ledger.Get(in.Key); ok {
			i.Name = st.Name
		}
		if files, ok := s.config.Ledger.Files(in.Content); ok {
			i.Files = int32(len(files.Files))
		}
		w.Inputs = append(w.Inputs, i)
	}
	for _, o := range k.Outputs {
		w.Outputs = append(w.Outputs, &kiln.Output{Layer: o.Layer, Absent: o.Absent, Size: s.config.Ledger.LayerSize(o.Layer)})
	}
	return w
}
