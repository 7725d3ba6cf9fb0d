package cache

import (
	"context"
	"fmt"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// This file is what an Uploader asks and tells a place about records.

// usable tells what there is of a subject, and returns the record that counts, if any.
func (u *Uploader) usable(subject string) (kept, *Record, error) {
	k, err := u.look(subject)
	if err != nil || k.best == nil {
		return k, nil, err
	}
	r, err := Usable(k.best, subject, u.c.Scope, u.trust)
	if err != nil {
		return k, nil, nil //nolint:nilerr // one that does not count is no record of ours
	}
	return k, r, nil
}

// look returns what is kept of a subject.
func (u *Uploader) look(subject string) (kept, error) {
	name := RecordName(subject, u.c.Scope)
	found, err := u.records.ask(u.ctx, []string{name})
	if err != nil {
		return kept{}, fmt.Errorf("look for records: %w", err)
	}
	return found[name], nil
}

// put writes a record beside or in place of what was found. Where a policy says whose
// records count, it is written under the writer's own name first: what happens to the
// name that all share, in places that do not decide between those who come at one
// instant, is then no loss to who trusts the writer.
func (u *Uploader) put(r Record, needs []ocispecs.Descriptor, k kept) error {
	r.Scope, r.SavedAt = u.c.Scope, time.Now()
	data, err := u.c.Identity.Seal(r)
	if err != nil {
		return err
	}
	name, stored := RecordName(r.Subject, r.Scope), false
	if u.own {
		if stored, err = u.c.Shelf.Put(u.ctx, ownName(name, u.c.Identity.Public()), data, needs, true); err != nil {
			return fmt.Errorf("write record: %w", err)
		}
	}
	if mount := r.Mount != nil; mount || !k.others(name, u.trust) {
		shared, err := u.c.Shelf.Put(u.ctx, name, data, needs, mount || k.shared != nil)
		if err != nil {
			return fmt.Errorf("write record: %w", err)
		}
		stored = stored || shared
	}
	u.count(func(s *UploadStats) { s.Steps++ })
	switch {
	case stored && r.Subject == aboutSubject:
		u.c.Memory.meet(u.place, data)
	case stored && r.complete():
		u.c.Memory.add(u.place, r.Subject)
	}
	return nil
}

// meet sees to it that the place says that there are records, and lets the memory
// know which place it is now.
func (u *Uploader) meet() error {
	k, err := u.about()
	if err != nil {
		return err
	}
	if k.best != nil {
		if _, err := Usable(k.best, aboutSubject, u.c.Scope, u.trust); err == nil {
			u.c.Memory.meet(u.place, k.best)
			return nil
		}
	}
	u.c.Memory.forget(u.place) // whatever was there is not there any more
	return u.put(Record{Subject: aboutSubject}, nil, k)
}

// known tells whether the place had a subject lately. It is asked who it is first.
func (u *Uploader) known(subject string) (bool, error) {
	if u.c.Memory == nil || u.c.NoRecords {
		return false, nil
	}
	if err := u.met(); err != nil {
		return false, err
	}
	return u.c.Memory.has(u.place, subject), nil
}

// ask is one call for records.
func (u *Uploader) askRecords(ctx context.Context, names []string) (map[string]kept, error) {
	return lookUp(ctx, u.c.Shelf, names, u.c.Scope, u.trust)
}
