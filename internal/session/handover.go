package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"
)

// A daemon hands a file to a client on the same machine by its descriptor
// (unix(7), SCM_RIGHTS), so that content need not go through both processes and
// the socket. Files go ahead of the bytes that name them, by device and inode:
// whatever stands between the two and drops a file, or is no Unix socket at all,
// has the client miss it, never take another for it.

// maxHanded is the most files that a client keeps which nobody has asked for.
const maxHanded = 16

// Handover returns the credentials of a daemon's server and of a client's
// connection between which files may be handed over. They secure nothing.
func Handover() credentials.TransportCredentials { return handover{insecure.NewCredentials()} }

type handover struct {
	credentials.TransportCredentials
}

func (h handover) Clone() credentials.TransportCredentials {
	return handover{h.TransportCredentials.Clone()}
}

func (h handover) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := h.TransportCredentials.ServerHandshake(raw)
	if u, ok := conn.(*net.UnixConn); ok && err == nil {
		c := &givingConn{UnixConn: u}
		return c, handoverInfo{AuthInfo: info, gives: c}, nil
	}
	return conn, info, err
}

func (h handover) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := h.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if u, ok := conn.(*net.UnixConn); ok && err == nil {
		c := &takingConn{UnixConn: u, control: make([]byte, unix.CmsgSpace(4*maxHanded))}
		return c, handoverInfo{AuthInfo: info, takes: c}, nil
	}
	return conn, info, err
}

// handoverInfo is how those who use a connection find it.
type handoverInfo struct {
	credentials.AuthInfo
	gives *givingConn // at the daemon
	takes *takingConn // at the client
}

// connection is that of an rpc with ctx; it may have none of both ends.
func connection(ctx context.Context) handoverInfo {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return handoverInfo{}
	}
	info, _ := p.AuthInfo.(handoverInfo)
	return info
}

// HandsFiles tells whether the client can be handed files, as far as is known
// without trying.
func (c *Caller) HandsFiles() bool { return connection(c.ctx).gives != nil }

// HandFile puts a file on its way to the client, ahead of what is sent from now
// on. The client can then take it by its device and inode, once. It must be one
// that nobody but the daemon may write: who has its descriptor can open it anew.
func (c *Caller) HandFile(f *os.File) error {
	gives := connection(c.ctx).gives
	if gives == nil {
		return fmt.Errorf("hand %s to the client: it is not connected by a Unix socket", f.Name())
	}
	return gives.add(f)
}

// givingConn sends files with the next bytes.
type givingConn struct {
	*net.UnixConn
	mu      sync.Mutex
	waiting []int // descriptors of its own
	closed  bool
}

func (c *givingConn) add(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("hand over a file: %w", err)
	}
	own, failed := 0, error(nil)
	if err := raw.Control(func(fd uintptr) { own, failed = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return fmt.Errorf("hand over a file: %w", err)
	}
	if failed != nil {
		return fmt.Errorf("hand over a file: %w", failed)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		closeAll([]int{own})
		return fmt.Errorf("hand over a file: %w", net.ErrClosed)
	}
	c.waiting = append(c.waiting, own)
	return nil
}

// Write sends p, and with its first byte the files that wait. Should the kernel
// refuse them, as when too many are under way, the client will miss them.
func (c *givingConn) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c.mu.Lock()
	files := c.waiting
	c.waiting = nil
	c.mu.Unlock()
	sent := 0
	if len(files) > 0 {
		if n, _, err := c.WriteMsgUnix(p[:1], unix.UnixRights(files...), nil); err == nil {
			sent = n
		}
		closeAll(files)
	}
	n, err := c.UnixConn.Write(p[sent:])
	return sent + n, err
}

func (c *givingConn) Close() error {
	c.mu.Lock()
	closeAll(c.waiting)
	c.waiting, c.closed = nil, true
	c.mu.Unlock()
	return c.UnixConn.Close()
}

func closeAll(descriptors []int) {
	for _, fd := range descriptors {
		_ = unix.Close(fd) // a duplicate that nothing was written through
	}
}

// takingConn keeps the files that come until somebody asks for them.
type takingConn struct {
	*net.UnixConn
	control []byte // what a read leaves beside the bytes
	mu      sync.Mutex
	files   []*os.File
	closed  bool
}

// Read is called by one goroutine at a time, gRPC's reader.
func (c *takingConn) Read(p []byte) (int, error) {
	n, beside, _, _, err := c.ReadMsgUnix(p, c.control)
	if beside > 0 {
		c.keep(c.control[:beside])
	}
	if errors.Is(err, io.EOF) {
		err = io.EOF // as Read tells it
	}
	return max(n, 0), err
}

// keep takes the files in a control message, and lets go of the oldest if nobody
// asks for what comes. What cannot be read is missed by who asks for it.
func (c *takingConn) keep(control []byte) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range messages {
		descriptors, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue
		}
		if c.closed {
			closeAll(descriptors)
			continue
		}
		for _, fd := range descriptors {
			c.files = append(c.files, os.NewFile(uintptr(fd), "file of the daemon"))
		}
	}
	for len(c.files) > maxHanded {
		_ = c.files[0].Close() // read only
		c.files = c.files[1:]
	}
}

// take returns the file, which is then the caller's, or nil.
func (c *takingConn) take(device, inode uint64) *os.File {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, f := range c.files {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err == nil && st.Dev == device && st.Ino == inode {
			c.files = slices.Delete(c.files, i, i+1)
			return f
		}
	}
	return nil
}

func (c *takingConn) Close() error {
	c.mu.Lock()
	for _, f := range c.files {
		_ = f.Close() // read only
	}
	c.files, c.closed = nil, true
	c.mu.Unlock()
	return c.UnixConn.Close()
}

type takerKey struct{}

// withTaker has the handlers of a session's streams find the connection that the
// session is carried by.
func (s *Server) withTaker(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	return handle(srv, takerStream{stream, context.WithValue(stream.Context(), takerKey{}, s)})
}

type takerStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s takerStream) Context() context.Context { return s.ctx }

// TakeFile returns a file that the daemon has handed over, for the handler of a
// session's stream with ctx. It is nil if it has not come; else it is the caller's.
func TakeFile(ctx context.Context, device, inode uint64) *os.File {
	s, ok := ctx.Value(takerKey{}).(*Server)
	if !ok || s.carrier == nil {
		return nil
	}
	takes := connection(s.carrier.Context()).takes
	if takes == nil {
		return nil
	}
	return takes.take(device, inode)
}
