package registry

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/auth"
	"github.com/containerd/errdefs"
	"golang.org/x/net/publicsuffix"

	sessionauth "github.com/kiln-build/kiln/internal/session/auth"
)

// ErrNoTokens says that a Login cannot fetch tokens, but may know credentials.
var ErrNoTokens = errors.New("client does not fetch tokens")

// Login is one client's knowledge of registries.
type Login interface {
	// ID tells clients apart: tokens are not shared between them, unless Authority
	// says that they may be.
	ID() string
	// Authority names the credentials for a host such that whoever has the same
	// name has proved to know the same credentials; "" if that cannot be told.
	Authority(ctx context.Context, host string) string
	// Credentials returns what to present to a host. An empty user with a
	// secret is an identity token. Both are empty if nothing is known.
	Credentials(ctx context.Context, host string) (user, secret string, err error)
	// Token lets the client exchange its credentials, or none, for a token. It
	// returns ErrNoTokens if the client cannot.
	Token(ctx context.Context, r TokenRequest) (Token, error)
}

// TokenRequest describes a token to be had from a realm.
type TokenRequest struct {
	Host, Realm, Service string
	Scopes               []string
}

// Token opens a registry's repositories for a while.
type Token struct {
	Value   string
	Expires time.Time
}

// authorizer answers one registry's challenges for one operation.
type authorizer struct {
	host, scheme string
	realms       []string
	logins       []Login
	tokens       *tokenCache
	client       *http.Client
	userAgent    string

	mu     sync.Mutex
	grants map[string]*grant // by scopes
}

// grant is what a set of scopes is asked for with, and how far the search for
// a login that opens them has come.
type grant struct {
	header string
	since  time.Time
	next   int   // the login to try when the header is refused
	failed error // why a client had no login to give, or its token server refused it
}

// Authorize adds what is known to open the request's scopes.
func (a *authorizer) Authorize(ctx context.Context, req *http.Request) error {
	if req.URL.Host != a.host || req.URL.Scheme != a.scheme {
		return nil // a redirect to somebody else
	}
	scopes := docker.GetTokenScopes(ctx, nil)
	a.mu.Lock()
	defer a.mu.Unlock()
	if g := a.grants[key(scopes)]; g != nil {
		req.Header.Set("Authorization", g.header)
		return nil
	}
	if !a.tokens.any(a.host, scopes) {
		return nil // so nobody need be asked who they are
	}
	for _, l := range append(slices.Clone(a.logins), anonymous{}) {
		if t, ok := a.tokens.peek(a.tokens.name(ctx, l, a.host), a.host, scopes); ok {
			req.Header.Set("Authorization", "Bearer "+t.Value)
			return nil
		}
	}
	return nil
}

// AddResponses looks for another way to open what the last response refused.
func (a *authorizer) AddResponses(ctx context.Context, responses []*http.Response) error {
	last := responses[len(responses)-1]
	if last.Request.URL.Host != a.host || last.Request.URL.Scheme != a.scheme {
		return fmt.Errorf("%w: %s wants credentials, but the image names %s", docker.ErrInvalidAuthorization,
			last.Request.URL.Host, a.host)
	}
	scopes := docker.GetTokenScopes(ctx, nil)
	a.mu.Lock()
	defer a.mu.Unlock()
	g := a.grants[key(scopes)]
	if g == nil {
		g = &grant{}
	}
	if !g.since.IsZero() && time.Since(g.since) > time.Minute {
		g.next = 0 // it was good once: it expired
	}
	challenges := auth.ParseAuthHeader(last.Header)
	for _, c := range challenges {
		var err error
		switch c.Scheme {
		case auth.BearerAuth:
			err = a.bearer(ctx, g, c, scopes)
		case auth.BasicAuth:
			err = a.basic(ctx, g)
		default:
			continue
		}
		if err != nil {
			return err
		}
		g.since = time.Now()
		a.grants[key(scopes)] = g
		return nil
	}
	return fmt.Errorf("registry %s asks for an unknown kind of login: %w", a.host, errdefs.ErrNotImplemented)
}

func (a *authorizer) basic(ctx context.Context, g *grant) error {
	for g.next < len(a.logins) {
		l := a.logins[g.next]
		g.next++
		user, secret, err := l.Credentials(ctx, a.host)
		if err != nil {
			return fmt.Errorf("ask client for credentials of %s: %w", a.host, err)
		}
		if user == "" || secret == "" {
			continue
		}
		r := &http.Request{Header: http.Header{}}
		r.SetBasicAuth(user, secret)
		g.header = r.Header.Get("Authorization")
		return nil
	}
	return fmt.Errorf("%w: the registry wants a user and a password, and no client has any that it takes", docker.ErrInvalidAuthorization)
}

