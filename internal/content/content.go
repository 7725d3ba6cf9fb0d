// Package content opens the store of blobs by digest, containerd's local one,
// and has the few ways in which Kiln writes and reads it.
//
// What gets in has the digest and the size that was promised, or does not get
// in and leaves nothing behind. It sits at the bottom, below layer, sources
// and exporters.
package content

import (
	"context"
	"crypto/rand"
	_ "crypto/sha512" // images may name blobs by it
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// ErrWrongContent says that bytes are not those that a descriptor promises.
var ErrWrongContent = errors.New("wrong content")

// Open opens the blobs below root, and forgets those that a crash has left half
// written.
func Open(_ context.Context, root string) (content.Store, error) {
	// The folder of the blobs, which the store makes only for the first one, is
	// made here so that an empty store can be listed.
	blobs := filepath.Join(root, "blobs", digest.Canonical.String())
	if err := errors.Join(os.MkdirAll(root, 0o711), os.MkdirAll(blobs, 0o755)); err != nil {
		return nil, fmt.Errorf("create content root: %w", err)
	}
	// Not by the store's own means: they fail on one that was just being begun.
	if err := os.RemoveAll(filepath.Join(root, "ingest")); err != nil {
		return nil, fmt.Errorf("remove half-written blobs: %w", err)
	}
	s, err := local.NewStore(root)
	if err != nil {
		return nil, fmt.Errorf("open content: %w", err)
	}
	return s, nil
}

// Has tells whether the blob is here.
func Has(ctx context.Context, s content.InfoProvider, d digest.Digest) bool {
	_, err := s.Info(ctx, d)
	return err == nil
}

// Read returns a whole blob of at most limit bytes, verified.
func Read(ctx context.Context, s content.Provider, desc ocispecs.Descriptor, limit int64) ([]byte, error) {
	if desc.Size > limit {
		return nil, fmt.Errorf("read blob %s: it has %d bytes, at most %d are read", desc.Digest, desc.Size, limit)
	}
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("read blob %q: %w", desc.Digest, err)
	}
	data, err := content.ReadBlob(ctx, s, desc)
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", desc.Digest, err)
	}
	if got := desc.Digest.Algorithm().FromBytes(data); got != desc.Digest {
		return nil, fmt.Errorf("read blob %s: %w: its digest is %s", desc.Digest, ErrWrongContent, got)
	}
	return data, nil
}

// Write stores data as a blob and returns its descriptor.
func Write(ctx context.Context, s content.Ingester, mediaType string, data []byte) (ocispecs.Descriptor, error) {
	w, err := NewWriter(ctx, s)
	if err != nil {
		return ocispecs.Descriptor{}, err
	}
	defer w.Close()
	if _, err := w.Write(data); err != nil {
		return ocispecs.Descriptor{}, fmt.Errorf("write blob: %w", err)
	}
	return w.Commit(ctx, mediaType)
}

// Ingest stores the blob that desc promises from r, reading no further than
// one byte too many. Anything else than desc promises is [ErrWrongContent].
func Ingest(ctx context.Context, s content.Ingester, desc ocispecs.Descriptor, r io.Reader) error {
	if err := desc.Digest.Validate(); err != nil {
		return fmt.Errorf("store blob %q: %w", desc.Digest, err)
	}
	w, err := newWriter(ctx, s, desc)
	if err != nil {
		return err
	}
	defer w.Close()
	n, err := io.Copy(w, io.LimitReader(r, desc.Size+1))
	switch {
	case err != nil:
		return fmt.Errorf("store blob %s: after %d of %d bytes: %w", desc.Digest, n, desc.Size, err)
	case n != desc.Size:
		than := "more"
		if n < desc.Size {
			than = "fewer"
		}
		return fmt.Errorf("store blob %s: %w: it has %s than the %d bytes promised", desc.Digest, ErrWrongContent, than, desc.Size)
	case w.w.Digest() != desc.Digest && desc.Digest.Algorithm() == digest.Canonical:
		return fmt.Errorf("store blob %s: %w: its digest is %s", desc.Digest, ErrWrongContent, w.w.Digest())
	}
	return w.commit(ctx, desc.Size, desc.Digest)
}

// Writer writes a blob whose digest is not known yet.
type Writer struct {
	w    content.Writer
	s    content.Ingester
	ref  string
	size int64
}

// NewWriter begins a blob. The caller must Close it, after Commit too.
func NewWriter(ctx context.Context, s content.Ingester) (*Writer, error) {
	return newWriter(ctx, s, ocispecs.Descriptor{})
}

func newWriter(ctx context.Context, s content.Ingester, desc ocispecs.Descriptor) (*Writer, error) {
	ref := "kiln-" + rand.Text() // of its own, so that nobody waits for another's
	opts := []content.WriterOpt{content.WithRef(ref)}
	if desc.Digest != "" && desc.Digest.Algorithm() != digest.Canonical {
		opts = append(opts, content.WithDescriptor(desc))
	}
	w, err := s.Writer(ctx, opts...)
	if err != nil {
		return nil, fmt.Errorf("begin blob: %w", err)
	}
	return &Writer{w: w, s: s, ref: ref}, nil
}

// Write appends to the blob.
func (w *Writer) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	w.size += int64(n)
	return n, err
}

// Commit keeps the blob. That it has been there before is no error.
func (w *Writer) Commit(ctx context.Context, mediaType string) (ocispecs.Descriptor, error) {
	d := ocispecs.Descriptor{MediaType: mediaType, Digest: w.w.Digest(), Size: w.size}
	return d, w.commit(ctx, d.Size, d.Digest)
}

func (w *Writer) commit(ctx context.Context, size int64, d digest.Digest) error {
	if err := w.w.Commit(ctx, size, d); err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("store blob %s: %w", d, err)
	}
	w.ref = ""
	return w.w.Close()
}

// Close forgets the blob unless it was committed.
func (w *Writer) Close() error {
	if w.ref == "" {
		return nil
	}
	err := w.w.Close()
	if m, ok := w.s.(content.IngestManager); ok {
		// Not with the caller's context: it may be why we are here.
		err = errors.Join(err, m.Abort(context.Background(), w.ref))
	}
	w.ref = ""
	return err
}
