package proxy

import (
	"net/url"
	"slices"
	"strings"
	"sync"

	digest "github.com/opencontainers/go-digest"
)

// maxRecorded bounds what is kept of one run. What is beyond makes the record
// incomplete, and says so.
const maxRecorded = 10_000

// Record is what a run asked the network for. No URL in it has a password.
type Record struct {
	Requests   []Request
	Materials  []Material
	Incomplete []Gap
}

// Request is a request that was passed on.
type Request struct {
	Method, URL string
	Redirect    string // where the answer sends on to; "" if nowhere
	Status      int
}

// Material is what an address gave, whole.
type Material struct {
	URL    string
	Digest digest.Digest
}

// Gap is a request of which it is not known what came of it.
type Gap struct{ Method, URL, Reason string }

// The reasons are BuildKit's words, which its clients know.
const (
	reasonMethod       = "method_not_materializable"
	reasonPartial      = "partial_response"
	reasonTransformed  = "response_transformed"
	reasonBody         = "body_read_failed"
	reasonUnsuccessful = "unsuccessful_response"
	reasonUpstream     = "upstream_error"
	reasonTooMany      = "too_many_requests"
)

// record is a Record that is being written.
type record struct {
	mu  sync.Mutex
	all Record
}

// Record is what the run has asked for so far, with an address that sent on to
// another having that one's content.
func (r *record) Record() Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := Record{Requests: slices.Clone(r.all.Requests), Materials: slices.Clone(r.all.Materials), Incomplete: slices.Clone(r.all.Incomplete)}
	known := map[string]digest.Digest{}
	for _, m := range out.Materials {
		known[m.URL] = m.Digest
	}
	for added := true; added; {
		added = false
		for _, q := range out.Requests {
			to, ok := known[q.Redirect]
			if _, own := known[q.URL]; ok && !own && q.Redirect != "" {
				known[q.URL], added = to, true
				out.Materials = append(out.Materials, Material{q.URL, to})
			}
		}
	}
	return out
}

func (r *record) request(q Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.all.Requests) < maxRecorded {
		r.all.Requests = append(r.all.Requests, q)
	} else if len(r.all.Incomplete) == 0 || r.all.Incomplete[len(r.all.Incomplete)-1].Reason != reasonTooMany {
		r.all.Incomplete = append(r.all.Incomplete, Gap{q.Method, q.URL, reasonTooMany})
	}
}

func (r *record) material(m Material) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.all.Materials) < maxRecorded && !slices.Contains(r.all.Materials, m) {
		r.all.Materials = append(r.all.Materials, m)
	}
}

func (r *record) gap(g Gap) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.all.Incomplete) < maxRecorded {
		r.all.Incomplete = append(r.all.Incomplete, g)
	}
}

// plainURL is a URL as it is recorded and asked about: without a password, and
// without a port that its scheme has anyway.
func plainURL(u *url.URL) string {
	out := *u
	if out.User != nil {
		out.User = url.UserPassword("xxxxx", "xxxxx")
	}
	if port := out.Port(); out.Scheme == "http" && port == "80" || out.Scheme == "https" && port == "443" {
		out.Host = strings.TrimSuffix(out.Host, ":"+port)
	}
	return out.String()
}
