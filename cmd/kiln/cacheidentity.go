package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/config"
)

// identityFile is the private key that a daemon makes for itself, below its root.
const identityFile = "cache-identity.pem"

// cacheIdentity is what signs the daemon's records of caches: the key that the
// configuration names, or one of its own, made at the first start.
func cacheIdentity(root string, c config.CacheTrust) (*cache.Identity, error) {
	if c.Key != "" {
		return readIdentity(c.Key)
	}
	file := filepath.Join(root, identityFile)
	id, err := readIdentity(file)
	if !errors.Is(err, fs.ErrNotExist) {
		return id, err
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make cache identity: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, fmt.Errorf("make cache identity: %w", err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	// A crash must not leave half a key, which would keep the daemon from starting.
	if err := os.WriteFile(file+".new", text, 0o600); err != nil {
		return nil, fmt.Errorf("write cache identity: %w", err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		return nil, fmt.Errorf("write cache identity: %w", err)
	}
	return cache.NewIdentity(private.Seed())
}

func readIdentity(file string) (*cache.Identity, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read cache identity: %w", err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("cache identity %s: expected a private key in PEM, as of: openssl genpkey -algorithm ed25519", file)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	private, ok := key.(ed25519.PrivateKey)
	if err != nil || !ok {
		return nil, fmt.Errorf("cache identity %s: expected an ed25519 key in PKCS #8, as of: openssl genpkey -algorithm ed25519", file)
	}
	return cache.NewIdentity(private.Seed())
}

// cacheTrust is the policy of a configuration.
func cacheTrust(c config.CacheTrust) (cache.Trust, error) {
	t := cache.Trust{Unsigned: c.Unsigned, ReadScopes: c.ReadScopes, WriteScopes: c.WriteScopes}
	for _, w := range c.Writers {
		t.Writers = append(t.Writers, cache.TrustedWriter{Name: w.Name, Key: w.Key, Scopes: w.Scopes})
	}
	if err := t.Check(); err != nil {
		return t, fmt.Errorf("cache.trust: %w", err)
	}
	return t, nil
}
