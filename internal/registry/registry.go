// Package registry pulls from and pushes to container registries.
//
// It adds to containerd's client what a build needs: credentials from the
// sessions of the clients that wait for the work, which are never sent to
// another host than theirs; retries that respect the registry's wishes;
// deadlines for a peer that falls silent; downloads that go on where they were
// cut off; and errors that say which image, which registry, and what to do.
//
// It sits beside the content store, below the image source, the image
// exporters and the layer store, whose Fetcher a [Client] is.
package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/log"
	"github.com/distribution/reference"
	"github.com/sirupsen/logrus"

	"github.com/kiln-build/kiln/internal/session/auth"
)

// Config says how to talk to registries. The zero value is of use.
type Config struct {
	Hosts     map[string]Host // by the host of image references, such as "docker.io" or "localhost:5000"
	UserAgent string          // "kiln" if empty
	// Logins returns the credentials that may be used for ctx's work; nil takes
	// those of the sessions in ctx.
	Logins func(ctx context.Context) []Login
	// Stall is how long a registry may be silent; 0 is 30 seconds.
	Stall time.Duration
	// Attempts is how often a request is made before giving up; 0 is 5.
	Attempts int
	// Backoff is the pause after the first failure, doubled after each further
	// one; 0 is half a second.
	Backoff time.Duration
	// MaxPause bounds every pause, what a Retry-After asks for included; 0 is 30 seconds.
	MaxPause time.Duration
	// Parallel is how many blobs are pushed at a time; 0 is 4.
	Parallel int
	// Connections bounds those to one registry at a time; 0 sets no bound.
	Connections int
}

// Host is what differs from the defaults for one registry.
type Host struct {
	Mirrors  []string  // hosts, with an optional path, to pull from first
	HTTP     *bool     // speak plain http; nil does so with this machine only
	Insecure bool      // accept any certificate; with http, that is what is spoken if there is no https
	CAs      []string  // PEM files of further authorities
	KeyPairs []KeyPair // certificates to show
	// Dirs have further authorities, *.crt, and key pairs, *.cert with *.key.
	// One that is not there has none.
	Dirs []string
	// Realms are further hosts that may be given this registry's credentials in
	// exchange for a token.
	Realms []string
}

// KeyPair names the PEM files of a client certificate.
type KeyPair struct{ Key, Cert string }

// Client talks to registries. It may be used concurrently.
type Client struct {
	cfg    Config
	tokens *tokenCache

	mu         sync.Mutex
	transports map[string]http.RoundTripper // by host
	secure     map[string]bool              // whether a host that need not be speaks TLS
}

// New returns a client.
func New(c Config) *Client {
	if c.UserAgent == "" {
		c.UserAgent = "kiln"
	}
	if c.Logins == nil {
		c.Logins = sessionLogins(newSalt())
	}
	c.Stall = orDefault(c.Stall, 30*time.Second)
	c.Attempts = orDefault(c.Attempts, 5)
	c.Backoff = orDefault(c.Backoff, 500*time.Millisecond)
	c.MaxPause = orDefault(c.MaxPause, 30*time.Second)
	c.Parallel = orDefault(c.Parallel, 4)
	return &Client{cfg: c, tokens: newTokenCache(), transports: map[string]http.RoundTripper{}, secure: map[string]bool{}}
}

func orDefault[T comparable](v, standard T) T {
	var zero T
	if v == zero {
		return standard
	}
	return v
}

// ParseReference normalises an image reference as Docker does: "alpine" is
// "docker.io/library/alpine:latest".
func ParseReference(ref string) (reference.Named, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, fmt.Errorf("image reference %q is malformed (expected [host/]name[:tag][@digest]): %w", ref, err)
	}
	return reference.TagNameOnly(named), nil
}

// resolver makes a resolver for one operation: authorisation depends on the
// sessions in ctx.
func (c *Client) resolver(ctx context.Context, o hostOptions) remotes.Resolver {
	header := http.Header{}
	header.Set("User-Agent", c.cfg.UserAgent)
	return docker.NewResolver(docker.ResolverOptions{
		Headers: header,
		Hosts:   func(ns string) ([]docker.RegistryHost, error) { return c.hosts(ctx, ns, o) },
	})
}

// hostOptions overrule the configuration for one operation.
type hostOptions struct {
	insecure bool // plain http will do, and any certificate
	// plain makes an insecure host be spoken to by http.
	plain bool
	// small is that manifests are asked for and nothing else.
	small bool
}

