package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
)

// world is a proxy with servers behind it.
type world struct {
	plain, secure *httptest.Server
	run           *Run
	proxy         *url.URL
	client        *http.Client
	end           func() // ends the run
}

func answer(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/gone":
		http.NotFound(w, r)
	case "/moved":
		http.Redirect(w, r, "/file", http.StatusFound)
	case "/half":
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, "half")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	case "/headers":
		fmt.Fprint(w, r.Header)
	case "/slow":
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	case "/part":
		w.WriteHeader(http.StatusPartialContent)
		_, _ = io.WriteString(w, "part")
	default:
		_, _ = io.WriteString(w, r.Method+" "+r.URL.Path+" "+r.Host)
	}
}

func newWorld(t *testing.T, check Check) *world {
	t.Helper()
	w := &world{plain: httptest.NewServer(http.HandlerFunc(answer)), secure: httptest.NewTLSServer(http.HandlerFunc(answer))}
	t.Cleanup(w.plain.Close)
	t.Cleanup(w.secure.Close)
	w.plain.Config.ErrorLog, w.secure.Config.ErrorLog = nil, nil
	roots := x509.NewCertPool()
	roots.AddCert(w.secure.Certificate())
	var err error
	if w.run, err = (&Proxy{Roots: roots}).NewRun(check); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		w.run.Serve(l, (&net.Dialer{}).DialContext)
	}()
	w.end = func() {
		_ = l.Close()
		select {
		case <-served:
		case <-time.After(2 * time.Minute):
			t.Error("the proxy does not end with its listener")
		}
	}
	t.Cleanup(w.end)
	w.proxy = &url.URL{Scheme: "http", Host: l.Addr().String()}
	trust := x509.NewCertPool()
	if !trust.AppendCertsFromPEM(w.run.CA()) {
		t.Fatal("the authority has no certificate")
	}
	transport := &http.Transport{Proxy: http.ProxyURL(w.proxy), TLSClientConfig: &tls.Config{RootCAs: trust, MinVersion: tls.VersionTLS12}}
	t.Cleanup(transport.CloseIdleConnections)
	w.client = &http.Client{Transport: transport, Timeout: 20 * time.Second}
	return w
}

// get asks for an address and gives status and body.
func (w *world) get(t *testing.T, method, address string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := w.client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return resp.StatusCode, err.Error()
	}
	return resp.StatusCode, string(text)
}

func host(s *httptest.Server) string {
	_, h, _ := strings.Cut(s.URL, "://")
	return h
}

func TestRecord(t *testing.T) {
	w := newWorld(t, nil)
	for _, base := range []*httptest.Server{w.plain, w.secure} {
		for _, c := range []struct {
			method, path string
			status       int
			body         string // a part of it
		}{
			{"GET", "/file", 200, "GET /file " + host(base)},
			{"GET", "/moved", 200, "GET /file " + host(base)},
			{"GET", "/gone", 404, "not found"},
			{"POST", "/post", 200, "POST /post"},
			{"HEAD", "/file", 200, ""},
			{"GET", "/part", 206, "part"},
			{"GET", "/half", 200, "unexpected EOF"},
		} {
			status, body := w.get(t, c.method, base.URL+c.path)
			if status != c.status || !strings.Contains(body, c.body) {
				t.Errorf("%s %s%s: %d %q", c.method, base.URL, c.path, status, body)
			}
		}
	}
	if status, _ := w.get(t, "GET", "http://127.0.0.1:1/nobody"); status != http.StatusBadGateway {
		t.Errorf("nobody: %d", status)
	}
	secret := strings.Replace(w.plain.URL, "://", "://user:password@", 1)
	w.get(t, "GET", secret+"/secret")
	w.end()
	got := w.run.Record()
	for _, base := range []*httptest.Server{w.plain, w.secure} {
		sum := digest.FromString("GET /file " + host(base))
		for _, path := range []string{"/file", "/moved"} {
			if !slices.Contains(got.Materials, Material{base.URL + path, sum}) {
				t.Errorf("%s%s is no material in %+v", base.URL, path, got.Materials)
			}
		}
		for _, gap := range []Gap{
			{"GET", base.URL + "/gone", "unsuccessful_response"}, {"POST", base.URL + "/post", "method_not_materializable"},
			{"GET", base.URL + "/part", "partial_response"}, {"GET", base.URL + "/half", "body_read_failed"},
			{"HEAD", base.URL + "/file", "method_not_materializable"},
		} {
			if !slices.Contains(got.Incomplete, gap) {
				t.Errorf("%+v is not in %+v", gap, got.Incomplete)
			}
		}
		if !slices.Contains(got.Requests, Request{"GET", base.URL + "/moved", base.URL + "/file", 302}) {
			t.Errorf("the redirect is not in %+v", got.Requests)
		}
	}
	if !slices.Contains(got.Incomplete, Gap{"GET", "http://127.0.0.1:1/nobody", "upstream_error"}) {
		t.Errorf("no gap for nobody in %+v", got.Incomplete)
	}
	if text := fmt.Sprint(got); strings.Contains(text, "password") || !strings.Contains(text, "/secret") {
		t.Errorf("the record is %s", text)
	}
	if len(got.Materials) != 5 {
		t.Errorf("%d materials: %+v", len(got.Materials), got.Materials)
	}
}

