package cache

import (
	"context"
	"crypto/sha256"
	"fmt"
)

// A record is kept under a name that all writers share, where who comes first stays.
// A writer with a policy of trust keeps its records under names of its own as well,
// which nobody else writes. So a record that does not count by a reader's policy, or
// that took another's place in the instant in which both looked and found nothing,
// hides none from those who trust the other.

// ownName is what a writer keeps a record under for itself.
func ownName(name, writer string) string {
	return fmt.Sprintf("%s-%x", name, sha256.Sum256([]byte(writer)))[:len(name)+1+16]
}

// kept is what a place has of one subject.
type kept struct {
	shared []byte // under the name that all share
	best   []byte // the record that counts, or the shared one if none does
}

// others tells whether the shared name is taken by a whole record of somebody who does
// not count, which is left alone.
func (k kept) others(name string, t Trust) bool {
	r, err := OpenRecord(k.shared)
	return err == nil && RecordName(r.Subject, r.Scope) == name && t.accepts(r) != nil
}

// lookUp returns what is kept under names of a scope. The names that writers have of
// their own are asked for only where the shared one has what does not count, so
// without a policy never.
func lookUp(ctx context.Context, s Shelf, names []string, scope string, t Trust) (map[string]kept, error) {
	shared, err := s.Records(ctx, names)
	if err != nil {
		return nil, err
	}
	writers := t.writersOf(scope)
	found := make(map[string]kept, len(shared))
	var ask []string
	for name, data := range shared {
		found[name] = kept{data, data}
		if len(writers) > 0 && counting(data, name, t) == nil {
			for _, w := range writers {
				ask = append(ask, ownName(name, w))
			}
		}
	}
	if len(ask) == 0 {
		return found, nil
	}
	own, err := s.Records(ctx, ask)
	if err != nil {
		return nil, err
	}
	for name, k := range found {
		if best := bestOf(name, own, writers, t); best != nil {
			found[name] = kept{k.shared, best}
		}
	}
	return found, nil
}

// bestOf chooses among the records that writers keep under names of their own: the
// newest snapshot of a cache mount, and else whose writer the policy names first.
func bestOf(name string, own map[string][]byte, writers []string, t Trust) (best []byte) {
	var of *Record
	for _, w := range writers {
		data := own[ownName(name, w)]
		r := counting(data, name, t)
		if r == nil || r.Writer != w {
			continue
		}
		if of == nil || r.Mount != nil && r.SavedAt.After(of.SavedAt) {
			best, of = data, r
		}
	}
	return best
}

// counting returns a record that belongs under a shared name and counts, or nil.
func counting(data []byte, name string, t Trust) *Record {
	r, err := OpenRecord(data)
	if err != nil || RecordName(r.Subject, r.Scope) != name || t.accepts(r) != nil {
		return nil
	}
	return r
}
