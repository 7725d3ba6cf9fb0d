package layer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	blobs "github.com/kiln-build/kiln/internal/content"
	"github.com/kiln-build/kiln/internal/progress"
)

// LazyBlob is a layer of an image that need not be here yet.
type LazyBlob struct {
	Desc   ocispecs.Descriptor
	DiffID digest.Digest
	Origin string // given to the Fetcher when the blob is wanted
	// Windows says that the image was pulled for Windows, whose layers have the
	// files in a folder.
	Windows bool
	// CreatedAt and Description are what whoever made the layer said of it; zero
	// for nothing.
	CreatedAt   time.Time
	Description string
}

// FromBlobs returns the state that image layers make on top of each other, base
// first. Nothing is pulled until it is needed.
func (s *Store) FromBlobs(_ context.Context, lazy []LazyBlob) (*Ref, error) {
	var r *Ref
	var diffIDs []digest.Digest
	for i, b := range lazy {
		if err := b.Desc.Digest.Validate(); err != nil {
			return nil, fmt.Errorf("image layer %d: digest %q: %w", i, b.Desc.Digest, err)
		}
		if err := b.DiffID.Validate(); err != nil {
			return nil, fmt.Errorf("image layer %d (%s): diff id %q: %w", i, b.Desc.Digest, b.DiffID, err)
		}
		if b.Desc.Size < 0 {
			return nil, fmt.Errorf("image layer %d (%s): size %d is negative", i, b.Desc.Digest, b.Desc.Size)
		}
		diffIDs = append(diffIDs, b.DiffID)
		var err error
		if r, err = s.fromBlob(r, b, identity.ChainID(slices.Clone(diffIDs))); err != nil {
			return nil, fmt.Errorf("image layer %d (%s): %w", i, b.Desc.Digest, err)
		}
	}
	return r, nil
}

func (s *Store) fromBlob(parent *Ref, b LazyBlob, chain digest.Digest) (*Ref, error) {
	// The compressed bytes count, too: an image keeps the layers it came with.
	parts := []string{"image", parent.ID(), b.Desc.Digest.String(), b.DiffID.String()}
	if b.Windows {
		parts = append(parts, "windows")
	}
	id := derivedID(parts...)
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.refs[id]; r != nil {
		s.touch(r)
		if b.Origin == "" || r.rec.Origin == b.Origin {
			return r, nil
		}
		r.rec.Origin = b.Origin // the one that can be reached now
		return r, s.saveLocked(r)
	}
	r := &Ref{store: s, id: id, parent: parent, depth: depthOf(parent) + 1, rec: Record{
		ID: id, Parent: parent.ID(), Origin: b.Origin, Type: "regular",
		Description: strings.TrimSpace("pulled " + b.Origin),
		Windows:     b.Windows,
		DiffID:      b.DiffID, ChainID: chain, CreatedAt: time.Now(),
		Blobs: map[string]ocispecs.Descriptor{imageVariant: b.Desc},
	}}
	if !b.CreatedAt.IsZero() {
		r.rec.CreatedAt = b.CreatedAt
	}
	if b.Description != "" {
		r.rec.Description = b.Description
	}
	s.adoptLocked(r)
	s.refs[id] = r
	s.touch(r)
	return r, s.saveLocked(r)
}

// adoptLocked takes the snapshot that another image with the same files below
// and in this layer has unpacked.
func (s *Store) adoptLocked(r *Ref) bool {
	name := s.chains[r.rec.ChainID]
	if name == "" || r.rec.ChainID == "" {
		return false
	}
	for _, other := range s.refs {
		if other.rec.Snapshot == name && other.rec.Windows == r.rec.Windows {
			r.rec.Snapshot, r.rec.Size, r.dir = name, other.rec.Size, other.dir
			return true
		}
	}
	return false
}

func derivedID(parts ...string) string {
	return digest.FromString(strings.Join(parts, "\x00")).Encoded()[:32]
}

// materialize sees to it that the files of r and of all below are here.
func (s *Store) materialize(ctx context.Context, r *Ref) error {
	if s.here(r) {
		return nil
	}
	return s.wherever(r, func() error {
		return s.unpacks.do(ctx, r.id, func(ctx context.Context) error {
			if err := s.pin(r); err != nil {
				return err
			}
			defer s.unpin(r)
			return s.unpack(ctx, r)
		})
	})
}

// wherever calls get, which pulls blobs of r and of what is below, once more if what it
// did not get can be had from elsewhere by now. What it shares with others may have
// begun before a build said from where.
func (s *Store) wherever(r *Ref, get func() error) (err error) {
	const attempts = 3 // each place may turn out to have lost the blob
	for range attempts {
		var l *lostError
		if err = get(); !errors.As(err, &l) || !s.elsewhere(r, l) {
			break
		}
	}
	return err
}

