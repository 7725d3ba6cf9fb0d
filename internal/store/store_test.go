package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	blobs "github.com/kiln-build/kiln/internal/content"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/solver"
)

func open(t testing.TB, root string) *Store {
	t.Helper()
	s, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func shut(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// fill puts one of everything, and check looks for it.
func fill(t *testing.T, s *Store) {
	t.Helper()
	err := errors.Join(
		s.PutLayer(layer.Record{ID: "a", Description: "RUN true", Blobs: map[string]ocispecs.Descriptor{"gzip": {Size: 7}}}),
		s.PutLayer(layer.Record{ID: "b", Parent: "a"}),
		s.PutLayer(layer.Record{ID: "gone"}), s.DeleteLayers("gone"),
		s.PutResult("key", Result{Outputs: []Output{{Layer: "a"}, {}, {Value: []byte("v")}}}),
		s.PutDigest("def:key@0:/"+strings.Repeat("long/", 1000), "sha256:1"),
		s.PutImage("docker.io/library/a:b", ocispecs.Descriptor{Digest: "sha256:2"}),
		s.PutValue("http", "https://a.test/", []byte("etag")),
	)
	if err != nil {
		t.Fatal(err)
	}
}

func check(t *testing.T, s *Store) {
	t.Helper()
	if r, err := s.Layer("a"); err != nil || r.Description != "RUN true" || r.Blobs["gzip"].Size != 7 {
		t.Errorf("layer is %+v (%v)", r, err)
	}
	if _, err := s.Layer("gone"); !errors.Is(err, layer.ErrNotFound) {
		t.Errorf("a deleted layer gives %v", err)
	}
	if r, ok := s.Result("key"); !ok || len(r.Outputs) != 3 || r.Outputs[0].Layer != "a" || string(r.Outputs[2].Value) != "v" {
		t.Errorf("result is %+v %v", r, ok)
	}
	if d, ok := s.Digest("def:key@0:/" + strings.Repeat("long/", 1000)); !ok || d != "sha256:1" {
		t.Errorf("digest is %q %v", d, ok)
	}
	if d, ok := s.Image("docker.io/library/a:b"); !ok || d.Digest != "sha256:2" {
		t.Errorf("image is %+v %v", d, ok)
	}
	if v, ok := s.Value("http", "https://a.test/"); !ok || string(v) != "etag" {
		t.Errorf("value is %q %v", v, ok)
	}
	if _, ok := s.Value("git", "https://a.test/"); ok {
		t.Error("namespaces are not apart")
	}
	ids := map[string]bool{}
	err := s.Layers(func(r layer.Record) error {
		ids[r.ID] = true
		return nil
	})
	if err != nil || len(ids) != 2 {
		t.Errorf("layers are %v (%v)", ids, err)
	}
}

func TestReadAtOnceAndAfterRestart(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	fill(t, s)
	check(t, s) // most likely from memory
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	check(t, s) // from the file
	shut(t, s)
	if err := s.PutDigest("late", "x"); err == nil {
		t.Error("a closed store takes values")
	}
	s = open(t, root)
	defer shut(t, s)
	if s.Recovered() != "" {
		t.Error(s.Recovered())
	}
	check(t, s)
	if err := errors.Join(s.DeleteImage("docker.io/library/a:b"), s.DeleteResults("key"), s.DeleteValue("http", "https://a.test/")); err != nil {
		t.Fatal(err)
	}
	if _, ok := s.Image("docker.io/library/a:b"); ok {
		t.Error("a deleted image is there")
	}
	if _, ok := s.Result("key"); ok {
		t.Error("a deleted result is there")
	}
}

func TestSecondDaemonIsTold(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	_, err := Open(root)
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), root) {
		t.Errorf("error is %v", err)
	}
	shut(t, s)
	shut(t, open(t, root))
}

// A copy of the files of an open store is what kill -9 leaves.
func TestKillLosesNothingWritten(t *testing.T) {
	root, copied := t.TempDir(), t.TempDir()
	s := open(t, root)
	defer shut(t, s)
	fill(t, s)
	// What is written reaches the file by itself, soon.
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		waiting := len(s.pending) + len(s.flushing)
		s.mu.Unlock()
		if waiting == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing is written")
		}
	}
	if err := os.CopyFS(copied, os.DirFS(root)); err != nil {
		t.Fatal(err)
	}
	again := open(t, copied)
	defer shut(t, again)
	if again.Recovered() != "" {
		t.Error(again.Recovered())
	}
	check(t, again)
}

