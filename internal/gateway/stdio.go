package gateway

import (
	"io"
	"net"
	"sync"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/progress"
)

// frontendStdio is the frontend's side of its connection.
type frontendStdio struct {
	in  *io.PipeReader
	out *io.PipeWriter
}

// newFrontendConn connects a process, by its input and output, with a server.
// spoke is closed when the process first says something.
func newFrontendConn() (_ frontendStdio, _ net.Conn, spoke <-chan struct{}) {
	in, toProcess := io.Pipe()
	fromProcess, out := io.Pipe()
	c := &frontendConn{PipeReader: fromProcess, w: toProcess, spoke: make(chan struct{})}
	return frontendStdio{in, out}, c, c.spoke
}

// frontendConn is the server's side. It has no deadlines: the end of the build
// closes it.
type frontendConn struct {
	*io.PipeReader
	w     *io.PipeWriter
	first sync.Once
	spoke chan struct{}
}

func (c *frontendConn) Read(p []byte) (int, error) {
	n, err := c.PipeReader.Read(p)
	if n > 0 {
		c.first.Do(func() { close(c.spoke) })
	}
	return n, err
}

func (c *frontendConn) Write(p []byte) (int, error) { return c.w.Write(p) }

// Close ends both directions.
func (c *frontendConn) Close() error {
	_ = c.w.Close()
	return c.PipeReader.Close()
}

func (c *frontendConn) LocalAddr() net.Addr              { return frontendAddr{} }
func (c *frontendConn) RemoteAddr() net.Addr             { return frontendAddr{} }
func (c *frontendConn) SetDeadline(time.Time) error      { return nil }
func (c *frontendConn) SetReadDeadline(time.Time) error  { return nil }
func (c *frontendConn) SetWriteDeadline(time.Time) error { return nil }

type frontendAddr struct{}

func (frontendAddr) Network() string { return "stdio" }
func (frontendAddr) String() string  { return "frontend" }

// mostFrontendLog is how many bytes of a frontend's errors are shown.
const mostFrontendLog = 1 << 20

// lateLog shows what a frontend writes to its errors as a step of its own, which
// a frontend that writes nothing does not have.
type lateLog struct {
	sink progress.Sink
	name string

	mu     sync.Mutex
	vertex digest.Digest // "" before the first byte
	began  time.Time
	log    io.Writer
	left   int
}

// Write shows p, within bounds.
func (l *lateLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.vertex == "" {
		l.vertex, l.began, l.left = progress.NewVertex(l.name), time.Now(), mostFrontendLog
		began := l.began
		l.sink.Emit(progress.Event{Vertex: &progress.Vertex{Digest: l.vertex, Name: l.name, Started: &began}})
		l.log = progress.NewStep(l.sink, l.vertex).Log(2)
	}
	shown := p[:min(len(p), l.left)]
	if l.left -= len(shown); len(shown) > 0 {
		if _, err := l.log.Write(shown); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// end completes the step.
func (l *lateLog) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.vertex != "" {
		began, end := l.began, time.Now()
		l.sink.Emit(progress.Event{Vertex: &progress.Vertex{Digest: l.vertex, Name: l.name, Started: &began, Completed: &end}})
	}
}