// elsewhere tells whether a blob has got another origin than the one that has lost it.
func (s *Store) elsewhere(r *Ref, l *lostError) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ; r != nil; r = r.parent {
		if r.rec.Blobs[imageVariant].Digest == l.blob {
			return r.rec.Origin != l.origin
		}
	}
	return false
}

func (s *Store) here(r *Ref) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ; r != nil; r = r.parent {
		if r.dir == "" {
			return false
		}
	}
	return true
}

// unpack gets the layers of a chain side by side: only the last bit of each
// needs the ones below.
func (s *Store) unpack(ctx context.Context, r *Ref) error {
	missing, err := s.missing(r)
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.materialize(gctx, r.parent) })
	var u *unpacking
	if missing {
		u = &unpacking{s: s, r: r}
		g.Go(func() error {
			if err := u.extract(gctx); err != nil {
				return fmt.Errorf("layer %s: %w", u.blob.Digest, err)
			}
			return nil
		})
	}
	err = g.Wait()
	if u == nil {
		return err
	}
	if err == nil {
		if err = u.finish(ctx); err != nil {
			err = fmt.Errorf("layer %s: %w", u.blob.Digest, err)
		}
	}
	return errors.Join(err, u.close())
}

// missing says whether the files of r must be unpacked.
func (s *Store) missing(r *Ref) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case r.dir != "":
		return false, nil
	case s.adoptLocked(r):
		return false, s.saveLocked(r)
	}
	return true, nil
}

// sourceBlob is a blob here that has the files of a layer as they are.
func (s *Store) sourceBlob(ctx context.Context, rec Record) (ocispecs.Descriptor, bool) {
	for _, name := range slices.Sorted(maps.Keys(rec.Blobs)) {
		d := rec.Blobs[name]
		if (name == imageVariant || !changesTimes(name)) && has(ctx, s.c.Content, d.Digest) {
			return d, true
		}
	}
	return ocispecs.Descriptor{}, false
}

// provide returns a blob that has the files of a layer, pulling it if need be.
func (s *Store) provide(ctx context.Context, rec Record) (ocispecs.Descriptor, error) {
	if d, ok := s.sourceBlob(ctx, rec); ok {
		return d, nil
	}
	d, ok := rec.Blobs[imageVariant]
	if !ok {
		return d, fmt.Errorf("%w: layer %s has no files and no blob here", ErrNotFound, rec.ID)
	}
	return d, s.pull(ctx, d, rec.Origin)
}

// pull brings a blob into the content store, once for all who want it.
func (s *Store) pull(ctx context.Context, d ocispecs.Descriptor, origin string) error {
	if has(ctx, s.c.Content, d.Digest) {
		return nil
	}
	return s.pulls.do(ctx, d.Digest.String(), func(ctx context.Context) error {
		if has(ctx, s.c.Content, d.Digest) {
			return nil
		}
		if s.c.Fetcher == nil || origin == "" {
			return fmt.Errorf("pull %s: %w: it is not here and nothing says where to get it", d.Digest, ErrNotFound)
		}
		select {
		case s.downloads <- struct{}{}:
			defer func() { <-s.downloads }()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		task := progress.StepFrom(ctx).Task(d.Digest.String(), d.Size)
		defer task.Done()
		body, err := s.c.Fetcher.Fetch(ctx, origin, d)
		if err != nil {
			return lost(ctx, d.Digest, origin, fmt.Errorf("pull %s from %s: %w", d.Digest, origin, err))
		}
		// A connection that hangs is let go when the last who waits has left.
		stop := context.AfterFunc(ctx, func() { _ = body.Close() })
		err = blobs.Ingest(ctx, s.c.Content, d, task.Reader(body))
		if stop() {
			_ = body.Close() // everything of use has been read
		}
		if err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return lost(ctx, d.Digest, origin, fmt.Errorf("pull from %s: %w", origin, err))
		}
		return nil
	})
}

// lostError says that a blob cannot be had any more from where it came.
type lostError struct {
	error
	blob   digest.Digest
	origin string
}

func (e *lostError) Unwrap() error { return e.error }

// Lost tells the solver that what it remembers is of no use.
func (e *lostError) Lost() bool { return true }

// lost is err, unless nobody waited for the blob any more.
func lost(ctx context.Context, blob digest.Digest, origin string, err error) error {
	if ctx.Err() != nil {
		return err
	}
	return &lostError{err, blob, origin}
}

// ReaderAt opens a blob of an image, pulling it first if it is not here.
func (s *Store) ReaderAt(ctx context.Context, b Blob) (content.ReaderAt, error) {
	err := s.wherever(b.Ref, func() error { return s.pull(ctx, b.Desc, b.Ref.Record().Origin) })
	if err != nil {
		return nil, err
	}
	return s.c.Content.ReaderAt(ctx, b.Desc)
}
