package auth_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
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
	caller := sessiontest.Connect(t, auth.NewProvider((&auth.DockerConfig{Dir: dir}).Lookup, auth.Options{Dir: dir}))
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

// TestSilentHelper asks a helper that never answers: it is told of by name, once, and
// holds up nobody who does not need it.
func TestSilentHelper(t *testing.T) {
	dir := t.TempDir()
	calls := filepath.Join(dir, "calls")
	helper := "#!/bin/sh\necho $$ >>" + calls + "\nexec sleep 1000\n"
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-silent"), []byte(helper), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	config := `{"credsStore": "silent", "credHelpers": {"plain.example": ""}, "auths": {"plain.example": {"auth": "dXNlcjpwYXNz"}}}`
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	d := &auth.DockerConfig{Dir: dir, Timeout: 500 * time.Millisecond}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	asked := make(chan error, 2)
	for range cap(asked) {
		go func() {
			_, err := d.Lookup(ctx, "reg.example")
			asked <- err
		}()
	}
	if c, err := d.Lookup(ctx, "plain.example"); err != nil || c.Username != "user" {
		t.Errorf("a registry without a helper: %q, %v", c.Username, err)
	}
	for range cap(asked) {
		if err := <-asked; err == nil || !strings.Contains(err.Error(), "docker-credential-silent gave no answer within 500ms") {
			t.Errorf("error %v, want one that names the helper", err)
		}
	}
	pids, err := os.ReadFile(calls)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(pids), "\n"); n != 1 {
		t.Errorf("the helper was asked %d times, want once", n)
	}
	if _, err := os.Stat("/proc/" + strings.TrimSpace(string(pids))); err == nil {
		t.Error("the helper goes on")
	}
}

// TestGivenUpHelper has the caller leave while a helper is asked.
func TestGivenUpHelper(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-silent"), []byte("#!/bin/sh\nexec sleep 1000\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"credsStore": "silent"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	began := time.Now()
	_, err := (&auth.DockerConfig{Dir: dir}).Lookup(ctx, "reg.example")
	if took := time.Since(began); err == nil || took > 10*time.Second {
		t.Errorf("%v after %v, want an error at once", err, took)
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

// A token server's answer is read so far and no further.
func TestEndlessToken(t *testing.T) {
	const most = 64 << 20
	var sent atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, err := fmt.Fprint(w, `{"token": "`)
		for chunk := bytes.Repeat([]byte("T"), 1<<16); err == nil && sent.Load() < most; sent.Add(int64(len(chunk))) {
			_, err = w.Write(chunk)
		}
	}))
	t.Cleanup(server.Close)
	ctx := clientOf(t, `{}`)
	_, err := auth.Clients(ctx)[0].Token(ctx, auth.Request{Host: "127.0.0.1:5000", Realm: server.URL + "/token"})
	if err == nil || !strings.Contains(err.Error(), "bytes that are allowed") {
		t.Errorf("error %v, want one about the size of the answer", err)
	}
	if sent.Load() >= most {
		t.Error("the answer was read to its end")
	}
}
