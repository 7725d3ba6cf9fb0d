package daemon

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/history"
)

// metrics counts what the daemon does, for Prometheus. Labels have few values,
// whatever clients send.
type metrics struct {
	mu        sync.Mutex
	builds    map[string]int64 // by labels
	steps     history.Steps
	cache     history.CacheStats
	durations histogram
	calls     map[call]*histogram
}

// call is a kind of call that ended.
type call struct {
	method string
	code   codes.Code
}

// histogram counts durations.
type histogram struct {
	counts []int64 // by the first bound that is not exceeded
	sum    float64 // in seconds
}

// bounds of durations, in seconds; what is longer has a count of its own.
func bounds() []float64 {
	return []float64{0.005, 0.025, 0.1, 0.5, 1, 5, 15, 60, 300, 1800}
}

func (h *histogram) add(d time.Duration) {
	b := bounds()
	if h.counts == nil {
		h.counts = make([]int64, len(b)+1)
	}
	i, _ := slices.BinarySearch(b, d.Seconds())
	h.counts[i]++
	h.sum += d.Seconds()
}

func newMetrics() *metrics {
	return &metrics{builds: map[string]int64{}, calls: map[call]*histogram{}}
}

// built notes the end of a build.
func (m *metrics) built(s history.Steps, took time.Duration, err error) {
	labels := `status="success"`
	if err != nil {
		labels = fmt.Sprintf("error_code=%q,status=\"failure\"", status.Code(wireError(err)).String())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.builds[labels]++
	m.steps.Cached += s.Cached
	m.steps.Completed += s.Completed
	m.steps.Total += s.Total
	m.steps.Warnings += s.Warnings
	m.durations.add(took)
}

// cached notes what the cache was worth to a build.
func (m *metrics) cached(c history.CacheStats) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cache.Steps += c.Steps
	m.cache.Hits += c.Hits
	m.cache.SavedBytes += c.SavedBytes
	m.cache.SavedTime += c.SavedTime
}

// writeCache adds what the cache was worth.
func (m *metrics) writeCache(b *bytes.Buffer) {
	family(b, "kiln_cache_steps_total", "counter", "Steps that a cache can have, by whether it had them.")
	fmt.Fprintf(b, "kiln_cache_steps_total{result=\"hit\"} %d\nkiln_cache_steps_total{result=\"miss\"} %d\n", m.cache.Hits, m.cache.Steps-m.cache.Hits)
	family(b, "kiln_cache_saved_bytes_total", "counter", "Bytes of files that the cache had.")
	fmt.Fprintf(b, "kiln_cache_saved_bytes_total %d\n", m.cache.SavedBytes)
	family(b, "kiln_cache_saved_seconds_total", "counter", "Time that steps which the cache had took when they ran.")
	fmt.Fprintf(b, "kiln_cache_saved_seconds_total %g\n", m.cache.SavedTime.Seconds())
}

func (m *metrics) called(method string, began time.Time, err error) {
	c := call{method, status.Code(err)}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.calls[c] == nil {
		m.calls[c] = &histogram{}
	}
	m.calls[c].add(time.Since(began))
}

// unary counts a call. Only methods that there are come here.
func (m *metrics) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	began := time.Now()
	resp, err := next(ctx, req)
	m.called(info.FullMethod, began, err)
	return resp, err
}

func (m *metrics) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	began := time.Now()
	err := next(srv, ss)
	m.called(info.FullMethod, began, err)
	return err
}

// Metrics answers with what the daemon has counted, in Prometheus' text format,
// version 0.0.4. The names are BuildKit's where it has the same.
func (s *Server) Metrics() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var b bytes.Buffer
		s.metrics.write(&b)
		s.writeGauges(r.Context(), &b)
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = w.Write(b.Bytes()) // a reader that is gone needs nothing
	})
}

