package local_test

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/kiln-build/kiln/internal/contenthash"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/layer/layertest"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/internal/session/files"
	"github.com/kiln-build/kiln/internal/session/sessiontest"
	"github.com/kiln-build/kiln/internal/source"
	"github.com/kiln-build/kiln/internal/source/local"
	"github.com/kiln-build/kiln/internal/source/sourcetest"
	"github.com/kiln-build/kiln/internal/store"
	"github.com/kiln-build/kiln/llb"
)

// newLayers opens an empty layer store and its database.
func newLayers(t testing.TB) (*layer.Store, *store.Store) {
	t.Helper()
	root := t.TempDir()
	db, err := store.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	layertest.Closing(t, db.Close)
	return layertest.Open(t, root, db), db
}

// rig is a source, and a client with a directory.
type rig struct {
	dir    string
	layers *layer.Store
	memo   source.Memo
	source *local.Source
	caller *session.Caller
	sent   atomic.Int64 // bytes of files' content

	// changed, if not nil, stands between the directory and who reads it.
	changed func(files.Tree) files.Tree

	mu       sync.Mutex
	trees    map[string]*contenthash.Tree // by layer
	warnings strings.Builder
}

// warned is what users were warned of.
func (r *rig) warned() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.warnings.String()
}

// SetTree remembers a tree.
func (r *rig) SetTree(ref *layer.Ref, tree *contenthash.Tree) {
	r.mu.Lock()
	r.trees[ref.ID()] = tree
	r.mu.Unlock()
}

func newRig(t testing.TB, maxDepth int) *rig {
	t.Helper()
	r := &rig{dir: t.TempDir(), trees: map[string]*contenthash.Tree{}}
	r.layers, r.memo = newLayers(t)
	r.caller = sessiontest.Connect(t, files.NewProvider(map[string]files.Source{"context": r.share}))
	r.restart(maxDepth)
	return r
}

// restart makes a source that has nothing in memory.
func (r *rig) restart(maxDepth int) {
	r.source = local.New(local.Config{
		Layers: r.layers, Memo: r.memo, Sessions: session.NewManager(), Trees: r, MaxDepth: maxDepth,
	})
}

func op(attrs ...string) *llb.SourceOp {
	o := &llb.SourceOp{Identifier: "local://context", Attrs: map[string]string{}}
	for i := 0; i < len(attrs); i += 2 {
		o.Attrs[attrs[i]] = attrs[i+1]
	}
	return o
}

// fetch brings the directory in and tells how many bytes of content were sent.
func (r *rig) fetch(t testing.TB, o *llb.SourceOp) (*layer.Ref, int64) {
	t.Helper()
	before := r.sent.Load()
	ref, _ := r.fetchTold(t, o)
	return ref, r.sent.Load() - before
}

