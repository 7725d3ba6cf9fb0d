package cache

import (
	"fmt"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// This file is what an Uploader asks and tells a place about records.

// usable tells whether there is a record of subject, and returns it if it counts.
func (u *Uploader) usable(subject string) (there bool, r *Record, err error) {
	data, err := u.look(subject)
	if err != nil || data == nil {
		return false, nil, err
	}
	r, err = Usable(data, subject, u.c.Scope, u.c.Trust)
	if err != nil {
		return true, nil, nil //nolint:nilerr // one that does not count is replaced
	}
	return true, r, nil
}

// look returns the record of subject as it is kept, or nil.
func (u *Uploader) look(subject string) ([]byte, error) {
	name := RecordName(subject, u.c.Scope)
	found, err := u.records.ask(u.ctx, []string{name})
	if err != nil {
		return nil, fmt.Errorf("look for records: %w", err)
	}
	return found[name], nil
}

func (u *Uploader) put(r Record, needs []ocispecs.Descriptor, replace bool) error {
	r.Scope, r.SavedAt = u.c.Scope, time.Now()
	data, err := u.c.Identity.Seal(r)
	if err != nil {
		return err
	}
	stored, err := u.c.Shelf.Put(u.ctx, RecordName(r.Subject, r.Scope), data, needs, replace)
	if err != nil {
		return fmt.Errorf("write record: %w", err)
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
	data, err := u.about()
	if err != nil {
		return err
	}
	if data != nil {
		if _, err := Usable(data, aboutSubject, u.c.Scope, u.c.Trust); err == nil {
			u.c.Memory.meet(u.place, data)
			return nil
		}
	}
	u.c.Memory.forget(u.place) // whatever was there is not there any more
	return u.put(Record{Subject: aboutSubject}, nil, data != nil)
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
