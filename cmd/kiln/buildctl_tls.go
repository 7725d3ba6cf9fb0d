package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strconv"
)

// registryTLS reads --registry-auth-tlscontext.
func registryTLS(words []string) (map[string]*tls.Config, error) {
	out := map[string]*tls.Config{}
	for _, w := range words {
		_, attrs, err := csvAttrs(w)
		if err != nil {
			return nil, err
		}
		host, cert, key := attrs["host"], attrs["cert"], attrs["key"]
		insecure, _ := strconv.ParseBool(attrs["insecure"]) // anything else is no
		switch {
		case host == "":
			return nil, errors.New("--registry-auth-tlscontext requires host=<host>")
		case attrs["ca"] == "" && !insecure && (cert == "" || key == ""):
			return nil, errors.New("--registry-auth-tlscontext requires ca=<ca> or cert=<cert>,key=<key> or insecure=true")
		case attrs["ca"] != "" && (cert == "") != (key == ""):
			return nil, errors.New("--registry-auth-tlscontext requires cert=<cert>,key=<key>")
		}
		if out[host] == nil {
			out[host] = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		if err := addTLS(out[host], attrs["ca"], cert, key, insecure); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// addTLS adds authorities to the system's, and certificates of the client's.
func addTLS(config *tls.Config, ca, cert, key string, insecure bool) error {
	config.InsecureSkipVerify = config.InsecureSkipVerify || insecure
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return fmt.Errorf("failed to read %s: %w", ca, err)
		}
		if config.RootCAs == nil {
			if config.RootCAs, err = x509.SystemCertPool(); err != nil {
				return fmt.Errorf("unable to get system cert pool: %w", err)
			}
		}
		config.RootCAs.AppendCertsFromPEM(pem)
	}
	if cert != "" && key != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return fmt.Errorf("failed to load keypair for %s: %w", cert, err)
		}
		config.Certificates = append(config.Certificates, pair)
	}
	return nil
}
