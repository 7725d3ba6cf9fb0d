// Package auth lets the daemon use a client's registry credentials. The client's
// side reads the Docker configuration, with its credential helpers, and fetches
// tokens itself where it can; the daemon's asks the sessions of the work at hand.
//
// Credentials go to the registry they are for, and to the token server of that
// registry's own domain, over TLS: a registry cannot have them sent elsewhere.
package auth

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/auth"
	"github.com/kiln-build/kiln/internal/session"
)

// timeout is how long a client may take to answer: a credential helper may ask
// a person.
const timeout = 60 * time.Second

// Client is the credentials of one client, seen by the daemon.
type Client struct{ caller *session.Caller }

// Clients returns the clients that ctx's work may use the credentials of.
func Clients(ctx context.Context) []Client {
	var clients []Client
	for _, c := range session.FromContext(ctx) {
		if c.Supports(auth.Auth_Credentials_FullMethodName) {
			clients = append(clients, Client{c})
		}
	}
	return clients
}

// ID tells clients apart, also from those that are gone.
func (c Client) ID() string { return c.caller.Unique() }

// Credentials returns what to present to a registry's host, such as
// "registry-1.docker.io". An empty user with a secret stands for an identity
// token; both are empty if the client has none.
func (c Client) Credentials(ctx context.Context, host string) (user, secret string, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	r, err := auth.NewAuthClient(c.caller.Conn()).Credentials(ctx, &auth.CredentialsRequest{Host: host})
	if absent(err) {
		return "", "", nil
	} else if err != nil {
		return "", "", fmt.Errorf("ask the client for credentials of %s: %w", host, err)
	}
	return r.GetUsername(), r.GetSecret(), nil
}

// Token is a registry's token.
type Token struct {
	Value   string
	Expires time.Time
}

// Request describes a token.
type Request struct {
	Host, Realm, Service string
	Scopes               []string
}

// Token lets the client fetch a token. The error is [errors.ErrUnsupported] if
// it cannot.
func (c Client) Token(ctx context.Context, r Request) (Token, error) {
	if !c.caller.Supports(auth.Auth_FetchToken_FullMethodName) {
		return Token{}, errors.ErrUnsupported
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	resp, err := auth.NewAuthClient(c.caller.Conn()).FetchToken(ctx, &auth.FetchTokenRequest{
		ClientID: "kiln", Host: r.Host, Realm: r.Realm, Service: r.Service, Scopes: r.Scopes,
	})
	if absent(err) {
		return Token{}, errors.ErrUnsupported
	} else if err != nil {
		return Token{}, fmt.Errorf("let the client fetch a token for %s: %w", r.Host, err)
	}
	issued := time.Now()
	if at := resp.GetIssuedAt(); at > 0 {
		issued = time.Unix(at, 0)
	}
	// Token servers that do not say mean a minute.
	life := max(time.Duration(resp.GetExpiresIn())*time.Second, time.Minute)
	return Token{Value: resp.GetToken(), Expires: issued.Add(life)}, nil
}

// absent tells whether a client's answer means that it does not serve a call.
func absent(err error) bool {
	c := status.Code(err)
	return c == codes.Unimplemented || c == codes.Unavailable
}

// Credentials returns what the first of ctx's clients that knows a host would
// present to it; both are empty if none does.
func Credentials(ctx context.Context, host string) (user, secret string, err error) {
	for _, c := range Clients(ctx) {
		u, s, cErr := c.Credentials(ctx, host)
		if cErr != nil {
			err = cErr
		} else if s != "" {
			return u, s, nil
		}
	}
	return "", "", err
}
