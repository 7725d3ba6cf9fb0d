package registry

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// maxCertificates caps a file of certificates. Bundles of all authorities have
// less than a tenth of it.
const maxCertificates = 10 << 20

// tlsOf is how TLS is spoken with a host.
func tlsOf(conf Host, insecure bool) (*tls.Config, error) {
	if err := conf.readDirs(); err != nil {
		return nil, err
	}
	t := &tls.Config{
		MinVersion: tls.VersionTLS12,
		// The user asked for it, by name of the host.
		InsecureSkipVerify: conf.Insecure || insecure, //nolint:gosec
	}
	if len(conf.CAs) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		for _, file := range conf.CAs {
			pem, err := readCapped(file, maxCertificates)
			if err != nil {
				return nil, fmt.Errorf("read certificate authority: %w", err)
			}
			if !pool.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("certificate authority %s holds no PEM certificate", file)
			}
		}
		t.RootCAs = pool
	}
	for _, p := range conf.KeyPairs {
		pair, err := readPair(p)
		if err != nil {
			return nil, fmt.Errorf("load client certificate %s: %w", p.Cert, err)
		}
		t.Certificates = append(t.Certificates, pair)
	}
	return t, nil
}

func readPair(p KeyPair) (tls.Certificate, error) {
	cert, err := readCapped(p.Cert, maxCertificates)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := readCapped(p.Key, maxCertificates)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(cert, key)
}

// readDirs adds what the folders of certificates hold, by the names that Docker
// gives them.
func (h *Host) readDirs() error {
	h.CAs, h.KeyPairs = h.CAs[:len(h.CAs):len(h.CAs)], h.KeyPairs[:len(h.KeyPairs):len(h.KeyPairs)]
	for _, dir := range h.Dirs {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read certificates: %w", err)
		}
		for _, e := range entries {
			file := filepath.Join(dir, e.Name())
			switch filepath.Ext(file) {
			case ".crt":
				h.CAs = append(h.CAs, file)
			case ".cert":
				h.KeyPairs = append(h.KeyPairs, KeyPair{Cert: file, Key: strings.TrimSuffix(file, ".cert") + ".key"})
			}
		}
	}
	return nil
}

// readCapped reads a regular file of at most limit bytes.
func readCapped(name string, limit int64) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > limit {
		return nil, fmt.Errorf("%s: expected a regular file of at most %d bytes", name, limit)
	}
	return os.ReadFile(name)
}
