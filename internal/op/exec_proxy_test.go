package op

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestTrust: the proxy's authority is trusted as long as a step runs, and then
// nothing is left of it, whatever the step has done.
func TestTrust(t *testing.T) {
	const bundle, was = "etc/ssl/certs/ca-certificates.crt", "# the image's own\n"
	past := time.Unix(1_000_000_000, 0)
	for name, c := range map[string]struct {
		step func(file string) error
		want string // afterwards; "" for no file
		err  string
	}{
		"nothing":  {func(string) error { return nil }, was, ""},
		"appended": {func(f string) error { return appendTo(f, "mine\n") }, was + "mine\n", ""},
		"replaced": {func(f string) error {
			text, err := os.ReadFile(f)
			if err != nil {
				return err
			}
			if err := os.WriteFile(f+".new", append([]byte("# made anew\n"), text...), 0o600); err != nil {
				return err
			}
			return os.Rename(f+".new", f)
		}, "# made anew\n" + was, ""},
		"removed":  {os.Remove, "", ""},
		"without":  {func(f string) error { return os.WriteFile(f, []byte("other\n"), 0o644) }, "other\n", ""},
		"a folder": {func(f string) error { return os.MkdirAll(filepath.Join(f+"x"), 0o755) }, was, ""},
		"huge":     {func(f string) error { return os.Truncate(f, 10<<20+1) }, "", "exceeds 10485760 bytes"},
		"a link out": {func(f string) error {
			if err := os.Remove(f); err != nil {
				return err
			}
			return os.Symlink("/etc/passwd", f)
		}, "-", ""},
	} {
		root := t.TempDir()
		file := filepath.Join(root, bundle)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(was), 0o640); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(file, past, past); err != nil {
			t.Fatal(err)
		}
		restore, err := trust(root, []byte("the authority\n"))
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(file)
		if err != nil || string(text) != was+"\n# buildkit proxy CA begin\nthe authority\n# buildkit proxy CA end\n" {
			t.Errorf("%s: the step trusts %q, %v", name, text, err)
		}
		if err := c.step(file); err != nil {
			t.Fatal(err)
		}
		err = restore()
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), "failed to clean up proxy CA") {
			t.Errorf("%s: %v", name, err)
		}
		text, err = os.ReadFile(file)
		if c.err == "" && c.want != "-" && (string(text) != c.want || (err == nil) != (c.want != "")) {
			t.Errorf("%s: %q is left, want %q (%v)", name, text, c.want, err)
		}
		if info, err := os.Stat(file); name == "nothing" && (err != nil || !info.ModTime().Equal(past) || info.Mode() != 0o640) {
			t.Errorf("the file has changed: %v %v", info, err)
		}
	}
}

func appendTo(file, text string) error {
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = fmt.Fprint(f, text)
	return err
}

// TestTrustForeignFiles: an image's file may be anything.
func TestTrustForeignFiles(t *testing.T) {
	for name, c := range map[string]struct {
		make func(file string) error
		err  string
	}{
		"none":     {func(string) error { return nil }, ""},
		"huge":     {func(f string) error { return sparse(f, 20<<30) }, "exceeds 10485760 bytes"},
		"link out": {func(f string) error { return os.Symlink("../../../../../../../../../etc/passwd", f) }, ""},
		"folder":   {func(f string) error { return os.Mkdir(f, 0o755) }, ""},
		"device":   {func(f string) error { return os.Symlink("/dev/zero", f) }, ""},
	} {
		root := t.TempDir()
		file := filepath.Join(root, "etc/ssl/cert.pem")
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := c.make(file); err != nil {
			t.Fatal(err)
		}
		restore, err := trust(root, []byte("the authority\n"))
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, want %q", name, err, c.err)
		}
		if err == nil {
			if err := restore(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

func sparse(file string, size int64) error {
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		return err
	}
	return os.Truncate(file, size)
}
