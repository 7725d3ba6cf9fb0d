package registry

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// keyring is a Login that remembers who it was asked about.
type keyring struct {
	id, user, secret string
	authority        string
	mu               sync.Mutex
	asked            []string
}

func (k *keyring) ID() string { return k.id }

func (k *keyring) Authority(context.Context, string) string { return k.authority }

func (k *keyring) Credentials(_ context.Context, host string) (string, string, error) {
	k.mu.Lock()
	k.asked = append(k.asked, host)
	k.mu.Unlock()
	return k.user, k.secret, nil
}

func (k *keyring) Token(context.Context, TokenRequest) (Token, error) { return Token{}, ErrNoTokens }

// tokenServer gives a token to whoever knows the password, and keeps what it was sent.
func tokenServer(t *testing.T, seen *[]string) *httptest.Server {
	var mu sync.Mutex
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		*seen = append(*seen, r.Header.Get("Authorization"))
		mu.Unlock()
		if _, pw, ok := r.BasicAuth(); !ok || pw != "right" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, `{"token":"open-sesame","expires_in":300}`)
	}))
	t.Cleanup(s.Close)
	return s
}

func wantsToken(realm string) fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "Bearer open-sesame" {
			return false
		}
		return status(401, "WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="s",scope="repository:app:pull"`, realm))(w, r)
	}
}

func TestTokens(t *testing.T) {
	img := newTestImage(1000)
	var seen []string
	tokens := tokenServer(t, &seen)
	r := newTestRegistry(t)
	img.push(t, testClient(), r.host+"/app:v1")
	r.spoil(wantsToken(tokens.URL + "/token"))
	if err := img.pull(t.Context(), testClient(&keyring{id: "a", user: "u", secret: "wrong"}), r.host+"/app:v1"); err == nil ||
		!strings.Contains(err.Error(), "401") {
		t.Fatalf("wrong password: got %v", err)
	}
	seen = nil
	c := testClient(&keyring{id: "a", user: "u", secret: "wrong"}, &keyring{id: "b", user: "u", secret: "right"})
	for range 2 {
		if err := img.pull(t.Context(), c, r.host+"/app:v1"); err != nil {
			t.Fatal(err)
		}
	}
	if len(seen) != 2 {
		t.Fatalf("%d token requests, want one for each login and none for the second pull", len(seen))
	}
}

// A token server that redirects to itself without end is given up.
func TestTokenRedirects(t *testing.T) {
	var asked atomic.Int32
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) > 1000 {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.Redirect(w, r, "/token", http.StatusFound)
	}))
	t.Cleanup(tokens.Close)
	r := newTestRegistry(t)
	r.spoil(wantsToken(tokens.URL + "/token"))
	_, err := testClient(&keyring{id: "a", user: "u", secret: "right"}).Resolve(t.Context(), r.host+"/app:v1")
	if err == nil || !strings.Contains(err.Error(), "redirects") {
		t.Errorf("got %v, want that it redirects too often", err)
	}
	if n := asked.Load(); n > 100 {
		t.Errorf("the token server was asked %d times", n)
	}
}

// brokenLogin is a client whose configuration cannot be read.
type brokenLogin struct{ keyring }

func (*brokenLogin) Token(context.Context, TokenRequest) (Token, error) {
	return Token{}, errors.New("credentials of x: docker-credential-y is not installed")
}

