package session

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// Limits and sizes of a session's connections, bytes.
const (
	// MaxMessage is the largest message taken from a peer.
	MaxMessage = 16 << 20
	// LargeChunk is the most content that Kiln's two sides put into one message;
	// BuildKit's clients get less.
	LargeChunk = 256 << 10
	// Window is how much may be on its way unread, on a stream and on the
	// connection: large, since a session's peers are near each other.
	Window = 4 << 20
	// Buffer is the size of a connection's read and write buffers.
	Buffer = 256 << 10
)

// Caller calls the services of one client.
type Caller struct {
	meta    Meta
	unique  string
	methods map[string]bool // lower case
	conn    *grpc.ClientConn
	ctx     context.Context
	cancel  context.CancelCauseFunc
}

// NewCaller returns the caller of the client that serves conn: this side is the
// HTTP/2 client. It lives until conn ends, Close is called or ctx ends.
func NewCaller(ctx context.Context, meta Meta, conn net.Conn) (*Caller, error) {
	c := &Caller{meta: meta, unique: rand.Text(), methods: map[string]bool{}}
	for _, m := range meta.Methods {
		c.methods[strings.ToLower(m)] = true
	}
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	watched := &watchedConn{Conn: conn, closed: c.cancel}
	var used atomic.Bool
	var err error
	c.conn, err = grpc.NewClient("passthrough:///localhost", append(DialOptions(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			if used.Swap(true) {
				return nil, errors.New("the client's session ended")
			}
			return watched, nil
		}),
		grpc.WithIdleTimeout(0), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(),
	)...)
	if err != nil {
		return nil, fmt.Errorf("open session %s: %w", meta.ID, err)
	}
	c.conn.Connect()
	return c, nil
}

// Close ends the session.
func (c *Caller) Close() {
	c.cancel(errors.New("session closed"))
	// The only error is that it is closed already.
	_ = c.conn.Close()
}

// ID is the session's id.
func (c *Caller) ID() string { return c.meta.ID }

// Unique tells this session from all others, those of the same id that came
// before included. No client chooses it.
func (c *Caller) Unique() string { return c.unique }

// SharedKey names what the client's sessions have in common, such as a directory.
func (c *Caller) SharedKey() string { return c.meta.SharedKey }

// Chunk is the most content in bytes that one message to the client may hold, or
// 0 if the client did not say; see [Meta.Chunk].
func (c *Caller) Chunk() int { return c.meta.Chunk }

// Supports tells whether the client serves a method, such as
// "/moby.filesync.v1.FileSync/DiffCopy", in any case of letters.
func (c *Caller) Supports(method string) bool { return c.methods[strings.ToLower(method)] }

// Conn is the connection to call services on.
func (c *Caller) Conn() grpc.ClientConnInterface { return c.conn }

// Context ends with the session.
func (c *Caller) Context() context.Context { return c.ctx }

// settling is how long a client may take to have read what it was sent.
const settling = 5 * time.Second

// Settle returns once the client has read all that it was sent, or does not
// answer in time. BuildKit's clients need that before an answer that has them
// close their session: one that closes it while bytes are on their way to it
// reads others in their place, calls that a breach of HTTP/2 and waits for a
// second or more.
func (c *Caller) Settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, settling)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	// Whether the client is well is for watch to say.
	_, _ = grpc_health_v1.NewHealthClient(c.conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
}

// watchedConn tells when it is of no more use.
type watchedConn struct {
	net.Conn
	closed context.CancelCauseFunc
	once   sync.Once
}

func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.end(fmt.Errorf("the client's session ended: %w", err))
	}
	return n, err
}

func (c *watchedConn) Close() error {
	c.end(errors.New("the client's session was closed"))
	return c.Conn.Close()
}

func (c *watchedConn) end(err error) { c.once.Do(func() { c.closed(err) }) }

// pace is the pace of a session's health checks (BuildKit's session/grpc.go).
type pace struct {
	every, timeout time.Duration
	failures       int // in a row that end the session
}

func paceOf(meta Meta) pace {
	if meta.HealthTimeout > 0 {
		d := max(time.Duration(meta.HealthTimeout)*time.Millisecond, time.Second)
		return pace{every: d, timeout: d, failures: 1}
	}
	return pace{every: 5 * time.Second, timeout: 15 * time.Second, failures: 2}
}

// watch checks the client's health until the session ends or the client fails.
func (c *Caller) watch(h pace) {
	client := grpc_health_v1.NewHealthClient(c.conn)
	tick := time.NewTicker(h.every)
	defer tick.Stop()
	timeout := h.timeout
	for failed := 0; ; {
		select {
		case <-c.ctx.Done():
			return
		case <-tick.C:
		}
		start := time.Now()
		ctx, cancel := context.WithTimeout(c.ctx, timeout)
		_, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
		cancel()
		if err == nil {
			// A slow line gets more time, so that a busy one is not cut.
			failed, timeout = 0, max(h.timeout, time.Since(start)*3/2)
			continue
		}
		if failed++; failed >= h.failures {
			c.cancel(fmt.Errorf("the client does not answer: %w", err))
			return
		}
	}
}
