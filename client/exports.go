package client

import (
	"context"
	"time"

	"github.com/kiln-build/kiln/internal/api/kiln"
)

// CacheExport is the export of a cache that its build did not wait for
// (wait=false).
type CacheExport struct {
	ID        int64
	Build     string // the client's name for it
	Place     string // such as "registry host/name:tag"
	State     string // "running", "done", "failed" or "interrupted", by the daemon's end
	Error     string
	StartedAt time.Time
	EndedAt   time.Time // zero while it runs
	Records   int64     // written
	Blobs     int64     // uploaded
	Bytes     int64     // of those blobs
	BlobsLeft int64
}

// CacheExports lists the exports that builds did not wait for, the last first.
func (c *Client) CacheExports(ctx context.Context) ([]CacheExport, error) {
	r, err := kiln.NewCachesClient(c.conn).Exports(ctx, &kiln.ExportsRequest{})
	if err != nil {
		return nil, c.own(err)
	}
	states := map[kiln.ExportState]string{
		kiln.ExportState_EXPORT_RUNNING: "running", kiln.ExportState_EXPORT_DONE: "done",
		kiln.ExportState_EXPORT_FAILED: "failed", kiln.ExportState_EXPORT_INTERRUPTED: "interrupted",
	}
	var out []CacheExport
	for _, e := range r.GetExports() {
		one := CacheExport{
			ID: e.GetId(), Build: e.GetBuild(), Place: e.GetPlace(), State: states[e.GetState()], Error: e.GetError(),
			StartedAt: e.GetStartedAt().AsTime(), Records: e.GetRecords(), Blobs: e.GetBlobs(), Bytes: e.GetBytes(), BlobsLeft: e.GetBlobsLeft(),
		}
		if e.EndedAt != nil {
			one.EndedAt = e.EndedAt.AsTime()
		}
		out = append(out, one)
	}
	return out, nil
}

// CacheIdentity is the public key by which others know the daemon's records,
// such as the configuration of another daemon (cache.trust).
func (c *Client) CacheIdentity(ctx context.Context) (string, error) {
	r, err := kiln.NewCachesClient(c.conn).Identity(ctx, &kiln.IdentityRequest{})
	if err != nil {
		return "", c.own(err)
	}
	return r.GetPublicKey(), nil
}
