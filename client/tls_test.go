package client_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/kiln-build/kiln/client"
	"github.com/kiln-build/kiln/client/clienttest"
	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/session"
)

// certify writes a key and a certificate for the name "daemon", which is its own
// authority, into files of a directory.
func certify(t *testing.T, dir string) (cert tls.Certificate, pool *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "daemon"}, DNSNames: []string{"daemon"},
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"cert": {Type: "CERTIFICATE", Bytes: der}, "key": {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// A daemon that wants certificates gets the right one, under the name that it has.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	cert, pool := certify(t, dir)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(append(session.ServerOptions(), grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12,
	})))...)
	control.RegisterControlServer(server, clienttest.Start(t, nil))
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	in := func(name string) string { return filepath.Join(dir, name) }
	for name, tt := range map[string]struct {
		files client.TLSFiles
		want  string
	}{
		"right":          {client.TLSFiles{CA: in("cert"), Cert: in("cert"), Key: in("key"), ServerName: "daemon"}, ""},
		"wrong name":     {client.TLSFiles{CA: in("cert"), Cert: in("cert"), Key: in("key"), ServerName: "other"}, "not other"},
		"no certificate": {client.TLSFiles{CA: in("cert"), ServerName: "daemon"}, "no daemon answers"},
		"no authority":   {client.TLSFiles{Cert: in("cert"), Key: in("key"), ServerName: "daemon"}, "unknown authority"},
	} {
		config, err := client.TLSConfig(tt.files)
		if err != nil {
			t.Fatal(err)
		}
		c, err := client.New("tcp://"+l.Addr().String(), client.Options{TLS: config})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Info(t.Context())
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: error %v, want %q", name, err, tt.want)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	for name, f := range map[string]client.TLSFiles{
		"missing": {CA: in("none")}, "no PEM": {CA: in("key")}, "key alone": {Key: in("key")}, "certificate alone": {Cert: in("cert")},
	} {
		if _, err := client.TLSConfig(f); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

// Other ways to connect: dialers of the caller's, for the daemon and for the session.
func TestDialers(t *testing.T) {
	d := clienttest.Start(t, func(_ context.Context, b *clienttest.Build) (map[string]string, error) {
		return map[string]string{"session": b.Client.ID()}, nil
	})
	dialed := 0
	c, err := client.New("tcp://nowhere:1", client.Options{
		Dial: func(ctx context.Context) (net.Conn, error) {
			dialed++
			var dialer net.Dialer
			return dialer.DialContext(ctx, "unix", strings.TrimPrefix(d.Address, "unix://"))
		},
		DialSession: func(_ context.Context, proto string, meta map[string][]string) (net.Conn, error) {
			if proto != "h2c" {
				t.Errorf("protocol %q", proto)
			}
			near, far := net.Pipe()
			go func() {
				if err := d.ServeSession(meta, far); err != nil {
					t.Error(err)
				}
			}()
			return near, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	r, err := c.Solve(t.Context(), client.SolveOpt{Frontend: "x"}, discard{})
	if err != nil || r.Response["session"] == "" || dialed == 0 {
		t.Errorf("result %v, %v, dialed %d times", r, err, dialed)
	}
}
