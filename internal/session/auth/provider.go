package auth

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	remoteauth "github.com/containerd/containerd/v2/core/remotes/docker/auth"
	"github.com/docker/cli/cli/config/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/auth"
)

// hub is Docker Hub's key in the Docker configuration; its registry has other
// names.
const hub = "https://index.docker.io/v1/"

// Provider serves a client's credentials. It is a [session.Attachable].
type Provider struct {
	auth.UnimplementedAuthServer
	lookup Lookup
	client *http.Client
	byHost map[string]*http.Client // those with a TLS configuration of their own
	seeds  *seeds
}

// Options say how a client deals with token servers.
type Options struct {
	// Dir is where the seeds of token authorities are kept: the directory of the
	// Docker configuration, or "" for the usual one.
	Dir string
	// TLS is how to reach the token servers of a registry, by the registry's host.
	TLS map[string]*tls.Config
}

// NewProvider returns the provider of what lookup knows.
func NewProvider(lookup Lookup, opt Options) *Provider {
	p := &Provider{
		lookup: lookup, client: tokenClient(nil), byHost: map[string]*http.Client{}, seeds: &seeds{dir: opt.Dir},
	}
	for host, config := range opt.TLS {
		p.byHost[host] = tokenClient(config)
	}
	return p
}

// tokenClient is the client for token servers.
func tokenClient(config *tls.Config) *http.Client {
	c := &http.Client{
		Timeout:   timeout,
		Transport: Bounded(http.DefaultTransport, MostToken),
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return errors.New("a token server must not redirect")
		},
	}
	if config != nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.TLSClientConfig = config
		c.Transport = Bounded(t, MostToken)
	}
	return c
}

// clientFor is the client for the token servers of a registry's host.
func (p *Provider) clientFor(host string) *http.Client {
	if c := p.byHost[host]; c != nil {
		return c
	}
	return p.client
}

// Register attaches the provider to a session.
func (p *Provider) Register(s *grpc.Server) { auth.RegisterAuthServer(s, p) }

// key is a registry's key in the Docker configuration.
func key(host string) string {
	switch host {
	case "registry-1.docker.io", "index.docker.io", "docker.io":
		return hub
	}
	return host
}

// credentials returns a user and a password, or an identity token without user.
func (p *Provider) credentials(ctx context.Context, host string) (user, secret string, err error) {
	c, err := p.lookup(ctx, key(host))
	if err != nil {
		return "", "", err
	}
	user, secret = presented(c)
	return user, secret, nil
}

// presented is what is presented of an entry to a token server.
func presented(c types.AuthConfig) (user, secret string) {
	switch {
	case c.IdentityToken != "":
		return "", c.IdentityToken
	case c.RegistryToken != "":
		return "", "" // for a registry itself, not for its token server
	}
	return c.Username, c.Password
}

// Credentials returns what the configuration has for a host.
func (p *Provider) Credentials(ctx context.Context, req *auth.CredentialsRequest) (*auth.CredentialsResponse, error) {
	user, secret, err := p.credentials(ctx, req.GetHost())
	if err != nil {
		return nil, status.Errorf(codes.Unknown, "credentials of %s: %v", req.GetHost(), err)
	}
	return &auth.CredentialsResponse{Username: user, Secret: secret}, nil
}

// FetchToken fetches a token, so that the daemon need not see the password.
func (p *Provider) FetchToken(ctx context.Context, req *auth.FetchTokenRequest) (*auth.FetchTokenResponse, error) {
	if noTokens() {
		return nil, status.Error(codes.Unimplemented, "the client fetches no tokens")
	}
	entry, err := p.lookup(ctx, key(req.GetHost()))
	if err != nil {
		return nil, status.Errorf(codes.Unknown, "credentials of %s: %v", req.GetHost(), err)
	}
	if entry.RegistryToken != "" && entry.IdentityToken == "" {
		return &auth.FetchTokenResponse{Token: entry.RegistryToken}, nil
	}
	user, secret := presented(entry)
	if secret != "" {
		if err := checkRealm(req.GetHost(), req.GetRealm()); err != nil {
			return nil, status.Errorf(codes.PermissionDenied, "token of %s: %v", req.GetHost(), err)
		}
	}
	to := remoteauth.TokenOptions{
		Realm: req.GetRealm(), Service: req.GetService(), Scopes: req.GetScopes(),
		Username: user, Secret: secret,
	}
	resp, err := fetch(ctx, p.clientFor(req.GetHost()), req.GetClientID(), to)
	if err != nil {
		return nil, status.Errorf(codes.Unauthenticated, "token of %s: %v", req.GetHost(), err)
	}
	return resp, nil
}

// fetch asks a token server: the way of OAuth with an identity token, else by
// GET, which every server has.
func fetch(ctx context.Context, client *http.Client, clientID string, to remoteauth.TokenOptions) (*auth.FetchTokenResponse, error) {
	header := http.Header{"User-Agent": {"kiln"}}
	if to.Username == "" && to.Secret != "" {
		r, err := remoteauth.FetchTokenWithOAuth(ctx, client, header, clientID, to)
		if err != nil {
			return nil, err
		}
		return &auth.FetchTokenResponse{Token: r.AccessToken, ExpiresIn: int64(r.ExpiresInSeconds), IssuedAt: unix(r.IssuedAt)}, nil
	}
	r, err := remoteauth.FetchToken(ctx, client, header, to)
	if err != nil {
		return nil, err
	}
	return &auth.FetchTokenResponse{Token: r.Token, ExpiresIn: int64(r.ExpiresInSeconds), IssuedAt: unix(r.IssuedAt)}, nil
}

// checkRealm refuses to send a registry's credentials to another domain, or in
// the clear to another machine.
func checkRealm(host, realm string) error {
	u, err := url.Parse(realm)
	if err != nil || u.Hostname() == "" {
		return fmt.Errorf("token server %q: want a URL", realm)
	}
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	if domain(u.Hostname()) != domain(name) {
		return fmt.Errorf("token server %s is not of the registry's domain: credentials are not sent there", u.Hostname())
	}
	if u.Scheme != "https" && !loopback(u.Hostname()) {
		return fmt.Errorf("token server %s is asked without TLS: credentials are not sent there", realm)
	}
	return nil
}

// domain is the last two labels of a name, or an address as it is.
func domain(name string) string {
	if net.ParseIP(name) != nil {
		return name
	}
	labels := strings.Split(strings.ToLower(strings.TrimSuffix(name, ".")), ".")
	return strings.Join(labels[max(0, len(labels)-2):], ".")
}

func loopback(name string) bool {
	ip := net.ParseIP(name)
	return name == "localhost" || ip != nil && ip.IsLoopback()
}

// unix is t in seconds, or 0 if there is none.
func unix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}
