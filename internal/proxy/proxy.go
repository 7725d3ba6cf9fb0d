// Package proxy is what steps of the proxy network reach the network through:
// an HTTP proxy that asks a policy about each request, passes on what it may,
// and keeps a record of what came back.
//
// A [Proxy] is a daemon's; it holds the authority whose certificate such steps
// are made to trust, by which requests to https are seen too. Each run of a step
// has a [Run] of its own, which serves the connections that the executor takes
// from the step's container. What no [Run] serves has no way out of there.
//
// The package knows no containers: the executor gives it a listener and a way
// to dial. Package op has both meet.
package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"
)

const (
	// headerPatience is how long a step may take to say what it wants.
	headerPatience = 30 * time.Second
	maxHeader      = 1 << 20
)

// Proxy is a daemon's proxy. Its zero value is ready.
type Proxy struct {
	// Roots are whom servers are trusted by; nil for the machine's.
	Roots *x509.CertPool

	authority authority
}

// Check decides on a request. It returns the URL to ask for instead, which is
// mostly the same one, or an error for a request that may not be.
type Check func(ctx context.Context, method, url string) (string, error)

// Run serves the requests of one run of a step.
type Run struct {
	proxy *Proxy
	check Check // nil lets everything pass
	record
}

// NewRun readies the proxy for a step. It fails where the daemon is told to use
// proxies itself that are none: a request would go where it is not meant to.
func (p *Proxy) NewRun(check Check) (*Run, error) {
	if err := checkUpstream(os.Getenv); err != nil {
		return nil, err
	}
	if err := p.authority.open(); err != nil {
		return nil, err
	}
	return &Run{proxy: p, check: check}, nil
}

// CA is the certificate, in PEM, that the step is to trust.
func (r *Run) CA() []byte { return r.proxy.authority.pem }

// Serve answers connections until the listener is closed, and returns when
// nothing is under way any more.
func (r *Run) Serve(l net.Listener, dial func(ctx context.Context, network, address string) (net.Conn, error)) {
	transport := &http.Transport{
		DialContext: dial, Proxy: http.ProxyFromEnvironment, DisableCompression: true, ForceAttemptHTTP2: true,
		TLSHandshakeTimeout: headerPatience, MaxResponseHeaderBytes: maxHeader,
		TLSClientConfig: &tls.Config{RootCAs: r.proxy.Roots, MinVersion: tls.VersionTLS12},
	}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	h := &handler{run: r, transport: transport, inner: newTunnels()}
	server := func() *http.Server {
		return &http.Server{
			Handler: h, ReadHeaderTimeout: headerPatience, MaxHeaderBytes: maxHeader,
			ErrorLog:    log.New(io.Discard, "", 0), // what a step does wrong is not the daemon's to tell
			BaseContext: func(net.Listener) context.Context { return ctx },
			ConnContext: func(ctx context.Context, c net.Conn) context.Context {
				if t, ok := c.(*tunnel); ok {
					return context.WithValue(ctx, tunnelKey{}, t.host)
				}
				return ctx
			},
		}
	}
	outer, inner := server(), server()
	var served sync.WaitGroup
	served.Go(func() { _ = inner.Serve(h.inner) })
	_ = outer.Serve(l) // ends with the listener, and that is no mistake
	cancel()
	_ = h.inner.Close()
	_ = outer.Close()
	_ = inner.Close()
	served.Wait()
	h.busy.close()
}

// checkUpstream refuses variables for a proxy of the daemon's own that are none.
// Their values may hold passwords and are not told.
func checkUpstream(getenv func(string) string) error {
	for _, names := range [][2]string{{"HTTP_PROXY", "http_proxy"}, {"HTTPS_PROXY", "https_proxy"}} {
		for _, name := range names {
			value := getenv(name)
			if value == "" {
				continue
			}
			if err := checkProxyURL(value); err != nil {
				return fmt.Errorf("invalid %s in the daemon's environment: %w", name, err)
			}
			break // the other one is not read
		}
	}
	return nil
}

func checkProxyURL(value string) error {
	u, err := url.Parse(value)
	if err != nil || u.Scheme == "" || u.Host == "" { // "host:port" is a proxy of http
		u, err = url.Parse("http://" + value)
	}
	if err != nil || u.Hostname() == "" {
		return errors.New("expected a URL or host:port")
	}
	switch u.Scheme {
	case "http", "https", "socks5", "socks5h":
		return nil
	}
	return fmt.Errorf("scheme %q: expected http, https, socks5 or socks5h", u.Scheme)
}
