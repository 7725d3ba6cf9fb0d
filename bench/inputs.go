package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
)

// base is an image in an OCI layout: busybox and links to it.
type base struct{ dir, digest string }

// applets are the programs that the cases use.
var applets = []string{"sh", "true", "sleep", "echo", "cat", "mkdir"}

// makeBase writes the base image; nothing can be pulled here.
func makeBase(dir string) (base, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return base{}, err
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return base{}, err
	}
	var plain bytes.Buffer
	tw := tar.NewWriter(&plain)
	entries := []*tar.Header{
		{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(program))},
	}
	for _, a := range applets {
		entries = append(entries, &tar.Header{Name: "bin/" + a, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777})
	}
	for _, h := range entries {
		if err := tw.WriteHeader(h); err != nil {
			return base{}, err
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := tw.Write(program); err != nil {
				return base{}, err
			}
		}
	}
	if err := tw.Close(); err != nil {
		return base{}, err
	}
	return writeLayout(dir, plain.Bytes())
}

type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int    `json:"size"`
}

// writeLayout writes an image of one layer.
func writeLayout(dir string, layer []byte) (base, error) {
	var packed bytes.Buffer
	zw := gzip.NewWriter(&packed)
	if _, err := zw.Write(layer); err != nil {
		return base{}, err
	}
	if err := zw.Close(); err != nil {
		return base{}, err
	}
	const oci = "application/vnd.oci.image."
	var err error
	put := func(mediaType string, blob []byte) descriptor {
		sum := sha256.Sum256(blob)
		name := hex.EncodeToString(sum[:])
		if err == nil {
			err = writeFiles(filepath.Join(dir, "blobs", "sha256"), map[string]string{name: string(blob)})
		}
		return descriptor{mediaType, "sha256:" + name, len(blob)}
	}
	toJSON := func(v any) []byte {
		text, e := json.Marshal(v)
		if err == nil {
			err = e
		}
		return text
	}
	diffID := sha256.Sum256(layer)
	config := put(oci+"config.v1+json", toJSON(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Env": []string{"PATH=/bin"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(diffID[:])}},
	}))
	manifest := put(oci+"manifest.v1+json", toJSON(map[string]any{
		"schemaVersion": 2, "mediaType": oci + "manifest.v1+json", "config": config,
		"layers": []descriptor{put(oci+"layer.v1.tar+gzip", packed.Bytes())},
	}))
	index := toJSON(map[string]any{
		"schemaVersion": 2, "mediaType": oci + "index.v1+json", "manifests": []descriptor{manifest},
	})
	if err != nil {
		return base{}, err
	}
	return base{dir, manifest.Digest}, writeFiles(dir, map[string]string{
		"index.json": string(index), "oci-layout": `{"imageLayoutVersion":"1.0.0"}`,
	})
}

// writeFiles writes small files, by name, into dir.
func writeFiles(dir string, files map[string]string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

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
