package frontend

import (
	"context"
	"errors"
	"io"
)

// PartReader is a [Ref] whose files can be read in parts, however long they are.
type PartReader interface {
	// ReadPart returns up to n bytes of a file from offset on, fewer at its end.
	ReadPart(ctx context.Context, path string, offset int64, n int) ([]byte, error)
}

// partSize is how much [Open] reads at once, in bytes.
const partSize = 1 << 20

// Open returns a reader of a file of a ref. A ref that is no [PartReader] gives
// files of the size that its ReadFile does.
func Open(ctx context.Context, ref Ref, path string) io.Reader {
	parts, ok := ref.(PartReader)
	if !ok {
		parts = wholeFile{ref}
	}
	return &partStream{ctx: ctx, parts: parts, path: path}
}

// wholeFile makes a PartReader of what is none.
type wholeFile struct{ ref Ref }

func (w wholeFile) ReadPart(ctx context.Context, path string, offset int64, n int) ([]byte, error) {
	data, err := w.ref.ReadFile(ctx, path)
	if err != nil {
		return nil, err
	}
	data = data[min(offset, int64(len(data))):]
	return data[:min(n, len(data))], nil
}

// partStream reads a file part by part.
type partStream struct {
	ctx    context.Context
	parts  PartReader
	path   string
	offset int64
	part   []byte
	end    bool
}

func (s *partStream) Read(p []byte) (int, error) {
	if len(s.part) == 0 {
		if s.end {
			return 0, io.EOF
		}
		part, err := s.parts.ReadPart(s.ctx, s.path, s.offset, partSize)
		if err != nil {
			return 0, err
		}
		if len(part) > partSize {
			return 0, errors.New("read part of a file: more came than was asked for")
		}
		s.part, s.end = part, len(part) < partSize
		s.offset += int64(len(part))
		if len(part) == 0 {
			return 0, io.EOF
		}
	}
	n := copy(p, s.part)
	s.part = s.part[n:]
	return n, nil
}
