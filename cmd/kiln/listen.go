package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/kiln-build/kiln/internal/config"
	"github.com/kiln-build/kiln/internal/session"
)

// socketOwner is who may connect to unix sockets.
type socketOwner struct {
	uid, gid int
	mode     fs.FileMode
}

// listeners opens all addresses, or none.
func listeners(g config.GRPC, owner socketOwner) (_ []net.Listener, err error) {
	conf, err := serverTLS(g.TLS)
	if err != nil {
		return nil, err
	}
	var all []net.Listener
	defer func() {
		if err != nil {
			for _, l := range all {
				_ = l.Close() // the error at hand says why nothing is served
			}
		}
	}()
	for _, a := range g.Address {
		ls, err := listen(a, owner, conf, true)
		if err != nil {
			return nil, err
		}
		all = append(all, ls...)
	}
	return all, nil
}

// listen opens an address such as "unix:///run/kiln/kiln.sock". Only fd:// can
// stand for several. A lack of TLS is told if warn is set.
func listen(address string, owner socketOwner, conf *tls.Config, warn bool) ([]net.Listener, error) {
	if err := config.CheckAddress(address); err != nil {
		return nil, err
	}
	scheme, where, _ := strings.Cut(address, "://")
	switch scheme {
	case "tcp":
		l, err := net.Listen("tcp", where)
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", address, err)
		}
		return []net.Listener{secured(l, address, conf, warn)}, nil
	case "fd":
		ls, err := activated(where, os.Getenv)
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", address, err)
		}
		for i, l := range ls {
			if l.Addr().Network() == "tcp" {
				ls[i] = secured(l, address, conf, warn)
			}
		}
		return ls, nil
	}
	if conf != nil {
		slog.Warn(fmt.Sprintf("TLS is disabled for %s", address))
	}
	l, err := listenUnix(where, owner)
	if err != nil {
		return nil, err
	}
	return []net.Listener{l}, nil
}

func listenUnix(path string, owner socketOwner) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, fmt.Errorf("make folder of socket: %w", err)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	l, err := session.ListenUnix(path)
	if err != nil {
		return nil, fmt.Errorf("listen on unix://%s: %w", path, err)
	}
	// Whoever may connect can run steps: the mode is set before the owner is.
	err = os.Chmod(path, owner.mode)
	if err == nil && (owner.uid != os.Getuid() || owner.gid != os.Getgid()) {
		err = os.Chown(path, owner.uid, owner.gid)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("restrict socket: %w", err), l.Close())
	}
	return l, nil
}

// removeStale removes a socket that nobody listens on any more.
func removeStale(path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("look at socket: %w", err)
	}
	if fi.Mode()&fs.ModeSocket == 0 {
		return fmt.Errorf("%s is there and is no socket: give another --addr", path)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if c, err := session.DialUnix(ctx, path); err == nil {
		_ = c.Close() // it was opened only to see whether it can be
		return fmt.Errorf("a daemon is serving on %s already", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove stale socket: %w", err)
	}
	return nil
}

// firstActivated is the number of the first file that a service manager hands
// over, sd_listen_fds(3).
const firstActivated = 3

// activated are the sockets that a service manager has opened: all of them, or
// the one of a number or name.
func activated(which string, getenv func(string) string) ([]net.Listener, error) {
	n, err := strconv.Atoi(getenv("LISTEN_FDS"))
	if err != nil || n < 1 || getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return nil, errors.New("no sockets found via socket activation: make sure the service was started by systemd")
	}
	names := strings.Split(getenv("LISTEN_FDNAMES"), ":")
	var out []net.Listener
	for i := range n {
		fd := firstActivated + i
		if which != "" && which != strconv.Itoa(fd) && (i >= len(names) || which != names[i]) {
			continue
		}
		syscall.CloseOnExec(fd) // it is not for steps
		f := os.NewFile(uintptr(fd), "activation")
		l, err := net.FileListener(f)
		_ = f.Close() // the listener has its own
		if err != nil {
			return nil, fmt.Errorf("file %d is no listening socket: %w", fd, err)
		}
		out = append(out, l)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no socket %q among the %d of socket activation (%s)", which, n, getenv("LISTEN_FDNAMES"))
	}
	return out, nil
}

