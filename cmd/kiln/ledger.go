package main

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/kiln-build/kiln/internal/contenthash"
	"github.com/kiln-build/kiln/internal/gc"
	"github.com/kiln-build/kiln/internal/history"
	"github.com/kiln-build/kiln/internal/op"
)

// listFiles has the ledger keep what files a content digest is of, so that it
// can be told which one has changed.
func listFiles(l *history.Ledger) func(string, func() ([]contenthash.Listed, error)) {
	return func(content string, list func() ([]contenthash.Listed, error)) {
		err := l.KeepFiles(content, func() ([]history.File, error) {
			files, err := list()
			out := make([]history.File, len(files))
			for i, f := range files {
				out[i] = history.File{Path: f.Path, Digest: f.Digest}
			}
			return out, err
		})
		if err != nil { // a build can do without
			slog.Debug("list files of a step", "content", content, "error", err)
		}
	}
}

// newRoom lets steps begin while there is room below the cap, if there is one.
func newRoom(c *gc.Collector, l *history.Ledger) func(ctx context.Context, key, name string) (func(), error) {
	if c.Cap == 0 {
		return nil
	}
	return (&gc.Gate{Collector: c, Expect: l.Expect}).Enter
}

const (
	secretKeyFile = "secret.key"
	secretKeySize = sha256.Size
)

// secretHash returns the keyed hash by which values of secrets become part of
// cache keys. Its key is made once for a root folder, and never leaves it.
func secretHash(root string) (op.SecretHash, error) {
	file := filepath.Join(root, secretKeyFile)
	key, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(key) != secretKeySize {
		key = make([]byte, secretKeySize)
		if _, err = rand.Read(key); err == nil {
			err = writeSecret(file, key)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("key for hashes of secrets: %w", err)
	}
	return func(id string, value []byte) string {
		mac := hmac.New(sha256.New, key)
		fmt.Fprintf(mac, "%d:%s", len(id), id)
		mac.Write(value) // hash.Hash never fails
		return "hmac-sha256:" + hex.EncodeToString(mac.Sum(nil))
	}, nil
}

// writeSecret writes a file that nobody else can read, whole or not at all.
func writeSecret(name string, data []byte) error {
	tmp := name + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, name)
}