func (a *authorizer) bearer(ctx context.Context, g *grant, c auth.Challenge, scopes []string) error {
	realm, err := url.Parse(c.Parameters["realm"])
	if err != nil || realm.Host == "" || realm.User != nil {
		return fmt.Errorf("registry %s names a malformed token realm %q", a.host, c.Parameters["realm"])
	}
	if realm.Scheme != "https" && (realm.Scheme != "http" || a.scheme != "http") {
		return fmt.Errorf("registry %s wants its tokens fetched from %s, expected an https address", a.host, realm.Redacted())
	}
	want := slices.Clone(scopes)
	if s := c.Parameters["scope"]; s != "" {
		want = append(want, strings.Fields(s)...)
	}
	slices.Sort(want)
	req := TokenRequest{Host: a.host, Realm: realm.String(), Service: c.Parameters["service"], Scopes: slices.Compact(want)}
	logins := append(slices.Clone(a.logins), anonymous{})
	trusted := a.trusts(realm)
	if !trusted {
		// The credentials are the registry's: a stranger gets none.
		logins = []Login{anonymous{}}
	}
	for g.next < len(logins) {
		l := logins[g.next]
		g.next++
		t, err := a.tokens.get(ctx, a.tokens.name(ctx, l, a.host), a.host, scopes, func() (Token, error) { return a.fetch(ctx, l, req) })
		if err != nil {
			if g.next < len(logins) {
				g.failed = err
				continue
			}
			return g.refused(fmt.Errorf("failed to authorize: failed to fetch anonymous token from %s: %w", realm.Host, err))
		}
		g.header = "Bearer " + t.Value
		return nil
	}
	if !trusted && len(a.logins) > 0 {
		return fmt.Errorf("%w: the registry sends for tokens to %s, which is not its own host, so no credentials were given (allow it in the daemon's registry settings)",
			docker.ErrInvalidAuthorization, realm.Host)
	}
	if said := c.Parameters["error"]; said != "" {
		return g.refused(fmt.Errorf("the registry took no client's login: server message: %s", printable([]byte(said))))
	}
	return g.refused(errors.New("the registry took no client's login"))
}

// refused is the error where no login opens a registry. What kept a client from
// giving its own, such as a helper that is not installed, is most likely the cause.
func (g *grant) refused(reason error) error {
	if g.failed != nil {
		return fmt.Errorf("%w: %w; before, %w", docker.ErrInvalidAuthorization, reason, g.failed)
	}
	return fmt.Errorf("%w: %w", docker.ErrInvalidAuthorization, reason)
}

// trusts tells whether a token realm may be given the registry's credentials:
// its own host, a host of the same owner, or one that is configured.
func (a *authorizer) trusts(realm *url.URL) bool {
	own, other := hostname(a.host), strings.ToLower(realm.Hostname())
	if own == other || slices.Contains(a.realms, realm.Host) || isLoopback(a.host) && isLoopback(realm.Host) {
		return true
	}
	if net.ParseIP(own) != nil || net.ParseIP(other) != nil {
		return false
	}
	ownOwner, err1 := publicsuffix.EffectiveTLDPlusOne(own)
	otherOwner, err2 := publicsuffix.EffectiveTLDPlusOne(other)
	return err1 == nil && err2 == nil && ownOwner == otherOwner
}

func hostname(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.ToLower(strings.Trim(host, "[]"))
}

// fetch gets a token, by the client itself where it can.
func (a *authorizer) fetch(ctx context.Context, l Login, r TokenRequest) (Token, error) {
	t, err := l.Token(ctx, r)
	if err == nil || !errors.Is(err, ErrNoTokens) {
		return t, err
	}
	user, secret, err := l.Credentials(ctx, a.host)
	if err != nil {
		return Token{}, fmt.Errorf("ask client for credentials of %s: %w", a.host, err)
	}
	client := *a.client
	client.Transport = sessionauth.Bounded(client.Transport, sessionauth.MostToken)
	client.CheckRedirect = func(req *http.Request, via []*http.Request) error {
		if req.URL.Host != via[0].URL.Host || req.URL.Scheme != via[0].URL.Scheme {
			return fmt.Errorf("token realm %s redirects to %s, which was refused", via[0].URL.Host, req.URL.Host)
		}
		return checkRedirect(req, via)
	}
	header := http.Header{"User-Agent": {a.userAgent}}
	opt := auth.TokenOptions{Realm: r.Realm, Service: r.Service, Scopes: r.Scopes, Username: user, Secret: secret}
	now := time.Now()
	if user == "" && secret != "" {
		tr, err := auth.FetchTokenWithOAuth(ctx, &client, header, "kiln", opt)
		if err != nil {
			return Token{}, err
		}
		return newToken(tr.AccessToken, now, tr.ExpiresInSeconds), nil
	}
	tr, err := auth.FetchToken(ctx, &client, header, opt)
	if err != nil {
		return Token{}, err
	}
	return newToken(tr.Token, now, tr.ExpiresInSeconds), nil
}

