package history

import (
	"fmt"
	"slices"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Blob is something to be kept with a record.
type Blob struct {
	MediaType   string
	Annotations map[string]string
	Data        []byte
}

// AttachAttestation keeps a provenance, an SBOM or the like with the build
// that has this ref. The platform is the result's ID, such as "linux/arm64", or
// "" where the build has one result only.
//
// What clients expect: MediaType is [MediaTypeAttestation], Data the
// predicate's JSON alone, without the statement around it, and the annotation
// [PredicateType] its type.
//
// It may be called while the build runs and, which listeners are told of,
// after it has ended. A build that is not recorded is [ErrNotFound]: whoever
// has something to attach ignores that. The blob lives as long as the record.
func (h *History) AttachAttestation(ref, platform string, b Blob) error {
	return h.attach(ref, b, func(r *Record, d ocispecs.Descriptor) {
		r.result(platform, func(res *Result) { res.Attestations = append(res.Attestations, d) })
	})
}

// AttachCacheReasons keeps why steps of the build were not cached; see
// [History.AttachAttestation] for when. The last one counts.
func (h *History) AttachCacheReasons(ref string, b Blob) error {
	return h.attach(ref, b, func(r *Record, d ocispecs.Descriptor) { r.CacheReasons = &d })
}

// AttachTrace keeps the spans of a build; see [History.AttachAttestation] for
// when. The last one counts.
func (h *History) AttachTrace(ref string, b Blob) error {
	return h.attach(ref, b, func(r *Record, d ocispecs.Descriptor) { r.Trace = &d })
}

// AttachDocument keeps a part of an image: a manifest, an index, a config or a
// statement; see [History.AttachAttestation] for when.
func (h *History) AttachDocument(ref string, b Blob) error {
	return h.attach(ref, b, func(r *Record, d ocispecs.Descriptor) {
		if !slices.ContainsFunc(r.Documents, func(have ocispecs.Descriptor) bool { return have.Digest == d.Digest }) {
			r.Documents = append(r.Documents, d)
		}
	})
}

// SetImage notes what an exporter has made: a manifest or an index, which is
// among the documents.
func (h *History) SetImage(ref, platform string, exporter int, d ocispecs.Descriptor) error {
	return h.update(ref, func(r *Record) {
		r.result(platform, func(res *Result) {
			if res.Images == nil {
				res.Images = map[int]ocispecs.Descriptor{}
			}
			res.Images[exporter] = d
		})
	})
}

func (h *History) attach(ref string, b Blob, set func(*Record, ocispecs.Descriptor)) error {
	d, release, err := h.putBlob(b)
	if err != nil {
		return fmt.Errorf("keep %s with build %s: %w", b.MediaType, ref, err)
	}
	defer release()
	return h.update(ref, func(r *Record) { set(r, d) })
}

// update changes a record, of a build under way or of one that has ended.
func (h *History) update(ref string, f func(*Record)) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if b := h.active[ref]; b != nil {
		before := b.record.blobs()
		f(&b.record)
		h.files.hold(b.record.blobs())
		h.files.drop(before)
		return nil
	}
	r, err := h.load(ref)
	if err != nil {
		return err
	}
	before := r.blobs()
	f(r)
	r.Generation++
	return h.replace(r, before)
}
