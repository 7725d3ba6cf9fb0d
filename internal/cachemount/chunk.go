package cachemount

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
)

// Sizes of chunks in bytes. They are part of the format only in so far as
// writers with other sizes share no chunks.
const (
	minChunk = 256 << 10
	avgChunk = 1 << 20 // a power of two
	maxChunk = 4 << 20

	cutMask = uint64(avgChunk-1) << 44
)

// cutter cuts a stream into chunks where its content says so: a sum over the
// last bytes, which forgets what came earlier, has zeros in its upper bits. So
// what is inserted or removed changes the chunks around it and no others. The
// sum begins anew with each chunk: where a chunk ends depends on its bytes alone.
type cutter struct {
	gear [256]uint64
}

func newCutter() *cutter {
	c := &cutter{}
	for i := range c.gear {
		sum := sha256.Sum256([]byte{byte(i)})
		c.gear[i] = binary.LittleEndian.Uint64(sum[:])
	}
	return c
}

// chunks cuts what r reads.
type chunks struct {
	cutter *cutter
	r      *reader
	buf    []byte // of maxChunk and readAhead bytes
	have   int    // of buf: read, and not yet part of a chunk
}

const readAhead = 64 << 10

func newChunks(t *tree) *chunks {
	return &chunks{cutter: newCutter(), r: t.read(position{}), buf: make([]byte, maxChunk+readAhead)}
}

// skip goes on at another position.
func (c *chunks) skip(to position) error {
	err := c.r.Close()
	c.r.at, c.have = to, 0
	return err
}

// next returns a chunk, or io.EOF after the
// last. final says that it ends where the archive does, not its content.
func (c *chunks) next() (chunk []byte, final bool, err error) {
	sum, done := uint64(0), minChunk-64
	for {
		b := c.buf[:c.have]
		for ; done < len(b) && done < maxChunk; done++ {
			sum = sum<<1 + c.cutter.gear[b[done]]
			if done >= minChunk && sum&cutMask == 0 {
				return c.take(done + 1), false, nil
			}
		}
		if done == maxChunk {
			return c.take(maxChunk), false, nil
		}
		n, err := c.r.Read(c.buf[c.have : c.have+readAhead])
		c.have += n
		if errors.Is(err, io.EOF) {
			if c.have == 0 {
				return nil, true, io.EOF
			}
			return c.take(c.have), true, nil
		}
		if err != nil {
			return nil, false, err
		}
	}
}

// take splits n bytes off, and keeps the rest for the next chunk.
func (c *chunks) take(n int) []byte {
	chunk := bytes.Clone(c.buf[:n])
	c.have = copy(c.buf, c.buf[n:c.have])
	return chunk
}
