package layer

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"
)

// Paths calls f with everything that the top layer of r brings, as paths without
// a leading slash. A layer of a registry is pulled for that.
func (s *Store) Paths(ctx context.Context, r *Ref, f func(path string)) error {
	if err := s.pin(r); err != nil {
		return err
	}
	defer s.unpin(r)
	if err := s.materialize(ctx, r); err != nil {
		return err
	}
	if err := s.changes(ctx, r, pathSink(f)); err != nil {
		return fmt.Errorf("list files of layer %s: %w", r.id, err)
	}
	return nil
}

// pathSink tells of what is there, not of what is gone.
type pathSink func(string)

func (f pathSink) put(path string, _ int, _ string, _ *unix.Stat_t) error {
	f(path)
	return nil
}
func (pathSink) remove(string) error { return nil }
func (pathSink) opaque(string) error { return nil }
