// Package content is the store of blobs by digest, and has the few ways in which
// Kiln writes and reads it.
//
// What gets in has the digest and the size that was promised, or does not get
// in and leaves nothing behind. It sits at the bottom, below layer, sources
// and exporters.
package content

import (
	"context"
	_ "crypto/sha512" // images may name blobs by it
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/content"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// ErrWrongContent says that bytes are not those that a descriptor promises.
var ErrWrongContent = errors.New("wrong content")

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
func Write(ctx context.Context, s *Store, mediaType string, data []byte) (ocispecs.Descriptor, error) {
	w, err := NewWriter(s)
	if err != nil {
		return ocispecs.Descriptor{}, err
	}
	defer w.Close() //nolint:errcheck // nothing is lost with it
	if _, err := w.Write(data); err != nil {
		return ocispecs.Descriptor{}, fmt.Errorf("write blob: %w", err)
	}
	return w.Keep(ctx, mediaType, w.Digest())
}

// Ingest stores the blob that desc promises from r, reading no further than
// one byte too many. Anything else than desc promises is [ErrWrongContent].
func Ingest(ctx context.Context, s *Store, desc ocispecs.Descriptor, r io.Reader) error {
	if err := desc.Digest.Validate(); err != nil {
		return fmt.Errorf("store blob %q: %w", desc.Digest, err)
	}
	w, err := s.begin(desc.Digest.Algorithm())
	if err != nil {
		return fmt.Errorf("store blob %s: %w", desc.Digest, err)
	}
	defer w.Close() //nolint:errcheck // nothing is lost with it
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
	case w.Digest() != desc.Digest:
		return fmt.Errorf("store blob %s: %w: its digest is %s", desc.Digest, ErrWrongContent, w.Digest())
	}
	_, err = w.Keep(ctx, desc.MediaType, desc.Digest)
	return err
}
