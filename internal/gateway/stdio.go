package gateway

import (
	"fmt"
	"io"
	"net"
	"strings"
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
func newFrontendConn() (_ frontendStdio, _ *frontendConn, spoke <-chan struct{}) {
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
	spoke chan struct{}

	mu       sync.Mutex
	greeting []byte // what the process said first
}

// clientPreface is what a client of gRPC says first (RFC 9113, section 3.4).
const clientPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

func (c *frontendConn) Read(p []byte) (int, error) {
	n, err := c.PipeReader.Read(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	if n > 0 && c.greeting == nil {
		close(c.spoke)
	}
	if left := len(clientPreface) - len(c.greeting); left > 0 {
		c.greeting = append(c.greeting, p[:min(n, left)]...)
	}
	return n, err
}

// babble is how the process began if that was not as a client of gRPC does; else "".
func (c *frontendConn) babble() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if strings.HasPrefix(clientPreface, string(c.greeting)) {
		return ""
	}
	return string(c.greeting)
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

	mu      sync.Mutex
	vertex  digest.Digest // "" before the first byte
	began   time.Time
	log     io.Writer
	left    int
	clipped bool // and said so
}

// Write shows p, within bounds.
func (l *lateLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.begin()
	shown := p[:min(len(p), l.left)]
	if l.left -= len(shown); len(shown) > 0 {
		if _, err := l.log.Write(shown); err != nil {
			return 0, err
		}
	}
	if len(shown) < len(p) && !l.clipped {
		l.clipped = true
		if _, err := fmt.Fprintf(l.log, "\n[output clipped, a frontend's log limit of %d MiB is reached]\n", mostFrontendLog>>20); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// explain adds a line of the daemon's own.
func (l *lateLog) explain(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.begin()
	_, _ = io.WriteString(l.log, line) // the build's error stands without it
}

// begin shows the step, if it is not shown. The caller holds mu.
func (l *lateLog) begin() {
	if l.vertex != "" {
		return
	}
	l.vertex, l.began, l.left = progress.NewVertex(l.name), time.Now(), mostFrontendLog
	began := l.began
	l.sink.Emit(progress.Event{Vertex: &progress.Vertex{Digest: l.vertex, Name: l.name, Started: &began}})
	l.log = progress.NewStep(l.sink, l.vertex).Log(2)
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
