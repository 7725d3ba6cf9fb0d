package daemon

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/gc"
	"github.com/kiln-build/kiln/internal/layer"
)

// Keeper keeps something on disk that is no layer, such as cache mounts.
type Keeper interface {
	// Usage describes what is kept, as if they were layers.
	Usage() ([]layer.Usage, error)
	// Remove deletes one by its id, unless it is in use.
	Remove(id string) (removed bool, err error)
}

// DiskUsage tells what is kept.
func (s *controlService) DiskUsage(ctx context.Context, r *control.DiskUsageRequest) (*control.DiskUsageResponse, error) {
	match, err := gc.ParseFilters(r.Filter)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	usage, err := s.config.Collector.Layers.DiskUsage(ctx)
	if err != nil {
		return nil, fmt.Errorf("measure disk usage: %w", err)
	}
	mounts, err := s.config.CacheMounts.Usage()
	if err != nil {
		return nil, err
	}
	resp := &control.DiskUsageResponse{}
	for _, u := range append(usage, mounts...) {
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
		All: r.All, Filters: r.Filter, KeepFor: time.Duration(r.KeepDuration),
		MaxUsed: r.MaxUsedSpace, Reserved: r.ReservedSpace, MinFree: r.MinFreeSpace,
	}
	match, err := gc.ParseFilters(p.Filters)
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	if p.MaxUsed == 0 && p.Reserved == 0 && p.MinFree == 0 {
		if err := s.pruneMounts(p.KeepFor, match, stream); err != nil {
			return err
		}
	}
	var sendErr error
	err = s.config.Collector.Run(stream.Context(), []gc.Policy{p}, func(u layer.Usage) {
		if sendErr == nil {
			sendErr = stream.Send(wireUsage(u))
		}
	})
	if err != nil {
		return err
	}
	return sendErr
}

// pruneMounts deletes cache mounts that are not used.
func (s *controlService) pruneMounts(keep time.Duration, match func(layer.Usage) bool, stream grpc.ServerStreamingServer[control.UsageRecord]) error {
	mounts, err := s.config.CacheMounts.Usage()
	if err != nil {
		return err
	}
	for _, u := range mounts {
		if !match(u) || keep > 0 && time.Since(u.LastUsed) < keep {
			continue
		}
		removed, err := s.config.CacheMounts.Remove(u.ID)
		if err != nil {
			return err
		}
		if removed {
			if err := stream.Send(wireUsage(u)); err != nil {
				return err
			}
		}
	}
	return nil
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
