package history

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// fullRecord is a record with something in each field, as that of a build for two
// platforms that made images.
func fullRecord(ref string) *Record {
	describe := func(mediaType, text string) *ocispecs.Descriptor {
		return &ocispecs.Descriptor{
			MediaType: mediaType, Digest: digest.FromString(text), Size: int64(len(text)), Annotations: map[string]string{PredicateType: text},
		}
	}
	result := func(text string) Result {
		return Result{
			Attestations: []ocispecs.Descriptor{*describe(MediaTypeAttestation, "of "+text), *describe(MediaTypeAttestation, "sbom of "+text)},
			Images:       map[int]ocispecs.Descriptor{0: *describe(ocispecs.MediaTypeImageManifest, text), 3: *describe(ocispecs.MediaTypeImageIndex, text)},
		}
	}
	whole, logs := result("all"), describe(MediaTypeLogs, "logs")
	logs.Annotations = nil // which are those that the message has for the cache's reasons
	began := time.Date(2026, 2, 3, 4, 5, 6, 789, time.UTC)
	return &Record{
		Ref: ref, Frontend: "dockerfile.v0",
		FrontendAttrs: map[string]string{"context": "https://example.com/a.git", "filename": "Dockerfile", "empty": ""},
		Exporters:     []Exporter{{Type: "image", Attrs: map[string]string{"name": "a", "push": "true"}}, {Type: "local"}},
		CreatedAt:     began, CompletedAt: began.Add(90 * time.Second),
		Failure: &Failure{Code: 2, Message: "process \"/bin/false\" did not complete"},
		Error:   describe(MediaTypeError, "error"), Logs: logs,
		Trace: describe(MediaTypeTrace, "trace"), CacheReasons: describe(MediaTypeCacheReasons, "why"),
		Documents:        []ocispecs.Descriptor{*describe(ocispecs.MediaTypeImageManifest, "all"), *describe(ocispecs.MediaTypeImageConfig, "config")},
		ExporterResponse: map[string]string{"containerimage.digest": string(digest.FromString("all"))},
		Result:           &whole,
		Results:          map[string]Result{"linux/amd64": result("amd64"), "linux/arm64": result("arm64")},
		Generation:       7, Pinned: true,
		Steps: Steps{Cached: 1, Completed: 2, Total: 3, Warnings: 4},
		Cache: CacheStats{Steps: 5, Hits: 6, SavedBytes: 1 << 40, SavedTime: time.Hour},
		Live:  "live",
	}
}

// BenchmarkListen is about what clients that list builds wait for.
func BenchmarkListen(b *testing.B) {
	plain := func(ref string) *Record {
		r := fullRecord(ref)
		return &Record{
			Ref: ref, FrontendAttrs: r.FrontendAttrs, CreatedAt: r.CreatedAt, CompletedAt: r.CompletedAt, Logs: r.Logs, Trace: r.Trace,
			ExporterResponse: r.ExporterResponse, Steps: r.Steps, Cache: r.Cache,
		}
	}
	for _, tc := range []struct {
		name    string
		record  func(ref string) *Record
		records int
		options ListenOptions
		enough  int // told
	}{
		{"first of 10", fullRecord, 10, ListenOptions{}, 1},
		{"all of 10", fullRecord, 10, ListenOptions{}, 10},
		{"all of 1000", fullRecord, 1000, ListenOptions{}, 1000},
		{"all of 1000 plain", plain, 1000, ListenOptions{}, 1000},
		{"first of 1000", plain, 1000, ListenOptions{}, 1},
		{"newest of 1000", plain, 1000, ListenOptions{Limit: 1}, 1},
		{"filtered of 1000", plain, 1000, ListenOptions{Filters: []string{"ref==500"}}, 1},
	} {
		b.Run(tc.name, func(b *testing.B) {
			w := newWorld(b, Retention{MaxEntries: tc.records})
			for i := range tc.records {
				if err := w.put(tc.record(fmt.Sprint(i))); err != nil {
					b.Fatal(err)
				}
				w.ended[fmt.Sprint(i)] = ended{}
			}
			tc.options.EarlyExit = true
			errEnough := errors.New("enough")
			b.ReportAllocs()
			for b.Loop() {
				told := 0
				err := w.Listen(b.Context(), tc.options, func(Event) error {
					if told++; told == tc.enough {
						return errEnough
					}
					return nil
				})
				if !errors.Is(err, errEnough) {
					b.Fatalf("told of %d builds, want %d: %v", told, tc.enough, err)
				}
			}
		})
	}
}

// A listener hears of one build after the other, so records may go and change
// while it is told.
func TestListenWhileRecordsGo(t *testing.T) {
	w := newWorld(t, DefaultRetention())
	for _, ref := range []string{"a", "b", "c", "d"} {
		w.build(Record{Ref: ref}, Outcome{})
	}
	var heard []string
	err := w.Listen(t.Context(), ListenOptions{EarlyExit: true}, func(e Event) error {
		r := &Record{}
		if err := r.decodeMessage(e.Message); err != nil {
			return err
		}
		heard = append(heard, fmt.Sprint(e.Ref, " ", r.Pinned))
		if e.Ref != "a" {
			return nil
		}
		return errors.Join(w.Delete("b"), w.Pin("c", true))
	})
	if want := []string{"a false", "c true", "d false"}; err != nil || !slices.Equal(heard, want) {
		t.Errorf("heard %q (%v), want %q", heard, err, want)
	}
}
