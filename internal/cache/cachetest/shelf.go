package cachetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/cache"
)

// Shelf is a [cache.Shelf] in memory. It counts what it is asked, and is as
// unreliable as it is told to be.
type Shelf struct {
	// Fault is called before each call, by the method's name; an error fails the
	// call. It may take its time. Nil does nothing.
	Fault func(method string) error
	// Corrupt may change what a look-up returns. Nil leaves it.
	Corrupt func(name string, record []byte) []byte

	mu      sync.Mutex
	records map[string][]byte
	blobs   map[digest.Digest][]byte
	calls   map[string]int
	asked   map[string]int // names or digests, by method
}

var _ cache.Shelf = (*Shelf)(nil)

// NewShelf returns an empty shelf.
func NewShelf() *Shelf {
	return &Shelf{records: map[string][]byte{}, blobs: map[digest.Digest][]byte{}, calls: map[string]int{}, asked: map[string]int{}}
}

func (s *Shelf) enter(ctx context.Context, method string, asked int) error {
	s.mu.Lock()
	s.calls[method]++
	s.asked[method] += asked
	s.mu.Unlock()
	if s.Fault != nil {
		if err := s.Fault(method); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// Calls is how often a method was called, and for how much in all.
func (s *Shelf) Calls(method string) (calls, asked int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[method], s.asked[method]
}

// Records implements [cache.Shelf].
func (s *Shelf) Records(ctx context.Context, names []string) (map[string][]byte, error) {
	if err := s.enter(ctx, "Records", len(names)); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	found := map[string][]byte{}
	for _, n := range names {
		data, ok := s.records[n]
		if ok && s.Corrupt != nil {
			data = s.Corrupt(n, slices.Clone(data))
		}
		if ok {
			found[n] = data
		}
	}
	return found, nil
}

// Put implements [cache.Shelf].
func (s *Shelf) Put(ctx context.Context, name string, record []byte, needs []ocispecs.Descriptor, replace bool) (bool, error) {
	if err := s.enter(ctx, "Put", 1); err != nil {
		return false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range needs {
		if _, ok := s.blobs[d.Digest]; !ok {
			return false, fmt.Errorf("record %s needs %s, which is not there", name, d.Digest)
		}
	}
	if _, ok := s.records[name]; ok && !replace {
		return false, nil
	}
	s.records[name] = slices.Clone(record)
	return true, nil
}

// Missing implements [cache.Shelf].
func (s *Shelf) Missing(ctx context.Context, blobs []ocispecs.Descriptor) (missing []ocispecs.Descriptor, err error) {
	if err := s.enter(ctx, "Missing", len(blobs)); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range blobs {
		if _, ok := s.blobs[d.Digest]; !ok {
			missing = append(missing, d)
		}
	}
	return missing, nil
}

// Upload implements [cache.Shelf].
func (s *Shelf) Upload(ctx context.Context, blob ocispecs.Descriptor, open func(context.Context) (io.ReadCloser, error)) error {
	if err := s.enter(ctx, "Upload", 1); err != nil {
		return err
	}
	rc, err := open(ctx)
	if err != nil {
		return err
	}
	defer rc.Close()
	data, err := io.ReadAll(rc)
	if err != nil {
		return err
	}
	if digest.FromBytes(data) != blob.Digest {
		return errors.New("blob has another digest")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blobs[blob.Digest] = data
	return nil
}

// Origin implements [cache.Shelf].
func (s *Shelf) Origin() string { return "memory:" }

// Fetch opens a blob: a shelf is a layer.Fetcher of its own blobs.
func (s *Shelf) Fetch(ctx context.Context, _ string, d ocispecs.Descriptor) (io.ReadCloser, error) {
	if err := s.enter(ctx, "Fetch", 1); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	data, ok := s.blobs[d.Digest]
	if !ok {
		return nil, fmt.Errorf("blob %s is not there", d.Digest)
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

// Names are those of all records, sorted.
func (s *Shelf) Names() (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := range s.records {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// Change replaces a record's bytes, whatever they are; nil removes it.
func (s *Shelf) Change(name string, record []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.records[name] = record; record == nil {
		delete(s.records, name)
	}
}

// Record returns a record's bytes.
func (s *Shelf) Record(name string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.records[name]
}

// Blobs are the digests of what is kept, sorted.
func (s *Shelf) Blobs() (all []digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for d := range s.blobs {
		all = append(all, d)
	}
	slices.Sort(all)
	return all
}

// Lose removes a blob, as a careless owner of the place would.
func (s *Shelf) Lose(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.blobs, d)
}
