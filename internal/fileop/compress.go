package fileop

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// maxWindow caps the memory that an archive can ask a decoder for, in bytes.
const maxWindow = 512 << 20

// decompress tells by the first bytes how a stream is compressed, if it is.
func decompress(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 64<<10)
	magic, err := b.Peek(32)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	begins := func(s string) bool { return bytes.HasPrefix(magic, []byte(s)) }
	switch {
	case begins("\x1f\x8b\x08"):
		return gzip.NewReader(b)
	case begins("BZh"):
		return io.NopCloser(bzip2.NewReader(b)), nil
	case begins("\xfd7zXZ\x00"):
		if window := xzWindow(magic); window > maxWindow {
			return nil, fmt.Errorf("xz asks for a dictionary of %d bytes, at most %d are given", window, maxWindow)
		}
		x, err := xz.NewReader(b)
		return io.NopCloser(x), err
	case begins("\x28\xb5\x2f\xfd"), len(magic) > 3 && magic[0]&0xf0 == 0x50 && bytes.HasPrefix(magic[1:], []byte("\x2a\x4d\x18")):
		z, err := zstd.NewReader(b, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(2))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(b), nil
}

// xzWindow reads the size of the dictionary from the header of an xz stream's
// first block (12 bytes of stream header, then the block's size, flags, optional
// sizes, and filters of which LZMA2, 0x21, has it as its one property).
func xzWindow(b []byte) int64 {
	if len(b) < 16 || b[12] == 0 {
		return 0
	}
	flags := b[13]
	rest := b[14:]
	skip := 0
	for _, has := range []byte{0x40, 0x80} {
		if flags&has == 0 {
			continue
		}
		for skip < len(rest) && rest[skip]&0x80 != 0 {
			skip++
		}
		skip++
	}
	if flags&3 != 0 || skip+3 > len(rest) || rest[skip] != 0x21 {
		return 0 // several filters; the decoder knows LZMA2 alone
	}
	bits := rest[skip+2] & 0x3f
	if bits > 39 {
		return 1 << 32
	}
	return int64(2|bits&1) << (bits/2 + 11)
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
