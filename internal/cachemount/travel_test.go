package cachemount

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// usedAt is when the mount that u is was used.
func (u *Use) usedAt(t *testing.T, m *Mounts) time.Time {
	t.Helper()
	i, err := m.info(filepath.Base(filepath.Dir(u.Dir)))
	if err != nil {
		t.Fatal(err)
	}
	return i.LastUsed
}

// memory keeps blobs in memory, as a remote place does.
type memory struct {
	mu    sync.Mutex
	blobs map[digest.Digest][]byte
	asked int
}

func newMemory() *memory { return &memory{blobs: map[digest.Digest][]byte{}} }

func (b *memory) Missing(_ context.Context, blobs []ocispecs.Descriptor) (missing []ocispecs.Descriptor, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked++
	for _, d := range blobs {
		if _, ok := b.blobs[d.Digest]; !ok {
			missing = append(missing, d)
		}
	}
	return missing, nil
}

func (b *memory) Upload(ctx context.Context, d ocispecs.Descriptor, open func(context.Context) (io.ReadCloser, error)) error {
	r, err := open(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if digest.FromBytes(data) != d.Digest || int64(len(data)) != d.Size {
		return fmt.Errorf("wrong bytes for %s", d.Digest)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.blobs[d.Digest] = data
	return nil
}

func (b *memory) fetch(_ context.Context, d ocispecs.Descriptor) (io.ReadCloser, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	data, ok := b.blobs[d.Digest]
	if !ok {
		return nil, errors.New("no such blob")
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

// fillLarge writes some 20 MB that do not compress, in small files and a large one.
func fillLarge(t *testing.T, dir string) {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	text := func(n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return string(b)
	}
	all := map[string]string{"large": text(8 << 20)}
	for i := range 1500 {
		all[fmt.Sprintf("pkg/%02d/%d", i%37, i)] = text(rng.IntN(16 << 10))
	}
	write(t, dir, all)
}

func export(t *testing.T, m *Mounts, id string, to Blobs) (*Snapshot, Uploaded) {
	t.Helper()
	s, sent, err := m.Export(t.Context(), id, time.Minute, to)
	if err != nil {
		t.Fatal(err)
	}
	// As it travels.
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if s, err = DecodeSnapshot(b); err != nil {
		t.Fatal(err)
	}
	return s, sent
}

func importSnapshot(t *testing.T, m *Mounts, s *Snapshot, from *memory) Received {
	t.Helper()
	got, err := m.Import(t.Context(), s, from.fetch)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func compare(t *testing.T, a, b *Mounts, id string) {
	t.Helper()
	var trees [2]bytes.Buffer
	for i, m := range []*Mounts{a, b} {
		if err := m.WriteArchive(t.Context(), id, time.Minute, &trees[i]); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(trees[0].Bytes(), trees[1].Bytes()) {
		t.Errorf("the archives of both machines differ: %d and %d bytes", trees[0].Len(), trees[1].Len())
	}
}

func TestTravel(t *testing.T) {
	here, there, remote := open(t, t.TempDir()), open(t, t.TempDir()), newMemory()
	u := use(t, here, "npm", Shared)
	fillLarge(t, u.Dir)
	giveBack(t, u, true)

	s, sent := export(t, here, "npm", remote)
	if sent.Chunks < 5 || sent.Chunks != len(remote.blobs) || s.Size() < 16<<20 || s.Files < 1500 {
		t.Fatalf("sent %+v of %d bytes in %d files", sent, s.Size(), s.Files)
	}
	if got := importSnapshot(t, there, s, remote); got.Chunks != len(s.Chunks) {
		t.Errorf("fetched %+v, want all %d chunks", got, len(s.Chunks))
	}
	compare(t, here, there, "npm")

	if _, sent := export(t, here, "npm", remote); sent.Chunks != 0 {
		t.Errorf("with nothing changed, %+v was sent", sent)
	}
	if _, sent := export(t, there, "npm", remote); sent.Chunks != 0 {
		t.Errorf("what was imported was sent back: %+v", sent)
	}

	u = use(t, here, "npm", Shared)
	write(t, u.Dir, map[string]string{"pkg/05/5": "changed", "pkg/20/new": "new"})
	large, err := os.OpenFile(filepath.Join(u.Dir, "large"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := large.WriteString("more"); err != nil {
		t.Fatal(err)
	}
	if err := large.Close(); err != nil {
		t.Fatal(err)
	}
	giveBack(t, u, true)
	s, sent = export(t, here, "npm", remote)
	if sent.Chunks == 0 || sent.Chunks > 8 {
		t.Errorf("three changed files made %d chunks of %d be sent", sent.Chunks, len(s.Chunks))
	}
	if got := importSnapshot(t, there, s, remote); got.Chunks == 0 || got.Chunks > 8 {
		t.Errorf("three changed files made %d chunks be fetched", got.Chunks)
	}
	compare(t, here, there, "npm")
}

// A blob that the remote place has lost is sent again.
func TestExportMendsLostBlobs(t *testing.T) {
	m, remote := open(t, t.TempDir()), newMemory()
	u := use(t, m, "npm", Shared)
	fillLarge(t, u.Dir)
	giveBack(t, u, true)
	s, _ := export(t, m, "npm", remote)
	lost := s.Chunks[len(s.Chunks)/2].Blob.Digest
	delete(remote.blobs, lost)
	if _, err := open(t, t.TempDir()).Import(t.Context(), s, remote.fetch); err == nil {
		t.Error("a snapshot with a lost blob is imported")
	}
	again, sent := export(t, m, "npm", remote)
	if sent.Chunks != 1 || remote.blobs[lost] == nil {
		t.Errorf("sent %+v, want the lost blob", sent)
	}
	importSnapshot(t, open(t, t.TempDir()), again, remote)
}

func TestTravelKeepsWhatFilesAre(t *testing.T) {
	here, there, remote := open(t, t.TempDir()), open(t, t.TempDir()), newMemory()
	u := use(t, here, "all", Shared)
	at := func(name string) string { return filepath.Join(u.Dir, name) }
	write(t, u.Dir, map[string]string{"dir/file": "text", "empty": "", "z": "linked", strings.Repeat("long/", 60) + "name": "x", "sticky/x": "1", "dir.x": "sorted"})
	old := time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC)
	for _, err := range []error{
		os.Link(at("z"), at("a-link")), os.Symlink("../outside", at("symlink")), os.Chmod(at("empty"), 0o4751), os.Chown(at("dir/file"), 12, 34),
		os.Chmod(at("sticky"), 0o1777|os.ModeSticky), os.Chtimes(at("dir/file"), old, old), os.Chtimes(at("dir"), old, old),
		unix.Lsetxattr(at("z"), "user.colour", []byte("blue\x00"), 0), unix.Mkfifo(at("fifo"), 0o600),
		os.Chown(u.Dir, 5, 6), os.Chmod(u.Dir, 0o770),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	giveBack(t, u, true)
	s, _ := export(t, here, "all", remote)
	importSnapshot(t, there, s, remote)
	compare(t, here, there, "all")

	u = use(t, there, "all", Shared)
	defer giveBack(t, u, true)
	if _, err := os.Lstat(filepath.Join(u.Dir, "fifo")); err == nil {
		t.Error("a fifo has travelled")
	}
	var one, two, dir unix.Stat_t
	for name, st := range map[string]*unix.Stat_t{"z": &one, "a-link": &two, "": &dir} {
		if err := unix.Stat(filepath.Join(u.Dir, name), st); err != nil {
			t.Fatal(err)
		}
	}
	if one.Ino != two.Ino || dir.Uid != 5 || dir.Mode&0o7777 != 0o770 {
		t.Errorf("links are %d and %d, the folder is %d's with mode %o", one.Ino, two.Ino, dir.Uid, dir.Mode)
	}
}

// What is wrong on the way leaves the mount as it was.
func TestImportRefuses(t *testing.T) {
	here, there, remote := open(t, t.TempDir()), open(t, t.TempDir()), newMemory()
	for _, m := range []*Mounts{here, there} {
		u := use(t, m, "npm", Shared)
		fillLarge(t, u.Dir)
		giveBack(t, u, true)
	}
	u := use(t, there, "npm", Shared)
	write(t, u.Dir, map[string]string{"own": "1"})
	giveBack(t, u, true)
	s, _ := export(t, here, "npm", remote)
	broken := map[string]func(s *Snapshot, b *memory){
		"blob with other bytes":    func(s *Snapshot, b *memory) { b.blobs[s.Chunks[0].Blob.Digest] = []byte("forged") },
		"no blob":                  func(s *Snapshot, b *memory) { delete(b.blobs, s.Chunks[1].Blob.Digest) },
		"chunks in another order":  func(s *Snapshot, b *memory) { s.Chunks[0], s.Chunks[1] = s.Chunks[1], s.Chunks[0] },
		"chunk missing in between": func(s *Snapshot, b *memory) { s.Chunks = append(s.Chunks[:2:2], s.Chunks[3:]...) },
		"content of another chunk": func(s *Snapshot, b *memory) { s.Chunks[0].Blob = s.Chunks[1].Blob },
		"version":                  func(s *Snapshot, b *memory) { s.Version = 2 },
	}
	for what, spoil := range broken {
		t.Run(what, func(t *testing.T) {
			bad, blobs := *s, newMemory()
			bad.Chunks = append([]Chunk(nil), s.Chunks...)
			maps.Copy(blobs.blobs, remote.blobs)
			spoil(&bad, blobs)
			if _, err := there.Import(t.Context(), &bad, blobs.fetch); err == nil {
				t.Error("it is imported")
			}
			u := use(t, there, "npm", Shared)
			if got := files(t, u.Dir)["own"]; got != "1" {
				t.Error("the files that were there are gone")
			}
			giveBack(t, u, true)
		})
	}
	if _, _, err := here.Export(t.Context(), "nothing", time.Minute, remote); !errors.Is(err, ErrNone) {
		t.Errorf("exporting nothing: %v", err)
	}
}

// Steps wait for an import that is on its way, and for nothing else.
func TestStepsWaitForImport(t *testing.T) {
	here, there, remote := open(t, t.TempDir()), open(t, t.TempDir()), newMemory()
	u := use(t, here, "go", Shared)
	write(t, u.Dir, map[string]string{"built": "1"})
	giveBack(t, u, true)
	s, _ := export(t, here, "go", remote)

	done, needed := there.Expect("go")
	if !needed {
		t.Fatal("an id without a mount needs no import")
	}
	if _, needed := there.Expect("go"); needed {
		t.Error("it is to be imported twice")
	}
	got := make(chan *Use)
	go func() {
		u, err := there.Acquire(t.Context(), Key{ID: "go"}, Shared, empty)
		if err != nil {
			t.Error(err)
		}
		got <- u
	}()
	importSnapshot(t, there, s, remote)
	done()
	u = <-got
	expect(t, u.Dir, map[string]string{"built": "1"})
	giveBack(t, u, true)
	if _, needed := there.Expect("go"); needed {
		t.Error("a mount that is there would be imported")
	}
}

func TestArchive(t *testing.T) {
	here, there := open(t, t.TempDir()), open(t, t.TempDir())
	u := use(t, here, "apt", Shared)
	write(t, u.Dir, map[string]string{"lists/a": "1", "b": "2"})
	giveBack(t, u, true)
	var archive bytes.Buffer
	if err := here.WriteArchive(t.Context(), "apt", time.Minute, &archive); err != nil {
		t.Fatal(err)
	}
	if err := there.ReadArchive(t.Context(), "other", bytes.NewReader(archive.Bytes())); err != nil {
		t.Fatal(err)
	}
	u = use(t, there, "other", Shared)
	expect(t, u.Dir, map[string]string{"lists/": "", "lists/a": "1", "b": "2"})
	giveBack(t, u, true)
	if err := there.ReadArchive(t.Context(), "other", strings.NewReader("no archive at all")); err == nil {
		t.Error("a file that is no archive is imported")
	}
	u = use(t, there, "other", Shared)
	expect(t, u.Dir, map[string]string{"lists/": "", "lists/a": "1", "b": "2"})
	giveBack(t, u, true)
}

// FuzzDecodeSnapshot reads snapshots of others: what is taken can be imported
// in bounded memory.
func FuzzDecodeSnapshot(f *testing.F) {
	f.Add([]byte(`{"version":1,"id":"a","chunks":[]}`))
	f.Add([]byte(`{"version":1,"id":"a","chunks":[{"digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":1,` +
		`"blob":{"mediaType":"` + MediaType + `","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":1}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := DecodeSnapshot(data)
		if err != nil {
			return
		}
		for _, c := range s.Chunks {
			if c.Size <= 0 || c.Size > maxChunk || c.Blob.Size > 2*maxChunk || c.Digest.Validate() != nil {
				t.Errorf("took %+v", c)
			}
		}
	})
}

// An export does not wait for ever for a mount that is always in use, and takes
// it as soon as it is free.
func TestExportWaits(t *testing.T) {
	m := open(t, t.TempDir())
	u := use(t, m, "go", Shared)
	if _, _, err := m.Export(t.Context(), "go", time.Millisecond, newMemory()); !errors.Is(err, ErrInUse) {
		t.Errorf("got %v, want that it is in use", err)
	}
	got := make(chan error)
	go func() {
		_, _, err := m.Export(t.Context(), "go", time.Minute, newMemory())
		got <- err
	}()
	giveBack(t, u, true)
	if err := <-got; err != nil {
		t.Error(err)
	}
}
