package daemon

import (
	"context"
	"log/slog"
	"net"
	"slices"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/api/worker"
	"github.com/kiln-build/kiln/internal/gc"
)

// collectEvery is how often what builds have left is held against the limits.
const collectEvery = time.Minute

// collectGarbage keeps the cache within its limits while the daemon serves. It
// runs beside builds: nothing that one of them uses is ever removed.
func (s *Server) collectGarbage(stop chan struct{}) {
	if len(s.config.Policies) == 0 {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	tick := time.NewTicker(collectEvery)
	defer tick.Stop()
	for seen := -1; ; { // what an earlier daemon left counts too
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		ended := s.builds.ended()
		if ended == seen {
			continue
		}
		seen = ended
		if err := s.config.Collector.Run(ctx, s.config.Policies, nil); err != nil {
			slog.Error("collect garbage", "error", err)
		}
	}
}

func wirePolicy(p gc.Policy) *worker.GCPolicy {
	return &worker.GCPolicy{
		All: p.All, KeepDuration: int64(p.KeepFor), Filters: p.Filters,
		ReservedSpace: p.Reserved, MaxUsedSpace: p.MaxUsed, MinFreeSpace: p.MinFree,
	}
}

// platforms are what the worker runs now.
func (s *Server) platforms() []ocispecs.Platform {
	all := slices.Clip(s.config.Platforms)
	if s.config.Detected == nil {
		return all
	}
	for _, p := range s.config.Detected() {
		if !slices.ContainsFunc(all, func(have ocispecs.Platform) bool { return samePlatform(have, p) }) {
			all = append(all, p)
		}
	}
	return all
}

func samePlatform(a, b ocispecs.Platform) bool {
	return a.OS == b.OS && a.Architecture == b.Architecture && a.Variant == b.Variant && a.OSVersion == b.OSVersion && slices.Equal(a.OSFeatures, b.OSFeatures)
}

// drainWait bounds how long a daemon that is told to stop lets builds go on.
const drainWait = 10 * time.Second

// drain takes no more clients, and waits for the builds of those that are there.
func (s *Server) drain(listeners []net.Listener) {
	for _, l := range listeners {
		_ = l.Close() // whoever comes now is refused, which is all that matters
	}
	if s.builds.idleFor() > 0 {
		return
	}
	slog.Info("stopping: waiting for the builds under way", "at most", drainWait)
	for end := time.Now().Add(drainWait); time.Now().Before(end) && s.builds.idleFor() == 0; {
		time.Sleep(20 * time.Millisecond)
	}
}
