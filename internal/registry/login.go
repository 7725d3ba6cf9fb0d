package registry

import (
	"context"
	"crypto/rand"
	"errors"
	"sync"

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
		m, _ := ctx.Value(memoryKey{}).(*memory)
		for _, c := range auth.Clients(ctx) {
			logins = append(logins, sessionLogin{c, salt, m})
		}
		return logins
	}
}

// sessionLogin is a client's Docker configuration, over its session.
type sessionLogin struct {
	auth.Client
	salt   []byte
	memory *memory // nil has none
}

type memoryKey struct{}

// memory is credentials by client and host.
type memory struct {
	mu    sync.Mutex
	known map[string][2]string
}

// Remember returns a context for work that goes on when its clients have left:
// the credentials that they have given for it are kept in memory as long.
func Remember(ctx context.Context) context.Context {
	return context.WithValue(ctx, memoryKey{}, &memory{known: map[string][2]string{}})
}

// Credentials asks the client, and remembers what it said if that is wanted.
func (l sessionLogin) Credentials(ctx context.Context, host string) (user, secret string, err error) {
	user, secret, err = l.Client.Credentials(ctx, host)
	if l.memory == nil {
		return user, secret, err
	}
	l.memory.mu.Lock()
	defer l.memory.mu.Unlock()
	name := l.ID() + " " + host
	if secret != "" {
		l.memory.known[name] = [2]string{user, secret}
	} else if known, ok := l.memory.known[name]; ok {
		return known[0], known[1], nil
	}
	return user, secret, err
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
	if l.memory != nil {
		// The next token may be wanted when the client has left.
		if _, secret, _ := l.Credentials(ctx, r.Host); err != nil && secret != "" {
			err = ErrNoTokens
		}
	}
	if errors.Is(err, errors.ErrUnsupported) {
		err = ErrNoTokens
	}
	return Token(t), err
}
