// Package client talks to a Kiln daemon, or to any daemon that speaks BuildKit's
// protocol: it starts builds, serves them what they need of this machine (files,
// secrets, credentials), and passes on their progress and results.
//
// It is the second hop of a build, between the command line and the daemon.
package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/session"
)

// Client is a connection to a daemon. It may be used concurrently.
type Client struct {
	address string
	conn    *grpc.ClientConn
	control control.ControlClient
	// dialSession is that of the options.
	dialSession func(context.Context, string, map[string][]string) (net.Conn, error)
	onClose     func(*Client)
}

// Options say how to connect.
type Options struct {
	// TLS, if not nil, is used on TCP connections; see [TLSConfig].
	TLS *tls.Config
	// Dial, if not nil, connects to the daemon in place of what the address says.
	Dial func(ctx context.Context) (net.Conn, error)
	// DialSession, if not nil, opens the connection of a build's session in place of
	// the daemon's rpc for it. proto is "h2c", and meta what the daemon has to be told
	// of the session (BuildKit's session/grpc.go).
	DialSession func(ctx context.Context, proto string, meta map[string][]string) (net.Conn, error)
	// OnClose, if not nil, is called by Close while the client can still be used,
	// if it is connected.
	OnClose func(*Client)
}

// AddressFromEnv returns the daemon's address that the environment names: that
// of KILN_HOST, else that of BUILDKIT_HOST, else "".
func AddressFromEnv(getenv func(string) string) string {
	for _, key := range []string{"KILN_HOST", "BUILDKIT_HOST"} {
		if v := getenv(key); v != "" {
			return v
		}
	}
	return ""
}

// New returns a client of the daemon at address, a URL such as
// "unix:///run/kiln/kiln.sock", "tcp://host:1234", "ssh://user@host" or
// "docker-container://name"; the latter kinds run a program of this machine that
// connects (those of BuildKit's client/connhelper, too). It does not wait for the
// daemon; see [Client.Ping] and [Client.Wait].
func New(address string, opt Options) (*Client, error) {
	t, err := parseAddress(address, opt)
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("passthrough:///"+t.authority, append(append(session.DialOptions(), traceOptions()...),
		grpc.WithTransportCredentials(t.creds),
		grpc.WithAuthority(t.authority),
		grpc.WithIdleTimeout(0),
		grpc.WithDisableServiceConfig(),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.6, MaxDelay: time.Second},
			MinConnectTimeout: 20 * time.Second,
		}),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return t.dial(ctx) }),
	)...)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", address, err)
	}
	return &Client{address: address, conn: conn, control: control.NewControlClient(conn), dialSession: opt.DialSession, onClose: opt.OnClose}, nil
}

// target is how an address is reached.
type target struct {
	authority string // of HTTP/2; never empty
	creds     credentials.TransportCredentials
	dial      func(context.Context) (net.Conn, error)
}

func parseAddress(address string, opt Options) (target, error) {
	u, err := url.Parse(address)
	if err != nil {
		return target{}, fmt.Errorf("daemon address %q: %w", address, err)
	}
	t := target{authority: u.Hostname(), creds: session.Handover()}
	if opt.TLS != nil && u.Scheme != "unix" {
		t.creds = credentials.NewTLS(opt.TLS)
		if opt.TLS.ServerName != "" {
			t.authority = opt.TLS.ServerName
		}
	}
	switch u.Scheme {
	case "unix":
		t.authority, t.dial = "localhost", func(ctx context.Context) (net.Conn, error) { return session.DialUnix(ctx, u.Host+u.Path) }
	case "tcp":
		t.dial = func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", u.Host)
		}
	default:
		argv, err := helperCommand(u)
		if err != nil {
			return target{}, fmt.Errorf("daemon address %q: %w", address, err)
		}
		t.dial = func(context.Context) (net.Conn, error) { return dialCommand(argv) }
	}
	if u.Host+u.Path == "" && opt.Dial == nil {
		return target{}, fmt.Errorf("daemon address %q names no place after the scheme", address)
	}
	if opt.Dial != nil {
		t.dial = opt.Dial
	}
	if t.authority == "" {
		t.authority = "localhost"
	}
	return t, nil
}

// Close ends the connection.
func (c *Client) Close() error {
	if c.onClose != nil && c.conn.GetState() == connectivity.Ready {
		c.onClose(c)
	}
	return c.conn.Close()
}

// Address is the daemon's address.
func (c *Client) Address() string { return c.address }

// ErrUnreachable says that no daemon answers at an address.
var ErrUnreachable = errors.New("no daemon answers")

// Ping asks the daemon for a sign of life. The error wraps [ErrUnreachable] if
// there is none.
func (c *Client) Ping(ctx context.Context) error {
	_, err := c.Info(ctx)
	if status.Code(err) == codes.Unimplemented {
		return nil // an old one, but it is there
	}
	return err
}

// Wait waits until the daemon answers, or ctx ends.
func (c *Client) Wait(ctx context.Context) error {
	for {
		err := c.Ping(ctx)
		if err == nil || !errors.Is(err, ErrUnreachable) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
		c.conn.ResetConnectBackoff()
	}
}

// wrap makes an error of an rpc one that a person can use.
func (c *Client) wrap(err error) error {
	if err == nil {
		return nil
	}
	switch st, _ := status.FromError(err); st.Code() {
	case codes.Unavailable:
		return &unreachableError{address: c.address, status: decodeError(st)}
	case codes.OK:
		return err
	default:
		return decodeError(st)
	}
}

// unreachableError says that nobody answers. It is [ErrUnreachable], and an
// [*Error], too.
type unreachableError struct {
	address string
	status  error
}

func (e *unreachableError) Error() string {
	return fmt.Sprintf("%v at %s: %s", ErrUnreachable, e.address, plainReason(e.status.Error()))
}

// plainReason says in plain words why a connection is no more, where gRPC's are
// known.
func plainReason(text string) string {
	if _, dial, ok := strings.Cut(text, "Error while dialing: "); ok {
		return strings.TrimSuffix(dial, `"`)
	}
	if _, cause, ok := strings.Cut(text, "error reading from server: "); ok &&
		(strings.HasSuffix(cause, "EOF") || strings.HasSuffix(cause, "connection reset by peer")) {
		return "it ended while it was at work, or the connection to it did; what it began is cleared at its next start"
	}
	return text
}

func (e *unreachableError) Unwrap() []error { return []error{ErrUnreachable, e.status} }
