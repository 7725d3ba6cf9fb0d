package peer

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
)

// Base is an image in an OCI layout: busybox, and links to it in /bin.
type Base struct {
	Dir    string // of the layout
	Digest string // of the manifest
}

// applets are the programs that tests and benchmarks use.
var applets = []string{
	"sh", "true", "sleep", "echo", "cat", "mkdir", "rm", "ln", "mv", "chmod", "chown", "touch", "id", "env", "pwd", "ls",
}

// MakeBase writes the base image into dir, from this machine's static busybox:
// nothing needs to be pulled.
func MakeBase(dir string) (Base, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return Base{}, fmt.Errorf("find busybox, which the base image is made of: %w", err)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return Base{}, err
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
			return Base{}, err
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := tw.Write(program); err != nil {
				return Base{}, err
			}
		}
	}
	if err := tw.Close(); err != nil {
		return Base{}, err
	}
	return writeLayout(dir, plain.Bytes())
}

type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int    `json:"size"`
}

// writeLayout writes an image of one layer.
func writeLayout(dir string, layer []byte) (Base, error) {
	var packed bytes.Buffer
	zw := gzip.NewWriter(&packed)
	if _, err := zw.Write(layer); err != nil {
		return Base{}, err
	}
	if err := zw.Close(); err != nil {
		return Base{}, err
	}
	const oci = "application/vnd.oci.image."
	var err error
	put := func(mediaType string, blob []byte) descriptor {
		sum := sha256.Sum256(blob)
		name := hex.EncodeToString(sum[:])
		if err == nil {
			err = WriteFiles(filepath.Join(dir, "blobs", "sha256"), map[string]string{name: string(blob)})
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
		// BuildKit makes up a history that differs between runs where there is none.
		"history": []map[string]any{{"created": "2023-11-14T22:13:20Z", "created_by": "busybox"}},
		"config":  map[string]any{"Env": []string{"PATH=/bin"}},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(diffID[:])}},
	}))
	manifest := put(oci+"manifest.v1+json", toJSON(map[string]any{
		"schemaVersion": 2, "mediaType": oci + "manifest.v1+json", "config": config,
		"layers": []descriptor{put(oci+"layer.v1.tar+gzip", packed.Bytes())},
	}))
	index := toJSON(map[string]any{
		"schemaVersion": 2, "mediaType": oci + "index.v1+json", "manifests": []descriptor{manifest},
	})
	if err != nil {
		return Base{}, err
	}
	return Base{dir, manifest.Digest}, WriteFiles(dir, map[string]string{
		"index.json": string(index), "oci-layout": `{"imageLayoutVersion":"1.0.0"}`,
	})
}

// WriteFiles writes small files, by name, into dir, which it makes.
func WriteFiles(dir string, files map[string]string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
