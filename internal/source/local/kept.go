package local

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/encoding/protowire"
)

// stateVersion changes with the form in which states are kept. Version 1 was
// another encoding, of which a first byte of this one is no beginning, version 2
// had digests as text.
const stateVersion = 3

// entrySize is about what an entry takes, in bytes: a digest, a dozen numbers and a
// path of usual length.
const entrySize = 128

// maxState is the size in bytes above which a state is not read.
const maxState = 1 << 30

// encode writes a state as numbers and strings in a fixed order, compressed:
// most of what is kept are paths, which look like each other. It is by a
// *flate.Writer from the pool if it has one.
func (s *state) encode(writers *sync.Pool) ([]byte, error) {
	b := protowire.AppendVarint(make([]byte, 0, entrySize*(len(s.entries)+1)), stateVersion)
	b = protowire.AppendString(b, s.id)
	b = protowire.AppendVarint(b, uint64(s.depth)) //nolint:gosec // never negative
	entries := s.entries
	if s.extra != nil {
		entries = append(slices.Clip(entries), *s.extra)
	}
	b = protowire.AppendVarint(b, protowire.EncodeBool(s.extra != nil))
	b = protowire.AppendVarint(b, uint64(len(entries)))
	for i := range entries {
		b = entries[i].append(b)
	}
	var out bytes.Buffer
	w, ok := writers.Get().(*flate.Writer)
	var err error
	if !ok {
		w, err = flate.NewWriter(nil, flate.BestSpeed)
	}
	if err == nil {
		defer writers.Put(w)
		w.Reset(&out)
		_, err = w.Write(b)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("encode list of files: %w", err)
	}
	return out.Bytes(), nil
}

func (e *entry) append(b []byte) []byte {
	b = protowire.AppendString(b, e.Path)
	b = protowire.AppendString(b, e.Linkname)
	b = appendSum(b, e.Sum)
	for _, n := range []int64{int64(e.Mode), int64(e.UID), int64(e.GID), e.Size, e.ModTime, e.Major, e.Minor, int64(len(e.Xattrs))} {
		b = protowire.AppendVarint(b, protowire.EncodeZigZag(n))
	}
	for _, name := range slices.Sorted(maps.Keys(e.Xattrs)) {
		b = protowire.AppendString(b, name)
		b = protowire.AppendBytes(b, e.Xattrs[name])
	}
	return b
}

// appendSum appends a digest: its bytes if it is of sha256, else its text.
func appendSum(b []byte, sum digest.Digest) []byte {
	text, isSHA := strings.CutPrefix(string(sum), "sha256:")
	if raw := [sha256.Size]byte{}; isSHA && len(text) == hex.EncodedLen(len(raw)) && text == strings.ToLower(text) {
		if _, err := hex.Decode(raw[:], []byte(text)); err == nil {
			b = protowire.AppendVarint(b, protowire.EncodeBool(true))
			return protowire.AppendBytes(b, raw[:])
		}
	}
	b = protowire.AppendVarint(b, protowire.EncodeBool(false))
	return protowire.AppendString(b, string(sum))
}

func (r *fields) sum() digest.Digest {
	if !protowire.DecodeBool(r.number()) {
		return digest.Digest(r.text())
	}
	return digest.NewDigestFromBytes(digest.SHA256, r.bytes())
}

func decodeState(b []byte) (*state, error) {
	b, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(b)), maxState))
	if err != nil {
		return nil, fmt.Errorf("decode list of files: %w", err)
	}
	r := &fields{rest: b}
	if version := r.number(); version != stateVersion {
		return nil, fmt.Errorf("list of files has version %d, expected %d", version, stateVersion)
	}
	s := &state{id: r.text(), depth: int(r.number())} //nolint:gosec // as it was written
	extra, count := protowire.DecodeBool(r.number()), r.number()
	if count <= uint64(len(r.rest)) { // each takes more than a byte
		s.entries = make([]entry, 0, count)
	}
	for range count {
		if r.err != nil {
			break
		}
		s.entries = append(s.entries, r.entry())
	}
	if n := len(s.entries); extra && n > 0 {
		s.entries, s.extra = s.entries[:n-1:n-1], &s.entries[n-1]
	}
	if r.err != nil || len(r.rest) > 0 {
		return nil, fmt.Errorf("decode list of files: %w", errors.Join(r.err, errTrailing(r.rest)))
	}
	return s, nil
}

func errTrailing(rest []byte) error {
	if len(rest) == 0 {
		return nil
	}
	return fmt.Errorf("%d bytes are left over", len(rest))
}

// fields reads numbers and strings until the first error.
type fields struct {
	rest []byte
	err  error
}

func (r *fields) number() uint64 {
	v, n := protowire.ConsumeVarint(r.rest)
	r.skip(n)
	return v
}

func (r *fields) bytes() []byte {
	v, n := protowire.ConsumeBytes(r.rest)
	r.skip(n)
	return v
}

func (r *fields) text() string { return string(r.bytes()) }

// skip goes on behind n bytes, or ends with the error that a negative n is.
func (r *fields) skip(n int) {
	if n >= 0 {
		r.rest = r.rest[n:]
		return
	}
	if r.err == nil {
		r.err = protowire.ParseError(n)
	}
	r.rest = nil
}

func (r *fields) entry() entry {
	e := entry{Path: r.text(), Linkname: r.text(), Sum: r.sum()}
	var n [8]int64
	for i := range n {
		n[i] = protowire.DecodeZigZag(r.number())
	}
	e.Mode, e.UID, e.GID = uint32(n[0]), uint32(n[1]), uint32(n[2]) //nolint:gosec // as they were written
	e.Size, e.ModTime, e.Major, e.Minor = n[3], n[4], n[5], n[6]
	for range n[7] {
		if r.err != nil {
			break
		}
		if e.Xattrs == nil {
			e.Xattrs = map[string][]byte{}
		}
		name := r.text()
		e.Xattrs[name] = bytes.Clone(r.bytes())
	}
	return e
}
