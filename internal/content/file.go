package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// File is a blob's file, open to be read. No user but the store's own may write
// to it, so its descriptor can be handed to others.
type File struct {
	*os.File
	size int64
}

// Size is the blob's size in bytes.
func (f File) Size() int64 { return f.size }

// Reader reads the blob from its beginning, once.
func (f File) Reader() io.Reader { return io.LimitReader(f.File, f.size) }

// ReaderAt opens a blob; it is a [File].
func (s *Store) ReaderAt(_ context.Context, desc ocispecs.Descriptor) (content.ReaderAt, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("open blob %q: %w: %w", desc.Digest, err, errdefs.ErrInvalidArgument)
	}
	f, err := os.Open(s.path(desc.Digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open blob %s: %w", desc.Digest, errdefs.ErrNotFound)
	} else if err != nil {
		return nil, fmt.Errorf("open blob: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open blob: %w", err), f.Close())
	}
	return File{f, info.Size()}, nil
}
