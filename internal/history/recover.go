package history

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// codeAborted is the gRPC code of a build that its daemon left alone.
const codeAborted = 10

// recover takes stock at the start.
func (h *History) recover() error {
	var changed []*Record
	err := h.db.Records(func(data []byte) error {
		r, err := decodeRecord(data)
		if err != nil {
			return nil // not ours
		}
		if h.mend(r) || earlierForm(data) {
			changed = append(changed, r)
		}
		h.files.hold(r.blobs())
		h.ended[r.Ref] = endedAs(r)
		return nil
	})
	if err != nil {
		return fmt.Errorf("list records: %w", err)
	}
	for _, r := range changed {
		if err := h.put(r); err != nil {
			return err
		}
	}
	if err := h.db.Flush(); err != nil { // before what it no longer names is removed
		return err
	}
	return h.files.sweep()
}

// mend makes a record true: of a build that a crash cut short, and of one that
// has lost blobs.
func (h *History) mend(r *Record) (changed bool) {
	if r.CompletedAt.IsZero() {
		h.endCrashed(r)
		changed = true
	}
	for _, d := range []**ocispecs.Descriptor{&r.Error, &r.Logs, &r.Trace, &r.CacheReasons} {
		if *d != nil && !h.files.there(**d) {
			*d, changed = nil, true
		}
	}
	keep := func(all blobs) (kept blobs) {
		for _, d := range all {
			if h.files.there(d) {
				kept = append(kept, d)
			} else {
				changed = true
			}
		}
		return kept
	}
	r.Documents = keep(r.Documents)
	if r.Result != nil {
		r.Result.Attestations = keep(r.Result.Attestations)
	}
	for platform, res := range r.Results {
		res.Attestations = keep(res.Attestations)
		r.Results[platform] = res
	}
	return changed
}

// endCrashed makes the record of a build under way one that has failed.
func (h *History) endCrashed(r *Record) {
	r.CompletedAt = r.CreatedAt
	r.Failure = &Failure{Code: codeAborted, Message: "the daemon stopped before the build had ended"}
	if d, modified, err := h.recoverLog(r.Live); err == nil {
		r.Logs, r.CompletedAt = &d, modified
	}
	r.Live = ""
}

// recoverLog makes the whole frames of a log that was being written a blob.
func (h *History) recoverLog(name string) (d ocispecs.Descriptor, modified time.Time, err error) {
	file, err := h.files.openLive(name)
	if err != nil {
		return d, modified, err
	}
	defer file.Close()
	fi, err := file.Stat()
	if err != nil {
		return d, modified, fmt.Errorf("state of log: %w", err)
	}
	size, err := wholeFrames(file, fi.Size())
	if err != nil {
		return d, modified, err
	}
	if err := file.Truncate(size); err != nil {
		return d, modified, fmt.Errorf("cut log: %w", err)
	}
	sum, err := digest.FromReader(io.NewSectionReader(file, 0, size))
	if err != nil {
		return d, modified, fmt.Errorf("read log: %w", err)
	}
	d = ocispecs.Descriptor{MediaType: MediaTypeLogs, Digest: sum, Size: size}
	return d, fi.ModTime().UTC(), h.files.link(name, sum)
}

// wholeFrames is how many of the bytes of a log are whole frames.
func wholeFrames(r io.ReaderAt, size int64) (pos int64, err error) {
	var header [frameHeader]byte
	for pos+frameHeader <= size {
		if _, err := r.ReadAt(header[:], pos); err != nil {
			return 0, fmt.Errorf("read log: %w", err)
		}
		next := pos + frameHeader + int64(binary.LittleEndian.Uint32(header[:]))
		if next > size || next > pos+frameHeader+MaxFrame {
			break
		}
		pos = next
	}
	return pos, nil
}
