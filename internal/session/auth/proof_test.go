package auth_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"strings"
	"testing"

	"google.golang.org/grpc"

	authapi "github.com/kiln-build/kiln/internal/api/auth"
	"github.com/kiln-build/kiln/internal/session/auth"
	"github.com/kiln-build/kiln/internal/session/sessiontest"
)

// authority asks the one client of ctx.
func authority(t *testing.T, ctx context.Context, host string, salt string) (string, error) {
	t.Helper()
	cs := auth.Clients(ctx)
	if len(cs) != 1 {
		t.Fatalf("%d clients", len(cs))
	}
	return cs[0].Authority(ctx, host, []byte(salt))
}

// TestAuthority names the credentials of clients.
func TestAuthority(t *testing.T) {
	ctx := clientOf(t, `{"auths": {"reg.example": {"auth": "dXNlcjpwYXNz"}, "other.example": {"auth": "dXNlcjpwYXNz"}}}`)
	one, err := authority(t, ctx, "reg.example", "salt")
	if err != nil || one == "" {
		t.Fatalf("got %q, %v", one, err)
	}
	if again, err := authority(t, ctx, "reg.example", "salt"); err != nil || again != one {
		t.Errorf("asked again: %q, %v, expected %q", again, err, one)
	}
	if salted, err := authority(t, ctx, "reg.example", "other salt"); err != nil || salted == one {
		t.Errorf("with another salt: %q, %v", salted, err)
	}
	if other, err := authority(t, ctx, "other.example", "salt"); err != nil || other == one {
		t.Errorf("of another host: %q, %v", other, err)
	}
	if none, err := authority(t, clientOf(t, `{}`), "reg.example", "salt"); err == nil && none == one {
		t.Error("a client without credentials has the name of one that has them")
	}
}

// forger claims another's authority.
type forger struct {
	authapi.UnimplementedAuthServer
	key    ed25519.PublicKey
	signed func(payload []byte) []byte
}

func (f *forger) Register(s *grpc.Server) { authapi.RegisterAuthServer(s, f) }

func (f *forger) GetTokenAuthority(context.Context, *authapi.GetTokenAuthorityRequest) (*authapi.GetTokenAuthorityResponse, error) {
	return &authapi.GetTokenAuthorityResponse{PublicKey: f.key}, nil
}

func (f *forger) VerifyTokenAuthority(_ context.Context, r *authapi.VerifyTokenAuthorityRequest) (*authapi.VerifyTokenAuthorityResponse, error) {
	return &authapi.VerifyTokenAuthorityResponse{Signed: f.signed(r.GetPayload())}, nil
}

func TestForgedAuthority(t *testing.T) {
	key, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	_, own, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	for what, f := range map[string]*forger{
		"nothing signed":    {key: key, signed: func([]byte) []byte { return nil }},
		"another's key":     {key: key, signed: func(p []byte) []byte { return append(ed25519.Sign(own, p), p...) }},
		"something else":    {key: own.Public().(ed25519.PublicKey), signed: func([]byte) []byte { return append(ed25519.Sign(own, []byte("x")), 'x') }},
		"signature missing": {key: key, signed: func(p []byte) []byte { return append(make([]byte, 64), p...) }},
		"short key":         {key: key[:5], signed: func(p []byte) []byte { return p }},
	} {
		ctx := sessiontest.Context(context.Background(), sessiontest.Connect(t, f))
		if name, err := authority(t, ctx, "reg.example", "salt"); err == nil {
			t.Errorf("%s: named %q", what, name)
		}
	}
	silent := sessiontest.Context(context.Background(), sessiontest.Connect(t, unable{}))
	if _, err := authority(t, silent, "reg.example", "salt"); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a client that cannot: %v", err)
	}
	if _, err := authority(t, sessiontest.Context(context.Background(), sessiontest.Connect(t, &forger{
		key: own.Public().(ed25519.PublicKey), signed: func(p []byte) []byte { return append(ed25519.Sign(own, p), p...) },
	})), "reg.example", "salt"); err != nil && strings.Contains(err.Error(), "not proved") {
		t.Errorf("a client that signs in BuildKit's form: %v", err)
	}
}

// unable serves no calls of the service.
type unable struct {
	authapi.UnimplementedAuthServer
}

func (u unable) Register(s *grpc.Server) { authapi.RegisterAuthServer(s, u) }