// newToken reckons the end of a token by our own clock, a little early. The
// protocol's default life is a minute.
func newToken(value string, issued time.Time, seconds int) Token {
	if seconds <= 0 {
		seconds = 60
	}
	return Token{Value: value, Expires: issued.Add(time.Duration(min(seconds, 3600))*time.Second - 10*time.Second)}
}

// anonymous knows nobody's credentials.
type anonymous struct{}

func (anonymous) ID() string { return "" }

func (anonymous) Authority(context.Context, string) string { return "" }

func (anonymous) Credentials(context.Context, string) (string, string, error) { return "", "", nil }

func (anonymous) Token(context.Context, TokenRequest) (Token, error) { return Token{}, ErrNoTokens }

func key(scopes []string) string { return strings.Join(scopes, " ") }

// tokenCache shares tokens among the operations of one client, and of clients
// with the same credentials.
type tokenCache struct {
	mu     sync.Mutex
	tokens map[tokenKey]*cachedToken
	names  map[[2]string]string // by login and host
}

// name is whose tokens a login may use at a host.
func (c *tokenCache) name(ctx context.Context, l Login, host string) string {
	k := [2]string{l.ID(), host}
	c.mu.Lock()
	name, ok := c.names[k]
	c.mu.Unlock()
	if ok {
		return name
	}
	if name = l.Authority(ctx, host); name != "" {
		name = "authority " + name
	} else {
		name = "login " + l.ID()
	}
	const many = 1000
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.names) >= many || c.names == nil {
		c.names = map[[2]string]string{}
	}
	c.names[k] = name
	return name
}

// any tells whether somebody has a token.
func (c *tokenCache) any(host string, scopes []string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k := range c.tokens {
		if k.host == host && k.scopes == key(scopes) {
			return true
		}
	}
	return false
}

type tokenKey struct{ login, host, scopes string }

type cachedToken struct {
	turn  chan struct{} // holds one value, taken by whoever fetches
	token Token
	at    time.Time
}

func newTokenCache() *tokenCache { return &tokenCache{tokens: map[tokenKey]*cachedToken{}} }

func (c *tokenCache) peek(login, host string, scopes []string) (Token, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.tokens[tokenKey{login, host, key(scopes)}]
	if e == nil || e.token.Value == "" || time.Now().After(e.token.Expires) {
		return Token{}, false
	}
	return e.token, true
}

// get fetches a token, unless somebody else has done so since the caller asked.
func (c *tokenCache) get(ctx context.Context, login, host string, scopes []string, fetch func() (Token, error)) (Token, error) {
	asked := time.Now()
	k := tokenKey{login, host, key(scopes)}
	c.mu.Lock()
	c.sweep()
	e := c.tokens[k]
	if e == nil {
		e = &cachedToken{turn: make(chan struct{}, 1)}
		c.tokens[k] = e
	}
	c.mu.Unlock()
	select {
	case e.turn <- struct{}{}:
	case <-ctx.Done():
		return Token{}, ctx.Err()
	}
	defer func() { <-e.turn }()
	c.mu.Lock()
	token, at := e.token, e.at
	c.mu.Unlock()
	if at.After(asked) && token.Value != "" {
		return token, nil
	}
	token, err := fetch()
	if err != nil {
		return Token{}, err
	}
	c.mu.Lock()
	e.token, e.at = token, time.Now()
	c.mu.Unlock()
	return token, nil
}

// sweep forgets what is of no more use, once there is a lot.
func (c *tokenCache) sweep() {
	const many = 1000
	if len(c.tokens) < many {
		return
	}
	for k, e := range c.tokens {
		if time.Now().After(e.token.Expires) && len(e.turn) == 0 {
			delete(c.tokens, k)
		}
	}
}
