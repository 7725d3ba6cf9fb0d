package registry

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
)

// certificates are an authority and what it signed, as files.
type certificates struct {
	ca, cert, key string
	pool          *x509.CertPool
	pair          tls.Certificate
}

// newCertificates makes an authority, and one certificate that is good for a
// server on loopback and for a client.
func newCertificates(t *testing.T) certificates {
	t.Helper()
	dir := t.TempDir()
	c := certificates{ca: filepath.Join(dir, "ca.crt"), cert: filepath.Join(dir, "pair.cert"), key: filepath.Join(dir, "pair.key")}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for name, text := range map[string][]byte{
		c.ca: cert, c.cert: cert, c.key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
	} {
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if c.pair, err = tls.LoadX509KeyPair(c.cert, c.key); err != nil {
		t.Fatal(err)
	}
	c.pool = x509.NewCertPool()
	c.pool.AppendCertsFromPEM(cert)
	return c
}

// secureRegistry serves a registry by TLS; it wants certificates if it must.
func secureRegistry(t *testing.T, c certificates, clientsToo bool) (host string) {
	t.Helper()
	s := httptest.NewUnstartedServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{c.pair}}
	if clientsToo {
		s.TLS.ClientAuth, s.TLS.ClientCAs = tls.RequireAndVerifyClientCert, c.pool
	}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// pushed pushes an image by what the client is configured for.
func pushed(t *testing.T, c *Client, i testImage, ref string) error {
	t.Helper()
	return c.Push(t.Context(), Push{Ref: ref, Blobs: i.blobs, Manifests: []Manifest{i.manifest}})
}

func TestHosts(t *testing.T) {
	certs, no := newCertificates(t), false
	own, mutual := secureRegistry(t, certs, false), secureRegistry(t, certs, true)
	plain := newTestRegistry(t).host
	pair := []KeyPair{{Key: certs.key, Cert: certs.cert}}
	for name, tc := range map[string]struct {
		host string
		conf Host
		want string // of the error; "" is none
	}{
		"unknown authority":       {own, Host{HTTP: &no}, "certificate"},
		"its authority":           {own, Host{HTTP: &no, CAs: []string{certs.ca}}, ""},
		"folder of certificates":  {mutual, Host{HTTP: &no, Dirs: []string{filepath.Dir(certs.ca), "/nothing/there"}}, ""},
		"any certificate":         {own, Host{HTTP: &no, Insecure: true}, ""},
		"no certificate to show":  {mutual, Host{HTTP: &no, CAs: []string{certs.ca}}, "certificate required"},
		"a certificate to show":   {mutual, Host{HTTP: &no, CAs: []string{certs.ca}, KeyPairs: pair}, ""},
		"http by default":         {plain, Host{}, ""},
		"http that must be https": {plain, Host{HTTP: &no}, "does not look like a TLS handshake"},
		"insecure is https first": {own, Host{Insecure: true}, ""},
		"insecure is http then":   {plain, Host{Insecure: true}, ""},
		"no such file":            {own, Host{CAs: []string{"/nothing/there.pem"}}, "/nothing/there.pem"},
		"not a certificate":       {own, Host{CAs: []string{certs.key}}, "holds no PEM certificate"},
	} {
		client := New(Config{
			Hosts: map[string]Host{tc.host: tc.conf}, Backoff: time.Millisecond, Stall: 5 * time.Second, Attempts: 1, Connections: 1,
		})
		img := newTestImage(1000)
		err := pushed(t, client, img, tc.host+"/a/b:c")
		switch {
		case tc.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%s: %v, want %s", name, err, tc.want)
		}
	}
}

// TestMirrors pulls an image that only a mirror has, below a path and by its
// own settings; pushes go to the registry itself.
func TestMirrors(t *testing.T) {
	certs, no := newCertificates(t), false
	mirror, origin := secureRegistry(t, certs, false), newTestRegistry(t)
	client := New(Config{
		Hosts: map[string]Host{
			origin.host: {Mirrors: []string{"127.0.0.1:1", mirror + "/cache"}},
			mirror:      {HTTP: &no, CAs: []string{certs.ca}},
		}, Backoff: time.Millisecond, Stall: 5 * time.Second, Attempts: 1,
	})
	img := newTestImage(1000)
	if err := pushed(t, client, img, mirror+"/cache/a/b:c"); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Resolve(t.Context(), origin.host+"/a/b:c"); err != nil {
		t.Errorf("an image of a mirror is not found: %v", err)
	}
	if err := pushed(t, client, img, origin.host+"/a/b:own"); err != nil {
		t.Fatal(err)
	}
	if origin.count(http.MethodPut, "/v2/a/b/manifests/own") != 1 {
		t.Errorf("the registry itself saw %q", origin.log)
	}
	if _, err := client.Resolve(t.Context(), origin.host+"/a/b:own"); err != nil {
		t.Errorf("what no mirror has is not found: %v", err)
	}
}