// Where nothing opens a registry, the error has what kept a client from giving
// its login, although the registry was asked without one after that.
func TestBrokenLoginIsTold(t *testing.T) {
	img := newTestImage(1000)
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"token":"for-anybody"}`)
	}))
	t.Cleanup(tokens.Close)
	r := newTestRegistry(t)
	img.push(t, testClient(), r.host+"/app:v1")
	r.spoil(wantsToken(tokens.URL + "/token"))
	err := img.pull(t.Context(), testClient(&brokenLogin{keyring{id: "a"}}), r.host+"/app:v1")
	if err == nil || !strings.Contains(err.Error(), "docker-credential-y is not installed") {
		t.Errorf("got %v, want why the client gave no login", err)
	}
}

// Clients that have proved to know the same credentials share tokens, and nobody else.
func TestTokensOfEqualClients(t *testing.T) {
	img := newTestImage(1000)
	var seen []string
	tokens := tokenServer(t, &seen)
	r := newTestRegistry(t)
	img.push(t, testClient(), r.host+"/app:v1")
	r.spoil(wantsToken(tokens.URL + "/token"))
	login := &keyring{id: "a", user: "u", secret: "right", authority: "same"}
	c := testClient(login)
	c.cfg.Logins = func(context.Context) []Login { return []Login{login} }
	for _, next := range []struct {
		login *keyring
		asked int // requests for tokens until then
		fails bool
	}{
		{&keyring{id: "a", secret: "right", authority: "same"}, 1, false},
		{&keyring{id: "b", secret: "whatever", authority: "same"}, 1, false},
		{&keyring{id: "c", secret: "right", authority: "other"}, 2, false},
		{&keyring{id: "d", secret: "right"}, 3, false},
		{&keyring{id: "e", secret: "wrong"}, 5, true}, // as itself, and as nobody
	} {
		next.login.user = "u"
		login = next.login
		if err := img.pull(t.Context(), c, r.host+"/app:v1"); (err != nil) != next.fails {
			t.Errorf("login %s: %v", next.login.id, err)
		}
		if len(seen) != next.asked {
			t.Errorf("after login %s: %d requests for tokens, expected %d", next.login.id, len(seen), next.asked)
		}
	}
}

func TestCredentialsStayWithTheirHost(t *testing.T) {
	secret := base64.StdEncoding.EncodeToString([]byte("u:right"))
	a := &authorizer{host: "registry.example.com", scheme: "https", realms: []string{"sso.friend.net"}}
	for realm, want := range map[string]bool{
		"https://registry.example.com/token":   true,
		"https://auth.example.com/token":       true,
		"https://sso.friend.net/token":         true,
		"https://example.com.evil.org/token":   false,
		"https://evil.com/token":               false,
		"https://127.0.0.1/token":              false,
		"https://registryexample.com/t":        false,
		"https://registry.example.com.evil.co": false,
	} {
		u, err := url.Parse(realm)
		if err != nil {
			t.Fatal(err)
		}
		if got := a.trusts(u); got != want {
			t.Errorf("trusts(%s) = %v, want %v", realm, got, want)
		}
	}
	b := &authorizer{host: "a.github.io", scheme: "https"}
	if u, _ := url.Parse("https://b.github.io/token"); b.trusts(u) {
		t.Error("hosts below a public suffix are strangers")
	}

	// A redirect of a blob to another host carries no credentials.
	img := newTestImage(1000)
	var leaked atomic.Bool
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			leaked.Store(true)
		}
		_, _ = w.Write(img.layer)
	}))
	defer other.Close()
	r := newTestRegistry(t)
	img.push(t, testClient(), r.host+"/app:v1")
	r.spoil(func(w http.ResponseWriter, req *http.Request) bool {
		if req.Header.Get("Authorization") != "Basic "+secret {
			return status(401, "WWW-Authenticate", `Basic realm="x"`)(w, req)
		}
		if strings.Contains(req.URL.Path, "/blobs/") {
			http.Redirect(w, req, other.URL+"/blob", http.StatusTemporaryRedirect)
			return true
		}
		return false
	})
	k := &keyring{id: "a", user: "u", secret: "right"}
	if err := img.pull(t.Context(), testClient(k), r.host+"/app:v1"); err != nil {
		t.Fatal(err)
	}
	if leaked.Load() {
		t.Error("the redirect carried credentials")
	}
	for _, h := range k.asked {
		if h != r.host {
			t.Errorf("client was asked for credentials of %s", h)
		}
	}
}

func TestStrangeRealmGetsNoCredentials(t *testing.T) {
	a := &authorizer{
		host: "registry.example.com", scheme: "https", tokens: newTokenCache(), grants: map[string]*grant{},
		client: &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			if r.Header.Get("Authorization") != "" {
				t.Error("credentials were sent to", r.URL.Host)
			}
			return &http.Response{StatusCode: 401, Body: io.NopCloser(strings.NewReader("")), Request: r}, nil
		})},
	}
	k := &keyring{id: "a", user: "u", secret: "s"}
	a.logins = []Login{k}
	u, _ := url.Parse("https://registry.example.com/v2/app/manifests/v1")
	err := a.AddResponses(t.Context(), []*http.Response{{
		Request: &http.Request{URL: u},
		Header:  http.Header{"Www-Authenticate": {`Bearer realm="https://evil.org/token",service="x"`}},
	}})
	if err == nil || len(k.asked) != 0 {
		t.Fatalf("err %v, client was asked %v", err, k.asked)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
