package history

import (
	"slices"
	"time"
)

// retainEvery is how often the age of records is held against the limits.
const retainEvery = 2 * time.Minute

// retain removes what is too old and too much, until the history is closed.
func (h *History) retain() {
	defer h.work.Done()
	tick := time.NewTicker(retainEvery)
	defer tick.Stop()
	for {
		h.collect(time.Now())
		select {
		case <-h.stop:
			return
		case <-tick.C:
		}
	}
}

// Shrink removes the oldest unpinned records, whatever their age, until that has
// freed so many bytes of the disk or but the last build is left. It returns how
// many bytes are free.
func (h *History) Shrink(bytes int64) (freed int64, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []string
	for ref, e := range h.ended {
		if !e.pinned {
			all = append(all, ref)
		}
	}
	slices.SortFunc(all, func(a, b string) int { return h.ended[a].completed.Compare(h.ended[b].completed) })
	var gone blobs
	for _, ref := range all[:max(len(all)-1, 0)] {
		if freed >= bytes {
			break
		}
		blobs, err := h.remove(ref)
		if err != nil {
			return 0, err
		}
		freed += h.files.takes(blobs)
		gone = append(gone, blobs...)
	}
	if len(gone) == 0 {
		return 0, nil
	}
	if err := h.db.Flush(); err != nil {
		return 0, err
	}
	h.files.drop(gone)
	return freed, nil
}

// collect removes the unpinned records that are both beyond the newest
// MaxEntries and older than MaxAge. One that cannot be removed stays until the
// next time.
func (h *History) collect(now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	type entry struct {
		ref       string
		completed time.Time
	}
	var all []entry
	for ref, e := range h.ended {
		if !e.pinned {
			all = append(all, entry{ref, e.completed})
		}
	}
	if len(all) <= h.retention.MaxEntries {
		return
	}
	slices.SortFunc(all, func(a, b entry) int { return b.completed.Compare(a.completed) })
	var gone blobs
	for _, e := range all[h.retention.MaxEntries:] {
		if now.Sub(e.completed) <= h.retention.MaxAge {
			continue
		}
		if blobs, err := h.remove(e.ref); err == nil {
			gone = append(gone, blobs...)
		}
	}
	if len(gone) > 0 && h.db.Flush() == nil {
		h.files.drop(gone)
	}
}