// serverTLS reads the certificates of a server; nil is none.
func serverTLS(t config.TLS) (*tls.Config, error) {
	if t.Cert == "" && t.Key == "" {
		if t.CA != "" {
			return nil, errors.New("a ca certificate for clients is given, but no certificate of the server: give --tlscert and --tlskey too")
		}
		return nil, nil
	}
	if t.Cert == "" || t.Key == "" {
		return nil, errors.New("you must specify key and cert file if one is specified")
	}
	pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
	if err != nil {
		return nil, fmt.Errorf("could not load server key pair: %w", err)
	}
	conf := &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS12}
	if t.CA == "" {
		return conf, nil
	}
	pem, err := os.ReadFile(t.CA)
	if err != nil {
		return nil, fmt.Errorf("could not read ca certificate: %w", err)
	}
	conf.ClientCAs, conf.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
	if !conf.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("failed to append ca cert: %s holds no certificate in PEM", t.CA)
	}
	return conf, nil
}

// secured puts TLS over a listener, if there is any, and tells of a lack.
func secured(l net.Listener, address string, conf *tls.Config, warn bool) net.Listener {
	switch {
	case conf == nil && !warn:
		return l
	case conf == nil:
		slog.Warn(fmt.Sprintf("TLS is not enabled for %s. enabling mutual TLS authentication is highly recommended: "+
			"whoever reaches this address can run programs on this machine", address))
		return l
	case conf.ClientCAs == nil && warn:
		slog.Warn(fmt.Sprintf("clients of %s need not show a certificate: give --tlscacert to have them prove who they are", address))
	}
	return &tlsListener{Listener: l, conf: conf}
}

// tlsListener tells of clients that do not get in.
type tlsListener struct {
	net.Listener
	conf *tls.Config
}

func (l *tlsListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &tlsConn{Conn: tls.Server(c, l.conf)}, nil
}

// tlsConn shakes hands at its first use, which is not where connections are
// accepted: a silent client holds nobody up.
type tlsConn struct {
	*tls.Conn
	once sync.Once
	err  error
}

func (c *tlsConn) handshake() error {
	c.once.Do(func() {
		if c.err = c.Handshake(); c.err != nil {
			slog.Warn("refused a client", "remote", c.RemoteAddr().String(), "reason", refusal(c.err))
			c.linger()
		}
	})
	return c.err
}

// linger lets a client that was refused read why: were its own bytes left
// unread, the kernel would reset the connection, and take the reason with it.
func (c *tlsConn) linger() {
	tcp, ok := c.NetConn().(*net.TCPConn)
	if !ok || tcp.CloseWrite() != nil || tcp.SetReadDeadline(time.Now().Add(time.Second)) != nil {
		return // it is gone
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(tcp, 64<<10)) // whatever comes, it is the end
}

// Read reads once the client has shown who it is.
func (c *tlsConn) Read(p []byte) (int, error) {
	if err := c.handshake(); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

// Write writes once the client has shown who it is.
func (c *tlsConn) Write(p []byte) (int, error) {
	if err := c.handshake(); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// refusal explains why a client was not let in.
func refusal(err error) string {
	text := strings.TrimPrefix(err.Error(), "tls: ")
	var plain tls.RecordHeaderError
	switch {
	case errors.As(err, &plain):
		return "it speaks without TLS (" + text + ")"
	case strings.Contains(text, "didn't provide a certificate"):
		return "it showed no certificate: it needs one of the authority that --tlscacert names (" + text + ")"
	case strings.Contains(text, "failed to verify certificate"):
		return "its certificate is not one of the authority that --tlscacert names (" + text + ")"
	case strings.Contains(text, "unknown certificate authority"), strings.Contains(text, "bad certificate"):
		return "it does not trust this daemon's certificate (" + text + ")"
	}
	return text
}
