package gateway

import (
	"encoding/binary"
	"net"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/session"
)

// gRPC receives each message whole before anybody is asked about it, and the calls
// of a connection side by side: what a frontend has sent can be counted in time only
// where its bytes arrive. So the frames of HTTP/2 (RFC 9113, 4.1) are read along here,
// and in them how gRPC delimits messages: a byte that tells whether a message is
// compressed, and four for its length.

const (
	frameHeader   = 9 // bytes
	messageHeader = 5 // bytes

	frameData    = 0x0
	frameHeaders = 0x1
	frameReset   = 0x3

	flagEnd    = 0x1 // of the stream
	flagPadded = 0x8

	// perFrame is about what gRPC keeps beside the bytes of a frame that nobody has
	// read: many frames of a byte cost more than their bytes.
	perFrame = 128
)

// metered is a frontend's connection that counts what was sent of the calls that are
// under way: of each the largest message, until the call ends. A frontend with more
// than it may have is hung up on.
type metered struct {
	net.Conn
	phase *Phase

	in, out frames

	mu    sync.Mutex
	calls map[uint32]*received // by stream
	taken int                  // of the quota, bytes
}

func newMetered(conn net.Conn, r *Phase) *metered {
	return &metered{Conn: conn, phase: r, in: frames{skip: len(clientPreface)}, calls: map[uint32]*received{}}
}

// Read reads along what the frontend sends.
func (m *metered) Read(p []byte) (int, error) {
	n, err := m.Conn.Read(p)
	more := 0
	m.mu.Lock()
	m.in.feed(p[:n], func(h frame, part []byte, first bool) {
		switch h.kind {
		case frameHeaders:
			if m.calls[h.stream] == nil {
				m.calls[h.stream] = &received{}
			}
		case frameReset:
			more -= m.end(h.stream)
		case frameData:
			if c := m.calls[h.stream]; c != nil {
				more += c.data(h, part, first)
			}
		}
	})
	m.taken += more
	m.mu.Unlock()
	if err := m.phase.quota.admitRequests(more); err != nil {
		_ = m.phase.give(answer{err: err}) // unless it has returned something
		m.phase.hangUp()
		return 0, err
	}
	return n, err
}

// Write sees which calls are answered.
func (m *metered) Write(p []byte) (int, error) {
	n, err := m.Conn.Write(p)
	less := 0
	m.mu.Lock()
	m.out.feed(p[:n], func(h frame, _ []byte, _ bool) {
		if h.kind == frameReset || h.flags&flagEnd != 0 && (h.kind == frameHeaders || h.kind == frameData) {
			less += m.end(h.stream)
		}
	})
	m.taken -= less
	m.mu.Unlock()
	_ = m.phase.quota.admitRequests(-less) // less is always admitted
	return n, err
}

// end forgets a call, and returns what it counted.
func (m *metered) end(stream uint32) int {
	c := m.calls[stream]
	delete(m.calls, stream)
	if c == nil {
		return 0
	}
	return c.largest
}

// release gives back what is counted, once the connection has ended.
func (m *metered) release() {
	m.mu.Lock()
	defer m.mu.Unlock()
	_ = m.phase.quota.admitRequests(-m.taken)
	m.taken = 0
	clear(m.calls)
}

// received is what was received of the messages of one call.
type received struct {
	head     [messageHeader]byte
	have     int // bytes of head
	left     int // bytes of the message that are still to come
	size     int // of the message, bytes
	largest  int // size of any message so far
	unpadded int // bytes of the frame that are before its padding
}

// data takes a part of a frame, and returns by how much more the call counts.
func (c *received) data(h frame, part []byte, first bool) (more int) {
	before := c.largest
	if first {
		c.unpadded = h.length
		c.count(perFrame)
		if h.flags&flagPadded != 0 && len(part) > 0 {
			c.unpadded = max(0, h.length-1-int(part[0]))
			part = part[1:]
		}
	}
	part = part[:min(len(part), c.unpadded)]
	c.unpadded -= len(part)
	for len(part) > 0 {
		if c.have < messageHeader {
			n := copy(c.head[c.have:], part)
			part, c.have = part[n:], c.have+n
			if c.have == messageHeader {
				c.begin()
			}
			continue
		}
		n := min(c.left, len(part))
		part, c.left = part[n:], c.left-n
		c.count(n)
		if c.left == 0 {
			c.have, c.size = 0, 0
		}
	}
	return c.largest - before
}

// begin reads the head of a message. One that is compressed counts as what it may
// become.
func (c *received) begin() {
	c.left = int(binary.BigEndian.Uint32(c.head[1:]))
	if c.head[0] != 0 {
		c.count(session.MaxMessage)
	}
	if c.left == 0 {
		c.have, c.size = 0, 0
	}
}

func (c *received) count(bytes int) {
	c.size += bytes
	c.largest = max(c.largest, c.size)
}

// frame is the header of a frame of HTTP/2.
type frame struct {
	length      int // of what follows, bytes
	kind, flags byte
	stream      uint32
}

// frames finds the frames in bytes that come in parts of any size.
type frames struct {
	skip  int // bytes before the first frame
	head  [frameHeader]byte
	have  int // bytes of head
	left  int // bytes of the frame that are still to come
	at    frame
	first bool // nothing of the frame was told yet
}

// feed tells each frame's content in parts, as they come.
func (f *frames) feed(p []byte, tell func(h frame, part []byte, first bool)) {
	n := min(f.skip, len(p))
	p, f.skip = p[n:], f.skip-n
	for len(p) > 0 {
		if f.have < frameHeader {
			n := copy(f.head[f.have:], p)
			p, f.have = p[n:], f.have+n
			if f.have < frameHeader {
				return
			}
			f.at = frame{
				length: int(binary.BigEndian.Uint32(f.head[:4]) >> 8), kind: f.head[3], flags: f.head[4],
				stream: binary.BigEndian.Uint32(f.head[5:]) &^ (1 << 31),
			}
			f.left, f.first = f.at.length, true
			if f.left > 0 {
				continue
			}
		}
		n := min(f.left, len(p))
		tell(f.at, p[:n], f.first)
		p, f.left, f.first = p[n:], f.left-n, false
		if f.left == 0 {
			f.have = 0
		}
	}
}

// admitRequests counts bytes of calls under way, or takes them back if they are below
// zero.
func (q *quota) admitRequests(bytes int) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.requests += bytes
	if bytes > 0 && q.requests > mostRequests {
		return status.Errorf(codes.ResourceExhausted,
			"a frontend may have sent %d MiB together of the calls that are under way: wait for answers to large calls before others are made", mostRequests>>20)
	}
	return nil
}
