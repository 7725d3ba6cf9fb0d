package registry

import (
	"context"
	"errors"

	"github.com/kiln-build/kiln/internal/session/auth"
)

// sessionLogins returns what the clients that wait for ctx's work know.
func sessionLogins(ctx context.Context) []Login {
	var logins []Login
	for _, c := range auth.Clients(ctx) {
		logins = append(logins, sessionLogin{c})
	}
	return logins
}

// sessionLogin is a client's Docker configuration, over its session.
type sessionLogin struct{ auth.Client }

// Token lets the client fetch a token.
func (l sessionLogin) Token(ctx context.Context, r TokenRequest) (Token, error) {
	t, err := l.Client.Token(ctx, auth.Request(r))
	if errors.Is(err, errors.ErrUnsupported) {
		err = ErrNoTokens
	}
	return Token(t), err
}
