package auth_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	api "github.com/kiln-build/kiln/internal/api/auth"
	"github.com/kiln-build/kiln/internal/session/auth"
	"github.com/kiln-build/kiln/internal/session/sessiontest"
)

const withPassword = `{"auths": {"reg.example": {"auth": "dXNlcjpwYXNz"}, "other.example": {"auth": "dXNlcjpwYXNz"}}}`

// authClient is the wire's client of a session with a configuration in a directory.
func authClient(t *testing.T, dir string, opt auth.Options) api.AuthClient {
	t.Helper()
	return api.NewAuthClient(sessiontest.Connect(t, auth.NewProvider((&auth.DockerConfig{Dir: dir}).Lookup, opt)).Conn())
}

func configIn(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Sessions of a user have the same authority for a host, and those of others another
// one, unless neither has credentials.
func TestTokenAuthority(t *testing.T) {
	mine, yours := configIn(t, withPassword), configIn(t, withPassword)
	ctx := context.Background()
	key := func(c api.AuthClient, host, salt string) []byte {
		t.Helper()
		r, err := c.GetTokenAuthority(ctx, &api.GetTokenAuthorityRequest{Host: host, Salt: []byte(salt)})
		if err != nil {
			t.Fatal(err)
		}
		return r.GetPublicKey()
	}
	first, second := authClient(t, mine, auth.Options{Dir: mine}), authClient(t, mine, auth.Options{Dir: mine})
	stranger := authClient(t, yours, auth.Options{Dir: yours})
	public := key(first, "reg.example", "salt")
	if !bytes.Equal(public, key(second, "reg.example", "salt")) {
		t.Error("two sessions of one user have different authorities")
	}
	for name, other := range map[string][]byte{
		"another salt": key(first, "reg.example", "other"), "another host": key(first, "other.example", "salt"),
		"another user": key(stranger, "reg.example", "salt"), "nobody": key(first, "anonymous.example", "salt"),
	} {
		if bytes.Equal(public, other) {
			t.Errorf("%s has the same authority", name)
		}
	}
	if !bytes.Equal(key(first, "anonymous.example", "salt"), key(stranger, "anonymous.example", "salt")) {
		t.Error("those without credentials have different authorities")
	}
	signed, err := second.VerifyTokenAuthority(ctx, &api.VerifyTokenAuthorityRequest{Host: "reg.example", Salt: []byte("salt"), Payload: []byte("prove it")})
	if err != nil {
		t.Fatal(err)
	}
	signature, payload := signed.GetSigned()[:ed25519.SignatureSize], signed.GetSigned()[ed25519.SignatureSize:]
	if string(payload) != "prove it" || !ed25519.Verify(public, payload, signature) {
		t.Error("the signature is not the authority's")
	}
	t.Setenv("BUILDKIT_NO_CLIENT_TOKEN", "true")
	if _, err := first.GetTokenAuthority(ctx, &api.GetTokenAuthorityRequest{Host: "reg.example"}); err == nil {
		t.Error("an authority although the user wants no tokens")
	}
}

// A seed file that is broken is made anew; one that cannot be kept holds for the session.
func TestSeedFile(t *testing.T) {
	dir := configIn(t, withPassword)
	if err := os.WriteFile(filepath.Join(dir, ".token_seed"), []byte("{broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := authClient(t, dir, auth.Options{Dir: dir})
	for range 2 {
		if _, err := c.GetTokenAuthority(context.Background(), &api.GetTokenAuthorityRequest{Host: "reg.example"}); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(filepath.Join(dir, ".token_seed"))
	if err != nil || info.Mode().Perm() != 0o600 || info.Size() < 20 {
		t.Errorf("the seed file is %v, %v", info, err)
	}
}

// A registry's token server is reached by the TLS configuration for the registry, and a
// static token needs none.
func TestTokenTLS(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"token": "T"}`) }))
	t.Cleanup(server.Close)
	pool := x509.NewCertPool()
	pool.AddCert(server.Certificate())
	dir := configIn(t, `{"auths": {"static.example": {"registrytoken": "S"}}}`)
	c := authClient(t, dir, auth.Options{Dir: dir, TLS: map[string]*tls.Config{"trusted": {RootCAs: pool, MinVersion: tls.VersionTLS12}}})
	for host, want := range map[string]string{"trusted": "T", "untrusted": "", "static.example": "S"} {
		r, err := c.FetchToken(context.Background(), &api.FetchTokenRequest{Host: host, Realm: server.URL + "/token"})
		if r.GetToken() != want || (err == nil) != (want != "") {
			t.Errorf("%s: token %q, %v, want %q", host, r.GetToken(), err, want)
		}
	}
}
