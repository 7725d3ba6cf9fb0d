package session

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// maxSocket is the length of the longest path of a unix socket that the kernel
// takes, bytes.
const maxSocket = 107

// ListenUnix listens on a unix socket, however long its path is.
func ListenUnix(path string) (net.Listener, error) {
	if len(path) <= maxSocket {
		return net.Listen("unix", path)
	}
	dir, short, err := shortened(path)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", short)
	if err != nil {
		return nil, errors.Join(under(path, err), dir.Close())
	}
	return &longListener{l, dir, path}, nil
}

// DialUnix connects to a unix socket, however long its path is.
func DialUnix(ctx context.Context, path string) (net.Conn, error) {
	var d net.Dialer
	if len(path) <= maxSocket {
		return d.DialContext(ctx, "unix", path)
	}
	dir, short, err := shortened(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	conn, err := d.DialContext(ctx, "unix", short)
	return conn, under(path, err)
}

// shortened is another path of a socket, by way of its folder's handle, while that is
// open.
func shortened(path string) (dir *os.File, short string, err error) {
	dir, err = os.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, "", fmt.Errorf("open folder of socket: %w", err)
	}
	short = fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	if len(short) > maxSocket {
		return nil, "", errors.Join(fmt.Errorf("the socket's name %q is too long: give it a shorter one", filepath.Base(path)), dir.Close())
	}
	return dir, short, nil
}

// under has an error tell the path that was meant.
func under(path string, err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		op.Addr = &net.UnixAddr{Name: path, Net: "unix"}
	}
	return err
}

// longListener listens on a socket by way of its folder's handle.
type longListener struct {
	net.Listener
	dir  *os.File
	path string
}

// Addr is the socket's path.
func (l *longListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// Close removes the socket, too.
func (l *longListener) Close() error { return errors.Join(l.Listener.Close(), l.dir.Close()) }
