package build

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/kiln-build/kiln/internal/safepath"
)

// ReadPart returns up to n bytes of a file from offset on, fewer at its end.
func (r *Ref) ReadPart(ctx context.Context, path string, offset int64, n int) (data []byte, err error) {
	if n < 0 || n > mostFile || offset < 0 {
		return nil, fmt.Errorf("read %s: cannot read %d bytes at %d", path, n, offset)
	}
	err = r.WithRoot(ctx, func(root *safepath.Root) error {
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
		data = make([]byte, min(int64(n), max(fi.Size()-offset, 0)))
		read, err := f.ReadAt(data, offset)
		if errors.Is(err, io.EOF) {
			err = nil
		}
		data = data[:read]
		return err
	})
	return data, err
}
