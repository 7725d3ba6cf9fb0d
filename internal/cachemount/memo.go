package cachemount

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// memo is what the last survey of a mount's files found.
type memo struct {
	At      int64 // when it began, in ns
	Entries []entry
	Cuts    []cut
	Known   []Chunk // further ones, of which it is not known where they are
}

const (
	memoName = "survey"
	// tick is the longest that a file system's clock may stand still: a file
	// that is younger at a survey can change later and look the same.
	tick = 50 * time.Millisecond
)

// loadMemo returns an empty memo where there is none.
func (m *Mounts) loadMemo(name string) *memo {
	b, err := os.ReadFile(filepath.Join(m.dir, name, memoName))
	if err != nil {
		return &memo{}
	}
	r, err := decodeMemo(b)
	if err != nil {
		return &memo{} // cut off; it only saves work
	}
	return r
}

func (m *Mounts) saveMemo(name string, r *memo) error {
	file := filepath.Join(m.dir, name, memoName)
	b, err := r.encode()
	if err == nil {
		err = os.WriteFile(file+".new", b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("note survey: %w", err)
	}
	return os.Rename(file+".new", file)
}

// encode writes a memo: a JSON document without the entries, which are many and
// have paths of any bytes, and then these, counted, as strings and numbers.
func (r *memo) encode() ([]byte, error) {
	rest := *r
	rest.Entries = nil
	head, err := json.Marshal(&rest)
	if err != nil {
		return nil, err
	}
	b := protowire.AppendVarint(protowire.AppendBytes(nil, head), uint64(len(r.Entries)))
	for i := range r.Entries {
		e := &r.Entries[i]
		b = protowire.AppendString(b, e.Path)
		b = protowire.AppendString(b, e.LinkTo)
		for _, n := range e.numbers() {
			b = protowire.AppendVarint(b, protowire.EncodeZigZag(n))
		}
	}
	return b, nil
}

// numbers are what of an entry is a number.
func (e *entry) numbers() [8]int64 {
	s := &e.Stat
	return [...]int64{e.Length, s.Ino, s.Size, s.Mtime, s.Ctime, int64(s.Mode), int64(s.UID), int64(s.GID)}
}

func decodeMemo(b []byte) (*memo, error) {
	r := &memo{}
	head, n := protowire.ConsumeBytes(b)
	if n < 0 {
		return nil, protowire.ParseError(n)
	}
	if err := json.Unmarshal(head, r); err != nil {
		return nil, err
	}
	if r.Entries != nil {
		return nil, errors.New("entries where none are expected")
	}
	b = b[n:]
	count, n := protowire.ConsumeVarint(b)
	if n < 0 {
		return nil, protowire.ParseError(n)
	}
	for b = b[n:]; len(b) > 0; {
		e, n := decodeEntry(b)
		if n < 0 {
			return nil, protowire.ParseError(n)
		}
		r.Entries, b = append(r.Entries, e), b[n:]
	}
	if count != uint64(len(r.Entries)) {
		return nil, fmt.Errorf("%d entries, expected %d", len(r.Entries), count)
	}
	return r, nil
}

// decodeEntry returns the first entry and its length in b, or as protowire does
// a negative number.
func decodeEntry(b []byte) (e entry, length int) {
	for _, to := range []*string{&e.Path, &e.LinkTo} {
		v, n := protowire.ConsumeString(b[length:])
		if n < 0 {
			return e, n
		}
		*to, length = v, length+n
	}
	var numbers [8]int64
	for i := range numbers {
		v, n := protowire.ConsumeVarint(b[length:])
		if n < 0 {
			return e, n
		}
		numbers[i], length = protowire.DecodeZigZag(v), length+n
	}
	e.Length = numbers[0]
	e.Stat = stat{
		Ino: numbers[1], Size: numbers[2], Mtime: numbers[3], Ctime: numbers[4],
		Mode: uint32(numbers[5]), UID: uint32(numbers[6]), GID: uint32(numbers[7]), //nolint:gosec // as they were written
	}
	return e, length
}
