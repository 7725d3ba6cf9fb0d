package daemon

import (
	"context"
	"time"

	"github.com/kiln-build/kiln/internal/api/kiln"
	"github.com/kiln-build/kiln/internal/build"
)

// cachesService is kiln.v1.Caches.
type cachesService struct {
	kiln.UnimplementedCachesServer
	*Server
}

// Exports lists the exports that builds did not wait for.
func (s *cachesService) Exports(context.Context, *kiln.ExportsRequest) (*kiln.ExportsResponse, error) {
	resp := &kiln.ExportsResponse{}
	later := s.config.Builder.Caches.Later
	if later == nil {
		return resp, nil
	}
	states := map[build.ExportState]kiln.ExportState{
		build.ExportRunning: kiln.ExportState_EXPORT_RUNNING, build.ExportDone: kiln.ExportState_EXPORT_DONE,
		build.ExportFailed: kiln.ExportState_EXPORT_FAILED, build.ExportInterrupted: kiln.ExportState_EXPORT_INTERRUPTED,
	}
	for _, e := range later.Exports() {
		one := &kiln.CacheExport{
			Id: e.ID, Build: e.Build, Place: e.Place, State: states[e.State], Error: e.Error, StartedAt: wireTimestamp(e.StartedAt),
			Records: int64(e.Stats.Steps), Blobs: int64(e.Stats.Blobs), Bytes: e.Stats.Bytes, BlobsLeft: int64(e.Stats.BlobsLeft),
		}
		if !e.EndedAt.IsZero() {
			one.EndedAt = wireTimestamp(e.EndedAt)
		}
		resp.Exports = append(resp.Exports, one)
	}
	return resp, nil
}

// Identity tells by which key others know the daemon's records.
func (s *cachesService) Identity(context.Context, *kiln.IdentityRequest) (*kiln.IdentityResponse, error) {
	id := s.config.Builder.Caches.Identity
	if id == nil {
		return &kiln.IdentityResponse{}, nil
	}
	return &kiln.IdentityResponse{PublicKey: id.Public()}, nil
}

// idleFor is how long there has been neither a build nor an export that a build
// has left behind.
func (s *Server) idleFor() (d time.Duration) {
	d = s.builds.idleFor()
	if later := s.config.Builder.Caches.Later; later != nil {
		d = min(d, later.IdleFor())
	}
	return d
}