// family begins a group of lines.
func family(b *bytes.Buffer, name, kind, help string) {
	fmt.Fprintf(b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

func (m *metrics) write(b *bytes.Buffer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	family(b, "buildkit_builds_total", "counter", "Builds that ended.")
	labels := make([]string, 0, len(m.builds))
	for l := range m.builds {
		labels = append(labels, l)
	}
	slices.Sort(labels)
	for _, l := range labels {
		fmt.Fprintf(b, "buildkit_builds_total{%s} %d\n", l, m.builds[l])
	}
	family(b, "buildkit_builds_steps_total", "counter", "Steps of builds that ended, by kind.")
	for _, k := range []struct {
		kind string
		n    int
	}{{"cached", m.steps.Cached}, {"completed", m.steps.Completed}, {"total", m.steps.Total}, {"warnings", m.steps.Warnings}} {
		fmt.Fprintf(b, "buildkit_builds_steps_total{kind=%q} %d\n", k.kind, k.n)
	}
	m.writeCache(b)
	family(b, "buildkit_build_duration_seconds", "histogram", "How long builds took.")
	m.durations.write(b, "buildkit_build_duration_seconds", "")
	family(b, "rpc_server_duration_seconds", "histogram", "How long calls took.")
	calls := make([]call, 0, len(m.calls))
	for c := range m.calls {
		calls = append(calls, c)
	}
	slices.SortFunc(calls, func(x, y call) int { return cmp.Or(cmp.Compare(x.method, y.method), cmp.Compare(x.code, y.code)) })
	for _, c := range calls {
		m.calls[c].write(b, "rpc_server_duration_seconds", fmt.Sprintf("rpc_method=%q,rpc_grpc_status_code=\"%d\",", c.method, c.code))
	}
}

// write adds the lines of one histogram; labels end with a comma.
func (h *histogram) write(b *bytes.Buffer, name, labels string) {
	total := int64(0)
	for i, bound := range bounds() {
		if h.counts != nil {
			total += h.counts[i]
		}
		fmt.Fprintf(b, "%s_bucket{%sle=%q} %d\n", name, labels, strconv.FormatFloat(bound, 'g', -1, 64), total)
	}
	if h.counts != nil {
		total += h.counts[len(h.counts)-1]
	}
	fmt.Fprintf(b, "%s_bucket{%sle=\"+Inf\"} %d\n", name, labels, total)
	in := ""
	if labels != "" {
		in = "{" + labels[:len(labels)-1] + "}"
	}
	fmt.Fprintf(b, "%s_sum%s %g\n%s_count%s %d\n", name, in, h.sum, name, in, total)
}

// writeGauges adds what is so now.
func (s *Server) writeGauges(ctx context.Context, b *bytes.Buffer) {
	family(b, "kiln_builds_running", "gauge", "Builds under way.")
	fmt.Fprintf(b, "kiln_builds_running %d\n", s.builds.running())
	usage, err := s.config.Collector.Usage(ctx)
	if err == nil { // else the other lines are still of use
		byType := map[string][2]int64{}
		for _, u := range usage {
			kind := cmp.Or(u.Type, "regular")
			n := byType[kind]
			byType[kind] = [2]int64{n[0] + u.Size, n[1] + 1}
		}
		kinds := make([]string, 0, len(byType))
		for k := range byType {
			kinds = append(kinds, k)
		}
		slices.Sort(kinds)
		family(b, "kiln_cache_bytes", "gauge", "Bytes on disk, by type of record.")
		for _, k := range kinds {
			fmt.Fprintf(b, "kiln_cache_bytes{type=%q} %d\n", k, byType[k][0])
		}
		family(b, "kiln_cache_records", "gauge", "Records on disk, by type.")
		for _, k := range kinds {
			fmt.Fprintf(b, "kiln_cache_records{type=%q} %d\n", k, byType[k][1])
		}
	}
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	family(b, "go_goroutines", "gauge", "Goroutines of the daemon.")
	fmt.Fprintf(b, "go_goroutines %d\n", runtime.NumGoroutine())
	family(b, "go_memstats_alloc_bytes", "gauge", "Bytes of objects of the daemon.")
	fmt.Fprintf(b, "go_memstats_alloc_bytes %d\n", mem.Alloc)
	family(b, "go_memstats_sys_bytes", "gauge", "Bytes that the daemon has of the system.")
	fmt.Fprintf(b, "go_memstats_sys_bytes %d\n", mem.Sys)
}
