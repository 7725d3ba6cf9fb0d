package client

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// TLSFiles are the PEM files of a TLS connection. An empty name is none.
type TLSFiles struct {
	CA        string // certificates of those who may vouch for the daemon; else the system's
	Cert, Key string // of the client; both or none
	// ServerName is the name that the daemon's certificate must have.
	ServerName string
}

// TLSConfig reads TLS files.
func TLSConfig(f TLSFiles) (*tls.Config, error) {
	config := &tls.Config{ServerName: f.ServerName, MinVersion: tls.VersionTLS12}
	if f.CA != "" {
		pem, err := os.ReadFile(f.CA)
		if err != nil {
			return nil, fmt.Errorf("could not read ca certificate: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, errors.New("failed to append ca certs: " + f.CA + " holds no certificate in PEM")
		}
	}
	if f.Cert != "" || f.Key != "" {
		pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
		if err != nil {
			return nil, fmt.Errorf("could not read certificate/key: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}
