package session

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/mem"

	"github.com/kiln-build/kiln/internal/api/control"
)

// ByteStream is either side of the gRPC stream that carries a session's bytes.
type ByteStream interface {
	Send(*control.BytesMessage) error
	Recv() (*control.BytesMessage, error)
}

// maxWrite is the most bytes put into one message. Messages of 4 MiB and more
// would be refused by a peer with gRPC's default limit.
const maxWrite = 1 << 20

// streamConn is a connection made of a stream of messages. Deadlines have no
// effect: what bounds a session is the context of its stream.
type streamConn struct {
	stream ByteStream
	rest   []byte          // of the last message
	more   mem.BufferSlice // of the last message, after rest
	write  sync.Mutex
	once   sync.Once
	close  func()
}

// NewConn returns the connection whose bytes stream carries. Closing it calls
// closeStream once; that must make the stream's calls return.
func NewConn(stream ByteStream, closeStream func()) net.Conn {
	return &streamConn{stream: stream, close: closeStream}
}

func (c *streamConn) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		if err := c.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// next goes on to the next piece of what has come, or waits for more.
func (c *streamConn) next() error {
	if len(c.more) > 0 {
		c.more[0].Free()
		if c.more = c.more[1:]; len(c.more) > 0 {
			c.rest = c.more[0].ReadOnlyData()
			return nil
		}
	}
	raw, ok := c.stream.(interface{ RecvMsg(any) error })
	if !ok {
		m, err := c.stream.Recv()
		c.rest = m.GetData()
		return err
	}
	var m pieces
	if err := raw.RecvMsg(&m); err != nil {
		return err
	}
	if c.more = m.data; len(c.more) == 0 {
		c.rest = m.GetData()
		return nil
	}
	c.rest = m.piece(0)
	return nil
}

func (c *streamConn) Write(p []byte) (int, error) {
	c.write.Lock()
	defer c.write.Unlock()
	for rest := p; len(rest) > 0; {
		n := min(len(rest), maxWrite)
		if err := c.stream.Send(&control.BytesMessage{Data: rest[:n]}); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrClosedPipe
			}
			return len(p) - len(rest), err
		}
		rest = rest[n:]
	}
	return len(p), nil
}

func (c *streamConn) Close() error {
	c.once.Do(c.close)
	return nil
}

func (c *streamConn) LocalAddr() net.Addr              { return addr{} }
func (c *streamConn) RemoteAddr() net.Addr             { return addr{} }
func (c *streamConn) SetDeadline(time.Time) error      { return nil }
func (c *streamConn) SetReadDeadline(time.Time) error  { return nil }
func (c *streamConn) SetWriteDeadline(time.Time) error { return nil }

// addr is the address of both ends of a session.
type addr struct{}

func (addr) Network() string { return "session" }
func (addr) String() string  { return "localhost" }
