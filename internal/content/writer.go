package content

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// worthSharing is from which size on the digest of a write is made beside it.
const worthSharing = 128 << 10

// Writer is a blob under way, in a file of its own.
type Writer struct {
	s         *Store
	f         *os.File // nil when closed
	algorithm digest.Algorithm
	hash      hash.Hash // nil if who keeps the blob knows its digest
	status    content.Status
}

// NewWriter begins a blob. The caller must Close it, after Keep too.
func NewWriter(s *Store) (*Writer, error) {
	w, err := s.begin(digest.Canonical)
	if err != nil {
		return nil, fmt.Errorf("begin blob: %w", err)
	}
	return w, nil
}

// NewUnhashedWriter begins a blob whose digest the caller makes for a reason of
// his own. It must not be asked for one.
func NewUnhashedWriter(s *Store) (*Writer, error) {
	w, err := NewWriter(s)
	if err == nil {
		w.hash = nil
	}
	return w, err
}

// Keep ends the blob, whose digest is d, and keeps it. That it has been there
// before is no error.
func (w *Writer) Keep(ctx context.Context, mediaType string, d digest.Digest) (ocispecs.Descriptor, error) {
	desc := ocispecs.Descriptor{MediaType: mediaType, Digest: d, Size: w.status.Offset}
	if err := w.Commit(ctx, desc.Size, d); err != nil && !errdefs.IsAlreadyExists(err) {
		return desc, fmt.Errorf("store blob %s: %w", d, err)
	}
	return desc, nil
}

// Write appends to the blob.
func (w *Writer) Write(p []byte) (n int, err error) {
	if w.f == nil {
		return 0, fs.ErrClosed
	}
	switch {
	case w.hash == nil:
		n, err = w.f.Write(p)
	case len(p) < worthSharing:
		w.hash.Write(p)
		n, err = w.f.Write(p)
	default:
		hashed := make(chan struct{})
		go func() {
			defer close(hashed)
			w.hash.Write(p)
		}()
		n, err = w.f.Write(p)
		<-hashed
	}
	w.status.Offset += int64(n)
	if err != nil {
		err = errors.Join(err, w.Close()) // the digest is no more what was written
	}
	return n, err
}

// Digest is that of what was written.
func (w *Writer) Digest() digest.Digest { return digest.NewDigest(w.algorithm, w.hash) }

// Status tells how far the blob is.
func (w *Writer) Status() (content.Status, error) {
	w.status.UpdatedAt = time.Now()
	return w.status, nil
}

// Truncate begins anew; size must be 0.
func (w *Writer) Truncate(size int64) error {
	if size != 0 {
		return fmt.Errorf("truncate blob to %d bytes: it can only begin anew", size)
	}
	if w.hash != nil {
		w.hash.Reset()
	}
	w.status.Offset = 0
	_, err := w.f.Seek(0, io.SeekStart)
	return errors.Join(err, w.f.Truncate(0))
}

// Close forgets the blob unless it was committed.
func (w *Writer) Close() error {
	if w.f == nil {
		return nil
	}
	f := w.f
	w.f = nil
	err := os.Remove(f.Name())
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, f.Close())
}

// Commit keeps the blob if it has the size and the digest that are expected, as
// far as they are given.
func (w *Writer) Commit(_ context.Context, size int64, expected digest.Digest, _ ...content.Opt) error {
	if w.f == nil {
		return fmt.Errorf("commit a closed blob: %w", errdefs.ErrFailedPrecondition)
	}
	d, err := w.verify(size, expected)
	if err != nil {
		return errors.Join(err, w.Close())
	}
	path := w.s.path(d)
	if _, err := os.Lstat(path); err == nil {
		if err := w.Close(); err != nil {
			return err
		}
		return fmt.Errorf("blob %s: %w", d, errdefs.ErrAlreadyExists)
	}
	f := w.f
	w.f = nil
	err = f.Chmod(0o644)
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = keep(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	w.s.syncLater(d)
	return nil
}

func keep(from, to string) error {
	err := os.Rename(from, to)
	if errors.Is(err, fs.ErrNotExist) { // the first of its algorithm
		if err = os.MkdirAll(filepath.Dir(to), 0o755); err == nil {
			err = os.Rename(from, to)
		}
	}
	return err
}

// verify returns the digest of the blob.
func (w *Writer) verify(size int64, expected digest.Digest) (digest.Digest, error) {
	if size > 0 && size != w.status.Offset {
		return "", fmt.Errorf("commit blob: it has %d bytes, expected %d: %w", w.status.Offset, size, errdefs.ErrFailedPrecondition)
	}
	if w.hash == nil {
		return expected, expected.Validate()
	}
	if expected == "" {
		return w.Digest(), nil
	}
	if err := expected.Validate(); err != nil {
		return "", fmt.Errorf("commit blob %q: %w", expected, err)
	}
	if a := expected.Algorithm(); a != w.algorithm {
		w.algorithm, w.hash = a, a.Hash()
		if _, err := io.Copy(w.hash, io.NewSectionReader(w.f, 0, w.status.Offset)); err != nil {
			return "", fmt.Errorf("commit blob %s: %w", expected, err)
		}
	}
	if d := w.Digest(); d != expected {
		return "", fmt.Errorf("commit blob: its digest is %s, expected %s: %w", d, expected, errdefs.ErrFailedPrecondition)
	}
	return expected, nil
}
