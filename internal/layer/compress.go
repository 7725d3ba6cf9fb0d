package layer

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"runtime"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
)

// The compressions of Variant.
const (
	gzipName         = "gzip"
	zstdName         = "zstd"
	uncompressedName = "uncompressed"
)

// A codec compresses a stream as chunks of a fixed size, each on its own, so
// that the bytes do not depend on how many are compressed at a time.
type codec interface {
	chunkSize() int
	// header and trailer surround the chunks.
	header() []byte
	trailer(crc uint32, size int64) []byte
	// encode appends the compressed chunk to dst. before is what came right
	// before the chunk.
	encode(dst, before, chunk []byte, last bool) ([]byte, error)
}

func newCodec(v Variant) (codec, error) {
	switch v.Compression {
	case gzipName, "":
		level := v.Level
		switch level {
		case 0:
			level = flate.DefaultCompression
		case LevelStore:
			level = flate.NoCompression
		}
		if level < flate.DefaultCompression || level > flate.BestCompression {
			return nil, fmt.Errorf("gzip level %d is unknown: want 1 to 9", level)
		}
		return &gzipCodec{level: level}, nil
	case zstdName:
		level := zstd.SpeedDefault
		if v.Level != 0 {
			if v.Level < 1 || v.Level > 22 {
				return nil, fmt.Errorf("zstd level %d is unknown: want 1 to 22", v.Level)
			}
			level = zstd.EncoderLevelFromZstd(v.Level)
		}
		// The concurrency only bounds how many chunks are under way. A window of
		// more than a chunk would have no use, and four times the memory.
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderCRC(false), zstd.WithWindowSize(zstdChunk),
			zstd.WithZeroFrames(true), zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)))
		if err != nil {
			return nil, fmt.Errorf("begin zstd: %w", err)
		}
		return &zstdCodec{e: e, quick: v.Level == 0}, nil
	case uncompressedName:
		return plainCodec{}, nil
	case estargzName: // is written as a whole, see makeSeekable
		return plainCodec{}, checkSeekableLevel(v.Level)
	}
	return nil, fmt.Errorf("compression %q is unknown: want %q, %q, %q or %q", v.Compression, gzipName, estargzName, zstdName, uncompressedName)
}

type plainCodec struct{}

func (plainCodec) chunkSize() int               { return 1 << 20 }
func (plainCodec) header() []byte               { return nil }
func (plainCodec) trailer(uint32, int64) []byte { return nil }
func (plainCodec) encode(_, _, chunk []byte, _ bool) ([]byte, error) {
	return chunk, nil
}

// zstdCodec makes each chunk a frame (RFC 8878 section 3.1: frames may be
// concatenated).
type zstdCodec struct {
	e     *zstd.Encoder
	quick bool // leaves chunks as they are that look incompressible
	probe probe
}

const zstdChunk = 2 << 20

func (*zstdCodec) chunkSize() int               { return zstdChunk }
func (*zstdCodec) header() []byte               { return nil }
func (*zstdCodec) trailer(uint32, int64) []byte { return nil }
func (c *zstdCodec) encode(dst, _, chunk []byte, _ bool) ([]byte, error) {
	if c.quick {
		if random, err := c.probe.incompressible(chunk); err != nil {
			return nil, err
		} else if random {
			return storeZstd(dst, chunk), nil
		}
	}
	return c.e.EncodeAll(chunk, dst), nil
}

// storeZstd writes a frame of raw blocks (RFC 8878 sections 3.1.1.1 and 3.1.1.2),
// which is what the encoder makes of bytes that do not compress. The chunk is
// not empty, and longer than what has a shorter header.
func storeZstd(dst, chunk []byte) []byte {
	const (
		magic      = 0xfd2fb528
		descriptor = 2<<6 | 1<<5 // the size of the content in four bytes; no window of its own
		most       = 128 << 10
	)
	dst = binary.LittleEndian.AppendUint32(dst, magic)
	dst = append(dst, descriptor)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(chunk)))
	for len(chunk) > 0 {
		n := min(len(chunk), most)
		head := uint32(n) << 3 // and the type of a raw block, 0
		if n == len(chunk) {
			head |= 1 // the last
		}
		dst = append(dst, byte(head), byte(head>>8), byte(head>>16))
		dst = append(dst, chunk[:n]...)
		chunk = chunk[n:]
	}
	return dst
}

