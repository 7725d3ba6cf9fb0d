package history

import (
	"maps"
	"slices"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Media types of what records name (BuildKit's api/services/control).
const (
	MediaTypeLogs  = "application/vnd.buildkit.status.v0"
	MediaTypeTrace = "application/vnd.buildkit.otlp.json.v0"
	// MediaTypeError is spelt as BuildKit spelt it up to 0.33, whose tests look
	// for it. No client does.
	MediaTypeError = "application/vnd.googeapis.google.rpc.status+proto"
	// MediaTypeAttestation is that of an attestation's predicate, whose type
	// is in the descriptor's annotation [PredicateType].
	MediaTypeAttestation = "application/vnd.in-toto+json"
	// MediaTypeCacheReasons is Kiln's own: JSON that says why steps ran again.
	MediaTypeCacheReasons = "application/vnd.kiln.cache-reasons.v0+json"
)

// PredicateType is the annotation that says what an attestation is about.
const PredicateType = "in-toto.io/predicate-type"

// Record is what is known of a build. The database has it as encode makes it; its
// JSON form is that of earlier databases.
type Record struct {
	Ref           string            `json:"ref"` // the client's name for the build
	Frontend      string            `json:"frontend,omitempty"`
	FrontendAttrs map[string]string `json:"frontendAttrs,omitempty"`
	Exporters     []Exporter        `json:"exporters,omitempty"`
	CreatedAt     time.Time         `json:"createdAt"`
	CompletedAt   time.Time         `json:"completedAt,omitzero"` // zero while it runs

	Failure *Failure             `json:"failure,omitempty"` // why it failed, if it did
	Error   *ocispecs.Descriptor `json:"error,omitempty"`   // the same with all details, [MediaTypeError]
	Logs    *ocispecs.Descriptor `json:"logs,omitempty"`    // [MediaTypeLogs]
	Trace   *ocispecs.Descriptor `json:"trace,omitempty"`   // [MediaTypeTrace]
	// CacheReasons says of each step that was not cached why; see
	// [History.AttachCacheReasons].
	CacheReasons *ocispecs.Descriptor `json:"cacheReasons,omitempty"`

	// Documents are what images are made of besides their layers.
	Documents        []ocispecs.Descriptor `json:"documents,omitempty"`
	ExporterResponse map[string]string     `json:"exporterResponse,omitempty"`
	Result           *Result               `json:"result,omitempty"`  // of the build as a whole
	Results          map[string]Result     `json:"results,omitempty"` // per platform, by its ID

	Generation int        `json:"generation,omitempty"` // how often the record was changed after the build
	Pinned     bool       `json:"pinned,omitempty"`     // to be kept whatever its age
	Steps      Steps      `json:"steps,omitzero"`
	Cache      CacheStats `json:"cache,omitzero"`

	// Live is the file that the log of a running build is written to.
	Live string `json:"live,omitempty"`
}

// Exporter is one thing that a build was to make of its result.
type Exporter struct {
	Type  string            `json:"type"`
	Attrs map[string]string `json:"attrs,omitempty"`
}

// Failure is why a build failed: a gRPC status without its details.
type Failure struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// Result is what a build, or a platform of it, has made.
type Result struct {
	Attestations []ocispecs.Descriptor `json:"attestations,omitempty"`
	// Images are by the number of the exporter in the request.
	Images map[int]ocispecs.Descriptor `json:"images,omitempty"`
}

// Steps counts what a build has told of.
type Steps struct {
	Cached    int `json:"cached,omitempty"`
	Completed int `json:"completed,omitempty"`
	Total     int `json:"total,omitempty"`
	Warnings  int `json:"warnings,omitempty"`
}

// result calls f with the result of a platform, "" for the whole build.
func (r *Record) result(platform string, f func(*Result)) {
	if platform == "" {
		if r.Result == nil {
			r.Result = &Result{}
		}
		f(r.Result)
		return
	}
	if r.Results == nil {
		r.Results = map[string]Result{}
	}
	res := r.Results[platform]
	f(&res)
	r.Results[platform] = res
}

// blobs are the blobs that the history keeps for the record.
func (r *Record) blobs() (all []ocispecs.Descriptor) {
	for _, d := range []*ocispecs.Descriptor{r.Error, r.Logs, r.Trace, r.CacheReasons} {
		if d != nil {
			all = append(all, *d)
		}
	}
	r.eachResult(func(res *Result) { all = append(all, res.Attestations...) })
	return append(all, r.Documents...)
}

func (r *Record) eachResult(f func(*Result)) {
	if r.Result != nil {
		f(r.Result)
	}
	for _, platform := range slices.Sorted(maps.Keys(r.Results)) {
		res := r.Results[platform]
		f(&res)
	}
}
