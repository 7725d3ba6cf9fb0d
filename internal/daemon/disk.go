package daemon

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/gc"
	"github.com/kiln-build/kiln/internal/layer"
)

// DiskUsage tells what is kept.
func (s *controlService) DiskUsage(ctx context.Context, r *control.DiskUsageRequest) (*control.DiskUsageResponse, error) {
	match, err := gc.ParseFilters(r.Filter)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	usage, err := s.config.Collector.Usage(ctx)
	if err != nil {
		return nil, err
	}
	resp := &control.DiskUsageResponse{}
	for _, u := range usage {
		young := r.AgeLimit > 0 && time.Since(u.LastUsed) < time.Duration(r.AgeLimit)
		if match(u) && !young {
			resp.Record = append(resp.Record, wireUsage(u))
		}
	}
	return resp, nil
}

// Prune deletes what nobody uses and returns when the bytes are free.
func (s *controlService) Prune(r *control.PruneRequest, stream grpc.ServerStreamingServer[control.UsageRecord]) error {
	p := gc.Policy{
		By: "by a prune", All: r.All, Filters: r.Filter, KeepFor: time.Duration(r.KeepDuration),
		MaxUsed: r.MaxUsedSpace, Reserved: r.ReservedSpace, MinFree: r.MinFreeSpace,
	}
	for name, n := range map[string]int64{
		"keepDuration": r.KeepDuration, "maxUsedSpace": r.MaxUsedSpace, "reservedSpace": r.ReservedSpace, "minFreeSpace": r.MinFreeSpace,
	} {
		if n < 0 {
			return status.Errorf(codes.InvalidArgument, "prune: %s is %d, expected at least 0", name, n)
		}
	}
	if _, err := gc.ParseFilters(p.Filters); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	s.settle(stream.Context())
	var sendErr error
	err := s.config.Collector.Run(stream.Context(), []gc.Policy{p}, func(u layer.Usage) {
		if sendErr == nil {
			sendErr = stream.Send(wireUsage(u))
		}
	})
	if err != nil {
		return err
	}
	return sendErr
}

func wireUsage(u layer.Usage) *control.UsageRecord {
	w := &control.UsageRecord{
		ID: u.ID, Mutable: u.Type == "exec.cachemount", InUse: u.InUse, Size: u.Size, CreatedAt: wireTimestamp(u.CreatedAt),
		LastUsedAt: wireTimestamp(u.LastUsed), UsageCount: int64(u.UsageCount), Description: u.Description,
		RecordType: u.Type, Shared: u.Shared, Parents: u.Parents,
	}
	if w.RecordType == "" {
		w.RecordType = "regular"
	}
	if len(u.Parents) > 0 {
		w.Parent = u.Parents[0]
	}
	return w
}

func wireTimestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() { // clients rely on there being one
		t = time.Unix(0, 0)
	}
	return timestamppb.New(t)
}