func TestDamagedDatabaseIsMovedAside(t *testing.T) {
	for name, harm := range map[string]func(path string) error{
		"junk":  func(p string) error { return os.WriteFile(p, []byte(strings.Repeat("junk", 10000)), 0o600) },
		"empty": func(p string) error { return os.WriteFile(p, []byte("x"), 0o600) },
		"cut": func(p string) error {
			return os.Truncate(p, 4*4096)
		},
		"pages": func(p string) error {
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			for i := 2 * 4096; i < len(data); i += 3 {
				data[i] ^= 0x5a
			}
			return os.WriteFile(p, data, 0o600)
		},
		"version": func(p string) error {
			db, err := bolt.Open(p, 0o600, nil)
			if err != nil {
				return err
			}
			err = db.Update(func(tx *bolt.Tx) error { return tx.Bucket([]byte(bucketMeta)).Put([]byte("version"), []byte("0")) })
			return errors.Join(err, db.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			root, copied := t.TempDir(), t.TempDir()
			s := open(t, root)
			for i := range 500 {
				if err := s.PutLayer(layer.Record{ID: fmt.Sprint("layer", i)}); err != nil {
					t.Fatal(err)
				}
			}
			fill(t, s)
			if err := s.Flush(); err != nil {
				t.Fatal(err)
			}
			defer shut(t, s)
			path := filepath.Join(copied, databaseName)
			if err := errors.Join(os.CopyFS(copied, os.DirFS(root)), harm(path)); err != nil {
				t.Fatal(err)
			}
			again := open(t, copied)
			if !strings.Contains(again.Recovered(), path+".damaged") {
				t.Errorf("the user is told %q", again.Recovered())
			}
			if _, err := os.Stat(path + ".damaged"); err != nil {
				t.Error(err)
			}
			if _, ok := again.Result("key"); ok {
				t.Error("something of a damaged database is left")
			}
			fill(t, again)
			check(t, again)
			shut(t, again)
		})
	}
}

// A page that goes bad while the store is open must not take the process along.
func TestDamageWhileOpen(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	for i := range 3000 {
		if err := s.PutDigest(fmt.Sprint("part", i), "x"); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(root, databaseName)
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	junk := make([]byte, fi.Size()-2*4096)
	for i := range junk {
		junk[i] = 0xff
	}
	if _, err := f.WriteAt(junk, 2*4096); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for i := range 3000 {
		s.Digest(fmt.Sprint("part", i)) // a miss, or luck
	}
	if err := s.Layers(func(layer.Record) error { return nil }); err == nil {
		t.Error("listing a damaged database gives no error")
	}
	_ = s.Close() // may tell of the damage
	again := open(t, root)
	defer shut(t, again)
	if again.Recovered() == "" {
		t.Error("the damage is not noticed at the next start")
	}
}

func TestManyWriters(t *testing.T) {
	s := open(t, t.TempDir())
	defer shut(t, s)
	begin := time.Now()
	var g sync.WaitGroup
	const vertices = 1000
	for w := range 8 {
		g.Go(func() {
			for i := w; i < vertices; i += 8 {
				id := fmt.Sprint("vertex", i)
				err := errors.Join(
					s.PutLayer(layer.Record{ID: id, Description: "RUN something", CreatedAt: begin}),
					s.PutResult(solver.Key(id), Result{Outputs: []Output{{Layer: id}}, SavedAt: begin}),
					s.PutDigest(id, "sha256:0123456789"),
				)
				if err != nil {
					t.Error(err)
				}
				if r, ok := s.Result(solver.Key(id)); !ok || r.Outputs[0].Layer != id {
					t.Errorf("result of %s is %+v %v", id, r, ok)
				}
			}
		})
	}
	g.Wait()
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("records of %d steps took %v", vertices, took)
	} else {
		t.Logf("records of %d steps took %v", vertices, took)
	}
}

func TestReferences(t *testing.T) {
	ctx := context.Background()
	cs, err := blobs.Open(ctx, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	put := func(mediaType, text string) ocispecs.Descriptor {
		d, err := blobs.Write(ctx, cs, mediaType, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	config, l := digest.FromString("config"), digest.FromString("layer")
	manifest := put(ocispecs.MediaTypeImageManifest, fmt.Sprintf(`{"config":{"digest":%q},"layers":[{"digest":%q}]}`, config, l))
	missing := digest.FromString("missing")
	index := put(ocispecs.MediaTypeImageIndex, fmt.Sprintf(`{"manifests":[{"mediaType":%q,"digest":%q,"size":%d},{"mediaType":%q,"digest":%q,"size":3}]}`,
		manifest.MediaType, manifest.Digest, manifest.Size, manifest.MediaType, missing))
	s := open(t, t.TempDir())
	defer shut(t, s)
	if err := s.PutImage("a", index); err != nil {
		t.Fatal(err)
	}
	if err := s.PutImage("junk", put(ocispecs.MediaTypeImageManifest, "no json")); err != nil {
		t.Fatal(err)
	}
	got, err := s.References(ctx, cs)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []digest.Digest{index.Digest, manifest.Digest, config, l, missing} {
		if !got[d] {
			t.Errorf("%s is missing in %v", d, got)
		}
	}
	if len(got) != 6 {
		t.Errorf("%d references, want 6", len(got))
	}
}
