package history

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"

	digest "github.com/opencontainers/go-digest"
)

const (
	frameHeader = 4        // bytes: the length of the frame, little endian
	batchSize   = 1 << 20  // bytes that a follower reads at once
	MaxFrame    = 15 << 20 // bytes; a frame is one message, which must stay below 16 MiB
)

// Log is what a build has told so far, in a file. A frame is a message in the
// caller's encoding; the file is the blob that is served later: frames, each
// after its length. Its methods may be called concurrently.
type Log struct {
	files *files
	name  string

	mu     sync.Mutex
	file   *os.File
	size   int64
	sum    hash.Hash
	err    error         // why what came later is missing
	closed bool          // no more will come
	users  int           // followers, and the builder until the log is closed
	more   chan struct{} // closed and replaced whenever there is more
}

func newLog(f *files) (*Log, error) {
	file, name, err := f.create()
	if err != nil {
		return nil, err
	}
	return &Log{files: f, name: name, file: file, sum: sha256.New(), users: 1, more: make(chan struct{})}, nil
}

// Append adds a frame. One that comes after the end, or is larger than
// [MaxFrame], is left out; so is everything after a failed write, such as on a
// full disk, which is no reason to fail a build.
func (l *Log) Append(frame []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.err != nil || len(frame) == 0 || len(frame) > MaxFrame {
		return
	}
	data := make([]byte, frameHeader, frameHeader+len(frame))
	binary.LittleEndian.PutUint32(data, uint32(len(frame)))
	data = append(data, frame...)
	if _, err := l.file.WriteAt(data, l.size); err != nil {
		l.err = fmt.Errorf("write log: %w", err)
		return
	}
	l.sum.Write(data)
	l.size += int64(len(data))
	l.wake()
}

func (l *Log) wake() {
	close(l.more)
	l.more = make(chan struct{})
}

// Follow calls f with all frames, in batches, until the log is closed. What f
// is given is valid until it returns.
func (l *Log) Follow(ctx context.Context, f func(frames [][]byte) error) error {
	l.mu.Lock()
	if l.file == nil {
		l.mu.Unlock()
		return fmt.Errorf("follow log: %w", os.ErrClosed)
	}
	l.users++
	l.mu.Unlock()
	defer l.leave()
	r := frameReader{r: l.file}
	for {
		l.mu.Lock()
		size, closed, more := l.size, l.closed, l.more
		l.mu.Unlock()
		if err := r.read(ctx, size, f); err != nil {
			return err
		}
		if closed {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// end says that no more will come.
func (l *Log) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.closed = true
		l.wake()
	}
}

// leave closes the file when nobody needs it any more.
func (l *Log) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.users--; l.users == 0 {
		_ = l.file.Close() // nothing more can be said of it
		l.file = nil
	}
}

// keep makes the ended log a blob. The live file stays.
func (l *Log) keep() (digest.Digest, int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil { // a part of a frame may have been written
		if err := l.file.Truncate(l.size); err != nil {
			return "", 0, fmt.Errorf("cut log: %w", err)
		}
	}
	d := digest.NewDigest(digest.SHA256, l.sum)
	return d, l.size, l.files.adopt(l.name, d, l.size)
}

// frameReader reads frames from a file that grows.
type frameReader struct {
	r   io.ReaderAt
	pos int64
	buf []byte
}

// read calls f with the frames between where it is and end.
func (r *frameReader) read(ctx context.Context, end int64, f func([][]byte) error) error {
	for r.pos < end && ctx.Err() == nil {
		n, err := r.fill(min(end-r.pos, batchSize))
		if err != nil {
			return err
		}
		frames, used := split(r.buf[:n])
		if used == 0 { // the first one is longer
			if frames, used, err = r.long(end); err != nil {
				return err
			}
		}
		if err := f(frames); err != nil {
			return err
		}
		r.pos += used
	}
	return context.Cause(ctx)
}

func (r *frameReader) fill(n int64) (int64, error) {
	if int64(len(r.buf)) < n {
		r.buf = make([]byte, n)
	}
	if got, err := r.r.ReadAt(r.buf[:n], r.pos); err != nil && (!errors.Is(err, io.EOF) || int64(got) < n) {
		return 0, fmt.Errorf("read log: %w", err)
	}
	return n, nil
}

// long reads one frame that does not fit a batch.
func (r *frameReader) long(end int64) ([][]byte, int64, error) {
	left := end - r.pos
	if left < frameHeader {
		return nil, 0, fmt.Errorf("read log: %d bytes are left where a frame should begin", left)
	}
	size := int64(binary.LittleEndian.Uint32(r.buf)) + frameHeader
	if size > left || size > MaxFrame+frameHeader {
		return nil, 0, fmt.Errorf("read log: a frame of %d bytes, %d bytes are left", size, left)
	}
	if _, err := r.fill(size); err != nil {
		return nil, 0, err
	}
	frames, used := split(r.buf[:size])
	r.buf = nil // not kept at that size
	return frames, used, nil
}

// split finds the whole frames in data, and how many bytes they are.
func split(data []byte) (frames [][]byte, used int64) {
	for len(data) >= frameHeader {
		n := uint64(binary.LittleEndian.Uint32(data)) + frameHeader
		if n > uint64(len(data)) {
			break
		}
		frames = append(frames, data[frameHeader:n:n])
		data = data[n:]
		used += int64(n)
	}
	return frames, used
}

// Replay calls f with the frames of an ended build's log, in batches. Of a
// build that has none, it tells nothing.
func (h *History) Replay(ctx context.Context, ref string, f func(frames [][]byte) error) error {
	h.mu.Lock()
	r, err := h.load(ref)
	if err != nil || r.Logs == nil {
		h.mu.Unlock()
		return err
	}
	b, err := h.Open(r.Logs.Digest)
	h.mu.Unlock()
	if err != nil {
		return err
	}
	defer b.Close()
	return (&frameReader{r: b.file}).read(ctx, b.size, f)
}
