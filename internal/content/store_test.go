package content

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

func write(t *testing.T, s *Store, text string) ocispecs.Descriptor {
	t.Helper()
	d, err := Write(t.Context(), s, "text/plain", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestCrashes leaves stores as a killed process and a machine without power do.
func TestCrashes(t *testing.T) {
	for name, tc := range map[string]struct {
		marker       string // what is in the place of the boot's id; "" leaves it
		keepUnsynced bool
	}{
		"process":                {"", true},
		"machine":                {"another boot", false},
		"machine, no marker yet": {"\x00", false},
	} {
		t.Run(name, func(t *testing.T) {
			s, root := open(t)
			synced := write(t, s, "on disk")
			s.sync(0)
			unsynced := write(t, s, "not on disk")
			s.timer.Stop() // it ends here
			if tc.marker != "" {
				if err := os.WriteFile(filepath.Join(root, openName), []byte(tc.marker), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 { // the second time nothing is left to be lost
				s, err := Open(t.Context(), root)
				if err != nil {
					t.Fatal(err)
				}
				if !Has(t.Context(), s, synced.Digest) {
					t.Error("a blob that was on disk is lost")
				}
				if got := Has(t.Context(), s, unsynced.Digest); got != tc.keepUnsynced {
					t.Errorf("the blob that may not be on disk is there: %v, want %v", got, tc.keepUnsynced)
				}
				if _, waits := s.unsynced[unsynced.Digest]; waits != tc.keepUnsynced {
					t.Errorf("the blob waits for the disk: %v, want %v", waits, tc.keepUnsynced)
				}
			}
		})
	}
}

// TestOnlyOldBlobsAreSynced has a blob that has just come wait for its own time,
// not for that of one that came before.
func TestOnlyOldBlobsAreSynced(t *testing.T) {
	s, _ := open(t)
	older, newer := write(t, s, "older"), write(t, s, "newer")
	s.mu.Lock()
	s.timer.Stop()
	s.unsynced[older.Digest] = time.Now().Add(-syncDelay)
	s.mu.Unlock()
	s.sync(syncDelay)
	for d, want := range map[digest.Digest]fs.FileMode{older.Digest: 0o444, newer.Digest: 0o644} {
		info, err := os.Stat(s.path(d))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v", d, info.Mode(), want)
		}
	}
	if _, waits := s.unsynced[newer.Digest]; !waits || s.timer == nil {
		t.Error("nobody sees to the newer blob")
	}
}

func TestCloseHasAllOnDisk(t *testing.T) {
	s, root := open(t)
	d := write(t, s, "text")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(s.path(d.Digest))
	if err != nil || info.Mode().Perm() != 0o444 {
		t.Errorf("its mode is %v (%v), want one of what is on disk", info.Mode(), err)
	}
	if _, err := os.Stat(filepath.Join(root, openName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the marker of an open store gives %v", err)
	}
	if again, err := Open(t.Context(), root); err != nil || !Has(t.Context(), again, d.Digest) {
		t.Errorf("the blob is lost (%v)", err)
	}
}

// TestWriterIsContainerds uses it as code that knows only containerd's interface does.
func TestWriterIsContainerds(t *testing.T) {
	s, root := open(t)
	ctx := context.Background()
	text := []byte("some text")
	begin := func(d digest.Digest) content.Writer {
		t.Helper()
		w, err := s.Writer(ctx, content.WithRef("ref"), content.WithDescriptor(ocispecs.Descriptor{Digest: d, Size: int64(len(text))}))
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	for _, a := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		for name, commit := range map[string]struct {
			size int64
			d    digest.Digest
		}{"size": {8, a.FromBytes(text)}, "digest": {9, a.FromString("other")}, "no digest": {9, "sha256:../x"}} {
			w := begin("")
			if _, err := w.Write(text); err != nil {
				t.Fatal(err)
			}
			if err := w.Commit(ctx, commit.size, commit.d); err == nil {
				t.Errorf("a wrong %s is taken", name)
			}
			debris(t, root)
		}
		w := begin(a.FromBytes(text))
		for range 2 { // it begins anew
			if _, err := w.Write(text); err != nil {
				t.Fatal(err)
			}
			if w.Digest() != a.FromBytes(text) {
				t.Errorf("the digest is %s", w.Digest())
			}
			if err := w.Truncate(0); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := w.Write(text); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(w.Commit(ctx, 9, a.FromBytes(text)), w.Close()); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Writer(ctx, content.WithDescriptor(ocispecs.Descriptor{Digest: a.FromBytes(text)})); !errdefs.IsAlreadyExists(err) {
			t.Errorf("a blob that is there may be begun again: %v", err)
		}
	}
	w := begin("") // of another algorithm than was said
	_, err := w.Write([]byte("more text"))
	if err := errors.Join(err, w.Commit(ctx, 9, digest.SHA512.FromString("more text"))); err != nil {
		t.Error(err)
	}
	if err := w.Commit(ctx, 9, ""); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a second commit gives %v", err)
	}
	debris(t, root)
}
