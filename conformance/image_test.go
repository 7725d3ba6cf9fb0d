package conformance

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/kiln-build/kiln/conformance/peer"
)

// image is what two builders must agree on.
type image struct {
	digest string // of the manifest
	config *v1.ConfigFile
	files  map[string]string // path to what is known of it but for its time
}

// open reads an image from an OCI archive.
func open(t *testing.T, archive string) image {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("tar", "-xf", archive, "-C", dir).CombinedOutput(); err != nil {
		t.Fatalf("unpack %s: %v: %s", archive, err, out)
	}
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(manifest.Manifests) != 1 {
		t.Fatalf("%s holds %d manifests, want 1", archive, len(manifest.Manifests))
	}
	img, err := index.Image(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	return image{manifest.Manifests[0].Digest.String(), config, contents(t, img)}
}

// contents lays the layers of an image over each other.
func contents(t *testing.T, img v1.Image) map[string]string {
	t.Helper()
	r := mutate.Extract(img)
	defer r.Close()
	files := map[string]string{}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.New()
		if _, err := io.Copy(sum, tr); err != nil {
			t.Fatal(err)
		}
		name := strings.Trim(filepath.Clean("/"+h.Name), "/")
		files[name] = fmt.Sprintf("%c %o %d:%d size %d link %q sum %s", h.Typeflag, h.Mode&0o7777, h.Uid, h.Gid,
			h.Size, h.Linkname, hex.EncodeToString(sum.Sum(nil)[:8]))
	}
}

// walk lists the files below dir.
func walk(t *testing.T, dir string) map[string]bool {
	t.Helper()
	files := map[string]bool{}
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		files[rel] = true
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// unpack makes a build context of a file in testdata. Its folder "archive", if
// there is one, is also there as archive.tar.gz.
func unpack(t *testing.T, name string) string {
	t.Helper()
	a, err := txtar.ParseFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := txtar.Write(a, dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "archive")); err == nil {
		cmd := exec.Command("tar", "-C", dir, "--owner=0", "--group=0", "-czf", filepath.Join(dir, "archive.tar.gz"), "archive")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("pack: %v: %s", err, out)
		}
	}
	return dir
}

// failing runs a client that must fail, and returns what it printed.
func failing(t *testing.T, d *peer.Daemon, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.WaitDelay = 5 * time.Second
	cmd.Env = d.Env()
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("%s: got %v, want a failure\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}
