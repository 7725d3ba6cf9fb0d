package cachemount

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// MediaType is that of a chunk as it is kept: compressed by zstd.
const MediaType = "application/vnd.kiln.cachemount.chunk.v1+zstd"

const (
	snapshotVersion = 1
	maxChunks       = 1 << 20
)

// Snapshot is the files of a cache mount at one time, as it travels: the bytes
// of its chunks, one after the other, are a tar archive.
type Snapshot struct {
	Version int       `json:"version"` // 1
	ID      string    `json:"id"`      // as in the build file
	Created time.Time `json:"created"`
	Files   int       `json:"files"` // and folders
	Chunks  []Chunk   `json:"chunks"`
}

// Chunk is a part of a snapshot's archive.
type Chunk struct {
	Digest digest.Digest       `json:"digest"` // of the bytes
	Size   int64               `json:"size"`   // in bytes
	Blob   ocispecs.Descriptor `json:"blob"`   // what is kept: the bytes, compressed
}

// Size is that of the archive, in bytes.
func (s *Snapshot) Size() (n int64) {
	for _, c := range s.Chunks {
		n += c.Size
	}
	return n
}

// Blobs are the chunks as they are kept, each once.
func (s *Snapshot) Blobs() (all []ocispecs.Descriptor) {
	seen := map[digest.Digest]bool{}
	for _, c := range s.Chunks {
		if !seen[c.Blob.Digest] {
			seen[c.Blob.Digest] = true
			all = append(all, c.Blob)
		}
	}
	return all
}

// DecodeSnapshot reads a snapshot that others may have written.
func DecodeSnapshot(data []byte) (*Snapshot, error) {
	s := &Snapshot{}
	if err := json.Unmarshal(data, s); err != nil {
		return nil, fmt.Errorf("read cache mount's snapshot: %w", err)
	}
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("read cache mount's snapshot: %w", err)
	}
	return s, nil
}

func (s *Snapshot) check() error {
	switch {
	case s.Version != snapshotVersion:
		return fmt.Errorf("version %d: expected %d", s.Version, snapshotVersion)
	case s.ID == "":
		return errors.New("it has no id")
	case len(s.Chunks) > maxChunks:
		return fmt.Errorf("%d chunks: expected at most %d", len(s.Chunks), maxChunks)
	}
	for i, c := range s.Chunks {
		if err := errors.Join(c.Digest.Validate(), c.Blob.Digest.Validate()); err != nil {
			return fmt.Errorf("chunk %d: %w", i, err)
		}
		if c.Size <= 0 || c.Size > maxChunk || c.Blob.Size <= 0 || c.Blob.Size > 2*maxChunk {
			return fmt.Errorf("chunk %d has %d bytes, compressed %d: expected 1 to %d", i, c.Size, c.Blob.Size, maxChunk)
		}
		if c.Blob.MediaType != MediaType {
			return fmt.Errorf("chunk %d is of type %q: expected %q", i, c.Blob.MediaType, MediaType)
		}
	}
	return nil
}
