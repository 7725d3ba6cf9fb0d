package proxy

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	digest "github.com/opencontainers/go-digest"
)

// handler answers the requests of a run.
type handler struct {
	run       *Run
	transport http.RoundTripper
	inner     *tunnels
	busy      gate
}

// tunnelKey is the context's key of the host that a tunnel leads to.
type tunnelKey struct{}

// ServeHTTP answers a request, or makes a tunnel for such as are encrypted.
func (h *handler) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if !h.busy.enter() {
		return
	}
	defer h.busy.leave()
	host, inside := req.Context().Value(tunnelKey{}).(string)
	switch {
	case inside:
		req.URL.Scheme, req.URL.Host = "https", host
	case req.Method == http.MethodConnect:
		h.connect(w, req)
		return
	case !req.URL.IsAbs():
		req.URL.Scheme, req.URL.Host = "http", req.Host
	}
	resp, status, err := h.forward(req)
	if err != nil {
		http.Error(w, err.Error(), status)
		return
	}
	defer resp.Body.Close()
	dropHops(resp.Header)
	maps.Copy(w.Header(), resp.Header)
	w.WriteHeader(resp.StatusCode)
	body := &body{from: resp.Body, hash: sha256.New()}
	_, err = io.Copy(flushed(w), body)
	h.received(req, resp, body, err)
	if err != nil || body.err != nil {
		if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
			_ = conn.Close() // or half an answer would look whole
		}
	}
}

// flushed has what is written go out at once: a server may take its time
// between the parts of an answer.
func flushed(w http.ResponseWriter) io.Writer {
	return writerFunc(func(p []byte) (int, error) {
		n, err := w.Write(p)
		if err == nil {
			err = http.NewResponseController(w).Flush()
		}
		return n, err
	})
}

type writerFunc func([]byte) (int, error)

// Write calls the function.
func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// connect takes a tunnel for TLS, and has what comes out of it answered under
// the name of its host.
func (h *handler) connect(w http.ResponseWriter, req *http.Request) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "tunnels need HTTP/1.1", http.StatusHTTPVersionNotSupported)
		return
	}
	tunnel, err := h.open(req.Context(), conn, req.Host)
	if err != nil || !h.inner.give(tunnel) {
		_ = conn.Close() // not TLS, or somebody who trusts others: nothing of it goes out
	}
}

func (h *handler) open(ctx context.Context, conn net.Conn, host string) (net.Conn, error) {
	name := host
	if n, _, err := net.SplitHostPort(host); err == nil {
		name = n
	}
	cert, err := h.run.proxy.authority.host(strings.Trim(name, "[]"))
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(headerPatience)); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(conn, "HTTP/1.1 200 Connection Established\r\n\r\n"); err != nil {
		return nil, err
	}
	inside := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{*cert}, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12})
	if err := inside.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	return &tunnel{inside, host}, conn.SetDeadline(time.Time{})
}

// forward asks the policy about a request, and the server for an answer.
func (h *handler) forward(req *http.Request) (_ *http.Response, status int, _ error) {
	if err := h.allow(req); err != nil {
		return nil, http.StatusForbidden, errors.New("Forbidden") // why is told to who made the policy, not to the step
	}
	dropHops(req.Header)
	req.Header.Del("Accept-Encoding") // what is hashed is what the address names
	req.RequestURI = ""
	resp, err := h.transport.RoundTrip(req)
	if err != nil {
		h.run.request(Request{Method: req.Method, URL: plainURL(req.URL), Status: http.StatusBadGateway})
		h.run.gap(Gap{req.Method, plainURL(req.URL), reasonUpstream})
		return nil, http.StatusBadGateway, err
	}
	redirect := ""
	if to, err := resp.Location(); err == nil {
		redirect = plainURL(to)
	}
	h.run.request(Request{Method: req.Method, URL: plainURL(req.URL), Redirect: redirect, Status: resp.StatusCode})
	return resp, 0, nil
}

// allow has the policy decide on a request, and does what it decides.
func (h *handler) allow(req *http.Request) error {
	if h.run.check == nil {
		return nil
	}
	asked := plainURL(req.URL)
	target, err := h.run.check(req.Context(), req.Method, asked)
	if err != nil || target == asked {
		return err
	}
	if req.Method != http.MethodGet {
		return fmt.Errorf("the source policy converts %s, which only a GET can be", asked)
	}
	u, err := url.Parse(target)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return fmt.Errorf("the source policy converts %s to %q: expected a URL of http or https", asked, target)
	}
	req.URL, req.Host = u, u.Host
	return nil
}

// received records what an answer was.
func (h *handler) received(req *http.Request, resp *http.Response, b *body, err error) {
	url, reason := plainURL(req.URL), ""
	switch {
	case req.Method != http.MethodGet:
		reason = reasonMethod
	case req.Header.Get("Range") != "" || resp.StatusCode == http.StatusPartialContent:
		reason = reasonPartial
	case resp.Uncompressed:
		reason = reasonTransformed
	case err != nil || b.err != nil:
		reason = reasonBody
	case resp.StatusCode >= http.StatusBadRequest:
		reason = reasonUnsuccessful
	}
	switch {
	case reason != "":
		h.run.gap(Gap{req.Method, url, reason})
	case resp.StatusCode >= 200 && resp.StatusCode < 300:
		h.run.material(Material{url, digest.NewDigest(digest.SHA256, b.hash)})
	}
}

// body is an answer's, which is hashed on its way.
type body struct {
	from io.ReadCloser
	hash hash.Hash
	err  error
}

// Read reads and hashes.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.from.Read(p)
	b.hash.Write(p[:n])
	if err != nil && !errors.Is(err, io.EOF) && b.err == nil {
		b.err = err
	}
	return n, err
}

// Close ends the answer.
func (b *body) Close() error { return b.from.Close() }

// dropHops drops what is between the ends of one connection.
func dropHops(h http.Header) {
	for _, name := range []string{
		"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
	} {
		h.Del(name)
	}
}

// tunnel is the inside of a tunnel to a host.
type tunnel struct {
	net.Conn
	host string
}

// tunnels are a listener that the insides of tunnels come from.
type tunnels struct {
	come   chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newTunnels() *tunnels { return &tunnels{come: make(chan net.Conn), closed: make(chan struct{})} }

// give has a connection served, unless nobody serves any more.
func (t *tunnels) give(c net.Conn) bool {
	select {
	case t.come <- c:
		return true
	case <-t.closed:
		return false
	}
}

// Accept waits for a tunnel.
func (t *tunnels) Accept() (net.Conn, error) {
	select {
	case c := <-t.come:
		return c, nil
	case <-t.closed:
		return nil, net.ErrClosed
	}
}

// Close takes no more.
func (t *tunnels) Close() error {
	t.once.Do(func() { close(t.closed) })
	return nil
}

// Addr is nowhere.
func (t *tunnels) Addr() net.Addr { return &net.UnixAddr{Name: "tunnels", Net: "unix"} }

// gate counts who is inside, until it is closed.
type gate struct {
	mu     sync.Mutex
	closed bool
	inside sync.WaitGroup
}

func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.inside.Add(1)
	}
	return !g.closed
}

func (g *gate) leave() { g.inside.Done() }

// close lets nobody in any more and waits for those who are inside.
func (g *gate) close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.inside.Wait()
}