// gzipCodec makes one gzip member (RFC 1952) whose deflate stream is flushed
// to a byte boundary after each chunk (RFC 1951 section 3.2.4).
type gzipCodec struct {
	level int
	pool  sync.Pool // *flate.Writer of level
	probe probe
}

func (*gzipCodec) chunkSize() int { return 1 << 20 }

func (*gzipCodec) header() []byte {
	const deflate, unknownSystem = 8, 255
	return []byte{0x1f, 0x8b, deflate, 0, 0, 0, 0, 0, 0, unknownSystem}
}

func (*gzipCodec) trailer(crc uint32, size int64) []byte {
	b := binary.LittleEndian.AppendUint32(nil, crc)
	return binary.LittleEndian.AppendUint32(b, uint32(size))
}

const deflateWindow = 32 << 10

func (c *gzipCodec) encode(dst, before, chunk []byte, last bool) ([]byte, error) {
	random, err := c.probe.incompressible(chunk)
	if err != nil {
		return nil, err
	}
	if random {
		return storeDeflate(dst, chunk, last), nil
	}
	out := bytes.NewBuffer(dst)
	w, _ := c.pool.Get().(*flate.Writer)
	if w == nil {
		if w, err = flate.NewWriterDict(out, c.level, before); err != nil {
			return nil, err
		}
	} else {
		w.ResetDict(out, before)
	}
	defer c.pool.Put(w)
	if _, err := w.Write(chunk); err != nil {
		return nil, err
	}
	if last {
		err = w.Close()
	} else {
		err = w.Flush()
	}
	return out.Bytes(), err
}

// probe tells chunks that are not worth the time of a compressor. It is an
// estimate, which depends on nothing but the chunk.
type probe struct{ fast sync.Pool } // *flate.Writer

// incompressible looks at a sixteenth of the chunk.
func (p *probe) incompressible(chunk []byte) (bool, error) {
	const fewest, piece = 4, 16 << 10
	pieces := max(fewest, len(chunk)/16/piece)
	if len(chunk) < 4*fewest*piece {
		return false, nil
	}
	var n counter
	w, _ := p.fast.Get().(*flate.Writer)
	if w == nil {
		var err error
		if w, err = flate.NewWriter(&n, flate.BestSpeed); err != nil {
			return false, err
		}
	} else {
		w.Reset(&n)
	}
	defer p.fast.Put(w)
	for i := range pieces {
		at := i * (len(chunk) - piece) / (pieces - 1)
		if _, err := w.Write(chunk[at : at+piece]); err != nil {
			return false, err
		}
	}
	if err := w.Close(); err != nil {
		return false, err
	}
	return n >= counter(pieces*piece*99/100), nil
}

type counter int

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// storeDeflate writes stored blocks (RFC 1951 section 3.2.4).
func storeDeflate(dst, chunk []byte, last bool) []byte {
	const most = 65535
	for {
		n := min(len(chunk), most)
		final := byte(0)
		if last && n == len(chunk) {
			final = 1
		}
		dst = append(dst, final, byte(n), byte(n>>8), ^byte(n), ^byte(n>>8))
		dst = append(dst, chunk[:n]...)
		if chunk = chunk[n:]; len(chunk) == 0 {
			return dst
		}
	}
}

// compressor writes a stream compressed, on as many cores as are free, and
// digests it as it was before.
type compressor struct {
	ctx    context.Context
	codec  codec
	cores  chan struct{} // shared by all who compress
	cur    []byte
	before []byte
	order  chan *chunk // to be written, first one first
	hashes chan *chunk
	free   chan *chunk
	failed chan struct{} // closed when nothing more can be written
	err    error
	wg     sync.WaitGroup

	digester digest.Digester
	crc      uint32
	size     int64
}

