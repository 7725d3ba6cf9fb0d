package client

import (
	"context"
	"errors"
	"io"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/api/kiln"
	"github.com/kiln-build/kiln/internal/api/worker"
)

// Usage is one thing that a daemon stores.
type Usage struct {
	ID          string
	Type        string // such as "regular" or "source.local"
	Description string
	Parents     []string
	Size        int64 // bytes
	Created     time.Time
	LastUsed    time.Time // zero if never
	Uses        int64
	Mutable     bool
	InUse       bool
	Shared      bool
}

func usage(r *control.UsageRecord) Usage {
	u := Usage{
		ID: r.GetID(), Type: r.GetRecordType(), Description: r.GetDescription(), Parents: r.GetParents(),
		Size: r.GetSize(), Created: r.GetCreatedAt().AsTime(), Uses: r.GetUsageCount(),
		Mutable: r.GetMutable(), InUse: r.GetInUse(), Shared: r.GetShared(),
	}
	if t := r.GetLastUsedAt(); t != nil {
		u.LastUsed = t.AsTime()
	}
	return u
}

// UsageOpt says what to list.
type UsageOpt struct {
	// Filters select records; one must match, and none match all (BuildKit's
	// client/diskusage.go).
	Filters []string
	// AgeLimit leaves out what was used in this time.
	AgeLimit time.Duration
}

// DiskUsage lists what the daemon stores.
func (c *Client) DiskUsage(ctx context.Context, opt UsageOpt) ([]Usage, error) {
	r, err := c.control.DiskUsage(ctx, &control.DiskUsageRequest{Filter: opt.Filters, AgeLimit: int64(opt.AgeLimit)})
	if err != nil {
		return nil, c.wrap(err)
	}
	out := make([]Usage, 0, len(r.GetRecord()))
	for _, u := range r.GetRecord() {
		out = append(out, usage(u))
	}
	return out, nil
}

// PruneOpt says what to remove and what to keep.
type PruneOpt struct {
	Filters  []string
	All      bool          // also what the daemon needs itself
	KeepFor  time.Duration // keep what was used in this time
	Reserved int64         // bytes that are never taken away
	MaxUsed  int64         // bytes that may stay
	MinFree  int64         // bytes of the disk that should be free
}

// Prune removes stored things, and calls f, which may be nil, for each.
func (c *Client) Prune(ctx context.Context, opt PruneOpt, f func(Usage)) error {
	stream, err := c.control.Prune(ctx, &control.PruneRequest{
		Filter: opt.Filters, All: opt.All, KeepDuration: int64(opt.KeepFor),
		ReservedSpace: opt.Reserved, MaxUsedSpace: opt.MaxUsed, MinFreeSpace: opt.MinFree,
	})
	if err != nil {
		return c.wrap(err)
	}
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return c.wrap(err)
		}
		if f != nil {
			f(usage(r))
		}
	}
}

// Worker is what a daemon tells of itself.
type Worker struct {
	ID        string
	Labels    map[string]string
	Platforms []ocispecs.Platform // its own first
	GC        []GCPolicy
	Version   Version
	Devices   []Device
}

// Device is one that steps may be given by its name (CDI).
type Device struct {
	Name        string
	AutoAllow   bool // needs no entitlement
	OnDemand    bool // is set up when it is asked for
	Annotations map[string]string
}

// GCPolicy is a rule of what the daemon keeps; see [PruneOpt].
type GCPolicy struct {
	All      bool
	Filters  []string
	KeepFor  time.Duration
	Reserved int64
	MaxUsed  int64
	MinFree  int64
}

// ListWorkers lists the daemon's workers, the default first.
func (c *Client) ListWorkers(ctx context.Context, filters []string) ([]Worker, error) {
	r, err := c.control.ListWorkers(ctx, &control.ListWorkersRequest{Filter: filters})
	if err != nil {
		return nil, c.wrap(err)
	}
	var out []Worker
	for _, w := range r.GetRecord() {
		out = append(out, workerOf(w))
	}
	return out, nil
}

func workerOf(w *worker.WorkerRecord) Worker {
	out := Worker{ID: w.GetID(), Labels: w.GetLabels(), Version: versionOf(w.GetBuildkitVersion())}
	for _, p := range w.GetPlatforms() {
		out.Platforms = append(out.Platforms, ocispecs.Platform{
			OS: p.GetOS(), Architecture: p.GetArchitecture(), Variant: p.GetVariant(),
			OSVersion: p.GetOSVersion(), OSFeatures: p.GetOSFeatures(),
		})
	}
	for _, d := range w.GetCDIDevices() {
		out.Devices = append(out.Devices, Device{d.GetName(), d.GetAutoAllow(), d.GetOnDemand(), d.GetAnnotations()})
	}
	for _, g := range w.GetGCPolicy() {
		out.GC = append(out.GC, GCPolicy{
			All: g.GetAll(), Filters: g.GetFilters(), KeepFor: time.Duration(g.GetKeepDuration()),
			Reserved: g.GetReservedSpace(), MaxUsed: g.GetMaxUsedSpace(), MinFree: g.GetMinFreeSpace(),
		})
	}
	return out
}

// Version is what a daemon is.
type Version struct {
	Package, Version, Revision string
	Dockerfile                 string // of its Dockerfile frontend, or ""
}

func versionOf(v *worker.BuildkitVersion) Version {
	return Version{
		Package: v.GetPackage(), Version: v.GetVersion(), Revision: v.GetRevision(), Dockerfile: v.GetDockerfileVersion(),
	}
}

// Leave ends a daemon of a version that was started to leave when it is idle, and is
// idle now; it tells whether it does. Others stay.
func (c *Client) Leave(ctx context.Context, v Version) (leaving bool, err error) {
	r, err := kiln.NewKilnClient(c.conn).Leave(ctx, &kiln.LeaveRequest{Version: v.Version, Revision: v.Revision})
	if err != nil {
		return false, c.own(err)
	}
	return r.GetLeaving(), nil
}

// Info asks the daemon what it is.
func (c *Client) Info(ctx context.Context) (Version, error) {
	r, err := c.control.Info(ctx, &control.InfoRequest{})
	if err != nil {
		return Version{}, c.wrap(err)
	}
	return versionOf(r.GetBuildkitVersion()), nil
}
