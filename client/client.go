// Package client talks to a Kiln daemon, or to any daemon that speaks BuildKit's
// protocol: it starts builds, serves them what they need of this machine (files,
// secrets, credentials), and hands over what they have to tell.
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
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/session"
)

// Client is a connection to a daemon. It may be used concurrently.
type Client struct {
	address string
	conn    *grpc.ClientConn
	control control.ControlClient
}

// Options say how to connect.
type Options struct {
	// TLS, if not nil, is used on TCP connections.
	TLS *tls.Config
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
// "unix:///run/kiln/kiln.sock" or "tcp://host:1234". It does not wait for the
// daemon; see [Client.Ping].
func New(address string, opt Options) (*Client, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, fmt.Errorf("daemon address %q: %w", address, err)
	}
	creds := insecure.NewCredentials()
	network, target, authority := u.Scheme, u.Host, u.Hostname()
	switch u.Scheme {
	case "unix":
		target, authority = u.Host+u.Path, "localhost"
	case "tcp":
		if opt.TLS != nil {
			creds = credentials.NewTLS(opt.TLS)
			if opt.TLS.ServerName != "" {
				authority = opt.TLS.ServerName
			}
		}
	default:
		return nil, fmt.Errorf("daemon address %q: want unix://PATH or tcp://HOST:PORT", address)
	}
	if target == "" {
		return nil, fmt.Errorf("daemon address %q names no place after the scheme", address)
	}
	conn, err := grpc.NewClient("passthrough:///"+authority, append(session.DialOptions(),
		grpc.WithTransportCredentials(creds),
		grpc.WithAuthority(authority),
		grpc.WithIdleTimeout(0),
		grpc.WithDisableServiceConfig(),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.6, MaxDelay: time.Second},
			MinConnectTimeout: 20 * time.Second,
		}),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, target)
		}),
	)...)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", address, err)
	}
	return &Client{address: address, conn: conn, control: control.NewControlClient(conn)}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

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

// wrap makes an error of an rpc one that a person can use.
func (c *Client) wrap(err error) error {
	if err == nil {
		return nil
	}
	switch st, _ := status.FromError(err); st.Code() {
	case codes.Unavailable:
		return fmt.Errorf("%w at %s: %s", ErrUnreachable, c.address, st.Message())
	case codes.OK:
		return err
	default:
		return decodeError(st)
	}
}
