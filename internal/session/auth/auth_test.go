package auth_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kiln-build/kiln/internal/session/auth"
	"github.com/kiln-build/kiln/internal/session/sessiontest"
)

// clientOf connects a client with a Docker configuration.
func clientOf(t *testing.T, config string) context.Context {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	caller := sessiontest.Connect(t, auth.NewProvider(auth.DockerConfig(dir), auth.Options{Dir: dir}))
	return sessiontest.Context(context.Background(), caller)
}

func TestCredentials(t *testing.T) {
	// The values are base64 of user:password.
	ctx := clientOf(t, `{"auths": {
		"https://index.docker.io/v1/": {"auth": "aHVidXNlcjpodWJwYXNz"},
		"reg.example:5000": {"auth": "dXNlcjpwYXNz"},
		"token.example": {"identitytoken": "tok", "auth": "PHRva2VuPjo="}}}`)
	for _, tt := range []struct{ host, user, secret string }{
		{"registry-1.docker.io", "hubuser", "hubpass"},
		{"reg.example:5000", "user", "pass"},
		{"token.example", "", "tok"},
		{"other.example", "", ""},
	} {
		user, secret, err := auth.Credentials(ctx, tt.host)
		if err != nil || user != tt.user || secret != tt.secret {
			t.Errorf("%s: %q, %q, %v, want %q, %q", tt.host, user, secret, err, tt.user, tt.secret)
		}
	}
	if user, secret, err := auth.Credentials(context.Background(), "reg.example:5000"); err != nil || user+secret != "" {
		t.Errorf("without a session: %q, %q, %v", user, secret, err)
	}
}

func TestCredentialHelper(t *testing.T) {
	dir := t.TempDir()
	helper := "#!/bin/sh\nread host\necho '{\"ServerURL\":\"'$host'\",\"Username\":\"u\",\"Secret\":\"of '$host'\"}'\n"
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-test"), []byte(helper), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	ctx := clientOf(t, `{"credHelpers": {"reg.example": "test"}}`)
	user, secret, err := auth.Credentials(ctx, "reg.example")
	if err != nil || user != "u" || secret != "of reg.example" {
		t.Errorf("%q, %q, %v", user, secret, err)
	}
}

func TestBrokenConfig(t *testing.T) {
	ctx := clientOf(t, `{"auths": `)
	if _, _, err := auth.Credentials(ctx, "reg.example"); err == nil || !strings.Contains(err.Error(), "Docker configuration") {
		t.Errorf("error %v, want one that names the configuration", err)
	}
}

func TestToken(t *testing.T) {
	var seen string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, pass, _ := r.BasicAuth()
		seen = fmt.Sprintf("%s:%s service=%s scope=%s", user, pass, r.FormValue("service"), r.FormValue("scope"))
		fmt.Fprint(w, `{"token": "T", "expires_in": 300}`)
	}))
	t.Cleanup(server.Close)
	ctx := clientOf(t, `{"auths": {"127.0.0.1:5000": {"auth": "dXNlcjpwYXNz"}, "reg.example": {"auth": "dXNlcjpwYXNz"}}}`)
	c := auth.Clients(ctx)[0]
	req := auth.Request{Host: "127.0.0.1:5000", Realm: server.URL + "/token", Service: "s", Scopes: []string{"repository:a:pull"}}
	token, err := c.Token(ctx, req)
	if err != nil || token.Value != "T" {
		t.Fatalf("token %v, %v", token, err)
	}
	if left := time.Until(token.Expires); left < 4*time.Minute || left > 6*time.Minute {
		t.Errorf("the token expires in %v, want 5m", left)
	}
	if want := "user:pass service=s scope=repository:a:pull"; seen != want {
		t.Errorf("the server saw %q, want %q", seen, want)
	}
	seen = ""
	req.Host = "reg.example"
	if _, err := c.Token(ctx, req); err == nil || seen != "" {
		t.Errorf("credentials of another registry were sent (%q), error %v", seen, err)
	}
	req.Realm = "http://auth.reg.example/token"
	if _, err := c.Token(ctx, req); err == nil || !strings.Contains(err.Error(), "TLS") {
		t.Errorf("error %v, want one about TLS", err)
	}
	t.Setenv("BUILDKIT_NO_CLIENT_TOKEN", "1")
	if _, err := c.Token(ctx, req); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("error %v, want ErrUnsupported", err)
	}
}
