package registry

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestCertificateFiles: files of certificates that are none, are too large or
// would keep the daemon waiting are refused at once (moby/buildkit#6903).
func TestCertificateFiles(t *testing.T) {
	dir := t.TempDir()
	place := func(name string, make func(string) error) string {
		file := filepath.Join(dir, name)
		if err := make(file); err != nil {
			t.Fatal(err)
		}
		return file
	}
	files := map[string]string{
		"over 10 MiB": place("large", func(f string) error {
			if err := os.WriteFile(f, nil, 0o600); err != nil {
				return err
			}
			return os.Truncate(f, 10<<20+1)
		}),
		"pipe":   place("pipe", func(f string) error { return unix.Mkfifo(f, 0o600) }),
		"device": "/dev/zero",
		"link":   place("link", func(f string) error { return os.Symlink("pipe", f) }),
		"folder": dir,
	}
	for name, file := range files {
		for use, conf := range map[string]Host{
			"authority": {CAs: []string{file}}, "certificate": {KeyPairs: []KeyPair{{Cert: file, Key: file}}},
		} {
			done := make(chan error, 1)
			go func() {
				_, err := tlsOf(conf, false)
				done <- err
			}()
			select {
			case err := <-done:
				if err == nil || !strings.Contains(err.Error(), "expected a regular file of at most 10485760 bytes") || !strings.Contains(err.Error(), file) {
					t.Errorf("%s as %s: %v", name, use, err)
				}
			case <-time.After(2 * time.Minute):
				t.Fatalf("%s as %s is waited for", name, use)
			}
		}
	}
	empty := place("empty", func(f string) error { return os.WriteFile(f, nil, 0o600) })
	if _, err := tlsOf(Host{CAs: []string{empty}}, false); err == nil || !strings.Contains(err.Error(), "no PEM certificate") {
		t.Errorf("an empty file: %v", err)
	}
}
