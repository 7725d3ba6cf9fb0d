package cachemount

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"

	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/fileop"
	"github.com/kiln-build/kiln/internal/safepath"
)

// incomingPrefix is what the names of folders and files begin with that come or
// go. What is left of them after a crash is removed.
const incomingPrefix = "moving-"

// Fetch opens a chunk as it is kept.
type Fetch func(ctx context.Context, blob ocispecs.Descriptor) (io.ReadCloser, error)

// Received is what an import had to fetch.
type Received struct {
	Chunks int
	Bytes  int64 // compressed
}

const fetchesAtOnce = 8

// Expect lets steps that want a mount of an id wait until done is called, if
// there is none yet: it is about to be imported. needed is false if there is
// one, or somebody else imports it.
func (m *Mounts) Expect(id string) (done func(), needed bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.incoming[id] > 0 || m.Has(id) {
		return nil, false
	}
	m.incoming[id]++
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.incoming, id)
		m.wake()
	}, true
}

// Import makes the files of a snapshot those of its id, in place of those that
// there are. Chunks that these have are not fetched.
func (m *Mounts) Import(ctx context.Context, s *Snapshot, fetch Fetch) (got Received, err error) {
	if err := s.check(); err != nil {
		return got, fmt.Errorf("import cache mount %q: %w", Name(s.ID), err)
	}
	in := &importer{fetch: fetch}
	err = m.replace(ctx, s.ID, s.Chunks, func(own *memo, root *safepath.Root) io.ReadCloser {
		in.own, in.root = own, root
		return in.stream(ctx, s.Chunks)
	})
	return in.got, err
}

// ReadArchive makes the files of a tar archive those of an id's mount, in place
// of those that there are.
func (m *Mounts) ReadArchive(ctx context.Context, id string, archive io.Reader) error {
	return m.replace(ctx, id, nil, func(*memo, *safepath.Root) io.ReadCloser { return io.NopCloser(archive) })
}

// replace unpacks an archive beside an id's mount and puts it in its place when
// it is whole. open is told what is known of the files that there are, and
// where they are; root is nil if there are none.
func (m *Mounts) replace(ctx context.Context, id string, known []Chunk, open func(own *memo, root *safepath.Root) io.ReadCloser) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("import cache mount %q: %w", Name(id), err)
		}
	}()
	name, release, err := m.enterOrMake(ctx, id)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	slotDir := filepath.Join(m.dir, name)
	own := m.loadMemo(name)
	old, err := safepath.Open(filepath.Join(slotDir, filesName))
	if errors.Is(err, os.ErrNotExist) {
		own = &memo{}
	} else if err != nil {
		return err
	} else {
		defer old.Close()
	}
	archive := open(own, old)
	defer archive.Close()
	dir, err := os.MkdirTemp(m.dir, incomingPrefix)
	if err != nil {
		return err
	}
	defer func() { _ = removeTree(dir) }() // with what was in its place; the next start tries again
	files := filepath.Join(dir, filesName)
	if err := unpackTo(ctx, files, archive); err != nil {
		return err
	}
	if err := m.install(name, id, dir); err != nil {
		return err
	}
	if known != nil {
		return m.saveMemo(name, &memo{Known: known})
	}
	return nil
}

func unpackTo(ctx context.Context, dir string, archive io.Reader) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	root, err := safepath.Open(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	root.Spread("/")
	// Unpacking leaves the folder itself as it is; of a mount, it counts.
	var head bytes.Buffer
	first, headErr := tar.NewReader(io.TeeReader(archive, &head)).Next()
	if err := fileop.Unpack(ctx, root, io.MultiReader(&head, archive), fileop.UnpackOptions{Spread: true}); err != nil {
		return err
	}
	if headErr != nil { // it is compressed, or empty
		return nil
	}
	if path.Clean(first.Name) != "." || first.Typeflag != tar.TypeDir {
		return nil
	}
	if err := errors.Join(root.Lchown("/", first.Uid, first.Gid), root.Lchmod("/", first.FileInfo().Mode())); err != nil {
		return err
	}
	return root.Utimes("/", first.ModTime, first.ModTime)
}

