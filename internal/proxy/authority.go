package proxy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"sync"
	"time"
)

const (
	authorityLife = 10 * 365 * 24 * time.Hour // outlives any daemon
	hostLife      = 24 * time.Hour
	refreshBefore = time.Hour
	maxHosts      = 1024
	clockSkew     = time.Hour
)

// authority signs for every host, for those who trust its certificate. Its key
// is never written anywhere.
type authority struct {
	once sync.Once
	err  error
	pem  []byte
	cert *x509.Certificate
	key  *ecdsa.PrivateKey

	mu    sync.Mutex
	hosts map[string]*tls.Certificate
}

// open makes the key, once.
func (a *authority) open() error {
	a.once.Do(func() { a.err = a.make() })
	return a.err
}

func (a *authority) make() (err error) {
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return fmt.Errorf("make key of the proxy network: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: "Kiln proxy network"},
		NotBefore: now.Add(-clockSkew), NotAfter: now.Add(authorityLife),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, BasicConstraintsValid: true, IsCA: true,
	}
	der, err := a.sign(template, template, &a.key.PublicKey)
	if err != nil {
		return err
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return fmt.Errorf("make certificate of the proxy network: %w", err)
	}
	a.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return nil
}

// sign gives a certificate a number and the authority's signature.
func (a *authority) sign(template, parent *x509.Certificate, key *ecdsa.PublicKey) ([]byte, error) {
	number, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("number certificate: %w", err)
	}
	template.SerialNumber = number
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, a.key)
	if err != nil {
		return nil, fmt.Errorf("make certificate of the proxy network: %w", err)
	}
	return der, nil
}

// host is a certificate of a host, by name or address.
func (a *authority) host(name string) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c, ok := a.hosts[name]; ok && time.Now().Before(c.Leaf.NotAfter.Add(-refreshBefore)) {
		return c, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key for %s: %w", name, err)
	}
	now := time.Now()
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: name},
		NotBefore: now.Add(-clockSkew), NotAfter: now.Add(hostLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if ip := net.ParseIP(name); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{name}
	}
	der, err := a.sign(template, a.cert, &key.PublicKey)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make certificate for %s: %w", name, err)
	}
	c := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
	if a.hosts == nil || len(a.hosts) >= maxHosts {
		a.hosts = map[string]*tls.Certificate{} // a step that asks for so many gets them anew
	}
	a.hosts[name] = c
	return c, nil
}
