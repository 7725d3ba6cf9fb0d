package tar_test

import (
	stdtar "archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/internal/exporter"
	"github.com/kiln-build/kiln/internal/exporter/exportertest"
	"github.com/kiln-build/kiln/internal/exporter/tar"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/internal/session/export"
	"github.com/kiln-build/kiln/internal/session/sessiontest"
)

// directory is a mounter that has one directory for everything.
type directory string

func (d directory) Mount(context.Context, *layer.Ref) (string, func() error, error) {
	return string(d), func() error { return nil }, nil
}

func newDirectory(t *testing.T) directory {
	t.Helper()
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(dir, "sub/deep"), 0o755))
	must(os.WriteFile(filepath.Join(dir, "sub/file"), []byte("content"), 0o640))
	must(os.Link(filepath.Join(dir, "sub/file"), filepath.Join(dir, "sub/hard")))
	must(os.Symlink("/etc/passwd", filepath.Join(dir, "sub/soft")))
	must(os.Symlink("..", filepath.Join(dir, "sub/up")))
	must(os.WriteFile(filepath.Join(dir, "sub-z"), nil, 0o755))
	must(os.Chmod(filepath.Join(dir, "sub-z"), 0o755|os.ModeSetuid))
	must(unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	must(os.Chown(filepath.Join(dir, "sub/file"), 7, 8))
	return directory(dir)
}

// addLinks adds links that would lead out of a directory that is not a root.
func addLinks(t *testing.T, dir directory) {
	t.Helper()
	for name, target := range map[string]string{
		"absolute": "/sub", "sub/away": "../../../absolute", "short": "sub/deep/..", "loop": "loop",
	} {
		if err := os.Symlink(target, filepath.Join(string(dir), name)); err != nil {
			t.Fatal(err)
		}
	}
}

func connect(t *testing.T) (*session.Caller, string) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "out.tar")
	return sessiontest.Connect(t, export.NewTargets(map[int]export.Target{0: export.FileTarget{Name: name}})), name
}

func TestSuite(t *testing.T) {
	dir := newDirectory(t)
	exportertest.Run(t, func(*testing.T) exportertest.Subject {
		return exportertest.Subject{
			Exporter: tar.New(dir), Input: exporter.Input{Platforms: []exporter.Platform{{}}},
			Connect: func(t *testing.T) (*session.Caller, func(*testing.T) map[string]string) {
				c, name := connect(t)
				return c, func(t *testing.T) map[string]string {
					b, err := os.ReadFile(name)
					if os.IsNotExist(err) {
						return nil
					} else if err != nil {
						t.Fatal(err)
					}
					return map[string]string{"": string(b)}
				}
			},
		}
	})
}

// export returns the entries by name; files have their content as PAX comment.
func exported(t *testing.T, dir directory, in exporter.Input, attrs map[string]string) map[string]*stdtar.Header {
	t.Helper()
	c, name := connect(t)
	if _, err := tar.New(dir).Export(t.Context(), in, exporter.Target{Attrs: attrs, Session: c}); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := map[string]*stdtar.Header{}
	for r := stdtar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return got
		} else if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		h.Uname = string(b)
		got[h.Name] = h
	}
}

func TestEntries(t *testing.T) {
	in := exporter.Input{Platforms: []exporter.Platform{{}}}
	got := exported(t, newDirectory(t), in, map[string]string{"source-date-epoch": "77"})
	if len(got) != 8 {
		t.Errorf("%d entries, want 8", len(got))
	}
	for name, want := range map[string]stdtar.Header{
		"sub/":      {Typeflag: stdtar.TypeDir, Mode: 0o755},
		"sub/deep/": {Typeflag: stdtar.TypeDir, Mode: 0o755},
		"sub/file":  {Typeflag: stdtar.TypeReg, Mode: 0o640, Uname: "content", Uid: 7, Gid: 8},
		"sub/hard":  {Typeflag: stdtar.TypeLink, Mode: 0o640, Linkname: "sub/file", Uid: 7, Gid: 8},
		"sub/soft":  {Typeflag: stdtar.TypeSymlink, Mode: 0o777, Linkname: "/etc/passwd"},
		"sub-z":     {Typeflag: stdtar.TypeReg, Mode: 0o4755},
		"pipe":      {Typeflag: stdtar.TypeFifo, Mode: 0o600},
	} {
		h := got[name]
		if h == nil {
			t.Errorf("no entry %s", name)
			continue
		}
		if h.Typeflag != want.Typeflag || h.Mode != want.Mode || h.Linkname != want.Linkname ||
			h.Uname != want.Uname || h.Uid != want.Uid || h.Gid != want.Gid || !h.ModTime.Equal(time.Unix(77, 0)) {
			t.Errorf("%s: got %+v, want %+v", name, h, want)
		}
	}
}

func TestPlatformsAndSource(t *testing.T) {
	dir := newDirectory(t)
	in := exporter.Input{Platforms: []exporter.Platform{{ID: "linux/amd64"}, {ID: "linux/arm/v7"}}}
	got := exported(t, dir, in, map[string]string{"src": "/sub"})
	for _, name := range []string{"linux_amd64/", "linux_amd64/file", "linux_arm_v7/hard"} {
		if got[name] == nil {
			t.Errorf("no entry %s", name)
		}
	}
	if l := got["linux_arm_v7/hard"]; l != nil && l.Linkname != "linux_arm_v7/file" {
		t.Errorf("hard link to %q", l.Linkname)
	}
	addLinks(t, dir)
	for src, want := range map[string]string{
		"sub/soft": "no such file or directory", "missing": "no such file or directory",
		"sub/file": "not a directory", "/pipe": "not a directory", "sub/file/x": "not a directory",
		"loop": "too many levels of symbolic links", "": "not valid",
	} {
		c, _ := connect(t)
		_, err := tar.New(dir).Export(t.Context(), in, exporter.Target{Attrs: map[string]string{"src": src}, Session: c})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "src="+src) {
			t.Errorf("src=%s: got %v, want %s", src, err, want)
		} else if strings.Contains(err.Error(), string(dir)) {
			t.Errorf("src=%s: the client is told of the daemon's folder: %v", src, err)
		}
	}
}

// TestSourceStaysInside has names lead where they would if the result were the
// whole file system.
func TestSourceStaysInside(t *testing.T) {
	dir := newDirectory(t)
	addLinks(t, dir)
	in := exporter.Input{Platforms: []exporter.Platform{{}}}
	for src, want := range map[string]string{
		"sub": "file", "/sub/": "file", "../../sub": "file", "sub/../sub": "file", "absolute": "file", "sub/away": "file",
		"..": "sub/file", "/": "sub/file", "sub/up": "sub/file", "sub/up/..": "sub/file",
		"short/..": "sub/file", // what a link leads to has a parent of its own
	} {
		if got := exported(t, dir, in, map[string]string{"src": src}); got[want] == nil {
			t.Errorf("src=%s: there is no %s", src, want)
		}
	}
}