// fetchTold brings the directory in and tells how many bytes progress has as transferred.
func (r *rig) fetchTold(t testing.TB, o *llb.SourceOp) (*layer.Ref, int64) {
	t.Helper()
	var mu sync.Mutex
	var told int64
	sink := progress.SinkFunc(func(e progress.Event) {
		if e.Status != nil {
			mu.Lock()
			told = max(told, e.Status.Current)
			mu.Unlock()
		}
		if e.Warning != nil {
			r.mu.Lock()
			r.warnings.Write(append(e.Warning.Short, '\n'))
			r.mu.Unlock()
		}
	})
	ctx := progress.WithStep(sessiontest.Context(context.Background(), r.caller), progress.NewStep(sink, "sha256:x"))
	pin, err := r.source.Resolve(ctx, o, source.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ref, err := r.source.Fetch(ctx, pin)
	if err != nil {
		t.Fatal(err)
	}
	return ref, told
}

func (r *rig) write(t testing.TB, name, data string) {
	t.Helper()
	p := filepath.Join(r.dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

// look describes all that is in a directory.
func look(t testing.TB, dir string) map[string]string {
	t.Helper()
	got, inodes := map[string]string{}, map[uint64]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		name, _ := filepath.Rel(dir, p) // p is below dir
		info, err := d.Info()
		if err != nil {
			return err
		}
		text := fmt.Sprint(info.Mode(), " ")
		switch {
		case info.Mode().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			text += fmt.Sprint(info.ModTime().UnixNano(), " ", string(b))
			// The count of links would be wrong: overlay counts those of lower layers.
			ino := info.Sys().(*syscall.Stat_t).Ino
			if first := inodes[ino]; first != "" {
				text += " linked to " + first
			} else {
				inodes[ino] = name
			}
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			text += target
		}
		got[name] = text
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// check compares a state with the client's directory, and its digest with that
// of the same files, sent whole to a source that knows nothing.
func (r *rig) check(t *testing.T, ref *layer.Ref) {
	t.Helper()
	dir, release, err := r.layers.Mount(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	got, want := look(t, dir), look(t, r.dir)
	r.checkDigest(t, ref, dir)
	if err := release(); err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(got, want) {
		for name := range maps.Collect(maps.All(want)) {
			if got[name] != want[name] {
				t.Errorf("%s: got %.80q, want %.80q", name, got[name], want[name])
			}
		}
		for name := range got {
			if _, ok := want[name]; !ok {
				t.Errorf("%s is there", name)
			}
		}
		t.FailNow()
	}
}

// checkDigest has what the tree that was filled says, without the files, be what
// they say: those of the state, mounted at dir.
func (r *rig) checkDigest(t *testing.T, ref *layer.Ref, dir string) {
	t.Helper()
	if ref == nil {
		return
	}
	read, err := contenthash.New().Checksum(t.Context(), dir, whole)
	if err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	tree := r.trees[ref.ID()]
	r.mu.Unlock()
	told, err := tree.Checksum(t.Context(), filepath.Join(r.dir, "there is no such directory"), whole)
	if err != nil {
		t.Fatal(err)
	}
	if told != read {
		t.Errorf("digest %s, but %s by reading the files", told, read)
	}
}

// whole selects all there is, but not the root's own header.
var whole = []contenthash.Selector{{Path: "/", Wildcard: false, Include: []string{"**"}}}

func TestSuite(t *testing.T) {
	sourcetest.Run(t, func(t *testing.T) sourcetest.Subject {
		r := newRig(t, 0)
		r.write(t, "a", "one")
		r.write(t, "dir/b", "two")
		return sourcetest.Subject{
			Source: r.source, Layers: r.layers, Context: sessiontest.Context(t.Context(), r.caller), Op: op(),
			Files: map[string]string{"a": "one", "dir/b": "two"},
			Change: func(t *testing.T) map[string]string {
				r.write(t, "a", "changed")
				r.write(t, "c", "new")
				if err := os.RemoveAll(filepath.Join(r.dir, "dir")); err != nil {
					t.Fatal(err)
				}
				return map[string]string{"a": "changed", "c": "new"}
			},
		}
	})
}

func TestOnlyChangesAreSent(t *testing.T) {
	r := newRig(t, 0)
	for i := range 50 {
		r.write(t, fmt.Sprintf("dir%d/file%d", i%5, i), strings.Repeat("x", 1000))
	}
	first, sent := r.fetch(t, op())
	if sent != 50_000 {
		t.Errorf("%d bytes sent, want 50000", sent)
	}
	r.check(t, first)
	same, sent := r.fetch(t, op())
	if same.ID() != first.ID() || sent != 0 {
		t.Errorf("unchanged: layer %s, before %s, %d bytes sent", same.ID(), first.ID(), sent)
	}
	r.write(t, "dir1/file1", strings.Repeat("y", 1001))
	second, sent := r.fetch(t, op())
	if sent != 1001 || second.Parent().ID() != first.ID() {
		t.Errorf("one changed: %d bytes sent, on top of %s", sent, second.Parent().ID())
	}
	r.check(t, second)
	// What was in memory is remembered.
	r.restart(0)
	again, sent := r.fetch(t, op())
	if again.ID() != second.ID() || sent != 0 {
		t.Errorf("after a restart: layer %s, before %s, %d bytes sent", again.ID(), second.ID(), sent)
	}
	r.write(t, "dir2/new", "z")
	third, sent := r.fetch(t, op())
	if sent != 1 {
		t.Errorf("%d bytes sent, want 1", sent)
	}
	r.check(t, third)
	if _, sent = r.fetch(t, op("local.differ", "none")); sent != 50_002 {
		t.Errorf("without comparing: %d bytes sent", sent)
	}
}

func TestPatterns(t *testing.T) {
	r := newRig(t, 0)
	for _, name := range []string{"a.go", "b.txt", "sub/c.go", "sub/d.txt"} {
		r.write(t, name, name)
	}
	ref, _ := r.fetch(t, op("local.includepattern", `["**/*.go"]`, "local.excludepatterns", `["sub"]`))
	if got := sourcetest.Files(t, r.layers, ref); len(got) != 1 || got["a.go"] == "" {
		t.Errorf("got %v", got)
	}
	ref, _ = r.fetch(t, op("local.excludepatterns", `["*.txt"]`))
	if got := sourcetest.Files(t, r.layers, ref); len(got) != 3 {
		t.Errorf("got %v", got)
	}
}

// TestHistories makes random changes and compares after each.
func TestHistories(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			r, rng := newRig(t, 4), rand.New(rand.NewPCG(seed, 7))
			for step := range 30 {
				for range rng.IntN(4) {
					r.mutate(t, rng)
				}
				if rng.IntN(8) == 0 {
					r.restart(4)
				}
				ref, _ := r.fetch(t, op())
				r.check(t, ref)
				if t.Failed() {
					t.Fatalf("after step %d", step)
				}
			}
		})
	}
}

// mutate changes something at random.
func (r *rig) mutate(t *testing.T, rng *rand.Rand) {
	t.Helper()
	names := []string{"a", "b", "d", "d/a", "d/b", "d/e", "d/e/a", "d-z", "d.x"}
	p := filepath.Join(r.dir, names[rng.IntN(len(names))])
	other := filepath.Join(r.dir, names[rng.IntN(len(names))])
	parent := filepath.Dir(p)
	if info, err := os.Lstat(parent); err != nil || !info.IsDir() {
		return
	}
	gone := func() {
		if err := os.RemoveAll(p); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	switch rng.IntN(8) {
	case 0, 1:
		gone()
		err = os.WriteFile(p, []byte(strings.Repeat("x", rng.IntN(50))), 0o644)
	case 2:
		gone()
		err = os.Mkdir(p, 0o755)
	case 3:
		gone()
		err = os.Symlink([]string{"a", "/etc", "../.."}[rng.IntN(3)], p)
	case 4:
		gone()
	case 5:
		if info, serr := os.Lstat(other); serr == nil && info.Mode().IsRegular() && other != p {
			gone()
			if _, serr = os.Lstat(other); serr == nil {
				err = os.Link(other, p)
			}
		}
	case 6:
		if info, serr := os.Lstat(p); serr == nil && info.Mode()&fs.ModeSymlink == 0 {
			err = os.Chmod(p, fs.FileMode(0o700+rng.IntN(64)))
		}
	case 7:
		if info, serr := os.Lstat(p); serr == nil && info.Mode().IsRegular() {
			err = os.Chtimes(p, time.Time{}, time.Unix(rng.Int64N(1e9), rng.Int64N(1e9)))
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestAtTheSameTime(t *testing.T) {
	r := newRig(t, 0)
	for i := range 20 {
		r.write(t, fmt.Sprint("file", i), "x")
	}
	r.fetch(t, op())
	r.write(t, "file3", "changed")
	refs := make([]*layer.Ref, 4)
	var wg sync.WaitGroup
	for i := range refs {
		wg.Go(func() { refs[i], _ = r.fetch(t, op()) })
	}
	wg.Wait()
	for _, ref := range refs {
		r.check(t, ref)
	}
	if _, sent := r.fetch(t, op()); sent != 0 {
		t.Errorf("%d bytes sent afterwards", sent)
	}
}

func TestRefusals(t *testing.T) {
	r := newRig(t, 0)
	ctx := sessiontest.Context(t.Context(), r.caller)
	for _, o := range []*llb.SourceOp{
		op("local.includepattern", "x"), op("local.differ", "x"), op("local.metadatatransfer", "perhaps"),
		{Identifier: "local://"}, {Identifier: "http://x"},
	} {
		if _, err := r.source.Resolve(ctx, o, source.Options{}); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
	if _, err := r.source.Resolve(t.Context(), op(), source.Options{}); err == nil || !strings.Contains(err.Error(), "context") {
		t.Errorf("no session: got %v", err)
	}
	pin, err := r.source.Resolve(ctx, &llb.SourceOp{Identifier: "local://other"}, source.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.source.Fetch(ctx, pin); err == nil || !strings.Contains(err.Error(), "other") {
		t.Errorf("unknown directory: got %v", err)
	}
}

func BenchmarkContext(b *testing.B) {
	r := newRig(b, 0)
	for i := range 10_000 {
		r.write(b, fmt.Sprintf("d%d/e%d/f%d", i%10, i%100, i), strings.Repeat("x", 4096))
	}
	b.Run("first", func(b *testing.B) {
		for range b.N {
			r.fetch(b, op("local.differ", "none"))
		}
	})
	r.fetch(b, op())
	b.Run("unchanged", func(b *testing.B) {
		for range b.N {
			r.fetch(b, op())
		}
	})
	b.Run("one changed", func(b *testing.B) {
		for i := range b.N {
			r.write(b, "d5/e55/f55", fmt.Sprint(i, strings.Repeat("y", i%4096)))
			r.fetch(b, op())
		}
	})
}

// BenchmarkFlatten has every other change put the whole last state into a new layer.
func BenchmarkFlatten(b *testing.B) {
	r := newRig(b, 2)
	for i := range 2000 {
		r.write(b, fmt.Sprintf("d%d/f%d", i%10, i), strings.Repeat("x", 4096))
	}
	r.fetch(b, op())
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		r.write(b, "d5/f55", fmt.Sprint(i))
		r.fetch(b, op())
	}
}

func BenchmarkLargeFile(b *testing.B) {
	r := newRig(b, 0)
	f, err := os.Create(filepath.Join(r.dir, "large"))
	if err != nil {
		b.Fatal(err)
	}
	rng := rand.NewChaCha8([32]byte{})
	buf := make([]byte, 1<<20)
	for range 500 {
		_, _ = rng.Read(buf) // never fails
		if _, err := f.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		r.fetch(b, op("local.differ", "none"))
	}
}
