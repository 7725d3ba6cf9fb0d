package registry

import (
	"context"
	"crypto/rand"
	"errors"

	"github.com/kiln-build/kiln/internal/session/auth"
)

// newSalt makes names of credentials of use to one run of the daemon only.
func newSalt() []byte {
	salt := make([]byte, 32)
	_, _ = rand.Read(salt) // never fails
	return salt
}

// sessionLogins returns what the clients that wait for ctx's work know.
func sessionLogins(salt []byte) func(ctx context.Context) []Login {
	return func(ctx context.Context) (logins []Login) {
		for _, c := range auth.Clients(ctx) {
			logins = append(logins, sessionLogin{c, salt})
		}
		return logins
	}
}

// sessionLogin is a client's Docker configuration, over its session.
type sessionLogin struct {
	auth.Client
	salt []byte
}

// Authority names the client's credentials for a host. A client that does not
// prove them shares no tokens.
func (l sessionLogin) Authority(ctx context.Context, host string) string {
	name, err := l.Client.Authority(ctx, host, l.salt)
	if err != nil {
		return ""
	}
	return name
}

// Token lets the client fetch a token.
func (l sessionLogin) Token(ctx context.Context, r TokenRequest) (Token, error) {
	t, err := l.Client.Token(ctx, auth.Request(r))
	if errors.Is(err, errors.ErrUnsupported) {
		err = ErrNoTokens
	}
	return Token(t), err
}
