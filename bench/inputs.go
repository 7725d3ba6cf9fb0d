package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// random is a stream of bytes that do not compress, the same for the same nonce.
func random(nonce string) io.Reader {
	return rand.NewChaCha8(sha256.Sum256([]byte(nonce)))
}

// writeRandom writes a file of size bytes that do not compress.
func writeRandom(path string, size int64, from io.Reader) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if _, err := io.CopyN(f, from, size); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// writeTree writes count files of size bytes each, a hundred a folder.
func writeTree(dir string, count int, size int64, nonce string, text bool) error {
	from := random(nonce)
	for i := range count {
		folder := filepath.Join(dir, fmt.Sprintf("d%03d", i/100))
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return err
		}
		path := filepath.Join(folder, fmt.Sprintf("f%05d", i))
		if !text {
			if err := writeRandom(path, size, from); err != nil {
				return err
			}
			continue
		}
		line := fmt.Appendf(nil, "file %d of %s: the quick brown fox jumps over the lazy dog\n", i, nonce)
		body := bytes.Repeat(line, int(size)/len(line)+1)[:size]
		if err := os.WriteFile(path, body, 0o644); err != nil {
			return err
		}
	}
	return nil
}