type chunk struct {
	in, out, before []byte
	last            bool
	err             error
	encoded, hashed chan struct{}
}

func newCompressor(ctx context.Context, c codec, cores chan struct{}, to io.Writer) *compressor {
	ahead := cap(cores) + 2 // chunks in memory
	z := &compressor{
		ctx: ctx, codec: c, cores: cores,
		order: make(chan *chunk, ahead), hashes: make(chan *chunk, ahead), free: make(chan *chunk, ahead),
		failed: make(chan struct{}), digester: digest.Canonical.Digester(),
	}
	z.cur = z.take().in
	z.wg.Add(2)
	go z.hash()
	go z.collect(to)
	return z
}

func (z *compressor) take() *chunk {
	select {
	case c := <-z.free:
		return &chunk{in: c.in[:0], out: c.out[:0]}
	default:
		return &chunk{in: make([]byte, 0, z.codec.chunkSize())}
	}
}

// Write takes a piece of the stream.
func (z *compressor) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		// A full chunk waits for the next byte, to know whether it is the last.
		if len(z.cur) == cap(z.cur) {
			if err := z.send(false); err != nil {
				return 0, err
			}
		}
		n := min(len(p), cap(z.cur)-len(z.cur))
		z.cur = append(z.cur, p[:n]...)
		p = p[n:]
	}
	return total, nil
}

func (z *compressor) send(last bool) error {
	next := z.take()
	c := &chunk{
		in: z.cur, out: next.out, before: z.before, last: last,
		encoded: make(chan struct{}), hashed: make(chan struct{}),
	}
	z.cur = next.in
	if !last {
		z.before = bytes.Clone(c.in[max(0, len(c.in)-deflateWindow):])
	}
	select {
	case <-z.failed:
		return z.err
	case <-z.ctx.Done():
		return context.Cause(z.ctx)
	case z.order <- c:
	}
	z.hashes <- c // has as much room as order
	select {
	case z.cores <- struct{}{}:
	case <-z.ctx.Done():
		c.err = context.Cause(z.ctx)
		close(c.encoded)
		return c.err
	}
	go func() {
		defer func() { <-z.cores }()
		c.out, c.err = z.codec.encode(c.out, c.before, c.in, c.last)
		close(c.encoded)
	}()
	return nil
}

func (z *compressor) hash() {
	defer z.wg.Done()
	for c := range z.hashes {
		z.digester.Hash().Write(c.in)
		z.crc = crc32.Update(z.crc, crc32.IEEETable, c.in)
		z.size += int64(len(c.in))
		close(c.hashed)
	}
}

func (z *compressor) collect(to io.Writer) {
	defer z.wg.Done()
	_, err := to.Write(z.codec.header())
	if err != nil {
		z.fail(err)
	}
	for c := range z.order {
		<-c.encoded
		<-c.hashed
		if err == nil {
			if err = c.err; err == nil {
				_, err = to.Write(c.out)
			}
			if err != nil {
				z.fail(err)
			}
		}
		if _, plain := z.codec.(plainCodec); plain {
			c.out = nil // it is c.in
		}
		select {
		case z.free <- c:
		default:
		}
	}
	if err == nil {
		if _, err = to.Write(z.codec.trailer(z.crc, z.size)); err != nil {
			z.fail(err)
		}
	}
}

func (z *compressor) fail(err error) {
	z.err = err
	close(z.failed)
}

// finish writes the rest, unless what was written before has failed with err.
// Nothing runs any more when it returns.
func (z *compressor) finish(err error) (diffID digest.Digest, _ error) {
	if err == nil {
		err = z.send(true)
	}
	close(z.order)
	close(z.hashes)
	z.wg.Wait()
	if err == nil {
		err = z.err
	}
	if err != nil {
		return "", err
	}
	return z.digester.Digest(), nil
}
