package cachemount

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/kiln-build/kiln/internal/safepath"
)

// ErrNone says that there is no cache mount of an id.
var ErrNone = errors.New("no such cache mount")

// ErrInUse says that steps have used a cache mount for too long.
var ErrInUse = errors.New("steps use it all the time")

// Blobs is where chunks are kept.
type Blobs interface {
	// Missing returns which of blobs are not kept.
	Missing(ctx context.Context, blobs []ocispecs.Descriptor) ([]ocispecs.Descriptor, error)
	// Upload keeps a blob.
	Upload(ctx context.Context, blob ocispecs.Descriptor, open func(context.Context) (io.ReadCloser, error)) error
}

// Uploaded is what an export had to send.
type Uploaded struct {
	Chunks int
	Bytes  int64 // compressed
}

const uploadsAtOnce = 8

// Export sends what blobs do not have yet of the mount that was last used of an
// id, and returns its snapshot. It waits for who works in the mount, but no
// longer than patience, and lets nobody in while the changed files are read;
// while they are sent, it does.
func (m *Mounts) Export(ctx context.Context, id string, patience time.Duration, blobs Blobs) (*Snapshot, Uploaded, error) {
	s, sent, err := m.export(ctx, id, patience, blobs)
	if err != nil {
		err = fmt.Errorf("export cache mount %q: %w", Name(id), err)
	}
	return s, sent, err
}

func (m *Mounts) export(ctx context.Context, id string, patience time.Duration, blobs Blobs) (*Snapshot, Uploaded, error) {
	name, release, err := m.enter(ctx, id, patience)
	if err != nil {
		return nil, Uploaded{}, err
	}
	known := m.loadMemo(name).chunks()
	if err := release(); err != nil {
		return nil, Uploaded{}, err
	}
	// What is kept need not be read again. That is asked while nobody waits.
	kept, err := keptIn(ctx, blobs, known)
	if err != nil {
		return nil, Uploaded{}, err
	}
	if name, release, err = m.enter(ctx, id, patience); err != nil {
		return nil, Uploaded{}, err
	}
	sp, err := newSpool(m.dir)
	if err != nil {
		return nil, Uploaded{}, errors.Join(err, release())
	}
	defer sp.Close()
	s, err := m.survey(ctx, name, kept, sp)
	if err := errors.Join(err, release()); err != nil {
		return nil, Uploaded{}, err
	}
	s.ID = id
	sent, err := sp.send(ctx, blobs)
	return s, sent, err
}

// enter takes the mount of an id that was last used, alone.
func (m *Mounts) enter(ctx context.Context, id string, patience time.Duration) (name string, release func() error, err error) {
	tooLong := time.NewTimer(patience)
	defer tooLong.Stop()
	for {
		m.mu.Lock()
		freed := m.freed
		name, err := m.latest(id)
		if err == nil && m.slots[name] == nil && m.incoming[id] == 0 {
			m.slots[name] = &slot{writers: 1, closed: true}
			m.mu.Unlock()
			return name, func() error { return m.leave(name, false) }, nil
		}
		m.mu.Unlock()
		if err != nil {
			return "", nil, err
		}
		select {
		case <-freed:
		case <-tooLong.C:
			return "", nil, fmt.Errorf("%w, for %s by now", ErrInUse, patience)
		case <-ctx.Done():
			return "", nil, fmt.Errorf("wait for the steps that use it: %w", ctx.Err())
		}
	}
}

// latest is the folder of an id that was used last.
func (m *Mounts) latest(id string) (string, error) {
	all, err := m.list()
	if err != nil {
		return "", err
	}
	best := ""
	for name, i := range all {
		if i.ID == id && (best == "" || i.LastUsed.After(all[best].LastUsed) || i.LastUsed.Equal(all[best].LastUsed) && name < best) {
			best = name
		}
	}
	if best == "" {
		return "", ErrNone
	}
	return best, nil
}

// Has tells whether there is a mount of an id.
func (m *Mounts) Has(id string) bool {
	_, err := m.latest(id)
	return err == nil
}

