package history

import (
	"io"
	"os"
	"slices"
	"strings"
	"time"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// BlobReader reads a blob, also one that is removed meanwhile.
type BlobReader struct {
	file *os.File
	size int64
}

// Open opens a blob of the history. It is [io/fs.ErrNotExist] if no record
// names it.
func (h *History) Open(d digest.Digest) (*BlobReader, error) {
	file, size, err := h.files.open(d)
	if err != nil {
		return nil, err
	}
	return &BlobReader{file, size}, nil
}

// Size is in bytes.
func (b *BlobReader) Size() int64 { return b.size }

// ReadAt reads as [io.ReaderAt] does.
func (b *BlobReader) ReadAt(p []byte, off int64) (int, error) {
	return io.NewSectionReader(b.file, 0, b.size).ReadAt(p, off)
}

// Close closes the blob.
func (b *BlobReader) Close() error { return b.file.Close() }

// BlobInfo is what is known of a blob besides its content.
type BlobInfo struct {
	Digest    digest.Digest
	Size      int64 // bytes
	CreatedAt time.Time
}

// Blobs lists the blobs of the history, by digest.
func (h *History) Blobs() []BlobInfo {
	var all []BlobInfo
	for _, d := range h.files.list() {
		if info, ok := h.Stat(d); ok {
			all = append(all, info)
		}
	}
	slices.SortFunc(all, func(a, b BlobInfo) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	return all
}

// Stat tells of a blob of the history, if it is there.
func (h *History) Stat(d digest.Digest) (BlobInfo, bool) {
	b, err := h.Open(d)
	if err != nil {
		return BlobInfo{}, false
	}
	defer b.Close()
	fi, err := b.file.Stat()
	if err != nil {
		return BlobInfo{}, false
	}
	return BlobInfo{d, b.size, fi.ModTime()}, true
}

// putBlob stores a blob, which is kept at least until release.
func (h *History) putBlob(b Blob) (_ ocispecs.Descriptor, release func(), err error) {
	d := ocispecs.Descriptor{MediaType: b.MediaType, Annotations: b.Annotations, Size: int64(len(b.Data))}
	if d.Digest, err = h.files.write(b.Data); err != nil {
		return d, nil, err
	}
	return d, func() { h.files.drop(blobs{d}) }, nil
}
