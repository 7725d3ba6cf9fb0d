package local_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kiln-build/kiln/internal/exporter"
	"github.com/kiln-build/kiln/internal/exporter/exportertest"
	"github.com/kiln-build/kiln/internal/exporter/local"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/internal/session/export"
	"github.com/kiln-build/kiln/internal/session/files"
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
	err := errors.Join(
		os.MkdirAll(filepath.Join(dir, "sub"), 0o755),
		os.WriteFile(filepath.Join(dir, "sub/file"), []byte(strings.Repeat("content", 100_000)), 0o640),
		os.Symlink("file", filepath.Join(dir, "sub/soft")),
	)
	if err != nil {
		t.Fatal(err)
	}
	return directory(dir)
}

func connect(t *testing.T) (*session.Caller, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "out")
	return sessiontest.Connect(t, export.NewTargets(map[int]export.Target{0: files.DirTarget{Name: dir}})), dir
}

// list is all files below dir.
func list(t *testing.T, dir string) map[string]string {
	got := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		name, err := filepath.Rel(dir, p)
		if d.Type().IsRegular() {
			b, rerr := os.ReadFile(p)
			got[name], err = string(b), errors.Join(err, rerr)
		} else {
			got[name] = d.Type().String()
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return got
}

func TestSuite(t *testing.T) {
	from := newDirectory(t)
	exportertest.Run(t, func(*testing.T) exportertest.Subject {
		return exportertest.Subject{
			Exporter: local.New(from), Input: exporter.Input{Platforms: []exporter.Platform{{}}},
			Connect: func(t *testing.T) (*session.Caller, func(*testing.T) map[string]string) {
				c, dir := connect(t)
				return c, func(t *testing.T) map[string]string { return list(t, dir) }
			},
		}
	})
}

func TestPlatformsAndTimes(t *testing.T) {
	c, dir := connect(t)
	epoch := time.Unix(1000, 0)
	in := exporter.Input{Platforms: []exporter.Platform{{ID: "linux/amd64"}, {ID: "linux/arm64"}}, Epoch: &epoch}
	if _, err := local.New(newDirectory(t)).Export(t.Context(), in, exporter.Target{Session: c}); err != nil {
		t.Fatal(err)
	}
	got := list(t, dir)
	if len(got) != 8 || len(got["linux_arm64/sub/file"]) != 700_000 {
		t.Errorf("got %d files", len(got))
	}
	info, err := os.Stat(filepath.Join(dir, "linux_amd64/sub/file"))
	if err != nil || !info.ModTime().Equal(epoch) {
		t.Errorf("time %v, %v", info.ModTime(), err)
	}
	if _, err := local.New(newDirectory(t)).Export(t.Context(), in, exporter.Target{Attrs: map[string]string{"platform-split": "false"}, Session: c}); err == nil {
		t.Error("two platforms went into one directory")
	}
}