func keptIn(ctx context.Context, blobs Blobs, known []Chunk) (map[digest.Digest]Chunk, error) {
	kept := map[digest.Digest]Chunk{} // by content
	var ask []ocispecs.Descriptor
	for _, c := range known {
		if _, ok := kept[c.Digest]; !ok {
			kept[c.Digest] = c
			ask = append(ask, c.Blob)
		}
	}
	if len(ask) == 0 {
		return kept, nil
	}
	missing, err := blobs.Missing(ctx, ask)
	if err != nil {
		return nil, err
	}
	gone := map[digest.Digest]bool{}
	for _, d := range missing {
		gone[d.Digest] = true
	}
	for d, c := range kept {
		if gone[c.Blob.Digest] {
			delete(kept, d)
		}
	}
	return kept, nil
}

// survey cuts a mount's files into chunks. What is not in kept goes to the
// spool. Files that are as the last survey has them are not read, if their
// chunks are kept.
func (m *Mounts) survey(ctx context.Context, name string, kept map[digest.Digest]Chunk, sp *spool) (*Snapshot, error) {
	root, err := safepath.Open(filepath.Join(m.dir, name, filesName))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	began := time.Now()
	t, err := list(root)
	if err != nil {
		return nil, err
	}
	sv := &surveyor{tree: t, old: m.loadMemo(name), kept: kept, spool: sp}
	if err := sv.run(ctx); err != nil {
		return nil, err
	}
	s := &Snapshot{Version: snapshotVersion, Created: began.UTC(), Files: len(t.entries)}
	for _, c := range sv.cuts {
		s.Chunks = append(s.Chunks, c.Chunk)
	}
	if err := s.checkChunks(); err != nil {
		return nil, err
	}
	return s, m.saveMemo(name, &memo{At: began.UnixNano(), Entries: t.entries, Cuts: sv.cuts})
}

func (s *Snapshot) checkChunks() error {
	if len(s.Chunks) > maxChunks {
		return fmt.Errorf("it has %d chunks: expected at most %d", len(s.Chunks), maxChunks)
	}
	return nil
}

// cut is where a chunk is in a tree's archive.
type cut struct {
	From, To position
	Final    bool // it ends where the archive does
	Chunk    Chunk
}

type surveyor struct {
	tree  *tree
	old   *memo
	kept  map[digest.Digest]Chunk
	spool *spool
	cuts  []cut
}

func (s *surveyor) run(ctx context.Context) error {
	starts := s.old.starts(s.kept)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0) + 1) // chunks in memory
	ch := newChunks(s.tree)
	defer ch.r.Close()
	var mu sync.Mutex
	pack := func(i int, data []byte) {
		group.Go(func() error {
			chunk, err := s.spool.add(data, s.kept)
			mu.Lock()
			defer mu.Unlock()
			s.cuts[i].Chunk = chunk
			return err
		})
	}
	read := func() error {
		at := position{}
		for ctx.Err() == nil {
			if c, ok := s.old.same(starts, s.tree, at); ok {
				mu.Lock()
				s.cuts = append(s.cuts, c)
				mu.Unlock()
				if at = c.To; c.Final {
					return nil
				}
				if err := ch.skip(at); err != nil {
					return err
				}
				continue
			}
			data, final, err := ch.next()
			if errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			c := cut{From: at, To: s.tree.advance(at, int64(len(data))), Final: final}
			mu.Lock()
			s.cuts = append(s.cuts, c)
			i := len(s.cuts) - 1
			mu.Unlock()
			pack(i, data)
			at = c.To
		}
		return context.Cause(ctx)
	}
	err := read()
	return cmp.Or(group.Wait(), err)
}

func (r *memo) chunks() (all []Chunk) {
	for _, c := range r.Cuts {
		all = append(all, c.Chunk)
	}
	return append(all, r.Known...)
}

// start is where a chunk begins, by the path of its first file.
type start struct {
	path   string
	offset int64
}

// starts are the cuts whose chunks are kept.
func (r *memo) starts(kept map[digest.Digest]Chunk) map[start]int {
	all := map[start]int{}
	for i, c := range r.Cuts {
		if k, ok := kept[c.Chunk.Digest]; !ok || k.Blob.Digest != c.Chunk.Blob.Digest {
			continue
		}
		s := start{offset: c.From.Offset}
		if c.From.Entry < len(r.Entries) {
			s.path = r.Entries[c.From.Entry].Path
		}
		all[s] = i
	}
	return all
}