// install moves the files in dir into a slot.
func (m *Mounts) install(name, id, dir string) error {
	slotDir := filepath.Join(m.dir, name)
	i, err := m.info(name)
	if err != nil {
		i = info{ID: id, Created: time.Now()}
	}
	i.LastUsed = time.Now()
	// Without its info, a slot that is between two states is none.
	if err := os.Remove(filepath.Join(slotDir, infoName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(slotDir, 0o755); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(slotDir, memoName)); err != nil {
		return err
	}
	files := filepath.Join(slotDir, filesName)
	if err := os.Rename(files, filepath.Join(dir, "old")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Rename(filepath.Join(dir, filesName), files); err != nil {
		return err
	}
	return m.putInfo(name, i)
}

// enterOrMake is enter, but an id without a mount is given a slot.
func (m *Mounts) enterOrMake(ctx context.Context, id string) (name string, release func() error, err error) {
	name = Key{ID: id}.slots() + "-0"
	for {
		m.mu.Lock()
		freed := m.freed
		if found, err := m.latest(id); err == nil {
			name = found
		}
		if m.slots[name] == nil {
			m.slots[name] = &slot{writers: 1, closed: true}
			m.mu.Unlock()
			return name, func() error { return m.leave(name, false) }, nil
		}
		m.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return "", nil, fmt.Errorf("wait for the steps that use it: %w", ctx.Err())
		}
	}
}

// importer turns chunks into an archive.
type importer struct {
	fetch Fetch
	own   *memo          // of the files that there are
	root  *safepath.Root // nil if there are none
	got   Received
}

// stream joins chunks, some of which are fetched ahead.
func (in *importer) stream(ctx context.Context, chunks []Chunk) io.ReadCloser {
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	go func() {
		defer cancel()
		w.CloseWithError(in.write(ctx, w, chunks))
	}()
	return &streamReader{PipeReader: r, cancel: cancel}
}

// streamReader ends the fetching when it is closed.
type streamReader struct {
	*io.PipeReader
	cancel context.CancelFunc
}

// Close ends the stream.
func (s *streamReader) Close() error {
	s.cancel()
	return s.PipeReader.Close()
}

type fetched struct {
	data   []byte
	remote bool
	err    error
}

func (in *importer) write(ctx context.Context, w io.Writer, chunks []Chunk) error {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(2*maxChunk))
	if err != nil {
		return err
	}
	defer dec.Close()
	own := in.ownChunks()
	queue := make(chan chan fetched, fetchesAtOnce)
	go func() {
		defer close(queue)
		for _, c := range chunks {
			one := make(chan fetched, 1)
			select {
			case queue <- one:
			case <-ctx.Done():
				return
			}
			go func() {
				f := fetched{}
				if f.data = in.regenerate(own, c); f.data == nil {
					f.remote = true
					f.data, f.err = in.download(ctx, dec, c)
				}
				one <- f
			}()
		}
	}()
	n := 0
	for one := range queue {
		f := <-one
		if f.err != nil {
			return fmt.Errorf("chunk %d of %d: %w", n+1, len(chunks), f.err)
		}
		if f.remote {
			in.got.Chunks++
			in.got.Bytes += chunks[n].Blob.Size
		}
		if _, err := w.Write(f.data); err != nil {
			return err
		}
		n++
	}
	return ctx.Err()
}

// download fetches a chunk and verifies it, compressed and not.
func (in *importer) download(ctx context.Context, dec *zstd.Decoder, c Chunk) ([]byte, error) {
	r, err := in.fetch(ctx, c.Blob)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	packed, err := io.ReadAll(io.LimitReader(r, c.Blob.Size+1))
	if err != nil {
		return nil, err
	}
	if digest.FromBytes(packed) != c.Blob.Digest {
		return nil, fmt.Errorf("blob %s has other bytes than its digest says", c.Blob.Digest)
	}
	data, err := dec.DecodeAll(packed, make([]byte, 0, c.Size))
	if err != nil {
		return nil, fmt.Errorf("decompress blob %s: %w", c.Blob.Digest, err)
	}
	if digest.FromBytes(data) != c.Digest {
		return nil, fmt.Errorf("blob %s has another content than its snapshot says", c.Blob.Digest)
	}
	return data, nil
}

// ownChunks are those that the files there are have been cut into.
func (in *importer) ownChunks() map[digest.Digest]cut {
	own := map[digest.Digest]cut{}
	if in.root == nil {
		return own
	}
	for _, c := range in.own.Cuts {
		own[c.Chunk.Digest] = c
	}
	return own
}

// regenerate reads a chunk from the files that there are; nil if they do not
// have it, or have changed.
func (in *importer) regenerate(own map[digest.Digest]cut, c Chunk) []byte {
	at, ok := own[c.Digest]
	if !ok {
		return nil
	}
	part := in.own.Entries[at.From.Entry:min(at.To.Entry+1, len(in.own.Entries))]
	t := &tree{root: in.root, entries: slices.Clone(part)}
	r := t.read(position{Offset: at.From.Offset})
	defer r.Close()
	data := make([]byte, c.Size)
	if _, err := io.ReadFull(r, data); err != nil || digest.FromBytes(data) != c.Digest {
		return nil
	}
	return data
}
