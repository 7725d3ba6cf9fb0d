package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/kiln-build/kiln/internal/safepath"
)

// mostFile is the size of the largest file that ReadFile returns, in bytes.
const mostFile = 16 << 20

// ReadFile returns a file's content, at most 16 MiB of it.
func (r *Ref) ReadFile(ctx context.Context, path string) (data []byte, err error) {
	err = r.withFile(ctx, path, func(f *os.File, _ int64) error {
		data, err = io.ReadAll(io.LimitReader(f, mostFile+1))
		if err == nil && len(data) > mostFile {
			err = fmt.Errorf("read file: %s exceeds maximum allowed size of %d MiB", path, mostFile>>20)
		}
		return err
	})
	return data, err
}

// ReadPart returns up to n bytes of a file from offset on, fewer at its end.
func (r *Ref) ReadPart(ctx context.Context, path string, offset int64, n int) (data []byte, err error) {
	if n < 0 || n > mostFile || offset < 0 {
		return nil, fmt.Errorf("read %s: cannot read %d bytes at %d", path, n, offset)
	}
	err = r.withFile(ctx, path, func(f *os.File, size int64) error {
		data = make([]byte, min(int64(n), max(size-offset, 0)))
		read, err := f.ReadAt(data, offset)
		if errors.Is(err, io.EOF) {
			err = nil
		}
		data = data[:read]
		return err
	})
	return data, err
}

// withFile calls read with a regular file of the result and its size in bytes.
func (r *Ref) withFile(ctx context.Context, path string, read func(f *os.File, size int64) error) error {
	return r.WithRoot(ctx, func(root *safepath.Root) error {
		f, err := root.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		fi, err := f.Stat()
		if err != nil {
			return err
		}
		if !fi.Mode().IsRegular() {
			return fmt.Errorf("read %s: not a regular file", path)
		}
		return read(f, fi.Size())
	})
}
