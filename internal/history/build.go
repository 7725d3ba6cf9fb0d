package history

import (
	"errors"
	"fmt"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Build is a build under way.
type Build struct {
	h        *History
	log      *Log
	recorded bool
	record   Record // guarded by h.mu
}

// Begin notes that a build begins: Ref, Frontend, FrontendAttrs and Exporters
// of r say which. An earlier record with the same ref stays until the build has
// ended. One that is internal, or begins while retention is off, is not
// recorded and has a log only. The caller must call End, and Release later.
func (h *History) Begin(r Record, internal bool) (*Build, error) {
	log, err := newLog(h.files)
	if err != nil {
		return nil, err
	}
	r.CreatedAt, r.Live = time.Now().UTC(), log.name
	b := &Build{h: h, log: log, record: r, recorded: !internal && !h.retention.Off}
	if !b.recorded {
		return b, h.files.removeLive(log.name) // the open file is enough
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.active[r.Ref] != nil {
		err = fmt.Errorf("a build with ref %q is under way", r.Ref)
	} else {
		err = h.beginRecord(&r)
	}
	if err != nil {
		log.leave()
		return nil, errors.Join(err, h.files.removeLive(log.name))
	}
	h.active[r.Ref] = b
	h.tell(Event{Started, r.Ref, r.message()})
	return b, nil
}

// beginRecord has a crash remembered as the end of the build, unless that would
// overwrite an earlier record.
func (h *History) beginRecord(r *Record) error {
	if _, ok := h.ended[r.Ref]; ok {
		return nil
	}
	return h.put(r)
}

// Log is what the build tells.
func (b *Build) Log() *Log { return b.log }

// Recorded tells whether there is, or will be, a record of the build.
func (b *Build) Recorded() bool { return b.recorded }

// Outcome is what is known at the end of a build.
type Outcome struct {
	Failure          *Failure // nil if it succeeded
	Error            []byte   // the failure with its details, see [MediaTypeError]
	ExporterResponse map[string]string
	Steps            Steps
}

// End notes that the build has ended. When it returns, the record is there for
// all to see. The log can be followed until Release.
func (b *Build) End(o Outcome) error {
	b.log.end()
	if !b.recorded {
		return nil
	}
	h := b.h
	blobs, errBlob := b.keepBlobs(o)
	defer h.files.drop(blobs) // the record holds them
	h.mu.Lock()
	defer h.mu.Unlock()
	r := &b.record
	before := r.blobs()
	for _, d := range blobs {
		if d.MediaType == MediaTypeLogs {
			r.Logs = &d
		} else {
			r.Error = &d
		}
	}
	r.CompletedAt, r.Live = time.Now().UTC(), ""
	r.Failure, r.ExporterResponse, r.Steps = o.Failure, o.ExporterResponse, o.Steps
	if old, err := h.load(r.Ref); err == nil {
		before = append(before, old.blobs()...)
	}
	delete(h.active, r.Ref)
	if err := h.replace(r, before); err != nil {
		return errors.Join(err, errBlob)
	}
	h.afterFlush(func() { _ = h.files.removeLive(b.log.name) }) // whichever file a crash leaves, the log is whole
	return errBlob
}

// keepBlobs stores and holds what belongs to the record.
func (b *Build) keepBlobs(o Outcome) (all blobs, err error) {
	d, size, err := b.log.keep()
	if err == nil {
		all = append(all, ocispecs.Descriptor{MediaType: MediaTypeLogs, Digest: d, Size: size})
	}
	if len(o.Error) > 0 {
		e, _, errWrite := b.h.putBlob(Blob{MediaType: MediaTypeError, Data: o.Error})
		if errWrite == nil {
			all = append(all, e)
		}
		err = errors.Join(err, errWrite)
	}
	return all, err
}

// Release says that nobody will begin to follow the log of the ended build.
func (b *Build) Release() {
	b.log.end()
	b.log.leave()
}
