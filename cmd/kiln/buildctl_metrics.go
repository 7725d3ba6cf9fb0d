package main

import (
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/client"
)

// cacheMetrics counts the steps that cache had, and those that it lacked.
type cacheMetrics struct {
	start time.Time
	mu    sync.Mutex
	steps map[digest.Digest]*measuredStep
}

type measuredStep struct {
	name                    string
	cached, completed, from bool
}

func newCacheMetrics(start time.Time) *cacheMetrics {
	return &cacheMetrics{start: start, steps: map[digest.Digest]*measuredStep{}}
}

// Emit counts.
func (m *cacheMetrics) Emit(e client.Event) {
	v := e.Vertex
	if v == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.steps[v.Digest]
	if s == nil {
		s = &measuredStep{name: v.Name}
		m.steps[v.Digest] = s
	}
	if _, rest, ok := strings.Cut(v.Name, "] "); ok && strings.HasPrefix(v.Name, "[") {
		s.from = s.from || strings.HasPrefix(rest, "FROM")
	}
	s.cached = s.cached || v.Cached
	s.completed = s.completed || v.Completed != nil
}

// writeMetrics writes the steps that missed the cache, and a line of JSON with the
// counts, to "stdout", "stderr" or a file.
func (b *buildctl) writeMetrics(where string, m *cacheMetrics) (err error) {
	out := b.stdout
	switch where {
	case "stdout":
	case "stderr":
		out = b.stderr
	default:
		f, err := os.OpenFile(where, os.O_TRUNC|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		out = f
	}
	return m.write(out)
}

func (m *cacheMetrics) write(out io.Writer) error {
	var counts struct {
		Total            int64 `json:"total"`
		Completed        int64 `json:"completed"`
		UserTotal        int64 `json:"user_total"`
		UserCached       int64 `json:"user_cached"`
		UserCompleted    int64 `json:"user_completed"`
		UserCacheable    int64 `json:"user_cacheable"`
		From             int64 `json:"from"`
		Miss             int64 `json:"miss"`
		ClientDurationMS int64 `json:"client_duration_ms"`
	}
	count := func(n *int64, yes bool) {
		if yes {
			*n++
		}
	}
	w := &errWriter{out: out}
	for _, id := range slices.Sorted(maps.Keys(m.steps)) {
		s := m.steps[id]
		counts.Total++
		count(&counts.Completed, s.completed)
		if slices.ContainsFunc([]string{"[internal]", "[auth]", "importing cache", "exporting "}, func(p string) bool { return strings.HasPrefix(s.name, p) }) {
			continue
		}
		counts.UserTotal++
		count(&counts.UserCached, s.cached)
		count(&counts.UserCompleted, s.completed)
		count(&counts.UserCacheable, !s.from)
		count(&counts.From, s.from)
		if !s.cached && !s.from {
			counts.Miss++
			w.printf("cache miss: %s\n", s.name)
		}
	}
	counts.ClientDurationMS = time.Since(m.start).Milliseconds()
	line, err := json.Marshal(counts)
	if err != nil {
		return err
	}
	w.printf("%s\n", line)
	return w.err
}
