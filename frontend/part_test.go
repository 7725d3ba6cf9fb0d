package frontend_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"testing"
	"testing/iotest"

	"github.com/kiln-build/kiln/frontend"
)

// wholeRef reads files whole.
type wholeRef map[string][]byte

func (r wholeRef) ReadFile(_ context.Context, path string) ([]byte, error) {
	if b, ok := r[path]; ok {
		return b, nil
	}
	return nil, fs.ErrNotExist
}

func (r wholeRef) Evaluate(context.Context) error { return nil }

// partRef reads files in parts, and counts them.
type partRef struct {
	wholeRef
	parts int
	more  int // bytes that come unasked
}

func (r *partRef) ReadPart(_ context.Context, path string, offset int64, n int) ([]byte, error) {
	b, ok := r.wholeRef[path]
	if !ok {
		return nil, fs.ErrNotExist
	}
	r.parts++
	b = b[min(int(offset), len(b)):]
	return b[:min(n+r.more, len(b))], nil
}

func (r *partRef) ReadFile(context.Context, string) ([]byte, error) {
	return nil, errors.New("too large")
}

func TestOpen(t *testing.T) {
	for _, size := range []int{0, 1, 1 << 20, 1<<20 + 1, 3 << 20} {
		data := bytes.Repeat([]byte("0123456"), size/7+1)[:size]
		parts := &partRef{wholeRef: wholeRef{"f": data}}
		for _, ref := range []frontend.Ref{wholeRef{"f": data}, parts} {
			if err := iotest.TestReader(frontend.Open(t.Context(), ref, "f"), data); err != nil {
				t.Errorf("%T of %d bytes: %v", ref, size, err)
			}
		}
		if want := size>>20 + 1; parts.parts != want {
			t.Errorf("%d bytes in %d parts, want %d", size, parts.parts, want)
		}
	}
	if _, err := io.ReadAll(frontend.Open(t.Context(), &partRef{}, "f")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	flood := &partRef{wholeRef: wholeRef{"f": make([]byte, 4<<20)}, more: 1}
	if _, err := io.ReadAll(frontend.Open(t.Context(), flood, "f")); err == nil {
		t.Error("took more than was asked for")
	}
}