// same returns the chunk that begins at a position of t, if none of its files
// have changed.
func (r *memo) same(starts map[start]int, t *tree, at position) (cut, bool) {
	s := start{offset: at.Offset}
	if at.Entry < len(t.entries) {
		s.path = t.entries[at.Entry].Path
	}
	i, ok := starts[s]
	if !ok {
		return cut{}, false
	}
	c := r.Cuts[i]
	last := c.To.Entry // the first entry that is not looked at
	if c.To.Offset > 0 && last < len(r.Entries) {
		last++
	}
	was, is := r.Entries[c.From.Entry:last], t.entries[at.Entry:]
	if len(is) < len(was) || (c.Final || c.To.Entry == len(r.Entries)) && len(is) != len(was) {
		return cut{}, false
	}
	for j, e := range was {
		if e.Path != is[j].Path || e.LinkTo != is[j].LinkTo || e.Stat != is[j].Stat || e.Stat.Ctime > r.At-int64(tick) {
			return cut{}, false
		}
	}
	for j, e := range was {
		is[j].Length = e.Length
	}
	c.To.Entry += at.Entry - c.From.Entry
	c.From = at
	return c, true
}

// spool keeps compressed chunks on disk until they are sent.
type spool struct {
	file *os.File
	enc  *zstd.Encoder

	mu   sync.Mutex
	size int64
	at   map[digest.Digest]int64 // of blobs
	desc []ocispecs.Descriptor
}

func newSpool(dir string) (*spool, error) {
	f, err := os.CreateTemp(dir, incomingPrefix)
	if err != nil {
		return nil, err
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)))
	return &spool{file: f, enc: enc, at: map[digest.Digest]int64{}}, errors.Join(err, os.Remove(f.Name()))
}

// Close gives the disk's room back.
func (s *spool) Close() error { return s.file.Close() }

// add compresses a chunk, unless it is kept.
func (s *spool) add(data []byte, kept map[digest.Digest]Chunk) (Chunk, error) {
	c := Chunk{Digest: digest.FromBytes(data), Size: int64(len(data))}
	if k, ok := kept[c.Digest]; ok {
		return k, nil
	}
	packed := s.enc.EncodeAll(data, nil)
	c.Blob = ocispecs.Descriptor{MediaType: MediaType, Digest: digest.FromBytes(packed), Size: int64(len(packed))}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.at[c.Blob.Digest]; ok {
		return c, nil
	}
	if _, err := s.file.WriteAt(packed, s.size); err != nil {
		return c, fmt.Errorf("keep chunk to be sent: %w", err)
	}
	s.at[c.Blob.Digest] = s.size
	s.size += c.Blob.Size
	s.desc = append(s.desc, c.Blob)
	return c, nil
}

// send uploads what is missing of the spool.
func (s *spool) send(ctx context.Context, blobs Blobs) (sent Uploaded, err error) {
	if len(s.desc) == 0 {
		return sent, nil
	}
	missing, err := blobs.Missing(ctx, slices.Clone(s.desc))
	if err != nil {
		return sent, err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(uploadsAtOnce)
	for _, d := range missing {
		at, ok := s.at[d.Digest]
		if !ok {
			return sent, fmt.Errorf("asked for %s, which is no chunk of it", d.Digest)
		}
		sent.Chunks++
		sent.Bytes += d.Size
		group.Go(func() error {
			return blobs.Upload(ctx, d, func(context.Context) (io.ReadCloser, error) {
				return io.NopCloser(io.NewSectionReader(s.file, at, d.Size)), nil
			})
		})
	}
	return sent, group.Wait()
}

// WriteArchive writes the files of the mount that was last used of an id as a
// tar archive. Nobody may use the mount meanwhile.
func (m *Mounts) WriteArchive(ctx context.Context, id string, patience time.Duration, w io.Writer) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("export cache mount %q: %w", Name(id), err)
		}
	}()
	name, release, err := m.enter(ctx, id, patience)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	root, err := safepath.Open(filepath.Join(m.dir, name, filesName))
	if err != nil {
		return err
	}
	defer root.Close()
	t, err := list(root)
	if err != nil {
		return err
	}
	r := t.read(position{})
	defer r.Close()
	_, err = io.Copy(w, r)
	return err
}