// hosts lists where a namespace is served: mirrors first, then its own host.
func (c *Client) hosts(ctx context.Context, ns string, o hostOptions) ([]docker.RegistryHost, error) {
	conf := c.cfg.Hosts[ns]
	logins := c.cfg.Logins(ctx)
	var hosts []docker.RegistryHost
	for _, mirror := range conf.Mirrors {
		name, path, _ := strings.Cut(mirror, "/")
		h, err := c.host(ctx, name, strings.TrimSuffix("/v2/"+path, "/"), c.cfg.Hosts[name], hostOptions{small: o.small}, logins)
		if err != nil {
			return nil, err
		}
		h.Capabilities = docker.HostCapabilityPull | docker.HostCapabilityResolve
		hosts = append(hosts, h)
	}
	name, err := docker.DefaultHost(ns)
	if err != nil {
		return nil, fmt.Errorf("find registry of %q: %w", ns, err)
	}
	h, err := c.host(ctx, name, "/v2", conf, o, logins)
	if err != nil {
		return nil, err
	}
	h.Capabilities = docker.HostCapabilityPull | docker.HostCapabilityResolve | docker.HostCapabilityPush
	return append(hosts, h), nil
}

func (c *Client) host(ctx context.Context, name, path string, conf Host, o hostOptions, logins []Login) (docker.RegistryHost, error) {
	scheme := "https"
	if o.plain || !o.insecure && c.plain(ctx, name, conf) { // of an insecure one it is known
		scheme = "http"
	}
	transport, err := c.transport(name, conf, o)
	if err != nil {
		return docker.RegistryHost{}, err
	}
	if o.small {
		transport = auth.Bounded(transport, MaxManifest)
	}
	client := &http.Client{Transport: transport, CheckRedirect: checkRedirect}
	return docker.RegistryHost{
		Client: client, Host: name, Scheme: scheme, Path: path,
		Authorizer: &authorizer{
			host: name, scheme: scheme, realms: conf.Realms, logins: logins,
			tokens: c.tokens, client: client, userAgent: c.cfg.UserAgent,
			grants: map[string]*grant{},
		},
	}, nil
}

// plain tells whether a host is spoken to without TLS.
func (c *Client) plain(ctx context.Context, name string, conf Host) bool {
	http := isLoopback(name)
	if conf.HTTP != nil {
		http = *conf.HTTP
	}
	if !http || !conf.Insecure {
		return http
	}
	c.mu.Lock()
	secure, known := c.secure[name]
	c.mu.Unlock()
	if !known {
		secure = speaksTLS(ctx, name, c.cfg.Stall)
		c.mu.Lock()
		c.secure[name] = secure
		c.mu.Unlock()
	}
	return !secure
}

// transport returns the one transport of a host, so that connections are kept.
func (c *Client) transport(name string, conf Host, o hostOptions) (http.RoundTripper, error) {
	key := name
	if o.insecure {
		key += " insecure"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if t, ok := c.transports[key]; ok {
		return t, nil
	}
	tlsConfig, err := tlsOf(conf, o.insecure)
	if err != nil {
		return nil, fmt.Errorf("configure registry %s: %w", name, err)
	}
	base := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: c.cfg.Stall, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:       tlsConfig,
		TLSHandshakeTimeout:   c.cfg.Stall,
		IdleConnTimeout:       time.Minute,
		MaxIdleConnsPerHost:   8,
		MaxConnsPerHost:       c.cfg.Connections,
		ForceAttemptHTTP2:     true,
		ResponseHeaderTimeout: 0, // stallTransport watches, uploads included
	}
	t := &retryTransport{
		next: &stallTransport{next: base, limit: c.cfg.Stall}, registry: name,
		attempts: c.cfg.Attempts, backoff: c.cfg.Backoff, maxPause: c.cfg.MaxPause,
	}
	c.transports[key] = t
	return t, nil
}

// isLoopback tells whether a host, with or without a port, is this machine.
func isLoopback(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	if name == "localhost" {
		return true
	}
	ip := net.ParseIP(strings.Trim(name, "[]"))
	return ip != nil && ip.IsLoopback()
}

// checkRedirect lets downloads be redirected, but never with credentials.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("stopped after 10 redirects")
	}
	last := via[len(via)-1].URL
	if last.Scheme == "https" && req.URL.Scheme != "https" {
		return fmt.Errorf("refused to be redirected from https to %s://%s", req.URL.Scheme, req.URL.Host)
	}
	if first := via[0].URL; req.URL.Host != first.Host || req.URL.Scheme != first.Scheme {
		req.Header.Del("Authorization")
	}
	return nil
}

// quiet keeps containerd's client from logging: what matters comes as an error.
func quiet(ctx context.Context) context.Context {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return log.WithLogger(ctx, logrus.NewEntry(l))
}