func TestPolicy(t *testing.T) {
	var w *world
	var asked []string
	w = newWorld(t, func(_ context.Context, method, address string) (string, error) {
		asked = append(asked, method+" "+address)
		switch {
		case strings.HasSuffix(address, "/denied"):
			return "", errors.New("denied for a reason")
		case strings.HasSuffix(address, "/old"):
			return strings.TrimSuffix(address, "old") + "new", nil
		case strings.HasSuffix(address, "/strange"):
			return "ftp://elsewhere/", nil
		}
		return address, nil
	})
	for _, base := range []*httptest.Server{w.plain, w.secure} {
		for _, c := range []struct {
			method, path string
			status       int
			body         string
		}{
			{"GET", "/file", 200, "GET /file"}, {"GET", "/denied", 403, "Forbidden\n"}, {"GET", "/old", 200, "GET /new " + host(base)},
			{"POST", "/old", 403, "Forbidden\n"}, {"GET", "/strange", 403, "Forbidden\n"},
		} {
			status, body := w.get(t, c.method, base.URL+c.path)
			if status != c.status || !strings.HasPrefix(body, c.body) {
				t.Errorf("%s %s: %d %q", c.method, c.path, status, body)
			}
		}
		if !slices.Contains(asked, "GET "+base.URL+"/denied") {
			t.Errorf("asked about %q", asked)
		}
	}
	w.end()
	for _, q := range w.run.Record().Requests {
		if !strings.HasSuffix(q.URL, "/file") && !strings.HasSuffix(q.URL, "/new") {
			t.Errorf("%+v went out", q)
		}
	}
}

// TestNoWayAround: what is no HTTP does not get through, nor do headers that
// are for the proxy alone, and a step that ends leaves nothing under way.
func TestNoWayAround(t *testing.T) {
	w := newWorld(t, nil)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.plain.URL+"/headers", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Proxy-Authorization", "secret")
	req.Header.Set("Upgrade", "websocket")
	req.Header.Set("Connection", "Upgrade")
	resp, err := w.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || strings.Contains(string(text), "secret") || strings.Contains(string(text), "websocket") {
		t.Errorf("the server was told %s, %v", text, err)
	}
	for name, said := range map[string]string{
		"not TLS":   "SSH-2.0-OpenSSH_9.9\r\n",
		"nonsense":  "\x00\x01\x02\x03\x04\x05\x06\x07\x08",
		"plain GET": "GET /file HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		conn, err := net.Dial("tcp", w.proxy.Host)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", host(w.plain), host(w.plain))
		in := bufio.NewReader(conn)
		if line, err := in.ReadString('\n'); err != nil || !strings.Contains(line, "200") {
			t.Errorf("%s: %q %v", name, line, err)
		}
		if _, err := io.WriteString(conn, said); err != nil {
			t.Error(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(2 * time.Minute))
		rest, err := io.ReadAll(in)
		if text := string(rest); strings.Contains(text, "GET") || strings.Contains(text, "SSH") || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: answered %q, %v", name, rest, err)
		}
		conn.Close()
	}
	slow := make(chan string, 2)
	for _, base := range []*httptest.Server{w.plain, w.secure} {
		go func() {
			_, body := w.get(t, "GET", base.URL+"/slow")
			slow <- body
		}()
	}
	for len(w.run.Record().Requests) < 3 {
		time.Sleep(time.Millisecond)
	}
	w.end()
	for range 2 {
		if body := <-slow; !strings.Contains(body, "EOF") && !strings.Contains(body, "closed") {
			t.Errorf("what was under way ended with %q", body)
		}
	}
}

func TestUpstream(t *testing.T) {
	for value, want := range map[string]string{
		"": "", "proxy:3128": "", "http://p": "", "https://u:p@p:1": "", "socks5h://p": "",
		"ftp://u:secret@p": "scheme", "http://:3128": "URL", "http://%zz:secret@x": "URL",
	} {
		err := checkUpstream(func(name string) string {
			if name == "https_proxy" {
				return value
			}
			return ""
		})
		if (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "https_proxy") || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%q: %v", value, err)
		}
	}
}
